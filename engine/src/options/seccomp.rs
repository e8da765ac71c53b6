//! `--security-opt`: no new privileges, and filters of system calls as Docker's profiles describe them
//! (docs.docker.com/engine/security/seccomp), compiled to classic BPF (seccomp(2)).

use std::{collections::BTreeMap, fs::File, path::PathBuf, str::FromStr};

use brig_protocol::spec::{BpfInstruction, CapabilitySet, Seccomp};
use serde::{Deserialize, Serialize};
use syscalls::Sysno;

use super::capability;
use crate::{Error, files};

/// Most bytes of a profile: Docker's own has 15,000.
const PROFILE_BYTES: u64 = 1 << 20;

/// Most instructions that a kernel takes (linux/bpf_common.h, `BPF_MAXINSNS`).
const INSTRUCTIONS: usize = 4096;

/// linux/audit.h: `AUDIT_ARCH_X86_64`.
const ARCHITECTURE: u32 = 0xc000_003e;

/// The bit of the numbers of x32, which no guest has and no container needs.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// linux/bpf_common.h and linux/filter.h.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// linux/seccomp.h.
const KILL_PROCESS: u32 = 0x8000_0000;
const KILL_THREAD: u32 = 0;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const LOG: u32 = 0x7ffc_0000;
const ALLOW: u32 = 0x7fff_0000;

/// `EPERM` and `ENOSYS`.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Largest errno that a filter can answer.
const ERRNO_MAX: u32 = 0xfff;

/// One `--security-opt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecurityOption {
    /// `no-new-privileges[=BOOL]`.
    NoNewPrivileges(bool),
    /// `seccomp=unconfined`.
    Unconfined,
    /// `seccomp=builtin`.
    Builtin,
    /// `seccomp=FILE`.
    Profile(PathBuf),
}

impl FromStr for SecurityOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
        match (key, value) {
            ("no-new-privileges", "" | "true") => Ok(Self::NoNewPrivileges(true)),
            ("no-new-privileges", "false") => Ok(Self::NoNewPrivileges(false)),
            ("seccomp", "unconfined") => Ok(Self::Unconfined),
            ("seccomp", "builtin") => Ok(Self::Builtin),
            ("seccomp", path) if !path.is_empty() => Ok(Self::Profile(path.into())),
            _ => Err("write no-new-privileges, seccomp=unconfined or seccomp=FILE".to_owned()),
        }
    }
}

/// Which system calls there are, and what the user said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompOption {
    /// Nothing.
    #[default]
    Default,
    /// All of them.
    Unconfined,
    /// Those of a profile, which is kept as it was.
    Profile {
        /// The file.
        path: PathBuf,
        /// Its content.
        profile: Box<Profile>,
    },
}

impl SeccompOption {
    /// Reads a profile.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Option`] when it is none.
    pub fn read(path: PathBuf) -> Result<Self, Error> {
        let bytes = File::open(&path)
            .and_then(|file| files::read_bounded(file, PROFILE_BYTES))
            .map_err(Error::file("read", &path))?;
        let profile: Profile = serde_json::from_slice(&bytes)
            .map_err(|e| Error::option("--security-opt seccomp", format!("{}: {e}", path.display())))?;
        Ok(Self::Profile {
            path,
            profile: Box::new(profile),
        })
    }

    /// As the agent takes it, for a process with these capabilities.
    ///
    /// # Errors
    /// [`Error::Option`].
    pub fn compile(&self, capabilities: CapabilitySet) -> Result<Seccomp, Error> {
        Ok(match self {
            Self::Default => Seccomp::Default,
            Self::Unconfined => Seccomp::Unconfined,
            Self::Profile { path, profile } => {
                let wrong =
                    |reason| Error::option("--security-opt seccomp", format!("{}: {reason}", path.display()));
                Seccomp::Program(profile.compile(capabilities).map_err(wrong)?)
            }
        })
    }
}

/// Docker's form of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    /// What happens to system calls that no rule names.
    default_action: Action,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    /// One name, as old profiles have it.
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Vec<String>,
    action: Action,
    #[serde(default)]
    errno_ret: Option<u32>,
    /// `null` in some.
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Condition,
    #[serde(default)]
    excludes: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Action {
    #[serde(rename = "SCMP_ACT_ALLOW")]
    Allow,
    #[serde(rename = "SCMP_ACT_ERRNO")]
    Errno,
    #[serde(rename = "SCMP_ACT_LOG")]
    Log,
    #[serde(rename = "SCMP_ACT_TRAP")]
    Trap,
    #[serde(rename = "SCMP_ACT_KILL", alias = "SCMP_ACT_KILL_THREAD")]
    Kill,
    #[serde(rename = "SCMP_ACT_KILL_PROCESS")]
    KillProcess,
}

impl Action {
    fn value(self, errno: Option<u32>) -> Result<u32, String> {
        Ok(match self {
            Self::Allow => ALLOW,
            Self::Log => LOG,
            Self::Trap => TRAP,
            Self::Kill => KILL_THREAD,
            Self::KillProcess => KILL_PROCESS,
            Self::Errno => match errno.unwrap_or(EPERM) {
                errno @ 0..=ERRNO_MAX => ERRNO | errno,
                errno => return Err(format!("there is no errno {errno}")),
            },
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Comparison,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Comparison {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    AtMost,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    AtLeast,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// When a rule counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    /// Every kernel that brig runs on has what Docker's profile asks for by this.
    min_kernel: Option<String>,
}

impl Rule {
    fn counts(&self, capabilities: CapabilitySet) -> bool {
        let has = |name: &String| capability::has(capabilities, name);
        let is_this = |arch: &String| matches!(arch.as_str(), "amd64" | "x86_64");
        self.includes.caps.iter().all(has)
            && (self.includes.arches.is_empty() || self.includes.arches.iter().any(is_this))
            && !self.excludes.caps.iter().any(has)
            && !self.excludes.arches.iter().any(is_this)
            && self.excludes.min_kernel.is_none()
    }
}

impl Profile {
    /// Names of system calls that x86-64 does not have are passed over, as Docker does.
    fn compile(&self, capabilities: CapabilitySet) -> Result<Vec<BpfInstruction>, String> {
        let default = self.default_action.value(self.default_errno_ret)?;
        let mut calls: BTreeMap<u32, Vec<BpfInstruction>> = BTreeMap::new();
        for rule in self.syscalls.iter().filter(|rule| rule.counts(capabilities)) {
            let action = rule.action.value(rule.errno_ret)?;
            let checks = checks(rule.args.as_deref().unwrap_or_default(), action)?;
            for name in rule.names.iter().chain(&rule.name) {
                if let Ok(number) = name.parse::<Sysno>() {
                    calls.entry(number.id() as u32).or_default().extend(&checks);
                }
            }
        }
        let mut program = vec![
            load(ARCH),
            jump(JUMP_EQUAL, ARCHITECTURE, 1, 0),
            answer(KILL_PROCESS),
            load(NUMBER),
            jump(JUMP_AT_LEAST, X32, 0, 1),
            answer(ERRNO | ENOSYS),
        ];
        for (number, mut checks) in calls {
            checks.push(answer(default));
            let length = u32::try_from(checks.len()).map_err(|e| e.to_string())?;
            program.extend([jump(JUMP_EQUAL, number, 1, 0), instruction(JUMP, 0, 0, length)]);
            program.extend(checks);
        }
        program.push(answer(default));
        if program.len() > INSTRUCTIONS {
            return Err(format!(
                "it has more rules than fit into {INSTRUCTIONS} instructions"
            ));
        }
        Ok(program)
    }
}

/// Answers `action` when all arguments are as they should be, and goes on behind otherwise.
fn checks(arguments: &[Argument], action: u32) -> Result<Vec<BpfInstruction>, String> {
    let mut program = vec![answer(action)];
    for argument in arguments.iter().rev() {
        let behind = u8::try_from(program.len()).map_err(|_| "a rule has too many arguments".to_owned())?;
        let check = check(argument, behind)?;
        program.splice(0..0, check);
    }
    Ok(program)
}

/// Goes on behind itself when the argument is as it should be, otherwise past `rest` instructions more.
fn check(argument: &Argument, rest: u8) -> Result<Vec<BpfInstruction>, String> {
    if argument.index > 5 {
        return Err(format!("there is no argument {}", argument.index));
    }
    let low = ARGUMENTS + argument.index * 8;
    let high = low + 4;
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (value_high, value_low) = halves(argument.value);
    let fail = |distance: u8| {
        rest.checked_add(distance)
            .ok_or_else(|| "a rule has too many arguments".to_owned())
    };
    // Both halves of a value, the high one first; `(yes, no)` are where a comparison of the low one leads.
    let ordered = |low_code: u16, yes: bool| -> Result<Vec<BpfInstruction>, String> {
        // high > : the value is greater. high < : it is less. Equal: the low halves decide.
        let (pass, miss) = (0, fail(0)?);
        let (greater, less) = if yes { (pass, miss) } else { (miss, pass) };
        Ok(vec![
            load(high),
            jump(
                JUMP_GREATER,
                value_high,
                greater.checked_add(3).ok_or("a rule is too long")?,
                0,
            ),
            jump(
                JUMP_EQUAL,
                value_high,
                0,
                less.checked_add(2).ok_or("a rule is too long")?,
            ),
            load(low),
            jump(low_code, value_low, greater, less),
        ])
    };
    Ok(match argument.op {
        Comparison::Equal => vec![
            load(high),
            jump(JUMP_EQUAL, value_high, 0, fail(2)?),
            load(low),
            jump(JUMP_EQUAL, value_low, 0, fail(0)?),
        ],
        Comparison::NotEqual => vec![
            load(high),
            jump(JUMP_EQUAL, value_high, 0, 2),
            load(low),
            jump(JUMP_EQUAL, value_low, fail(0)?, 0),
        ],
        Comparison::MaskedEqual => {
            let (wanted_high, wanted_low) = halves(argument.value_two);
            vec![
                load(high),
                instruction(AND, 0, 0, value_high),
                jump(JUMP_EQUAL, wanted_high, 0, fail(3)?),
                load(low),
                instruction(AND, 0, 0, value_low),
                jump(JUMP_EQUAL, wanted_low, 0, fail(0)?),
            ]
        }
        Comparison::Greater => ordered(JUMP_GREATER, true)?,
        Comparison::AtLeast => ordered(JUMP_AT_LEAST, true)?,
        Comparison::AtMost => ordered(JUMP_GREATER, false)?,
        Comparison::Less => ordered(JUMP_AT_LEAST, false)?,
    })
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> BpfInstruction {
    BpfInstruction { code, jt, jf, k }
}

fn load(offset: u32) -> BpfInstruction {
    instruction(LOAD, 0, 0, offset)
}

fn jump(code: u16, k: u32, yes: u8, no: u8) -> BpfInstruction {
    instruction(code, yes, no, k)
}

fn answer(action: u32) -> BpfInstruction {
    instruction(RETURN, 0, 0, action)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACCES: u32 = libc::EACCES as u32;

    /// What the kernel does (net/core/filter.c), as far as these programs need it.
    fn run(program: &[BpfInstruction], number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let taken = match step.code {
                LOAD => {
                    accumulator = match step.k {
                        NUMBER => number,
                        ARCH => ARCHITECTURE,
                        offset => {
                            let argument = arguments[((offset - ARGUMENTS) / 8) as usize];
                            if offset % 8 == 0 {
                                argument as u32
                            } else {
                                (argument >> 32) as u32
                            }
                        }
                    };
                    continue;
                }
                AND => {
                    accumulator &= step.k;
                    continue;
                }
                JUMP => {
                    at += step.k as usize;
                    continue;
                }
                RETURN => return step.k,
                JUMP_EQUAL => accumulator == step.k,
                JUMP_GREATER => accumulator > step.k,
                JUMP_AT_LEAST => accumulator >= step.k,
                other => panic!("instruction {other:#x}"),
            };
            at += usize::from(if taken { step.jt } else { step.jf });
        }
    }

    fn compile(text: &str, capabilities: u64) -> Vec<BpfInstruction> {
        let profile: Profile = serde_json::from_str(text).unwrap();
        profile.compile(CapabilitySet(capabilities)).unwrap()
    }

    #[test]
    fn rules_count_by_name_capability_and_architecture() {
        let text = r#"{ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "archMap": [],
            "syscalls": [
                { "names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW" },
                { "name": "chmod", "action": "SCMP_ACT_ERRNO", "errnoRet": 13, "args": null },
                { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["arm64"] } }
            ] }"#;
        let (few, all) = (compile(text, 0), compile(text, u64::MAX));
        let of = |program: &[BpfInstruction], number: i64| run(program, number as u32, [0; 6]);
        assert_eq!(of(&few, libc::SYS_read), ALLOW);
        assert_eq!(of(&few, libc::SYS_chmod), ERRNO | EACCES);
        assert_eq!(of(&few, libc::SYS_write), ERRNO | ENOSYS);
        assert_eq!(of(&few, libc::SYS_mount), ERRNO | ENOSYS);
        assert_eq!(of(&all, libc::SYS_mount), ALLOW);
        assert_eq!(of(&all, libc::SYS_ptrace), ERRNO | ENOSYS);
        assert_eq!(run(&few, X32, [0; 6]), ERRNO | ENOSYS);
    }

    #[test]
    fn arguments_are_compared_in_all_their_bits() {
        let edge = 0x1_0000_0005u64;
        let values = [
            0,
            4,
            5,
            6,
            0xffff_ffff,
            0x1_0000_0000,
            edge - 1,
            edge,
            edge + 1,
            0x2_0000_0000,
            u64::MAX,
        ];
        let check = |op: &str, holds: &dyn Fn(u64) -> bool| {
            let text = format!(
                r#"{{ "defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": [ {{ "names": ["personality"],
                "action": "SCMP_ACT_ALLOW", "args": [
                    {{ "index": 1, "value": {edge}, "valueTwo": 5, "op": "SCMP_CMP_{op}" }},
                    {{ "index": 0, "value": 7, "op": "SCMP_CMP_EQ" }} ] }} ] }}"#
            );
            let program = compile(&text, 0);
            for value in values {
                let number = libc::SYS_personality as u32;
                let expected = if holds(value) { ALLOW } else { KILL_PROCESS };
                assert_eq!(
                    run(&program, number, [7, value, 0, 0, 0, 0]),
                    expected,
                    "{op} {value:#x}"
                );
                assert_eq!(
                    run(&program, number, [8, value, 0, 0, 0, 0]),
                    KILL_PROCESS,
                    "{op} {value:#x}"
                );
            }
        };
        check("EQ", &|value| value == edge);
        check("NE", &|value| value != edge);
        check("GT", &|value| value > edge);
        check("GE", &|value| value >= edge);
        check("LT", &|value| value < edge);
        check("LE", &|value| value <= edge);
        check("MASKED_EQ", &|value| value & edge == 5);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for text in [
            "{}",
            r#"{ "defaultAction": "SCMP_ACT_TRACE" }"#,
            r#"{ "defaultAction": "SCMP_ACT_NOTIFY" }"#,
            r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [ { "names": ["read"], "action": "what" } ] }"#,
        ] {
            assert!(serde_json::from_str::<Profile>(text).is_err(), "{text}");
        }
        let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [ { "names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [ { "index": 6, "value": 1, "op": "SCMP_CMP_EQ" } ] } ] }"#;
        let profile: Profile = serde_json::from_str(text).unwrap();
        assert!(profile.compile(CapabilitySet(0)).is_err());
        for (text, option) in [
            ("no-new-privileges", SecurityOption::NoNewPrivileges(true)),
            ("no-new-privileges:false", SecurityOption::NoNewPrivileges(false)),
            ("seccomp=unconfined", SecurityOption::Unconfined),
            ("seccomp=/x.json", SecurityOption::Profile("/x.json".into())),
        ] {
            assert_eq!(text.parse(), Ok(option));
        }
        for wrong in ["apparmor=x", "seccomp=", "label=disable"] {
            assert!(wrong.parse::<SecurityOption>().is_err(), "{wrong}");
        }
    }
}
