//! Compiles the hostile guest's kernel (`hostile/`) with the system's C compiler, which Rust programs are linked with anyway.

use std::{env, path::Path, process::Command};

/// No library, no vector registers, nothing below the stack pointer: it is a kernel.
const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    // It reads tables that lie at low addresses.
    "-Wno-array-bounds",
    "-ffreestanding",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    "-fcf-protection=none",
    "-fno-pie",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    // Its one segment is code and data.
    "-Wl,--no-warn-rwx-segments",
];

fn main() {
    let source = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("hostile");
    println!("cargo::rerun-if-changed=hostile");
    let kernel = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("hostile-kernel");
    let status = Command::new("cc")
        .args(FLAGS)
        .arg("-o")
        .arg(kernel)
        .arg("-T")
        .args([source.join("kernel.ld"), source.join("kernel.c")])
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(_) => panic!("the hostile guest's kernel does not compile"),
        Err(e) => panic!("cc, the system's C compiler, cannot be run: {e}"),
    }
}
