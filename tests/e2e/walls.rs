//! The wall inside of the guest: what an image's process may and may not do there. And the one around the hypervisor, as the
//! kernel tells it.

use std::path::{Path, PathBuf};

use brig_tests::{
    brig::Brig,
    machine::{self, Need},
    tests,
};
use serde_json::Value;

tests! {
    Need::Kvm =>
        the_process_has_dockers_walls_around_it,
        the_hypervisor_is_walled_off_too;
}

/// Prints a line a check. Each is a file to read or a thing to try; what fails prints its name and `no`.
const SCRIPT: &str = r#"
try() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name yes"; else echo "$name no"; fi; }
while read -r key value; do
	case $key in CapEff:|CapBnd:|NoNewPrivs:) echo "$key $value";; esac
done </proc/self/status
echo "pid $$"
set -- /proc/[0-9]*
echo "processes $#"
try mount mount -t tmpfs none /mnt
try hostname hostname other
try write-sys touch /sys/x
try write-proc-sys sh -c 'echo 1 >/proc/sys/kernel/panic'
try sysrq sh -c 'echo b >/proc/sysrq-trigger'
try kcore dd if=/proc/kcore bs=1 count=1
mknod /tmp/memory c 1 1 2>/dev/null
try memory dd if=/tmp/memory of=/dev/null bs=512 count=1
# The sandbox's own disks: major and minor number are no secret.
for disk in vda vdb; do
	for directory in /tmp /dev; do
		IFS=: read -r major minor </sys/block/$disk/dev
		mknod $directory/$disk b $major $minor && echo "node $directory/$disk"
		try read-$directory/$disk dd if=$directory/$disk of=/dev/null bs=512 count=1
		try write-$directory/$disk dd if=/dev/zero of=$directory/$disk bs=512 count=1
		rm $directory/$disk
	done
done
try kmsg dd if=/dev/kmsg of=/dev/null bs=512 count=1
try write-root touch /etc/x
try write-cgroup mkdir /sys/fs/cgroup/x
for device in /dev/*; do echo "device ${device#/dev/}"; done
"#;

fn the_process_has_dockers_walls_around_it() {
    let brig = Brig::new();
    let output = brig.run(&["run", "--rm", "busybox", "sh", "-c", SCRIPT]);
    assert_eq!(output.code, 0, "{output:?}");
    let says = |line: &str| {
        assert!(
            output.stdout.lines().any(|said| said == line),
            "no {line:?} in {}",
            output.stdout
        );
    };
    // Docker's default set: capabilities(7) numbers 0, 1, 3 to 8, 10, 13, 18, 27, 29, 31.
    says("CapEff: 00000000a80425fb");
    says("CapBnd: 00000000a80425fb");
    says("pid 1");
    says("processes 1");
    for refused in [
        "mount",
        "hostname",
        "write-sys",
        "write-proc-sys",
        "sysrq",
        "memory",
        "kmsg",
        "write-cgroup",
    ] {
        says(&format!("{refused} no"));
    }
    says("write-root yes");
    for disk in ["/tmp/vda", "/tmp/vdb", "/dev/vda", "/dev/vdb"] {
        says(&format!("node {disk}"));
        says(&format!("read-{disk} no"));
        says(&format!("write-{disk} no"));
    }
    let devices: Vec<_> = output
        .stdout
        .lines()
        .filter_map(|line| line.strip_prefix("device "))
        .collect();
    assert_eq!(
        devices,
        [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout",
            "tty", "urandom", "zero"
        ]
    );
    brig.assert_nothing_left();
}

/// The directories of the cgroups that a hypervisor has for itself, once what they hold it to is looked at. A host that lets this user
/// make none says why.
fn cgroups(found: &Value) -> Vec<PathBuf> {
    let cgroup = &found["Cgroup"];
    if cgroup["OwnLimits"] != true {
        let reason = cgroup["Reason"].as_str().unwrap_or_default();
        assert!(reason.contains("cgroup"), "{cgroup}");
        let root = Path::new("/sys/fs/cgroup");
        let has_some = root.join("memory").exists() || root.join("cgroup.controllers").exists();
        assert!(!(machine::is_root() && has_some), "{cgroup}");
        return Vec::new();
    }
    assert_eq!(cgroup["MemoryBytes"], (512 + 8 + 256) << 20, "{cgroup}");
    assert_eq!(
        (&cgroup["Cpus"], &cgroup["Pids"]),
        (&3.0.into(), &41.into()),
        "{cgroup}"
    );
    let id = found["Id"].as_str().expect("an id");
    let lines = cgroup["Paths"].as_array().expect("a list").iter();
    let own = lines.filter_map(|line| {
        let mut fields = line.as_str()?.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let mount = Path::new("/sys/fs/cgroup").join(controllers.split(',').next()?);
        path.contains(id)
            .then(|| mount.join(path.trim_start_matches('/')))
    });
    let own: Vec<PathBuf> = own.collect();
    assert!(!own.is_empty() && own.iter().all(|path| path.exists()), "{own:?}");
    own
}

fn the_hypervisor_is_walled_off_too() {
    let brig = Brig::new();
    brig.welcome("walled", &["--cpus", "2"]);
    // The second of its life, restored with the other one's memory, is in walls of its own.
    brig.welcome("other", &[]);
    let security = |name: &str| {
        let text = brig.ok(&["inspect", "--security", name]);
        let value: serde_json::Value = serde_json::from_str(&text).expect("inspect prints JSON");
        value[0].clone()
    };
    let (found, other) = (security("walled"), security("other"));
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let of = |value: &serde_json::Value| value["Namespaces"][namespace].clone();
        assert_eq!(of(&found)["Own"], true, "{namespace}: {found:#}");
        assert_ne!(of(&found), of(&other), "{namespace}");
    }
    for (set, mask) in found["Capabilities"].as_object().expect("sets") {
        assert_eq!(mask, "0000000000000000", "{set}");
    }
    let mounts = found["Root"]["Mounts"].as_array().expect("a list");
    assert_eq!(mounts.len(), 1, "{found:#}");
    assert_eq!(
        (&mounts[0]["Target"], &mounts[0]["Type"]),
        (&"/".into(), &"tmpfs".into())
    );
    assert_eq!(found["NoNewPrivs"], true);
    assert_eq!(found["Limits"]["Max core file size"][1], "0");
    assert_eq!(found["Dumpable"], false);
    if machine::is_root() {
        assert_ne!(found["Uid"], other["Uid"]);
        assert_ne!(found["Uid"], 0);
        assert_eq!(found["Groups"].as_array().map(Vec::len), Some(0));
    }
    let supervisor = &found["Supervisor"];
    assert_eq!(supervisor["NoNewPrivs"], true, "{supervisor:#}");
    // SETUID, SETGID, KILL, DAC_OVERRIDE, FOWNER, NET_BIND_SERVICE.
    let kept = supervisor["Capabilities"]["Effective"].as_str().expect("a set");
    let kept = u64::from_str_radix(kept, 16).expect("a number");
    assert_eq!(kept & !0x4ea, 0, "{kept:x}");
    for thread in supervisor["Threads"].as_array().expect("a list") {
        assert_eq!(thread["Seccomp"], "filter", "{thread}");
    }
    let groups = cgroups(&found);
    // KVM has a thread of its own in the process, which never leaves the kernel (arch/x86/kvm/mmu/mmu.c).
    let name = |thread: &Value| thread["Name"].as_str().unwrap_or_default().to_owned();
    let mut threads = found["Threads"].as_array().expect("a list").clone();
    threads.retain(|thread| !name(thread).starts_with("kvm-"));
    let mut names: Vec<_> = threads.iter().map(name).collect();
    names.retain(|name| name != "prefetch");
    names.sort_unstable();
    assert_eq!(names, ["brig-vmm", "disks", "streams", "vcpu0", "vcpu1"]);
    for thread in threads {
        assert_eq!(
            (&thread["Seccomp"], &thread["NoNewPrivs"]),
            (&"filter".into(), &true.into()),
            "{thread}"
        );
    }
    brig.ok(&["rm", "-f", "walled", "other"]);
    for group in groups {
        assert!(!group.exists(), "{} is left", group.display());
    }
    let error = brig.fails(1, &["inspect", "--security", "walled"]);
    assert!(error.contains("no such sandbox"), "{error}");
    brig.assert_nothing_left();
}
