//! What is done, again and again: each makes its own sandbox, looks at what comes of it, and removes it.

use std::{
    fs,
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    brig::{Brig, finish},
    host, leftovers, machine,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, setrlimit};

use crate::random::Random;

/// Something to do. It panics when an answer is wrong.
pub struct Action {
    /// What it is called in the report.
    pub name: &'static str,
    /// Does it with a sandbox of this name.
    pub run: fn(&Brig, &str, &mut Random),
}

/// All of them. What is done most often is in it more than once.
pub const ACTIONS: &[Action] = &[
    Action {
        name: "run, exit code and output",
        run: exit_code,
    },
    Action {
        name: "run, exit code and output",
        run: exit_code,
    },
    Action {
        name: "exec",
        run: exec,
    },
    Action {
        name: "stop and start",
        run: stop_and_start,
    },
    Action {
        name: "slow reader",
        run: slow_reader,
    },
    Action {
        name: "much input",
        run: much_input,
    },
    Action {
        name: "kill the program",
        run: kill_the_program,
    },
    Action {
        name: "kill -9 the supervisor",
        run: kill_the_supervisor,
    },
    Action {
        name: "kill -9 brig-vmm",
        run: kill_the_vmm,
    },
    Action {
        name: "kill -9 the client",
        run: kill_the_client,
    },
    Action {
        name: "kill -9 anything while it starts",
        run: kill_while_it_starts,
    },
    Action {
        name: "snapshot, and run it",
        run: snapshot,
    },
    Action {
        name: "full disk",
        run: full_disk,
    },
    Action {
        name: "refused memory",
        run: refused_memory,
    },
];

/// How long the end of a process that was killed may take.
const END_LIMIT: Duration = Duration::from_secs(120);

/// Starts a sandbox that waits, and goes on when it does.
fn start(brig: &Brig, name: &str, script: &str) {
    let script = format!("{script}; echo ready; while :; do sleep 1000; done");
    brig.ok(&["run", "-d", "--name", name, "busybox", "sh", "-c", &script]);
    brig.wait_for_log(name, "ready");
}

fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid as i32) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Kills a process of a sandbox; the sandbox ends with it, and its exit code is known, and removes it.
fn kill_and_remove(brig: &Brig, name: &str, pointer: &str) {
    let id = brig.inspect(name, "/Id");
    let id = id.as_str().expect("an id");
    let pid = brig.inspect(name, pointer).as_i64().expect("a pid") as u32;
    kill(pid);
    assert!(leftovers::wait_for_end(pid, Instant::now() + END_LIMIT));
    let code = brig.ok(&["wait", name]);
    assert_ne!(code.trim().parse::<u8>(), Ok(0), "{code}");
    for process in leftovers::processes_of_sandbox(brig, id) {
        assert!(
            leftovers::wait_for_end(process.pid, Instant::now() + END_LIMIT),
            "{process:?} is left"
        );
    }
    brig.ok(&["rm", name]);
}

fn exit_code(brig: &Brig, name: &str, random: &mut Random) {
    let code = random.below(256);
    let script = format!("echo {name}; echo to {name} >&2; exit {code}");
    let output = brig.run(&["run", "--rm", "--name", name, "busybox", "sh", "-c", &script]);
    let found = (output.code as u64, output.stdout.as_str(), output.stderr.as_str());
    assert_eq!(
        found,
        (
            code,
            format!("{name}\n").as_str(),
            format!("to {name}\n").as_str()
        )
    );
}

fn exec(brig: &Brig, name: &str, random: &mut Random) {
    start(brig, name, &format!("echo {name} >/file"));
    for _ in 0..=random.below(3) {
        let code = random.below(120);
        let output = brig.run(&["exec", name, "sh", "-c", &format!("cat /file; exit {code}")]);
        assert_eq!(
            (output.code as u64, output.stdout.trim_end()),
            (code, name),
            "{output:?}"
        );
    }
    brig.ok(&["rm", "-f", name]);
}

fn stop_and_start(brig: &Brig, name: &str, random: &mut Random) {
    let code = random.below(120);
    let script = format!("trap 'exit {code}' TERM; echo x >>/starts; echo ready; while :; do sleep 1; done");
    brig.ok(&["run", "-d", "--name", name, "busybox", "sh", "-c", &script]);
    for starts in 1..=2 {
        brig.wait_for_log(name, "ready");
        let counted = brig.ok(&["exec", name, "wc", "-l", "/starts"]);
        assert!(counted.starts_with(&starts.to_string()), "{counted}");
        brig.ok(&["stop", "-t", "100", name]);
        assert_eq!(brig.ok(&["wait", name]).trim(), code.to_string());
        if starts == 1 {
            // The log of the first start would be taken for that of the second.
            brig.ok(&["start", name]);
            brig.ok(&[
                "exec",
                name,
                "sh",
                "-c",
                "until [ $(wc -l </starts) = 2 ]; do :; done",
            ]);
        }
    }
    brig.ok(&["rm", name]);
}

fn slow_reader(brig: &Brig, name: &str, random: &mut Random) {
    let lines = 500 + random.below(1500);
    let script = format!(
        "i=0; while [ $i -lt {lines} ]; do echo {name} line $i of the output; i=$((i+1)); done; exit 9"
    );
    let mut child = brig
        .command(&["run", "--rm", "--name", name, "busybox", "sh", "-c", &script])
        .spawn()
        .expect("brig starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut said = Vec::new();
    let mut chunk = vec![0; 1 + random.below(4096) as usize];
    loop {
        let count = stdout.read(&mut chunk).expect("a pipe");
        if count == 0 {
            break;
        }
        said.extend_from_slice(&chunk[..count]);
        thread::sleep(Duration::from_millis(random.below(20)));
    }
    assert_eq!(finish(child).code, 9);
    let expected: Vec<String> = (0..lines)
        .map(|line| format!("{name} line {line} of the output\n"))
        .collect();
    let expected = expected.concat();
    assert!(
        said == expected.as_bytes(),
        "{} bytes, not {}",
        said.len(),
        expected.len()
    );
}

fn much_input(brig: &Brig, name: &str, random: &mut Random) {
    let bytes: Vec<u8> = (0..random.below(200_000))
        .map(|_| random.below(256) as u8)
        .collect();
    let expected = brig_tests::archive::sha256(&bytes);
    let arguments = ["run", "--rm", "-i", "--name", name, "busybox", "sha256sum"];
    let output = brig.run_with_input(&arguments, bytes);
    let found = output.stdout.split_whitespace().next().unwrap_or_default();
    assert!(
        output.code == 0 && expected.ends_with(found) && !found.is_empty(),
        "{output:?}"
    );
}

fn kill_the_program(brig: &Brig, name: &str, _random: &mut Random) {
    start(brig, name, "true");
    brig.ok(&["kill", name]);
    assert_eq!(brig.ok(&["wait", name]).trim(), "137");
    brig.ok(&["rm", name]);
}

fn kill_the_supervisor(brig: &Brig, name: &str, _random: &mut Random) {
    start(brig, name, "true");
    kill_and_remove(brig, name, "/State/Pid");
}

fn kill_the_vmm(brig: &Brig, name: &str, _random: &mut Random) {
    start(brig, name, "true");
    kill_and_remove(brig, name, "/State/VmmPid");
}

/// The sandbox of a client that was killed goes on, and ends as it would have.
fn kill_the_client(brig: &Brig, name: &str, random: &mut Random) {
    let code = 1 + random.below(100);
    let script = format!("echo ready; until [ -e /go ]; do :; done; exit {code}");
    let mut client = brig
        .command(&["run", "--name", name, "busybox", "sh", "-c", &script])
        .spawn()
        .expect("brig starts");
    let mut stdout = client.stdout.take().expect("a pipe");
    let mut said = [0; 6];
    stdout.read_exact(&mut said).expect("it says that it is ready");
    kill(client.id());
    client.wait().expect("a child");
    // The sandbox may end before this process has.
    let touched = brig.run(&["exec", name, "touch", "/go"]);
    assert!([0, 137].contains(&touched.code), "{touched:?}");
    assert_eq!(brig.ok(&["wait", name]).trim(), code.to_string());
    brig.ok(&["rm", name]);
}

/// Any process of a brig's at any moment of its start. What is there then, if anything, can be removed.
fn kill_while_it_starts(brig: &Brig, name: &str, random: &mut Random) {
    let mut client = brig
        .command(&["run", "-d", "--name", name, "busybox", "sleep", "1000"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("brig starts");
    thread::sleep(Duration::from_millis(random.below(1500)));
    // The directory of a sandbox is in what its supervisor has open and brig-vmm has none; of this one alone, all others' live on.
    let id = brig.run(&["inspect", name]).stdout;
    let id: serde_json::Value = serde_json::from_str(&id).unwrap_or_default();
    if let Some(id) = id.pointer("/0/Id").and_then(serde_json::Value::as_str) {
        let mut victims = leftovers::processes_of_sandbox(brig, id);
        if !victims.is_empty() {
            kill(
                victims
                    .swap_remove(random.below(victims.len() as u64) as usize)
                    .pid,
            );
        }
    }
    if random.below(2) == 0 {
        kill(client.id());
    }
    client.wait().expect("a child");
    let there = brig.ok(&["ps", "-a"]).lines().any(|line| line.ends_with(name));
    if there {
        let removed = brig.run(&["rm", "-f", name]);
        // Its supervisor may just be giving it up.
        let gone = removed.stderr.contains("no such sandbox");
        assert!(removed.code == 0 || gone, "{removed:?}");
    }
}

fn snapshot(brig: &Brig, name: &str, _random: &mut Random) {
    start(brig, name, &format!("echo {name} >/file"));
    brig.ok(&["snapshot", "create", name, name]);
    let copy = format!("{name}-copy");
    brig.ok(&["run", "-d", "--name", &copy, "--snapshot", name]);
    for sandbox in [name, &copy] {
        assert_eq!(brig.ok(&["exec", sandbox, "cat", "/file"]).trim_end(), name);
    }
    brig.ok(&["rm", "-f", name, &copy]);
    brig.ok(&["snapshot", "rm", name]);
}

/// Sandboxes have less space than what one of them writes: it is told so, and nothing else ends.
fn full_disk(brig: &Brig, name: &str, _random: &mut Random) {
    if !machine::is_root() {
        return;
    }
    let script = r#"
        "$0" run --name "$1" busybox sh -c 'dd if=/dev/zero of=/large bs=256k count=20 conv=fsync; echo wrote $?' 2>&1
        "$0" rm -f "$1" >/dev/null
        ls "$BRIG_ROOT/sandboxes"
    "#;
    let sandboxes = brig.root().join("sandboxes");
    fs::create_dir_all(&sandboxes).expect("a directory");
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .arg(machine::brig())
        .arg(name)
        .env("BRIG_ROOT", brig.root())
        .env("BRIG_RUNTIME", brig.runtime())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    host::with_little_space(&mut command, &sandboxes, 4);
    let output = finish(command.spawn().expect("a shell"));
    assert!(
        !output.stdout.contains("wrote 0\n") && !output.stdout.contains("panicked"),
        "{output:?}"
    );
    assert!(
        !output.stdout.lines().any(|line| line.len() == 64),
        "a sandbox is left: {output:?}"
    );
}

/// A guest with more memory than its process may have is not started, and why is told in one line.
fn refused_memory(brig: &Brig, name: &str, _random: &mut Random) {
    const LIMIT: u64 = 600 << 20;
    let limit = || -> io::Result<()> {
        let limit = Rlimit {
            current: Some(LIMIT),
            maximum: Some(LIMIT),
        };
        Ok(setrlimit(Resource::As, limit)?)
    };
    let mut command = brig.command(&["run", "--rm", "--name", name, "-m", "1g", "busybox", "true"]);
    // SAFETY: between fork and exec the closure makes one system call, and allocates nothing.
    unsafe { command.pre_exec(limit) };
    let output = finish(command.spawn().expect("brig starts"));
    output.assert_clear_failure(125, name);
    assert!(brig.ps_line(name).is_none());
}
