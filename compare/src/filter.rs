//! Which system calls a process's filters let through, read from the kernel (`PTRACE_SECCOMP_GET_FILTER`, ptrace(2)) and followed
//! along every path that an argument can take it (seccomp(2), bpf(4)).

use std::{collections::HashSet, io};

use crate::calls;

/// An instruction of a classic BPF program.
pub type Instruction = libc::sock_filter;

/// What a filter says about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It fails, or ends the process.
    Never,
    /// It is made with some arguments.
    SomeArguments,
    /// It is made.
    Always,
}

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
const ARCHITECTURE: u32 = 0xc000_003e;

/// Where the call's number and the architecture stand in `struct seccomp_data`.
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;

/// Most states that are looked at in one program: filters are straight on, so there are few.
const STATES_MAX: usize = 200_000;

/// Where a path through a program is, with what is known of its registers; what depends on arguments is not.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    at: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; 16],
}

/// What all of these filters together say about a call. Each has its say, and the strictest counts.
pub fn verdict(filters: &[Vec<Instruction>], number: u32) -> Verdict {
    let each = filters.iter().map(|program| of_one(program, number));
    each.min().unwrap_or(Verdict::Always)
}

fn of_one(program: &[Instruction], number: u32) -> Verdict {
    let start = State {
        at: 0,
        a: Some(0),
        x: Some(0),
        memory: [Some(0); 16],
    };
    let (mut waiting, mut seen) = (vec![start], HashSet::new());
    let (mut lets_through, mut refuses) = (false, false);
    while let Some(state) = waiting.pop() {
        if seen.len() >= STATES_MAX {
            // Not followed to its end: nothing is promised.
            return Verdict::SomeArguments;
        }
        if !seen.insert(state.clone()) {
            continue;
        }
        match step(program, state, number) {
            Step::On(states) => waiting.extend(states),
            Step::Returns(Some(action)) => match action & libc::SECCOMP_RET_ACTION_FULL {
                libc::SECCOMP_RET_ALLOW | libc::SECCOMP_RET_LOG => lets_through = true,
                _ => refuses = true,
            },
            Step::Returns(None) => (lets_through, refuses) = (true, true),
        }
    }
    match (lets_through, refuses) {
        (true, false) => Verdict::Always,
        (true, true) => Verdict::SomeArguments,
        _ => Verdict::Never,
    }
}

enum Step {
    On(Vec<State>),
    Returns(Option<u32>),
}

/// Does one instruction. What the kernel would have refused to load ends the path as a refusal.
fn step(program: &[Instruction], state: State, number: u32) -> Step {
    let Some(instruction) = program.get(state.at) else {
        return Step::Returns(Some(libc::SECCOMP_RET_KILL_PROCESS));
    };
    let (code, k) = (u32::from(instruction.code), instruction.k);
    let mut next = state.clone();
    next.at += 1;
    let slot = (k as usize).min(15);
    match code & 0x07 {
        // LD and LDX: by mode.
        0x00 | 0x01 => {
            let value = match code & 0xe0 {
                0x00 => Some(k),
                0x20 if k == NUMBER_AT => Some(number),
                0x20 if k == ARCHITECTURE_AT => Some(ARCHITECTURE),
                0x60 => state.memory[slot],
                // The size of seccomp_data.
                0x80 => Some(64),
                _ => None,
            };
            if code & 0x07 == 0 {
                next.a = value;
            } else {
                next.x = value;
            }
        }
        0x02 => next.memory[slot] = state.a,
        0x03 => next.memory[slot] = state.x,
        0x04 => {
            let operand = if code & 0x08 == 0 { Some(k) } else { state.x };
            next.a = state
                .a
                .zip(operand)
                .and_then(|(a, b)| arithmetic(code & 0xf0, a, b));
        }
        0x05 => return jump(*instruction, &state),
        0x06 => return Step::Returns(if code & 0x18 == 0x10 { state.a } else { Some(k) }),
        _ if code & 0xf8 == 0 => next.x = state.a,
        _ => next.a = state.x,
    }
    Step::On(vec![next])
}

fn arithmetic(operation: u32, a: u32, b: u32) -> Option<u32> {
    Some(match operation {
        0x00 => a.wrapping_add(b),
        0x10 => a.wrapping_sub(b),
        0x20 => a.wrapping_mul(b),
        0x30 => a.checked_div(b)?,
        0x40 => a | b,
        0x50 => a & b,
        0x60 => a.checked_shl(b).unwrap_or(0),
        0x70 => a.checked_shr(b).unwrap_or(0),
        0x80 => a.wrapping_neg(),
        0xa0 => a ^ b,
        _ => return None,
    })
}

fn jump(instruction: Instruction, state: &State) -> Step {
    let to = |offset: usize| State {
        at: state.at + 1 + offset,
        ..state.clone()
    };
    let code = u32::from(instruction.code);
    if code & 0xf0 == 0 {
        return Step::On(vec![to(instruction.k as usize)]);
    }
    let operand = if code & 0x08 == 0 {
        Some(instruction.k)
    } else {
        state.x
    };
    let (yes, no) = (to(instruction.jt.into()), to(instruction.jf.into()));
    let Some((a, b)) = state.a.zip(operand) else {
        return Step::On(vec![yes, no]);
    };
    let holds = match code & 0xf0 {
        0x10 => a == b,
        0x20 => a > b,
        0x30 => a >= b,
        _ => a & b != 0,
    };
    Step::On(vec![if holds { yes } else { no }])
}

/// The filters of a thread, the newest first. It stops for a moment.
///
/// # Errors
/// Those of ptrace(2): this user is not root, the kernel has no `CONFIG_CHECKPOINT_RESTORE`, the thread is traced already.
pub fn of_thread(thread: i32) -> io::Result<Vec<Vec<Instruction>>> {
    request(libc::PTRACE_SEIZE, thread, 0, std::ptr::null_mut())?;
    let stopped = stop(thread);
    let filters = stopped.and_then(|()| read(thread));
    // A thread that has ended meanwhile is let go of already.
    let _ = request(libc::PTRACE_DETACH, thread, 0, std::ptr::null_mut());
    filters
}

fn stop(thread: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, thread, 0, std::ptr::null_mut())?;
    let mut status = 0;
    // SAFETY: the kernel writes one int, which is live.
    match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) } {
        -1 => Err(io::Error::last_os_error()),
        _ if libc::WIFSTOPPED(status) => Ok(()),
        _ => Err(io::Error::other("the thread has ended")),
    }
}

/// `PTRACE_SECCOMP_GET_FILTER` (include/uapi/linux/ptrace.h).
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;

fn read(thread: i32) -> io::Result<Vec<Vec<Instruction>>> {
    let mut filters = Vec::new();
    loop {
        let index = filters.len();
        let count = match request(SECCOMP_GET_FILTER, thread, index, std::ptr::null_mut()) {
            Ok(count) => count as usize,
            // There are no more, or none at all.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => return Ok(filters),
            Err(e) => return Err(e),
        };
        let empty = Instruction {
            code: 0,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let mut program = vec![empty; count];
        request(SECCOMP_GET_FILTER, thread, index, program.as_mut_ptr().cast())?;
        filters.push(program);
    }
}

/// ptrace(2), for requests whose data is null or a buffer that the kernel fills.
fn request(request: libc::c_uint, thread: i32, address: usize, data: *mut libc::c_void) -> io::Result<i64> {
    // SAFETY: `data` is null, or as long as the kernel has said for this filter, which does not change.
    match unsafe { libc::ptrace(request, thread, address as *mut libc::c_void, data) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// How many of the kernel's calls are let through, and how many of these only with some arguments.
pub fn count(filters: &[Vec<Instruction>]) -> (usize, usize) {
    let verdicts = || {
        (0..calls::NUMBERS)
            .filter(|n| calls::is_known(*n))
            .map(|number| verdict(filters, number))
    };
    (
        verdicts().filter(|verdict| *verdict > Verdict::Never).count(),
        verdicts()
            .filter(|verdict| *verdict == Verdict::SomeArguments)
            .count(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction {
            code: code as u16,
            jt,
            jf,
            k,
        }
    }

    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

    /// Allows read always, ioctl where the second argument's low half is 7, nothing else and no other architecture.
    fn program() -> Vec<Instruction> {
        vec![
            instruction(LOAD, 0, 0, 4),
            instruction(EQUAL, 0, 6, ARCHITECTURE),
            instruction(LOAD, 0, 0, 0),
            instruction(EQUAL, 3, 0, 0),
            instruction(EQUAL, 0, 3, 16),
            instruction(LOAD, 0, 0, 24),
            instruction(EQUAL, 0, 1, 7),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        ]
    }

    #[test]
    fn each_path_that_arguments_can_take_is_followed() {
        let filters = [program()];
        assert_eq!(verdict(&filters, 0), Verdict::Always);
        assert_eq!(verdict(&filters, 16), Verdict::SomeArguments);
        assert_eq!(verdict(&filters, 1), Verdict::Never);
        assert_eq!(count(&filters), (2, 1));
    }

    #[test]
    fn the_strictest_of_several_filters_counts() {
        let all = vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)];
        assert_eq!(verdict(&[all.clone(), program()], 1), Verdict::Never);
        assert_eq!(verdict(&[all.clone(), program()], 16), Verdict::SomeArguments);
        let none = vec![instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | 1)];
        assert_eq!(count(&[all.clone(), none]), (0, 0));
        assert_eq!(count(&[all]).0, count(&[]).0);
        assert!(count(&[]).0 > 300, "without a filter all are made");
    }

    #[test]
    fn a_mask_of_the_number_is_computed() {
        let program = vec![
            instruction(LOAD, 0, 0, 0),
            instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, 1),
            instruction(EQUAL, 0, 1, 1),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
            instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO),
        ];
        let filters = [program];
        assert_eq!(
            (verdict(&filters, 3), verdict(&filters, 4)),
            (Verdict::Always, Verdict::Never)
        );
    }

    #[test]
    fn a_program_without_an_end_lets_nothing_through() {
        assert_eq!(verdict(&[vec![instruction(LOAD, 0, 0, 0)]], 0), Verdict::Never);
    }

    #[test]
    fn a_process_without_filters_has_none_and_one_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let read = of_thread(child.id() as i32);
        child.kill().unwrap();
        child.wait().unwrap();
        match read {
            // The tests may themselves run under a container's filter.
            Ok(filters) => assert!(count(&filters).0 > 100),
            Err(e) => assert!(
                matches!(e.raw_os_error(), Some(libc::EPERM | libc::EACCES)),
                "{e}"
            ),
        }
        assert!(of_thread(child.id() as i32).is_err());
    }
}
