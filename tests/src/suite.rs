//! The runner: libtest's command line and summary, with tests that this machine cannot run counted as ignored and the
//! reason shown in their name.

use std::{cell::Cell, collections::HashSet, env, panic, process::ExitCode};

use libtest_mimic::{Arguments, Trial};

use crate::{machine::Need, server, store};

thread_local! {
    static ISOLATION: Cell<Isolation> = const { Cell::new(Isolation::Vm) };
}

/// What the sandboxes of a test are walled off by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// A microVM.
    Vm,
    /// Namespaces on this machine's kernel.
    Container,
}

impl Isolation {
    /// That of the test that runs in this thread: what a new [`crate::brig::Brig`] gets.
    pub fn of_this_test() -> Self {
        ISOLATION.get()
    }

    /// The word that brig has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Container => "container",
        }
    }
}

/// Runs a test whose sandboxes are containers.
pub fn in_containers(test: fn()) {
    ISOLATION.set(Isolation::Container);
    test();
    ISOLATION.set(Isolation::Vm);
}

/// As [`tests!`], for tests of other files that are to pass in containers too.
#[macro_export]
macro_rules! tests_in_containers {
    ($($need:expr => $($module:ident :: $name:ident),+ $(,)?;)+) => {
        [$($($crate::suite::Test {
            name: concat!("in_a_container_", stringify!($name)),
            need: $need,
            run: || $crate::suite::in_containers($module::$name),
        },)+)+]
    };
}

/// One test.
#[derive(Clone, Copy)]
pub struct Test {
    /// Its name: a sentence with underscores.
    pub name: &'static str,
    /// What it cannot do without.
    pub need: Need,
    /// The test; it panics to fail.
    pub run: fn(),
}

/// Lists functions as tests: `tests![Need::Kvm: a_first_test, a_second_test; Need::Root: a_third_test]`.
#[macro_export]
macro_rules! tests {
    ($($need:expr => $($name:ident),+ $(,)?;)+) => {
        /// The tests of this file.
        pub const TESTS: &[$crate::suite::Test] = &[
            $($($crate::suite::Test { name: stringify!($name), need: $need, run: $name },)+)+
        ];
    };
}

/// Runs the tests that the command line asks for, but for those that `$BRIG_TEST_DONE` names with spaces between: they
/// have passed on a machine that has failed since.
pub fn run(tests: impl IntoIterator<Item = Test>) -> ExitCode {
    let arguments = Arguments::from_args();
    let done = env::var("BRIG_TEST_DONE").unwrap_or_default();
    let done: HashSet<&str> = done.split_whitespace().collect();
    let left = tests.into_iter().filter(|test| !done.contains(test.name));
    let trials = left.map(trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    server::remove();
    store::remove();
    conclusion.exit_code()
}

/// How often a test is run until it passes: once, or `$BRIG_TEST_TRIES` times where a shared machine can make any one
/// of them fail. Each failure is printed.
fn tries() -> u32 {
    let tries = env::var("BRIG_TEST_TRIES").ok();
    tries.and_then(|tries| tries.parse().ok()).unwrap_or(1).max(1)
}

fn trial(test: Test) -> Trial {
    let run = move || {
        for left in (0..tries()).rev() {
            match panic::catch_unwind(test.run) {
                Ok(()) => break,
                Err(cause) if left == 0 => panic::resume_unwind(cause),
                Err(_) => eprintln!("flaky: {} failed and is tried once more", test.name),
            }
        }
        Ok(())
    };
    match test.need.missing() {
        None => Trial::test(test.name, run),
        Some(reason) => Trial::test(test.name, run)
            .with_kind(format!("skipped here, {reason}"))
            .with_ignored_flag(true),
    }
}
