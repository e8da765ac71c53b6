//! A brig-vmm that has been taken over: this program starts itself as the supervisor starts brig-vmm, builds the walls that
//! brig-vmm builds, by the same functions, and then tries what it must not be able to do. Each test prints which layer has denied what.
//!
//! Each attempt is made in a process of its own, as a filter's answer is the end of the process: a fork of the one in the jail, which
//! then puts on the filters of a kind of thread, or none, to show what is behind them.

// The helpers of these tests count as tests.
#![allow(clippy::unwrap_used)]

mod attempts;

use std::{
    collections::BTreeMap,
    env,
    ffi::CString,
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    process::ExitCode,
};

use brig_jail::spawn::{Program, spawn};
use brig_vmm::{
    jail::{self, filters::Kind},
    threads::Crew,
};
use libtest_mimic::{Arguments, Trial};
use rustix::process::{Pid, WaitOptions, waitpid};

use self::attempts::{ATTEMPTS, Attempt, Beneath, Victims};

/// The first argument of this program in the jail; then what it is to do, and the pids of its victims.
const ROLE: &str = "--taken-over";

/// The last system call that is tried by number, and some to spare: those that come later are refused by the same default.
const NUMBERS: i64 = 480;

/// uretprobe and uprobe, which the kernel lets pass by every filter: they do nothing where it is not its own code that calls them, and
/// answer with SIGILL and ENXIO.
const UPROBES: [i64; 2] = [335, 336];

/// The exit code of an attempt that was not denied, and of one whose walls could not be built.
const SUCCEEDED: i32 = 1;
const BROKEN: i32 = 2;
/// An errno, which is less than 134, is told as an exit code from here on.
const ERRNO: i32 = 100;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == ROLE) {
        in_the_jail(&arguments[2..]);
        return ExitCode::SUCCESS;
    }
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let tests = vec![
        trial(
            "each_attempt_ends_the_process_of_each_thread",
            each_attempt_ends_the_process,
        ),
        trial(
            "each_attempt_is_denied_behind_the_filters_too",
            each_attempt_is_denied_behind_the_filters,
        ),
        trial(
            "each_system_call_that_is_not_listed_ends_the_process",
            each_number_ends_the_process,
        ),
        trial(
            "a_thread_of_a_crew_is_under_its_filter",
            a_thread_of_a_crew_is_under_its_filter,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

/// Starts this program in the jail; what it says, and whether a filter has ended it.
fn jailed(what: &[&str]) -> (String, Option<i32>) {
    let null = File::open("/dev/null").unwrap();
    let (mut said, stdout) = io::pipe().unwrap();
    let stderr = io::stderr().as_fd().try_clone_to_owned().unwrap();
    // Another sandbox's brig-vmm, as far as the jail goes; and this process, which plays the supervisor.
    let (other_stdin, _held) = io::pipe().unwrap();
    let other = start(&["victim"], other_stdin.as_fd(), null.as_fd(), stderr.as_fd());
    let pids = [
        std::process::id().to_string(),
        other.pid.as_raw_nonzero().to_string(),
    ];
    let arguments: Vec<&str> = what
        .iter()
        .copied()
        .chain(pids.iter().map(String::as_str))
        .collect();
    let process = start(&arguments, null.as_fd(), stdout.as_fd(), stderr.as_fd());
    drop(stdout);
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    let status = process.wait().unwrap();
    other.kill();
    other.wait().unwrap();
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    assert!(signal.is_some() || status.success(), "{status}: {text}");
    (text, signal)
}

fn start(
    what: &[&str],
    stdin: std::os::fd::BorrowedFd<'_>,
    stdout: std::os::fd::BorrowedFd<'_>,
    stderr: std::os::fd::BorrowedFd<'_>,
) -> brig_jail::spawn::Process {
    let arguments: Vec<CString> = ["taken-over", ROLE]
        .iter()
        .chain(what)
        .map(|word| CString::new(*word).unwrap())
        .collect();
    // None of them may be one of this process's standard streams.
    let streams = [stdin, stdout, stderr].map(|stream| stream.try_clone_to_owned().unwrap());
    spawn(&Program {
        file: File::open(env::current_exe().unwrap()).unwrap().as_fd(),
        arguments: &arguments,
        streams: [streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()],
    })
    .unwrap()
}

/// What came of each line that the process in the jail says: `NAME RESULT`.
fn results(said: &str) -> BTreeMap<&str, Found> {
    said.lines()
        .map(|line| {
            let (name, result) = line.split_once(' ').unwrap();
            let found = match result.split_once(' ') {
                None if result == "filter" => Found::Filter,
                None if result == "illegal" => Found::Illegal,
                None if result == "succeeded" => Found::Succeeded,
                Some(("errno", number)) => Found::Errno(number.parse().unwrap()),
                _ => panic!("{line}"),
            };
            (name, found)
        })
        .collect()
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A filter has ended the process.
    Filter,
    /// The kernel itself has.
    Illegal,
    Errno(i32),
    Succeeded,
}

fn each_attempt_ends_the_process() {
    for kind in Kind::ALL.into_iter().filter(|&kind| kind != Kind::Setup) {
        let (said, _) = jailed(&["attempts", &format!("{kind:?}")]);
        let found = results(&said);
        assert_eq!(found.len(), ATTEMPTS.len(), "{said}");
        for (name, found) in found {
            println!("{kind:?}: {name}: denied by seccomp");
            assert_eq!(found, Found::Filter, "{kind:?}: {name}");
        }
    }
}

fn each_attempt_is_denied_behind_the_filters() {
    let (said, _) = jailed(&["attempts", "none"]);
    let found = results(&said);
    for attempt in ATTEMPTS {
        let found = found[attempt.name];
        match attempt.beneath {
            Beneath::Layers(layers) => {
                let Found::Errno(errno) = found else {
                    panic!("{}: {found:?}", attempt.name);
                };
                let layer = layers.iter().find(|(number, _)| *number == errno);
                let (_, layer) = layer.unwrap_or_else(|| panic!("{}: errno {errno}", attempt.name));
                println!("{}: denied by {layer}, behind seccomp", attempt.name);
            }
            Beneath::Nothing(why) => println!("{}: denied by seccomp alone: {why}", attempt.name),
        }
    }
}

fn each_number_ends_the_process() {
    for kind in Kind::ALL {
        let (said, _) = jailed(&["numbers", &format!("{kind:?}")]);
        let calls = kind.calls();
        let listed = |number: i64| calls.iter().any(|call| call.number == number);
        let found = results(&said);
        let tried: Vec<i64> = (0..NUMBERS).filter(|&number| !listed(number)).collect();
        assert_eq!(found.len(), tried.len(), "{kind:?}");
        for number in tried {
            let found = found[number.to_string().as_str()];
            let passed = found != Found::Succeeded && UPROBES.contains(&number);
            assert!(found == Found::Filter || passed, "{kind:?}: {number}: {found:?}");
        }
    }
}

/// The threads are made as those of a machine are, and the process is ended, not the thread alone.
fn a_thread_of_a_crew_is_under_its_filter() {
    for kind in [Kind::Main, Kind::Vcpu, Kind::Disks, Kind::Streams, Kind::Prefetch] {
        let (said, signal) = jailed(&["crew", &format!("{kind:?}")]);
        assert_eq!((said.as_str(), signal), ("", Some(libc::SIGSYS)), "{kind:?}");
    }
}

fn kind_called(name: &str) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| format!("{kind:?}") == name)
}

/// What this program does in the jail.
fn in_the_jail(what: &[String]) {
    let what: Vec<&str> = what.iter().map(String::as_str).collect();
    if let ["crew", kind, ..] = what[..] {
        return in_a_crew(kind_called(kind).unwrap());
    }
    jail::build().unwrap();
    jail::enter().unwrap();
    match what[..] {
        ["victim", ..] => {
            let _ = io::stdin().read(&mut [0]);
        }
        ["attempts", kind, supervisor, other] => {
            let victims = Victims {
                supervisor: supervisor.parse().unwrap(),
                other: other.parse().unwrap(),
            };
            for attempt in ATTEMPTS {
                let Attempt { name, call, .. } = attempt;
                println!("{name} {}", outcome(kind_called(kind), || call(&victims)));
            }
        }
        ["numbers", kind, ..] => {
            let kind = kind_called(kind).unwrap();
            let calls = kind.calls();
            for number in (0..NUMBERS).filter(|&number| !calls.iter().any(|call| call.number == number)) {
                // SAFETY: a filter refuses the call before the kernel looks at its arguments, or the test fails.
                let call = || unsafe { libc::syscall(number, -1, 0, 0, 0, 0, 0) };
                println!("{number} {}", outcome(Some(kind), call));
            }
        }
        _ => panic!("{what:?}"),
    }
}

/// Makes an attempt in a fork of this process, under the filters of a kind of thread, and says what came of it.
fn outcome(kind: Option<Kind>, attempt: impl FnOnce() -> libc::c_long) -> String {
    // SAFETY: this process has one thread, so that the child may do whatever it could.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let filtered = || {
            if let Some(kind) = kind {
                let filter = kind.filter()?;
                Kind::Setup.filter()?.install()?;
                if kind != Kind::Setup {
                    filter.install()?;
                }
            }
            Ok::<_, brig_jail::WallError>(())
        };
        let code = match filtered() {
            Err(_) => BROKEN,
            Ok(()) if attempt() == -1 => ERRNO + io::Error::last_os_error().raw_os_error().unwrap_or(0),
            Ok(()) => SUCCEEDED,
        };
        // SAFETY: ends this process at once, by a call that every list has.
        unsafe { libc::_exit(code) };
    }
    let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty())
        .unwrap()
        .unwrap();
    match (status.terminating_signal(), status.exit_status()) {
        (Some(libc::SIGSYS), _) => "filter".into(),
        (Some(libc::SIGILL), _) => "illegal".into(),
        (_, Some(SUCCEEDED)) => "succeeded".into(),
        (_, Some(code)) if code > ERRNO => format!("errno {}", code - ERRNO),
        other => panic!("{other:?}"),
    }
}

/// Opens a file in a thread of the kind, or in the main one.
fn in_a_crew(kind: Kind) {
    let open = || File::open("/").is_ok();
    jail::at_start().unwrap();
    jail::enter().unwrap();
    if kind == Kind::Main {
        Crew::of(0).begin().unwrap();
        open();
    } else {
        let mut crew = Crew::of(1);
        let thread = crew.spawn("taken-over", kind, move || {
            open();
        });
        crew.begin().unwrap();
        // It does not come back.
        let _ = thread.unwrap().join();
    }
    println!("not denied");
}
