//! Terminals: a person at a terminal of the test's own, and the sandbox's at the other end.

use brig_tests::{brig::Brig, machine::Need, pty::Pty, tests};

tests! {
    Need::Kvm =>
        a_person_at_a_terminal_finds_every_habit_working;
}

/// The keys that leave what is shown running.
const LEAVE: &str = "\x10\x11";

pub(crate) fn a_person_at_a_terminal_finds_every_habit_working() {
    let brig = Brig::new();
    let on = |words: &[&str]| Pty::start(brig.command(words), 33, 111);

    // A shell as the first process.
    let mut shell = on(&["run", "-it", "--name", "shell", "-e", "PS1=% ", "busybox", "sh"]);
    shell.wait_for("% ");
    assert!(shell.is_raw());
    shell.type_in("tty; stty size; echo $TERM; readlink /proc/$$/fd/2\r");
    shell.wait_for("tty; stty size; echo $TERM; readlink /proc/$$/fd/2\r\n");
    assert_eq!(
        shell.wait_for("% "),
        "/dev/pts/0\r\n33 111\r\nxterm\r\n/dev/pts/0\r\n% "
    );
    // Another size.
    shell.resize(50, 132);
    shell.type_in("until stty size | grep -q '50 132'; do :; done; echo seen\r");
    shell.wait_for("\r\nseen\r\n% ");
    // Job control and the keys of signals.
    // What is typed before the command has the terminal would be for the shell's own editor.
    shell.type_in("sh -c 'trap \"echo goes on\" CONT; echo stays; while :; do sleep 1; done'\r");
    shell.wait_for("\nstays\r\n");
    shell.type_in("\x1a");
    shell.wait_for("Stopped");
    shell.wait_for("% ");
    shell.type_in("fg\r");
    shell.wait_for("\ngoes on\r\n");
    shell.type_in("\x03");
    shell.wait_for("% ");
    shell.type_in("echo $?\r");
    shell.wait_for("130\r\n");
    // Half of the keys to leave goes to the shell.
    shell.type_in("echo a\x10b\r");
    shell.wait_for("% ");
    // Left running; the terminal is as it was.
    shell.type_in("left=1; ");
    shell.wait_for("left=1; ");
    shell.type_in(LEAVE);
    assert_eq!(shell.exit_code(), 0);
    assert!(!shell.is_raw());
    assert_eq!(brig.inspect("shell", "/State/Status"), "running");
    assert_eq!(brig.inspect("shell", "/Config/Tty"), true);

    // Attached again, where it was left; other keys to leave by.
    let mut again = on(&["attach", "--detach-keys", "ctrl-x,x", "shell"]);
    again.type_in("echo left is $left\r");
    again.wait_for("left is 1\r\n% ");
    again.type_in("stty size\r");
    again.wait_for("33 111\r\n% ");
    again.type_in("\x18x");
    assert_eq!(again.exit_code(), 0);

    // Another shell beside it, with a terminal of its own.
    let mut other = on(&["exec", "-it", "-e", "PS1=# ", "shell", "sh"]);
    other.wait_for("# ");
    assert!(other.is_raw());
    other.type_in("tty; stty size\r");
    other.wait_for("/dev/pts/1\r\n33 111\r\n# ");
    other.resize(20, 40);
    other.type_in("until stty size | grep -q '20 40'; do :; done; exit 7\r");
    assert_eq!(other.exit_code(), 7);
    assert!(!other.is_raw());

    // A client that is killed hangs up; one that is told to end puts the terminal back and does so too.
    for signal in [libc::SIGKILL, libc::SIGTERM] {
        // Nothing forks while it waits.
        let script =
            "trap 'echo hung up > /tmp/hup; exit' HUP; rm -f /tmp/hup; echo ready; read line; read line";
        let mut killed = on(&["exec", "-it", "shell", "sh", "-c", script]);
        killed.wait_for("ready");
        // SAFETY: kill takes two numbers; the child has not been waited for, so the pid is its own.
        unsafe { libc::kill(killed.pid() as libc::pid_t, signal) };
        assert_eq!(killed.exit_code(), 128 + signal);
        assert_eq!(killed.is_raw(), signal == libc::SIGKILL);
        let said = brig.ok(&[
            "exec",
            "shell",
            "sh",
            "-c",
            "until [ -s /tmp/hup ]; do :; done; cat /tmp/hup",
        ]);
        assert_eq!(said, "hung up\n");
    }
    // One that crashes puts the terminal back as well.
    let mut crashed = on(&["exec", "-it", "shell", "sh", "-c", "echo ready; sleep 100000"]);
    crashed.wait_for("ready");
    assert!(crashed.is_raw());
    // SAFETY: as above.
    unsafe { libc::kill(crashed.pid() as libc::pid_t, libc::SIGSEGV) };
    assert_eq!(crashed.exit_code(), 128 + libc::SIGSEGV);
    assert!(!crashed.is_raw());

    // A command left running goes on.
    let script = "echo ready; read line; echo never";
    let mut left = on(&["exec", "-it", "shell", "sh", "-c", script]);
    left.wait_for("ready");
    left.type_in(LEAVE);
    assert_eq!(left.exit_code(), 0);
    let running = brig.ok(&["exec", "shell", "sh", "-c", "ps | grep -c '[r]ead line'"]);
    assert_eq!(running.trim(), "1");

    // The end of the shell is the end of whoever is attached, with its code.
    let mut last = on(&["attach", "shell"]);
    last.type_in("exit 3\r");
    assert_eq!(last.exit_code(), 3);
    assert!(!last.is_raw());
    assert_eq!(brig.inspect("shell", "/State/ExitCode"), 3);

    // Started again, with its terminal.
    let mut started = on(&["start", "-ai", "shell"]);
    started.wait_for("% ");
    started.type_in("echo $((6 * 7))\r");
    started.wait_for("42\r\n% ");
    started.type_in("\x04");
    assert_eq!(started.exit_code(), 0);

    // A terminal for it, and none here.
    let output = brig.run(&["run", "--rm", "-t", "busybox", "tty"]);
    assert_eq!((output.stdout.as_str(), output.code), ("/dev/pts/0\r\n", 0));
    let line = brig.fails(1, &["run", "--rm", "-it", "busybox", "true"]);
    assert_eq!(line, "brig: the input device is not a TTY\n");
    brig.ok(&["rm", "shell"]);
    brig.assert_nothing_left();
}
