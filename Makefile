# SPDX-License-Identifier: Apache-2.0
# What a person runs; each target is a few lines that call scripts with one job.

PREFIX ?= /usr/local
BRIG_LIB := build/lib/brig
CARGO_TARGET_DIR ?= target
# brig-registry is not static: names of hosts are resolved by what the system is configured to use, which glibc loads.
# Static, and still at a random address: a start executes three programs of ours, and a dynamic loader would be a third of
# what each costs before its main.
TARGET := x86_64-unknown-linux-gnu
STATIC := RUSTFLAGS='-C target-feature=+crt-static'

.PHONY: help build man demo test test-unit test-e2e test-rig test-big test-restores bench-start bench-container bench-images soak fuzz fmt lint install uninstall clean

help:
	@echo 'make demo       install what is missing, build, run an image in a microVM and show what happened'
	@echo 'make test       unit tests, then the end-to-end tests on the /dev/kvm of this machine'
	@echo 'make test-rig   the end-to-end tests on a standard KVM, emulated by QEMU'
	@echo 'make test-big   unpacks an image of 1 GiB and 100,000 files'
	@echo 'make test-restores  200 restores, 100 copies of a busy sandbox, 200 starts at once: here, and in the rig'
	@echo 'make bench-start  how long a start takes, cold and from a template, and what idle sandboxes cost'
	@echo 'make bench-container  how long a container takes, against crun and runc'
	@echo 'make bench-images  getting an image from a registry and unpacking it, against skopeo and umoci'
	@echo 'make soak MINUTES=15  sandboxes are started, used, killed and removed in parallel, with faults; the report is a table'
	@echo 'make fuzz SECONDS=60  each fuzz target for so long'
	@echo 'make build      build/bin/brig and what belongs to it'
	@echo 'make man        manual pages and shell completions: build/share'
	@echo 'make install    into PREFIX=$(PREFIX)'
	@echo 'make fmt lint   format the code; check it with clippy'

build:
	tests/install-packages build
	$(STATIC) cargo build --locked --release --target $(TARGET) -p brig -p brig-engine -p brig-vmm -p brig-cell
	install -D -t build/bin $(CARGO_TARGET_DIR)/$(TARGET)/release/brig
	install -D -t $(BRIG_LIB) $(addprefix $(CARGO_TARGET_DIR)/$(TARGET)/release/,brig-supervisor brig-vmm brig-cell)
	cargo build --locked --release -p brig-registry
	install -D -t $(BRIG_LIB) $(CARGO_TARGET_DIR)/release/brig-registry
	guest-agent/build $(BRIG_LIB)/initrd.cpio
	images/welcome/build $(BRIG_LIB)/welcome.tar
	images/bench/build $(BRIG_LIB)/bench.tar
	install -D -t $(BRIG_LIB) $(CARGO_TARGET_DIR)/$(TARGET)/release-small/brig-bench
	kernel=$$(kernel-config/build) && install -D -m 644 "$$kernel" $(BRIG_LIB)/vmlinux

man: build
	rm -rf build/share && mkdir -p build/share/man/man1 build/share/completions
	root=$$(mktemp -d) && trap 'rm -rf $$root' EXIT && export BRIG_ROOT=$$root BRIG_RUNTIME=$$root/run && \
		build/bin/brig manual build/share/man/man1 && \
		for shell in bash zsh fish; do build/bin/brig completion $$shell >build/share/completions/brig.$$shell || exit 1; done

demo: build
	tests/demo

test: build test-unit test-e2e

test-unit:
	tests/install-packages test
	kernel=$(CURDIR)/$(BRIG_LIB)/vmlinux; [ ! -f $$kernel ] || export BRIG_TEST_KERNEL=$$kernel; \
		cargo test --locked --workspace --exclude brig-tests --no-fail-fast

test-e2e:
	cargo test --locked -p brig-tests

test-rig: build
	tests/install-packages test
	tests/rig/test

test-big: build
	tests/install-packages test
	cargo run --locked --quiet --release -p brig-tests --bin big-image

# For hours, not minutes: docs/rig.md.
RESTORES := BRIG_TEST_RESTORES=200 BRIG_TEST_COPIES=100 BRIG_TEST_AT_ONCE=200

test-restores: build
	tests/install-packages test
	$(RESTORES) cargo test --locked -p brig-tests -- one_saved_guest
	$(RESTORES) BRIG_RIG_MIB=6144 BRIG_RIG_MINUTES=120 tests/rig/test one_saved_guest

bench-start: build
	tests/install-packages test
	cargo run --locked --quiet --release -p brig-tests --bin bench-start -- $(BENCH_ARGUMENTS)
	cargo run --locked --quiet --release -p brig-tests --bin bench-container

bench-container: build
	tests/install-packages test
	cargo run --locked --quiet --release -p brig-tests --bin bench-container -- $(BENCH_ARGUMENTS)

bench-images: build
	tests/install-packages test
	cargo run --locked --quiet --release -p brig-tests --bin bench-images -- $(BENCH_ARGUMENTS)

MINUTES ?= 15

soak: build
	tests/install-packages test
	# In the profile whose panics end no process: an action that fails is counted.
	cargo run --locked --quiet -p brig-tests --bin soak -- --minutes $(MINUTES) $(SOAK_ARGUMENTS)

fuzz:
	tests/install-packages test
	fuzz/run $(SECONDS)

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	# The fuzz targets are a workspace of their own, whose lock file follows every dependency that is added.
	cargo clippy --locked --manifest-path fuzz/Cargo.toml --all-targets --target-dir $(CARGO_TARGET_DIR) -- -D warnings

install: build
	install -D -t $(DESTDIR)$(PREFIX)/bin build/bin/brig
	install -D -t $(DESTDIR)$(PREFIX)/lib/brig $(addprefix $(BRIG_LIB)/,brig-supervisor brig-vmm brig-cell brig-registry brig-bench)
	sed 's|/usr/local/bin/|$(PREFIX)/bin/|' dist/brig-restart.service | \
		install -D -m 644 /dev/stdin $(DESTDIR)$(PREFIX)/lib/systemd/system/brig-restart.service
	install -D -m 644 dist/brig-restart.service $(DESTDIR)$(PREFIX)/lib/systemd/user/brig-restart.service
	sed -i 's|/usr/local/bin/|$(PREFIX)/bin/|' $(DESTDIR)$(PREFIX)/lib/systemd/user/brig-restart.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/brig $(BRIG_LIB)/vmlinux $(BRIG_LIB)/initrd.cpio $(addprefix $(BRIG_LIB)/,welcome.tar bench.tar)
	[ ! -d build/share ] || { \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/man/man1 build/share/man/man1/*.1 && \
		install -D -m 644 build/share/completions/brig.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/brig && \
		install -D -m 644 build/share/completions/brig.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_brig && \
		install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d build/share/completions/brig.fish; }

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/brig
	rm -rf $(DESTDIR)$(PREFIX)/lib/brig
	rm -f $(DESTDIR)$(PREFIX)/lib/systemd/system/brig-restart.service $(DESTDIR)$(PREFIX)/lib/systemd/user/brig-restart.service
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/brig.1 $(DESTDIR)$(PREFIX)/share/man/man1/brig-*.1
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/brig $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_brig
	rm -f $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/brig.fish

clean:
	rm -rf build
	cargo clean
