//! `--isolation container`: the same image and commands in namespaces on this machine's kernel. What is the same in both
//! isolations is tested by the same tests ([`SHARED`]); what is not, here.

use brig_tests::{
    archive::Image,
    brig::Brig,
    machine::{self, Need},
    suite::{Isolation, Test, in_containers},
    tests, tests_in_containers,
};
use serde_json::json;
use tempfile::NamedTempFile;

use crate::{
    bad_input, crash, exec, files, habits, image_store, images, layers, lifecycle, logs, options, policies,
    ports, process, servers, terminals, tours, volumes, watch,
};

/// Tests of other files, in containers.
pub const SHARED: &[Test] = &tests_in_containers! {
    Need::Containers =>
        crash::a_full_disk_loses_no_exit_code,
        lifecycle::a_created_sandbox_waits_for_its_start,
        lifecycle::files_survive_stop_and_start,
        lifecycle::a_stopped_server_exits_as_it_chose,
        lifecycle::stop_kills_what_does_not_listen,
        lifecycle::names_ids_and_prefixes_find_a_sandbox,
        lifecycle::wait_prints_the_exit_code,
        lifecycle::kill_sends_the_signal_that_it_is_told,
        lifecycle::a_running_sandbox_is_removed_by_force_only,
        lifecycle::nothing_is_left_after_many_runs,
        process::streams_are_apart_and_the_exit_code_is_the_processs,
        process::standard_input_reaches_the_process_byte_for_byte,
        process::a_process_without_i_reads_an_empty_input,
        process::an_entrypoint_replaces_the_images,
        process::a_missing_program_gives_127_and_one_that_cannot_run_126,
        process::an_interrupt_is_forwarded,
        process::a_signal_that_ends_the_process_gives_128_and_its_number,
        ports::two_hundred_requests_in_a_row_are_right_to_the_byte,
        ports::fifty_connections_at_once_are_all_served,
        ports::a_download_and_an_upload_keep_their_checksums,
        ports::a_client_may_close_its_half_first,
        ports::a_server_may_close_its_half_first,
        ports::a_stalled_reader_stalls_nobody_else,
        ports::every_form_of_publishing_is_understood,
        ports::a_port_is_free_again_after_stop,
        ports::what_ports_have_carried_is_counted,
        logs::logs_keep_streams_order_and_time,
        logs::following_ends_with_the_sandbox,
        logs::a_lot_of_output_is_logged_whole,
        crash::a_killed_supervisor_takes_its_sandbox_along_and_no_other,
        crash::a_killed_vmm_ends_its_sandbox,
        watch::what_happens_is_told_and_what_runs_is_shown,
        exec::a_command_in_a_running_sandbox_finds_what_its_first_process_finds,
        exec::many_commands_leave_nothing_behind,
        exec::a_lot_goes_through_exec_and_logs_and_no_process_grows,
        exec::the_health_the_ports_and_the_volumes_of_an_image_are_honoured,
        files::files_go_in_and_out_of_a_sandbox_that_runs_or_not,
        options::options_of_run_do_what_they_say,
        policies::a_process_is_started_again_as_its_policy_says,
        policies::a_log_rotates_and_is_followed_through_that,
        policies::a_full_disk_stops_the_log_and_nothing_else,
        policies::a_lack_of_memory_is_told,
        terminals::a_person_at_a_terminal_finds_every_habit_working,
        bad_input::unknown_sandboxes_are_named,
        bad_input::options_that_make_no_sense_are_refused,
        bad_input::an_ambiguous_prefix_is_refused,
        bad_input::a_user_that_the_image_has_not_is_named,
        habits::a_sandbox_is_renamed_listed_read_and_restarted,
        habits::what_docker_has_long_forms_filters_and_formats_for,
        image_store::an_image_in_use_is_not_removed,
        image_store::a_sandbox_s_files_are_exported_compared_and_committed,
        images::an_image_s_configuration_is_what_run_starts_from,
        images::files_come_out_of_an_image_as_they_went_in,
        layers::a_sandbox_sees_what_the_layers_make_together,
        process::options_of_run_reach_the_process,
        servers::busyboxs_web_server_serves_a_directory,
        tours::the_welcome_image_is_run_listed_looked_into_and_stopped,
        volumes::a_volume_outlives_its_sandboxes,
        volumes::an_image_has_the_volumes_that_it_wants;
    Need::ContainersAndServer { image: "nginx", client: "curl" } =>
        servers::nginx_serves_with_its_stock_configuration;
    Need::ContainersAndServer { image: "redis", client: "redis-cli" } =>
        servers::redis_keeps_what_redis_cli_tells_it;
    Need::ContainersAndServer { image: "redis", client: "sh" } =>
        tours::redis_is_asked_at_a_terminal_and_its_image_removed;
    Need::ContainersAndServer { image: "python", client: "python3" } =>
        servers::python_answers_a_python_script;
    Need::ContainersAndServer { image: "node", client: "curl" } =>
        servers::node_answers_curl;
    Need::ContainersAndServer { image: "postgres", client: "psql" } =>
        servers::postgres_lets_psql_in_with_the_password_and_keeps_every_committed_row;
};

tests! {
    Need::Containers =>
        a_container_has_this_machines_kernel_and_says_so,
        what_needs_a_guest_is_refused_in_one_line,
        images_unpacked_for_containers_are_counted_and_removed,
        a_container_has_dockers_walls_around_it,
        known_ways_out_are_closed,
        two_containers_do_not_see_each_other,
        limits_of_a_container_are_kept;
    Need::ContainersOfUsers => a_user_who_is_not_root_has_containers;
    Need::Nothing =>
        an_isolation_that_there_is_not_is_refused;
}

fn a_container_has_this_machines_kernel_and_says_so() {
    in_containers(|| {
        let brig = Brig::new();
        let ours = rustix::system::uname();
        let theirs = brig.ok(&["run", "--rm", "busybox", "uname", "-r"]);
        assert_eq!(theirs.trim(), ours.release().to_str().unwrap());
        brig.ok(&["run", "-d", "--name", "cell", "busybox", "sleep", "1000"]);
        assert_eq!(brig.inspect("cell", "/HostConfig/Isolation"), "container");
        assert_eq!(brig.inspect("cell", "/Brig/Origin"), "container");
        assert!(brig.ps_line("cell").unwrap().contains(" container "));
        brig.ok(&["rm", "-f", "cell"]);
        brig.assert_nothing_left();
    });
}

fn what_needs_a_guest_is_refused_in_one_line() {
    in_containers(|| {
        let brig = Brig::new();
        brig.ok(&["run", "-d", "--name", "cell", "busybox", "sleep", "1000"]);
        for command in [&["snapshot", "create", "cell", "saved"][..], &["fork", "cell"]] {
            let message = brig.fails(1, command);
            assert!(message.contains("container isolation"), "{command:?}: {message}");
        }
        brig.ok(&["rm", "-f", "cell"]);
        brig.assert_nothing_left();
    });
}

fn images_unpacked_for_containers_are_counted_and_removed() {
    in_containers(|| {
        let brig = Brig::new();
        let directories = brig.root().join("images/directories");
        assert!(!directories.exists(), "nothing has been unpacked yet");
        brig.ok(&["run", "--rm", "busybox", "true"]);
        assert_eq!(
            std::fs::read_dir(&directories).unwrap().count(),
            2,
            "and its lock"
        );
        let before = brig.ok(&["system", "df"]);
        assert!(before.lines().any(|line| line.starts_with("Images")), "{before}");
        brig.ok(&["rmi", "busybox"]);
        brig.ok(&["system", "prune", "-af"]);
        assert_eq!(std::fs::read_dir(&directories).unwrap().count(), 0);
        brig.assert_nothing_left();
    });
}

fn an_isolation_that_there_is_not_is_refused() {
    let brig = Brig::empty();
    assert_eq!(Isolation::of_this_test(), Isolation::Vm);
    let mut command = brig.command(&["run", "--rm", "no-such-image"]);
    let output = brig_tests::brig::finish(command.env("BRIG_ISOLATION", "jail").spawn().unwrap());
    output.assert_clear_failure(125, "run");
    assert!(output.stderr.contains("\"jail\""), "{}", output.stderr);
    let output = brig.run(&["run", "--isolation", "jail", "no-such-image"]);
    assert_eq!(output.code, 125, "{output:?}");
}

/// Prints a line a check, as the one in `walls.rs` does for a guest.
const SCRIPT: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name yes"; else echo "$name no"; fi; }
while read -r key value; do
	case $key in CapInh:|CapPrm:|CapEff:|CapBnd:|CapAmb:|Seccomp:) echo "$key $value";; esac
done </proc/self/status
echo "pid $$"
set -- /proc/[0-9]*
echo "processes $#"
for kind in user mnt pid uts ipc net cgroup time; do echo "namespace $(readlink /proc/self/ns/$kind)"; done
read -r inside outside count </proc/self/uid_map
echo "root-is $outside"
try mount mount -t tmpfs none /mnt
try mount-proc mount -t proc none /mnt
try mount-cgroup mount -t cgroup -o memory none /mnt
try remount mount -o remount,rw /sys
try bind mount -o bind / /mnt
try umount umount /proc/sys
try hostname hostname other
try unshare unshare -U true
try unshare-net unshare -n true
try write-sys touch /sys/x
try write-sys-kernel sh -c 'echo x >/sys/kernel/uevent_helper'
try write-proc-sys sh -c 'echo 1 >/proc/sys/kernel/panic'
try core-pattern sh -c 'echo "|/x" >/proc/sys/kernel/core_pattern'
try sysrq sh -c 'echo b >/proc/sysrq-trigger'
try kcore dd if=/proc/kcore bs=1 count=1
try kmsg dd if=/dev/kmsg of=/dev/null bs=512 count=1
try dmesg sh -c 'dmesg | grep .'
try keys sh -c 'grep . /proc/keys'
try write-root touch /etc/x
try write-cgroup mkdir /sys/fs/cgroup/x
try release-agent sh -c 'echo /x >/sys/fs/cgroup/release_agent'
for node in 'c 1 1' 'b 8 0' 'b 254 0' 'b 253 0' 'c 10 232'; do
	for directory in /tmp /dev; do
		rm -f $directory/node
		mknod $directory/node $node 2>/dev/null
		try "device $directory $node" dd if=$directory/node of=/dev/null bs=1 count=1
	done
done
try kill-host kill -0 "$1"
for fd in /proc/$$/fd/*; do echo "descriptor ${fd##*/}"; done
grep -c -E 'shared:|master:' /proc/self/mountinfo | sed 's/^/propagating /'
for device in /dev/*; do echo "node ${device#/dev/}"; done
"#;

fn a_container_has_dockers_walls_around_it() {
    in_containers(|| {
        let brig = Brig::new();
        let ours = std::process::id().to_string();
        let output = brig.run(&["run", "--rm", "busybox", "sh", "-c", SCRIPT, "sh", &ours]);
        assert_eq!(output.code, 0, "{output:?}");
        let lines: Vec<&str> = output.stdout.lines().collect();
        let says = |line: &str| assert!(lines.contains(&line), "no {line:?} in {}", output.stdout);
        // Docker's default set, and none that is inherited or ambient (CVE-2022-24769).
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            says(&format!("{set}: 00000000a80425fb"));
        }
        for set in ["CapInh", "CapAmb"] {
            says(&format!("{set}: 0000000000000000"));
        }
        says("Seccomp: 2");
        says("pid 1");
        says("processes 1");
        for kind in ["user", "mnt", "pid", "uts", "ipc", "net", "cgroup", "time"] {
            let Ok(host) = std::fs::read_link(format!("/proc/self/ns/{kind}")) else {
                continue;
            };
            let shared = format!("namespace {}", host.display());
            assert!(!lines.contains(&shared.as_str()), "{shared} is the host's");
        }
        assert!(!lines.contains(&"root-is 0"), "root is the host's root");
        for refused in [
            "mount",
            "mount-proc",
            "mount-cgroup",
            "remount",
            "bind",
            "umount",
            "hostname",
            "unshare",
            "unshare-net",
            "write-sys",
            "write-sys-kernel",
            "write-proc-sys",
            "core-pattern",
            "sysrq",
            "kcore",
            "kmsg",
            "dmesg",
            "keys",
            "write-cgroup",
            "release-agent",
            "kill-host",
        ] {
            says(&format!("{refused} no"));
        }
        assert!(
            !lines
                .iter()
                .any(|line| line.starts_with("device ") && line.ends_with(" yes")),
            "{}",
            output.stdout
        );
        says("write-root yes");
        says("propagating 0");
        let of = |prefix: &str| -> Vec<&str> {
            lines
                .iter()
                .filter_map(|line| line.strip_prefix(prefix))
                .collect()
        };
        // The last is the shell's own, of the directory that it lists.
        assert_eq!(of("descriptor ")[..3], ["0", "1", "2"], "{}", output.stdout);
        assert!(of("descriptor ").len() <= 4, "{}", output.stdout);
        assert_eq!(
            of("node "),
            [
                "fd", "full", "mqueue", "node", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin",
                "stdout", "tty", "urandom", "zero"
            ]
            .into_iter()
            .filter(|name| *name != "node" || of("node ").contains(&"node"))
            .collect::<Vec<_>>()
        );
        brig.assert_nothing_left();
    });
}

/// Classes of escapes that other runtimes had.
fn known_ways_out_are_closed() {
    in_containers(|| {
        let brig = Brig::new();
        // CVE-2024-21626: a working directory that is a descriptor of the runtime's.
        for fd in 3..24 {
            let directory = format!("/proc/self/fd/{fd}");
            let output = brig.run(&[
                "run",
                "--rm",
                "-w",
                &directory,
                "busybox",
                "ls",
                "/proc/self/cwd/",
            ]);
            assert_ne!(output.code, 0, "{directory}: {output:?}");
        }
        // CVE-2019-5736: the runtime as the program of the sandbox, and written to from there.
        let program = machine::lib_directory().join("brig-cell");
        let before = brig_tests::archive::sha256(&std::fs::read(&program).unwrap());
        let output = brig.run(&["run", "--rm", "busybox", "/proc/self/exe"]);
        assert_ne!(output.code, 0, "{output:?}");
        let script = "printf '#!/proc/self/exe\\n' >/x; chmod 755 /x; (/x & sleep 0.1; for p in /proc/[0-9]*; do \
                      echo bad 2>/dev/null >$p/exe; done); true";
        brig.ok(&["run", "--rm", "busybox", "sh", "-c", script]);
        let after = brig_tests::archive::sha256(&std::fs::read(&program).unwrap());
        assert_eq!(before, after, "brig-cell was written to");
        // CVE-2021-30465, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881: links in the places of mounts and devices.
        let tricky = |name: &str, link: &str, target: &str| {
            let archive = NamedTempFile::new().unwrap();
            let image = Image::of_layer(
                name,
                json!({"Cmd": ["/bin/busybox", "true"]}),
                layer_with_link(link, target),
            );
            std::fs::write(archive.path(), image.to_oci()).unwrap();
            brig.ok(&["load", "-i", archive.path().to_str().unwrap()]);
        };
        for (name, link, target) in [
            ("proc-link", "proc", "/tmp"),
            ("sys-link", "sys", "../../../../tmp"),
        ] {
            tricky(name, link, target);
            let message = brig.fails(125, &["run", "--rm", name]);
            assert!(message.contains("symbolic link"), "{message}");
        }
        for (name, link, target) in [
            ("dev-link", "dev", "../../../../../tmp"),
            ("null-link", "dev/null", "/proc/sysrq-trigger"),
        ] {
            tricky(name, link, target);
            let script = "grep -c . /proc/sysrq-trigger /proc/kcore; ls -l /dev/null; mount | grep -c ' on /proc/sys '";
            let output = brig.run(&["run", "--rm", name, "/bin/busybox", "sh", "-c", script]);
            assert!(output.stdout.lines().last() == Some("1"), "{name}: {output:?}");
            assert!(output.stdout.contains("1,   3"), "{name}: {output:?}");
        }
        tricky("hosts-link", "etc/hosts", "/proc/1/root/etc/passwd");
        let message = brig.fails(125, &["run", "--rm", "hosts-link"]);
        assert!(message.contains("symbolic links"), "{message}");
        // A deep tree goes with its sandbox.
        let deep = "i=0; while [ $i -lt 400 ]; do mkdir dddddddd && cd dddddddd || exit; i=$((i+1)); done";
        brig.ok(&["run", "--rm", "busybox", "sh", "-c", deep]);
        brig.assert_nothing_left();
    });
}

/// The files that a run needs, and a link in the place of something that brig puts there.
fn layer_with_link(link: &str, target: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static");
    let mut header = tar::Header::new_gnu();
    header.set_size(busybox.len() as u64);
    header.set_mode(0o755);
    builder
        .append_data(&mut header, "bin/busybox", busybox.as_slice())
        .unwrap();
    for directory in ["tmp", "etc"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        builder
            .append_data(&mut header, directory, std::io::empty())
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, link, target).unwrap();
    builder.into_inner().unwrap()
}

fn two_containers_do_not_see_each_other() {
    in_containers(|| {
        let brig = Brig::new();
        let address = brig.welcome("one", &[]);
        brig.ok(&["run", "-d", "--name", "two", "busybox", "sleep", "1000"]);
        // A name that nobody but the host's network namespace has.
        let name = format!("brig-test-{}", std::process::id());
        let socket =
            <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(
                name.as_bytes(),
            );
        let _listener = std::os::unix::net::UnixListener::bind_addr(&socket.unwrap()).unwrap();
        let script = format!(
            "ls /proc | grep -c '^[0-9]'; grep -c {name} /proc/net/unix; wget -q -T 2 -O - http://127.0.0.1:80/ || echo nobody; \
             cat /proc/net/dev | grep -c :; ipcs -m | grep -c 0x; cat /proc/sysvipc/shm | wc -l"
        );
        let output = brig.run(&["run", "--rm", "busybox", "sh", "-c", &script]);
        let lines: Vec<&str> = output.stdout.lines().collect();
        // Itself, ls and grep; no socket of the host's; no server of the other one's; the loopback alone.
        assert!(lines[0].parse::<u32>().unwrap() <= 4, "{output:?}");
        assert_eq!(lines[1..4], ["0", "nobody", "1"], "{output:?}");
        assert!(brig_tests::http::get(address, "/healthz").is_ok());
        brig.ok(&["rm", "-f", "one", "two"]);
        brig.assert_nothing_left();
    });
}

fn limits_of_a_container_are_kept() {
    in_containers(|| {
        let brig = Brig::new();
        let hungry = "head -c 200000000 /dev/zero | tail -c 150000000 >/dev/null; echo $?";
        let output = brig.run(&["run", "--rm", "-m", "64m", "busybox", "sh", "-c", hungry]);
        assert_ne!(output.stdout.trim(), "0", "{output:?}");
        let output = brig.run(&["run", "--rm", "-m", "1g", "busybox", "sh", "-c", "echo fits"]);
        assert_eq!(output.stdout, "fits\n", "{output:?}");
        let forks = "for i in 1 2 3 4 5 6 7 8 9; do sleep 2 & done; wait; echo all";
        let output = brig.run(&["run", "--rm", "--pids-limit", "5", "busybox", "sh", "-c", forks]);
        assert!(output.stderr.contains("fork"), "{output:?}");
        let output = brig.run(&["run", "--rm", "--pids-limit", "20", "busybox", "sh", "-c", forks]);
        assert_eq!(output.stdout, "all\n", "{output:?}");
        // A tenth of a CPU: half a second of work takes some five.
        let busy = "t=$(date +%s%N 2>/dev/null || date +%s); i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; read -r up _ </proc/uptime; \
                    read -r a b c d e f g h i j k l m user system _ </proc/$$/stat; echo $user $system";
        let begin = std::time::Instant::now();
        let output = brig.run(&["run", "--rm", "--cpus", "0.1", "busybox", "sh", "-c", busy]);
        let took = begin.elapsed().as_secs_f64();
        let ticks: f64 = output
            .stdout
            .split_whitespace()
            .filter_map(|word| word.parse::<f64>().ok())
            .sum();
        assert!(
            took > ticks / 100.0 * 5.0,
            "{ticks} ticks in {took} s: {output:?}"
        );
        brig.assert_nothing_left();
    });
}

/// A brig of a user who is not root: with subordinate ids where it is given some, in a mount namespace of its own.
fn as_user(directory: &std::path::Path, subordinate: &str, arguments: &[&str]) -> brig_tests::brig::Output {
    let script = "mount --bind \"$1/subid\" /etc/subuid && mount --bind \"$1/subid\" /etc/subgid && shift && \
                  exec setpriv --reuid games --regid games --clear-groups \"$@\"";
    std::fs::write(directory.join("subid"), subordinate).unwrap();
    for file in ["/etc/subuid", "/etc/subgid"] {
        // A host may have none: something to mount over has to be there.
        let _ = std::fs::OpenOptions::new().create(true).append(true).open(file);
    }
    let program = directory.join("bin/brig");
    let mut command = std::process::Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(directory)
        .arg(program)
        .args(arguments)
        .env("BRIG_ROOT", directory.join("root"))
        .env("BRIG_RUNTIME", directory.join("run"))
        .env("BRIG_ISOLATION", "container")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    brig_tests::brig::finish(command.spawn().unwrap())
}

fn a_user_who_is_not_root_has_containers() {
    use std::os::unix::fs::{PermissionsExt, chown};
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["bin", "lib/brig", "root", "run"] {
        std::fs::create_dir_all(at.join(name)).unwrap();
    }
    std::fs::copy(machine::brig(), at.join("bin/brig")).unwrap();
    for name in ["brig-supervisor", "brig-cell", "welcome.tar"] {
        std::fs::copy(
            machine::lib_directory().join(name),
            at.join("lib/brig").join(name),
        )
        .unwrap();
    }
    for name in ["root", "run", "lib/brig/brig-cell"] {
        // Its programs are its own, as in a home directory.
        chown(at.join(name), Some(5), Some(60)).unwrap();
    }
    let archive = at.join("busybox.tar");
    std::fs::copy(machine::image_archive("busybox"), &archive).unwrap();
    let run = |subordinate: &str, arguments: &[&str]| as_user(at, subordinate, arguments);
    let ok = |subordinate: &str, arguments: &[&str]| {
        let output = run(subordinate, arguments);
        assert_eq!(output.code, 0, "{arguments:?}: {output:?}");
        output.stdout
    };
    ok("", &["load", "-i", archive.to_str().unwrap()]);
    let who = "id -u; read -r a b c </proc/self/uid_map; echo $b; touch /etc/x && echo wrote; grep Seccomp: /proc/self/status";
    // Without subordinate ids there is root alone.
    let said = ok("", &["run", "--rm", "busybox", "sh", "-c", who]);
    assert_eq!(said, "0\n5\nwrote\nSeccomp:\t2\n");
    let refused = run("", &["run", "--rm", "-u", "www-data", "busybox", "true"]);
    refused.assert_clear_failure(125, "a user who is not there");
    assert!(refused.stderr.contains("subordinate ids"), "{refused:?}");
    // With them there is everybody.
    let ids = "games:900000:65536\n";
    let said = ok(
        ids,
        &[
            "run",
            "--rm",
            "-u",
            "www-data",
            "busybox",
            "sh",
            "-c",
            "id -u; id -g",
        ],
    );
    assert_eq!(said, "33\n33\n");
    let chowns = "mkdir /d && touch /d/f && chown -R www-data /d && chmod 700 /d && echo owned";
    assert_eq!(
        ok(ids, &["run", "--name", "owner", "busybox", "sh", "-c", chowns]),
        "owned\n"
    );
    let again = run(ids, &["start", "-a", "owner"]);
    assert!(
        again.stderr.contains("File exists"),
        "the files are there still: {again:?}"
    );
    ok(ids, &["rm", "owner"]);
    ok(
        ids,
        &["run", "-d", "--name", "web", "-p", "127.0.0.1:0:80", "welcome"],
    );
    let port = ok(ids, &["port", "web", "80/tcp"]);
    let address = port.trim().parse().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while brig_tests::http::get(address, "/healthz").is_err() {
        assert!(std::time::Instant::now() < deadline, "it does not serve");
        std::thread::yield_now();
    }
    ok(ids, &["rm", "-f", "web"]);
    // No cgroup is this user's.
    let limited = run(ids, &["run", "--rm", "-m", "64m", "busybox", "true"]);
    limited.assert_clear_failure(125, "a limit that nobody can keep");
    assert!(limited.stderr.contains("cgroup"), "{limited:?}");
    ok(ids, &["system", "prune", "-af"]);
    assert_eq!(std::fs::read_dir(at.join("root/sandboxes")).unwrap().count(), 0);
    assert_eq!(
        std::fs::read_dir(at.join("root/images/directories"))
            .unwrap()
            .count(),
        0
    );
}
