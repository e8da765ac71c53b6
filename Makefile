# SPDX-License-Identifier: Apache-2.0
# What a person runs; each target is a few lines that call scripts with one job.

PREFIX ?= /usr/local
BRIG_LIB := build/lib/brig
CARGO_TARGET_DIR ?= target
# Static, and still at a random address: a start executes two programs of ours, and a dynamic loader would be a third of
# what each costs before its main.
TARGET := x86_64-unknown-linux-gnu
STATIC := RUSTFLAGS='-C target-feature=+crt-static'

.PHONY: help build demo test test-unit test-e2e test-rig bench-start fuzz fmt lint install uninstall clean

help:
	@echo 'make demo       install what is missing, build, run an image in a microVM and show what happened'
	@echo 'make test       unit tests, then the end-to-end tests on the /dev/kvm of this machine'
	@echo 'make test-rig   the end-to-end tests on a standard KVM, emulated by QEMU'
	@echo 'make bench-start  how long a start takes, cold and from a template, and what idle sandboxes cost'
	@echo 'make fuzz SECONDS=60  each fuzz target for so long'
	@echo 'make build      build/bin/brig and what belongs to it'
	@echo 'make install    into PREFIX=$(PREFIX)'
	@echo 'make fmt lint   format the code; check it with clippy'

build:
	tests/install-packages build
	$(STATIC) cargo build --locked --release --target $(TARGET) -p brig -p brig-vmm
	install -D -t build/bin $(CARGO_TARGET_DIR)/$(TARGET)/release/brig
	install -D -t $(BRIG_LIB) $(CARGO_TARGET_DIR)/$(TARGET)/release/brig-vmm
	guest-agent/build $(BRIG_LIB)/initrd.cpio
	images/welcome/build $(BRIG_LIB)/welcome.tar
	kernel=$$(kernel-config/build) && install -D -m 644 "$$kernel" $(BRIG_LIB)/vmlinux

demo: build
	tests/demo

test: build test-unit test-e2e

test-unit:
	tests/install-packages test
	kernel=$(CURDIR)/$(BRIG_LIB)/vmlinux; [ ! -f $$kernel ] || export BRIG_TEST_KERNEL=$$kernel; \
		cargo test --locked --workspace --exclude brig-tests

test-e2e:
	cargo test --locked -p brig-tests

test-rig: build
	tests/install-packages test
	tests/rig/test

bench-start: build
	tests/install-packages test
	cargo run --locked --quiet --release -p brig-tests --bin bench-start -- $(BENCH_ARGUMENTS)

fuzz:
	tests/install-packages test
	fuzz/run $(SECONDS)

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin build/bin/brig
	install -D -t $(DESTDIR)$(PREFIX)/lib/brig $(BRIG_LIB)/brig-vmm
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/brig $(BRIG_LIB)/vmlinux $(BRIG_LIB)/initrd.cpio $(BRIG_LIB)/welcome.tar

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/brig
	rm -rf $(DESTDIR)$(PREFIX)/lib/brig

clean:
	rm -rf build
	cargo clean
