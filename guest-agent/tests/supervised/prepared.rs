//! A start that was prepared for is as any other.

use brig_protocol::{
    agent::{ExitStatus, FromAgent, StartFailure, ToAgent},
    spec::{CapabilitySet, FileImages, FileSpec, SandboxSpec},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::supervisor::{Agent, STDERR, STDIN, STDOUT, text};

/// What a process can tell about what is around it. The numbers of mounts and of devices without a name are left out.
const LOOK_AROUND: &str = r"
    busybox cut -d' ' -f4- /proc/self/mountinfo | busybox sed 's,^[^ ]*/rootfs /,ROOT /,; s,^[^ ]*/files/,FILE ,' | busybox sort
    busybox grep -E 'Cap|NoNewPrivs|Sig(Blk|Ign|Cgt)|Groups|Seccomp:' /proc/self/status
    busybox cat /proc/self/limits /proc/self/cgroup /etc/hosts /etc/hostname
    busybox hostname; busybox pwd; busybox env | busybox sort; umask; busybox id
    busybox cut -d' ' -f1,4-8 /proc/1/stat; busybox ls -d /proc/[0-9]*
    for ns in mnt pid uts ipc net cgroup user; do busybox readlink /proc/self/ns/$ns | busybox cut -d: -f1; done
    busybox ls /proc/self/fd
    busybox find /dev | busybox sort | busybox xargs busybox stat -c '%n %F %a %u:%g %t:%T'
    busybox wc -c < /proc/timer_list; busybox ls /sys/firmware | busybox wc -l
    (echo x > /proc/sys/kernel/domainname) 2>&1; busybox touch /sys/x 2>&1
    busybox cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range
    busybox ip addr show lo; for l in cwd root exe; do busybox readlink /proc/1/$l; done
";

fn with_files(mut spec: SandboxSpec) -> SandboxSpec {
    for (path, content) in [
        ("/etc/hosts", "127.0.0.1 localhost\n"),
        ("/etc/hostname", "cell\n"),
    ] {
        spec.files.push(FileSpec {
            path: path.into(),
            content: content.into(),
            mode: 0o644,
            images: FileImages::All,
        });
    }
    spec
}

/// What `spec` says on both outputs; it succeeds.
fn said(agent: &mut Agent, spec: SandboxSpec) -> String {
    let (stdout, stderr) = (agent.stream(STDOUT), agent.stream(STDERR));
    agent.start_spec(spec);
    let said = text(&stdout) + &text(&stderr);
    assert_eq!(
        agent.receive(),
        FromAgent::Exited {
            process: 0,
            status: ExitStatus::Code(0)
        },
        "{said}"
    );
    said
}

/// What a start without preparation finds, and one with another spec prepared.
fn plain_and_prepared(spec: impl Fn(&Agent) -> SandboxSpec) -> (String, String) {
    let mut plain = Agent::new();
    let plain_said = {
        let spec = spec(&plain);
        said(&mut plain, spec)
    };
    let mut prepared = Agent::new();
    let mut other = spec(&prepared);
    other.hostname = "template".into();
    other.id = "f".repeat(64);
    for file in &mut other.files {
        file.content = b"the template's\n, which is longer than the file will be".to_vec();
    }
    other.process = prepared.spec("other").process;
    let zygote = prepared.prepare(other);
    let spec = spec(&prepared);
    let (stdin, stdout, stderr) = (
        prepared.stream(STDIN),
        prepared.stream(STDOUT),
        prepared.stream(STDERR),
    );
    drop(stdin);
    prepared.start_spec(spec);
    let said = text(&stdout) + &text(&stderr);
    assert!(matches!(prepared.receive(), FromAgent::Exited { .. }));
    assert!(!said.is_empty());
    // The process was the one that had waited, and has been collected.
    assert!(!prepared.children().contains(&zygote));
    (plain_said, said)
}

#[test]
fn a_prepared_sandbox_is_as_one_that_was_not_prepared() {
    let (plain, prepared) = plain_and_prepared(|agent| with_files(agent.spec(LOOK_AROUND)));
    assert!(
        plain.contains("/proc/timer_list") && plain.contains("cell\n"),
        "{plain}"
    );
    assert_eq!(prepared, plain);
}

#[test]
fn a_prepared_sandbox_has_the_user_and_capabilities_of_its_own_spec() {
    let (plain, prepared) = plain_and_prepared(|agent| {
        let mut spec = with_files(agent.spec(LOOK_AROUND));
        spec.process.user = "1000:1000".into();
        spec.process.capabilities = CapabilitySet(1 << 10);
        spec.process.no_new_privileges = true;
        spec.process.cwd = "/made/for/it".into();
        spec.hostname = "other".into();
        spec.masked_paths = SandboxSpec::default_masked_paths();
        spec
    });
    assert!(plain.contains("CapBnd:\t0000000000000400"), "{plain}");
    assert_eq!(prepared, plain);
}

#[test]
fn the_process_that_waits_becomes_the_sandboxs() {
    let mut agent = Agent::new();
    let zygote = agent.prepare(agent.spec(""));
    agent.start("exec busybox sleep 1000");
    assert_eq!(agent.children(), [zygote]);
}

#[test]
fn a_spec_with_other_mounts_paths_or_more_capabilities_is_started_anew() {
    let changes: [fn(&mut SandboxSpec); 4] = [
        |spec| spec.mounts.retain(|mount| mount.kind != "mqueue"),
        |spec| spec.masked_paths.push("/proc/uptime".into()),
        |spec| spec.readonly_paths.clear(),
        |spec| spec.process.capabilities = CapabilitySet(u64::MAX),
    ];
    for change in changes {
        let mut agent = Agent::new();
        let zygote = agent.prepare(agent.spec(""));
        let mut spec =
            agent.spec("echo uptime $(busybox wc -c < /proc/uptime); busybox mount; exec busybox sleep 1000");
        change(&mut spec);
        agent.start_spec(spec);
        let children = agent.children();
        assert!(children.iter().any(|&child| child != zygote), "{children:?}");
    }
}

#[test]
fn hidden_paths_outside_of_the_mounts_are_hidden_in_the_image() {
    let (plain, prepared) = plain_and_prepared(|agent| {
        let mut spec = agent.spec("busybox wc -c < /etc/secret; echo x > /etc/fixed");
        std::fs::write(agent.directory.path().join("rootfs/etc/secret"), "secret").unwrap();
        std::fs::write(agent.directory.path().join("rootfs/etc/fixed"), "fixed").unwrap();
        spec.masked_paths.push("/etc/secret".into());
        spec.readonly_paths.push("/etc/fixed".into());
        spec.process.args[2].push_str(" || true");
        spec
    });
    assert!(plain.starts_with("0\n") && plain.contains("Read-only"), "{plain}");
    assert_eq!(prepared, plain);
}

#[test]
fn a_process_that_has_died_waiting_is_replaced() {
    let mut agent = Agent::new();
    let zygote = agent.prepare(agent.spec(""));
    kill_process(Pid::from_raw(zygote as i32).unwrap(), Signal::KILL).unwrap();
    let spec = agent.spec("echo alive");
    assert_eq!(said(&mut agent, spec), "alive\n");
}

#[test]
fn another_preparation_replaces_the_first() {
    let mut agent = Agent::new();
    let first = agent.prepare(agent.spec(""));
    agent.send(&ToAgent::Prepare(Box::new(agent.spec(""))));
    assert_eq!(agent.receive(), FromAgent::Prepared);
    agent.start("exec busybox sleep 1000");
    assert!(agent.children().iter().any(|&child| child != first));
}

#[test]
fn a_prepared_start_that_fails_says_why_and_another_may_follow() {
    let mut agent = Agent::new();
    agent.prepare(agent.spec(""));
    let mut spec = agent.spec("");
    spec.process.args = vec!["nginx".into()];
    agent.send(&ToAgent::Start(Box::new(spec)));
    assert_eq!(
        agent.receive(),
        FromAgent::StartFailed {
            process: 0,
            kind: StartFailure::NotFound,
            message: "exec: \"nginx\": executable file not found in $PATH".into()
        }
    );
    assert_eq!(agent.children(), [0; 0]);
    let spec = agent.spec("echo then");
    assert_eq!(said(&mut agent, spec), "then\n");
}

#[test]
fn a_preparation_that_fails_says_why_and_a_start_may_follow() {
    let mut agent = Agent::new();
    let mut spec = agent.spec("");
    spec.mounts[0].kind = "nonsense".into();
    agent.send(&ToAgent::Prepare(Box::new(spec)));
    let answer = agent.receive();
    assert!(
        matches!(&answer, FromAgent::StartFailed { message, .. } if message.contains("mount nonsense on /proc")),
        "{answer:?}"
    );
    let spec = agent.spec("echo then");
    assert_eq!(said(&mut agent, spec), "then\n");
    agent.send(&ToAgent::Prepare(Box::new(agent.spec(""))));
    assert!(matches!(agent.receive(), FromAgent::StartFailed { .. }));
}

#[test]
fn the_process_that_waits_ends_with_the_agent() {
    let mut agent = Agent::new();
    let zygote = agent.prepare(agent.spec(""));
    let process = rustix::process::pidfd_open(
        Pid::from_raw(zygote as i32).unwrap(),
        rustix::process::PidfdFlags::empty(),
    )
    .unwrap();
    agent.control.shutdown(std::net::Shutdown::Both).unwrap();
    assert_eq!(agent.wait_for_end(), Some(2));
    let mut end = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut end, None).unwrap(), 1);
}
