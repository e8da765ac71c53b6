//! Builds the system call filter of containers: a program of classic BPF (seccomp(2), Documentation/networking/filter.rst).
//!
//! A list of comparisons one after the other, as generators of filters make it, is some 700 instructions long, and the kernel goes
//! through all of it once for each system call that there is when the filter is set. This one is a search tree over ranges of
//! numbers, some eight comparisons deep.

use std::{env, fmt::Write, fs, path::Path};

#[path = "src/filter/table.rs"]
mod table;

use table::{ALLOWED, CHECKED, Check, UNKNOWN, UNPACKING};

/// linux/audit.h: `AUDIT_ARCH_X86_64`.
const ARCHITECTURE: u32 = 0xc000_003e;

/// Offsets in `struct seccomp_data`; of an argument the low half, which is all that the kernel takes of these.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENT: u32 = 16;

/// linux/bpf_common.h and linux/filter.h.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

/// linux/seccomp.h.
const ALLOW: u32 = 0x7fff_0000;
const ERROR: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Code, jump if true, jump if false, constant.
type Instruction = (u16, u8, u8, u32);

/// What happens to the numbers from one on, up to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Always(u32),
    Asks(Check),
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/filter/table.rs");
    let mut text = String::new();
    write_program(
        &mut text,
        "CONTAINER",
        "What the processes of a container may call.",
        &ranges(ALLOWED, CHECKED, UNKNOWN),
    );
    write_program(
        &mut text,
        "UNPACK",
        "What a process that unpacks an image may call.",
        &ranges(UNPACKING, &[], &[]),
    );
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    fs::write(Path::new(&out).join("filter.rs"), text).expect("the output directory can be written");
}

/// Writes a program down as Rust.
fn write_program(text: &mut String, name: &str, what: &str, ranges: &[(u32, Verdict)]) {
    let mut program = vec![
        (LOAD, 0, 0, ARCH),
        (JUMP_EQUAL, 1, 0, ARCHITECTURE),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ];
    program.extend(tree(ranges));
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "/// {what}\npub static {name}: [libc::sock_filter; {}] = [",
        program.len()
    );
    for (code, jt, jf, k) in &program {
        let _ = writeln!(
            text,
            "    libc::sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},"
        );
    }
    text.push_str("];\n");
}

/// Where each verdict begins.
fn ranges(allowed: &[i64], checked: &[(i64, Check)], unknown: &[i64]) -> Vec<(u32, Verdict)> {
    let mut verdicts: Vec<(u32, Verdict)> = allowed
        .iter()
        .map(|&number| (number, Verdict::Always(ALLOW)))
        .chain(
            checked
                .iter()
                .map(|&(number, check)| (number, Verdict::Asks(check))),
        )
        .chain(
            unknown
                .iter()
                .map(|&number| (number, Verdict::Always(ERROR | ENOSYS))),
        )
        .map(|(number, verdict)| (u32::try_from(number).expect("a system call's number"), verdict))
        .collect();
    verdicts.sort_by_key(|(number, _)| *number);
    let refused = Verdict::Always(ERROR | EPERM);
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut next = 0;
    let mut add = |start, verdict| {
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((start, verdict));
        }
    };
    for (number, verdict) in verdicts {
        assert!(number >= next, "system call {number} stands in the table twice");
        if number > next {
            add(next, refused);
        }
        add(number, verdict);
        next = number + 1;
    }
    add(next, refused);
    ranges
}

/// Finds the range that the number in the accumulator is in.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    let [(_, verdict)] = ranges else {
        let (below, above) = ranges.split_at(ranges.len() / 2);
        let below = tree(below);
        let far = u8::try_from(below.len()).expect("a jump over half of the tree");
        return [vec![(JUMP_AT_LEAST, far, 0, above[0].0)], below, tree(above)].concat();
    };
    match *verdict {
        Verdict::Always(action) => vec![(RETURN, 0, 0, action)],
        Verdict::Asks(check) => ask(check),
    }
}

/// Looks at the first argument.
fn ask(check: Check) -> Vec<Instruction> {
    let mut program = vec![(LOAD, 0, 0, ARGUMENT)];
    let (allow, refuse) = ((RETURN, 0, 0, ALLOW), (RETURN, 0, 0, ERROR | EPERM));
    match check {
        Check::NoneOf(bits) => program.extend([(JUMP_ANY_BIT, 1, 0, bits), allow, refuse]),
        Check::Not(value) => program.extend([(JUMP_EQUAL, 1, 0, value), allow, refuse]),
        Check::OneOf(values) => {
            for (index, &value) in values.iter().enumerate() {
                let to_allow = u8::try_from(values.len() - index).expect("a short list");
                program.push((JUMP_EQUAL, to_allow, 0, value));
            }
            program.extend([refuse, allow]);
        }
    }
    program
}
