//! Docker's options of `run`: what they do inside, and which of them an isolation refuses.

use std::{
    fs,
    path::{Path, PathBuf},
};

use brig_tests::{brig::Brig, machine::Need, suite::in_containers, tests};
use serde_json::json;

tests! {
    Need::Kvm =>
        options_of_run_do_what_they_say,
        a_guest_gives_what_only_its_own_kernel_can;
    Need::Containers => a_container_gives_what_only_this_host_can;
    Need::Nothing => what_an_isolation_cannot_do_is_refused_in_one_line;
}

/// Refuses to make directories, and nothing else.
const PROFILE: &str = r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13 } ] }"#;

const SCRIPT: &str = r#"
trap 'exit 9' TERM
echo "init: $(tr '\0' '\n' </proc/1/cmdline | head -n 2 | tr '\n' ' ')"
touch /new 2>/dev/null || echo "root: read-only"
echo x 2>/dev/null >>/etc/hosts || echo "hosts: read-only"
touch /run/new && echo "run: written"
for mount in /run /scratch /dev/shm; do grep " $mount " /proc/mounts | tail -n 1; done
stat -c "mode: %a" /scratch
echo "files: $(ulimit -n) $(ulimit -Hn)"
grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status
mkdir /scratch/directory 2>&1
echo "groups: $(id -G)"
cat /etc/hosts /etc/resolv.conf
echo "ttl: $(cat /proc/sys/net/ipv4/ip_default_ttl)"
(true &)
sleep 1000 &
echo ready
wait
"#;

pub(crate) fn options_of_run_do_what_they_say() {
    let brig = Brig::new();
    let scratch = tempfile::tempdir().unwrap();
    let profile = scratch.path().join("profile.json");
    fs::write(&profile, PROFILE).unwrap();
    let seccomp = format!("seccomp={}", profile.display());
    let mut words = vec![
        "run",
        "-d",
        "--name",
        "wished",
        "--init",
        "--read-only",
        "--no-healthcheck",
    ];
    for (option, value) in [
        ("--tmpfs", "/run:size=1m"),
        ("--tmpfs", "/scratch:exec,mode=700"),
        ("--shm-size", "8m"),
        ("--ulimit", "nofile=100:200"),
        ("--ulimit", "core=0"),
        ("--cap-drop", "CHOWN"),
        ("--cap-add", "net_admin"),
        ("--security-opt", "no-new-privileges"),
        ("--security-opt", seccomp.as_str()),
        ("--group-add", "4242"),
        ("--add-host", "db:10.1.2.3"),
        ("--dns", "127.0.0.53"),
        ("--dns-search", "example.org"),
        ("--sysctl", "net.ipv4.ip_default_ttl=77"),
        ("--stop-timeout", "600"),
        ("--pids-limit", "50"),
    ] {
        words.extend([option, value]);
    }
    words.extend(["busybox", "sh", "-c", SCRIPT]);
    brig.ok(&words);
    brig.wait_for_log("wished", "ready");
    let log = brig.ok(&["logs", "wished"]);
    // Docker's default without CHOWN (0) and with NET_ADMIN (12).
    let capabilities = format!("CapBnd:\t{:016x}", (0xa804_25fb_u64 & !1) | 1 << 12);
    for expected in [
        "init: /sbin/brig-init sh",
        "root: read-only",
        "hosts: read-only",
        "run: written",
        "mode: 700",
        "files: 100 200",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "/scratch/directory': Permission denied",
        "10.1.2.3\tdb",
        "nameserver 127.0.0.53",
        "search example.org",
        "ttl: 77",
        &capabilities,
    ] {
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
    let line = |start: &str| {
        let found = log.lines().find(|line| line.contains(start));
        found
            .unwrap_or_else(|| panic!("no {start:?} in {log}"))
            .to_owned()
    };
    let mount = line(" /run tmpfs ");
    for option in ["noexec", "nosuid", "nodev", "size=1024k"] {
        assert!(mount.contains(option), "{mount}");
    }
    assert!(!line(" /scratch tmpfs ").contains("noexec"), "{log}");
    assert!(line(" /dev/shm tmpfs ").contains("size=8192k"), "{log}");
    assert!(line("groups: ").split(' ').any(|group| group == "4242"), "{log}");

    // Another process is held to the same.
    let exec = "ulimit -n; id -G; grep -E 'Seccomp:|CapBnd' /proc/self/status; mkdir /scratch/other 2>&1; grep -l '^State:.*Z' /proc/[0-9]*/status 2>/dev/null | wc -l";
    let seen = brig.ok(&["exec", "wished", "sh", "-c", exec]);
    let mut lines = seen.lines();
    assert_eq!(lines.next(), Some("100"), "{seen}");
    assert!(
        lines.next().unwrap().split(' ').any(|group| group == "4242"),
        "{seen}"
    );
    assert!(
        seen.contains("Seccomp:\t2") && seen.contains("Permission denied") && seen.contains(&capabilities)
    );
    // The orphan has been collected.
    assert_eq!(lines.next_back().unwrap().trim(), "0", "{seen}");

    let host = brig.inspect("wished", "/HostConfig");
    for (name, value) in [
        ("Init", json!(true)),
        ("ReadonlyRootfs", json!(true)),
        ("CapAdd", json!(["CAP_NET_ADMIN"])),
        ("CapDrop", json!(["CAP_CHOWN"])),
        ("GroupAdd", json!(["4242"])),
        ("ExtraHosts", json!(["db:10.1.2.3"])),
        ("ShmSize", json!(8 << 20)),
        ("Sysctls", json!({ "net.ipv4.ip_default_ttl": "77" })),
        ("Tmpfs", json!({ "/run": "size=1m", "/scratch": "exec,mode=700" })),
        ("RestartPolicy", json!({ "Name": "no", "MaximumRetryCount": 0 })),
        ("PidsLimit", json!(50)),
    ] {
        assert_eq!(host[name], value, "{name}");
    }
    assert_eq!(brig.inspect("wished", "/Config/StopTimeout"), 600);
    // The init hands the signal on, and ends as the program does.
    brig.ok(&["stop", "wished"]);
    assert_eq!(brig.inspect("wished", "/State/ExitCode"), 9);
    brig.ok(&["rm", "wished"]);

    let deaf = "trap '' TERM; echo ready; while :; do sleep 1; done";
    brig.ok(&[
        "run",
        "-d",
        "--rm",
        "--name",
        "deaf",
        "--init",
        "--stop-timeout",
        "1",
        "busybox",
        "sh",
        "-c",
        deaf,
    ]);
    brig.wait_for_log("deaf", "ready");
    brig.ok(&["stop", "deaf"]);
    let missing = brig.run(&["run", "--rm", "--init", "busybox", "no-such-program"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    assert!(missing.stderr.contains("no-such-program"), "{missing:?}");
    brig.assert_nothing_left();
}

pub(crate) fn a_guest_gives_what_only_its_own_kernel_can() {
    let brig = Brig::new();
    let script = r"
        cat /proc/sys/vm/overcommit_memory
        grep CapEff /proc/self/status
        mkdir /mnt2 && mount -t tmpfs x /mnt2 && echo mounted
        mknod /null2 c 1 3 && echo x >/null2 && echo opened
        [ -b /dev/vda ] && echo devices
        echo 0 >/proc/sys/vm/overcommit_memory && echo writable
        df -m / | tail -n 1";
    let seen = brig.ok(&[
        "run",
        "--rm",
        "--privileged",
        "--sysctl",
        "vm.overcommit_memory=1",
        "--storage-opt",
        "size=96m",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    for expected in ["1\n", "mounted", "opened", "devices", "writable"] {
        assert!(seen.contains(expected), "{expected:?} is not in {seen}");
    }
    let effective = seen
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:\t"))
        .unwrap();
    let all = 0xff_ffff_ffff;
    assert_eq!(u64::from_str_radix(effective, 16).unwrap() & all, all, "{seen}");
    let size = seen.lines().last().unwrap().split_whitespace().nth(1).unwrap();
    assert!((60..=96).contains(&size.parse::<u32>().unwrap()), "{seen}");
    brig.assert_nothing_left();
}

pub(crate) fn a_container_gives_what_only_this_host_can() {
    in_containers(|| {
        let brig = Brig::new();
        let id = brig.ok(&[
            "run",
            "-d",
            "--name",
            "given",
            "--device",
            "/dev/null:/dev/also/null",
            "-m",
            "64m",
            "--memory-swap",
            "96m",
            "--cpu-shares",
            "512",
            "busybox",
            "sh",
            "-c",
            "echo x >/dev/also/null && stat -c %t:%T /dev/also/null; sleep 1000",
        ]);
        brig.wait_for_log("given", "1:3");
        let read = |names: &[&str]| -> Option<String> {
            names.iter().find_map(|name| {
                let mut found = Vec::new();
                find(Path::new("/sys/fs/cgroup"), id.trim(), 6, &mut found);
                found
                    .iter()
                    .find_map(|directory| fs::read_to_string(directory.join(name)).ok())
            })
        };
        let shares = read(&["cpu.shares", "cpu.weight"]).expect("a cgroup for its share");
        assert!(["512", "20"].contains(&shares.trim()), "{shares}");
        // A kernel may count no swap.
        if let Some(swap) = read(&["memory.memsw.limit_in_bytes", "memory.swap.max"]) {
            let expected = [96u64 << 20, 32 << 20].map(|bytes| bytes.to_string());
            assert!(expected.contains(&swap.trim().to_owned()), "{swap}");
        }
        assert_eq!(brig.inspect("given", "/HostConfig/MemorySwap"), 96 << 20);
        assert_eq!(
            brig.inspect("given", "/HostConfig/Devices/0/PathInContainer"),
            "/dev/also/null"
        );
        brig.ok(&["rm", "-f", "given"]);
        brig.assert_nothing_left();
    });
}

/// Directories of this name.
fn find(directory: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name() == *name {
            found.push(entry.path());
        } else if depth > 0 {
            find(&entry.path(), name, depth - 1, found);
        }
    }
}

pub(crate) fn what_an_isolation_cannot_do_is_refused_in_one_line() {
    let brig = Brig::new();
    for (isolation, option, reason) in [
        ("vm", &["--device", "/dev/null"][..], "--isolation container"),
        ("vm", &["--cpu-shares", "512"], "--isolation container"),
        ("vm", &["--oom-kill-disable"], "--memory"),
        ("vm", &["-m", "128m", "--memory-swap", "256m"], "no swap"),
        ("container", &["--privileged"], "--isolation vm"),
        ("container", &["--storage-opt", "size=1g"], "--isolation vm"),
        (
            "container",
            &["--sysctl", "vm.overcommit_memory=1"],
            "--isolation vm",
        ),
        ("container", &["--cap-add", "SYS_ADMIN"], "--isolation vm"),
        ("container", &["--memory-swap", "256m"], "--memory"),
        ("container", &["--device", "/etc/passwd"], "no device"),
        ("vm", &["--rm", "--restart", "always"], "--rm"),
        ("vm", &["--restart", "sometimes"], "unless-stopped"),
        ("vm", &["--security-opt", "apparmor=x"], "seccomp"),
        (
            "vm",
            &["--security-opt", "seccomp=/no/such/file"],
            "/no/such/file",
        ),
        ("vm", &["--security-opt", "seccomp=/etc/passwd"], "/etc/passwd"),
        ("vm", &["--cap-add", "NONSENSE"], "no such capability"),
        ("vm", &["--ulimit", "nofile=5:4"], "soft limit"),
        ("vm", &["--tmpfs", "relative"], "absolute"),
        ("vm", &["--log-opt", "max-file=3"], "max-size"),
        ("vm", &["--log-driver", "syslog"], "json-file"),
        ("vm", &["--storage-opt", "size=1k"], "32m"),
        ("vm", &["--add-host", "x:host-gateway"], "no gateway"),
        ("vm", &["--sysctl", "../x=1"], "no setting"),
        ("vm", &["--shm-size", "0"], "something"),
    ] {
        let mut words = vec!["run", "--isolation", isolation];
        words.extend(option);
        // No image is looked for, let alone pulled.
        words.extend(["127.0.0.1:1/no-registry", "true"]);
        let message = brig.fails(125, &words);
        assert!(message.contains(reason), "{option:?}: {message}");
    }
    brig.assert_nothing_left();
}
