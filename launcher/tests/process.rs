//! What a process finds around it, and what it is told when it cannot be started.

mod common;

use std::{fs, os::unix::fs::PermissionsExt};

use brig_launcher::{Kernel, Root, network, rootfs::Overlay};
use brig_protocol::{
    agent::{ExitStatus, StartFailure},
    spec::Rlimit,
};
use common::{Image, chain, install};

#[test]
fn it_is_pid_1_of_its_own_session_and_sees_no_other_process() {
    let said = Image::new().shell("echo $$; ls -d /proc/[0-9]*; cut -d' ' -f6 /proc/self/stat");
    assert_eq!(said, "1\n/proc/1\n1\n");
}

#[test]
fn it_has_the_hostname_of_the_spec() {
    assert_eq!(Image::new().shell("hostname; cat /etc/hostname"), "cell\ncell\n");
}

#[test]
fn exit_codes_and_signals_come_through() {
    let image = Image::new();
    let run = |script| image.run(&image.spec(&["sh", "-c", script])).unwrap().status;
    assert_eq!(run("exit 42"), ExitStatus::Code(42));
    // Its init ignores what it has no handler for, so another process dies and the shell says so.
    assert_eq!(run("sh -c 'kill -9 $$'; exit $?"), ExitStatus::Code(137));
}

#[test]
fn standard_output_and_error_are_apart() {
    let image = Image::new();
    let finished = image
        .run(&image.spec(&["sh", "-c", "echo out; echo err >&2"]))
        .unwrap();
    assert_eq!(
        (finished.stdout.as_str(), finished.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn the_capabilities_are_dockers_default_and_none_is_inheritable() {
    let said = Image::new().shell("grep Cap /proc/self/status");
    assert_eq!(
        said,
        "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
         CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\n"
    );
}

#[test]
fn a_user_other_than_root_has_no_capability_and_its_own_groups() {
    let image = Image::new();
    let mut spec = image.spec(&[
        "sh",
        "-c",
        "id; echo $HOME; grep -E 'Cap(Prm|Eff|Bnd)' /proc/self/status",
    ]);
    spec.process.user = "web".into();
    assert_eq!(
        image.shell_of(&spec),
        "uid=33(web) gid=34(web) groups=34(web),77(extra)\n/var/www\nCapPrm:\t0000000000000000\n\
         CapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n"
    );
}

#[test]
fn a_user_other_than_root_can_open_its_standard_output_by_name() {
    let image = Image::new();
    let mut spec = image.spec(&["sh", "-c", "echo hello > /dev/stdout"]);
    spec.process.user = "web".into();
    assert_eq!(image.shell_of(&spec), "hello\n");
}

#[test]
fn home_is_kept_when_the_spec_has_one() {
    let image = Image::new();
    let mut spec = image.spec(&["sh", "-c", "echo $HOME"]);
    assert_eq!(image.shell_of(&spec), "/root\n");
    spec.process.env.push("HOME=/elsewhere".into());
    assert_eq!(image.shell_of(&spec), "/elsewhere\n");
}

#[test]
fn a_working_directory_that_is_missing_is_made() {
    let image = Image::new();
    let mut spec = image.spec(&["sh", "-c", "pwd; stat -c %a:%u ."]);
    spec.process.cwd = "/srv/app/data".into();
    assert_eq!(image.shell_of(&spec), "/srv/app/data\n755:0\n");
}

#[test]
fn directories_for_volumes_are_made_where_nothing_is() {
    let image = Image::new();
    image.write("srv/there/file", "kept");
    image.write("etc/plain", "a file");
    let mut spec = image.spec(&["sh", "-c", "ls -d /srv/there/file /data/deep /etc/plain"]);
    spec.directories = ["/srv/there", "/data/deep", "/etc/plain"]
        .map(String::from)
        .into();
    assert_eq!(image.shell_of(&spec), "/data/deep\n/etc/plain\n/srv/there/file\n");
}

#[test]
fn a_working_directory_that_is_a_file_is_an_error() {
    let image = Image::new();
    let mut spec = image.spec(&["pwd"]);
    spec.process.cwd = "/etc/passwd".into();
    let error = image.run(&spec).unwrap_err();
    assert_eq!(
        chain(&error),
        "cannot enter the working directory /etc/passwd: Not a directory (os error 20)"
    );
    assert_eq!(error.kind(), StartFailure::Other);
}

#[test]
fn no_signal_is_blocked_or_ignored_although_the_launcher_ignores_some() {
    // Rust's runtime ignores SIGPIPE in this very process.
    // No shell, which ignores some by itself.
    let image = Image::new();
    let said = image.shell_of(&image.spec(&["busybox", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"]));
    assert_eq!(said, "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[test]
fn no_descriptor_but_the_standard_ones_is_inherited() {
    // Not close-on-exec.
    let (_reader, writer) = std::io::pipe().unwrap();
    let _leak = rustix::io::dup(&writer).unwrap();
    // ls has a descriptor of its own for the directory.
    assert_eq!(Image::new().shell("ls /proc/self/fd"), "0\n1\n2\n3\n");
}

#[test]
fn limits_are_set_and_one_that_cannot_be_is_named() {
    let image = Image::new();
    let mut spec = image.spec(&["sh", "-c", "ulimit -n; ulimit -Hn"]);
    spec.process.rlimits = vec![Rlimit {
        resource: 7,
        soft: 100,
        hard: 200,
    }];
    assert_eq!(image.shell_of(&spec), "100\n200\n");
    spec.process.rlimits = vec![Rlimit {
        resource: 7,
        soft: 300,
        hard: 200,
    }];
    let error = image.run(&spec).unwrap_err();
    assert!(
        chain(&error).starts_with("cannot set the limit nofile to 300:200: "),
        "{}",
        chain(&error)
    );
}

#[test]
fn no_new_privileges_is_set_when_it_is_asked_for() {
    let image = Image::new();
    let mut spec = image.spec(&["sh", "-c", "grep NoNewPrivs /proc/self/status"]);
    assert_eq!(image.shell_of(&spec), "NoNewPrivs:\t0\n");
    spec.process.no_new_privileges = true;
    assert_eq!(image.shell_of(&spec), "NoNewPrivs:\t1\n");
}

#[test]
fn the_loopback_interface_has_its_addresses_and_those_of_peers_and_is_the_only_one() {
    let image = Image::new();
    let said = image.shell(
        "ls /sys/class/net; cut -d ' ' -f 1 /proc/net/if_inet6 | sort; \
         sed -n 's/^ *|-- \\([0-9.]*\\)$/\\1/p' /proc/net/fib_trie | sort -u",
    );
    let [v4, v6] = [
        network::PEER_V4.to_string(),
        "01000000000000000000000000000008".to_owned(),
    ];
    assert_eq!(
        said,
        format!("lo\n00000000000000000000000000000001\n{v6}\n127.0.0.0\n127.0.0.1\n127.255.255.255\n{v4}\n")
    );
}

#[test]
fn a_user_other_than_root_may_listen_on_a_low_port() {
    let said = Image::new().shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start");
    assert_eq!(said, "0\n");
}

#[test]
fn a_program_that_does_not_exist_is_not_found() {
    let image = Image::new();
    let error = image.run(&image.spec(&["nginx"])).unwrap_err();
    assert_eq!(
        chain(&error),
        "exec: \"nginx\": executable file not found in $PATH"
    );
    assert_eq!(error.kind(), StartFailure::NotFound);
    let error = image.run(&image.spec(&["/usr/sbin/nginx"])).unwrap_err();
    assert_eq!(
        chain(&error),
        "exec: \"/usr/sbin/nginx\": no such file or directory"
    );
    assert_eq!(error.kind(), StartFailure::NotFound);
}

#[test]
fn a_file_that_cannot_be_executed_is_told_from_one_that_is_missing() {
    let image = Image::new();
    for (program, reason) in [("/etc/passwd", "permission denied"), ("/etc", "is a directory")] {
        let error = image.run(&image.spec(&[program])).unwrap_err();
        assert_eq!(chain(&error), format!("exec: {program:?}: {reason}"));
        assert_eq!(error.kind(), StartFailure::NotExecutable);
    }
    let text = image.write("noformat", "no program");
    install(&text, &image.path().join("bin/noformat"));
    let error = image.run(&image.spec(&["noformat"])).unwrap_err();
    assert_eq!(chain(&error), "exec: \"noformat\": exec format error");
}

#[test]
fn a_user_that_the_image_does_not_have_is_unknown() {
    let image = Image::new();
    let mut spec = image.spec(&["id"]);
    spec.process.user = "nobody".into();
    let error = image.run(&spec).unwrap_err();
    assert_eq!(
        chain(&error),
        "unable to find user nobody: no matching entries in passwd file"
    );
    assert_eq!(error.kind(), StartFailure::UnknownUser);
}

#[test]
fn an_image_that_is_nothing_but_a_program_runs() {
    let image = Image::new();
    fs::remove_dir_all(image.path().join("etc")).unwrap();
    assert_eq!(
        image.shell("echo $HOME; cat /etc/hosts; stat -c %a /proc /etc"),
        "/\n127.0.0.1 localhost\n555\n755\n"
    );
}

#[test]
fn an_overlay_keeps_what_is_written_and_leaves_the_image_alone() {
    let image = Image::new();
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let writable = tempfile::tempdir().unwrap();
    let at = tempfile::tempdir().unwrap();
    let root = Root::Overlay(Overlay {
        disks: vec![],
        image: image.path().into(),
        writable: writable.path().into(),
        at: at.path().into(),
        kernel: Kernel::Own,
    });
    let run = |script| {
        let finished = image.run_in(&root, &image.spec(&["sh", "-c", script])).unwrap();
        (finished.status, finished.stdout)
    };
    assert_eq!(
        run("echo kept > /file; stat -c %a /; busybox chmod 700 /"),
        (ExitStatus::Code(0), "711\n".into())
    );
    assert_eq!(
        run("cat /file; stat -c %a /"),
        (ExitStatus::Code(0), "kept\n700\n".into())
    );
    assert!(!image.path().join("file").exists());
}

#[test]
fn a_failed_start_leaves_no_process_and_no_mount() {
    let image = Image::new();
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    image.run(&image.spec(&["nothing"])).unwrap_err();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    let children = format!(
        "/proc/self/task/{}/children",
        rustix::thread::gettid().as_raw_nonzero()
    );
    assert_eq!(fs::read_to_string(children).unwrap(), "");
}
