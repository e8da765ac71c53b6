//! Hosts that lack something, and what a host is told to be.

use std::{
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Stdio},
};

use brig_tests::{
    archive::Image,
    brig::{Brig, finish},
    host::{self, KvmDevice},
    machine::{self, Need},
    registry::Registry,
    tests,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

tests! {
    Need::Root =>
        without_kvm_one_line_says_how_to_get_it,
        without_permission_for_kvm_one_line_says_how_to_get_it,
        without_e2fsprogs_one_line_says_how_to_get_it;
    Need::RootAndRegistry => a_full_disk_while_pulling_is_one_clear_line_and_leaves_nothing;
    Need::KvmAndRoot =>
        no_root_is_needed,
        a_full_disk_while_loading_is_one_clear_line,
        a_full_disk_while_unpacking_is_one_clear_line;
    Need::Kvm =>
        system_info_tells_the_kind_of_kvm,
        workarounds_are_active_on_an_emulated_kvm_only;
}

fn without_kvm_one_line_says_how_to_get_it() {
    let brig = Brig::new();
    let mut command = brig.command(&["run", "--rm", "busybox", "true"]);
    host::with_kvm_device(&mut command, KvmDevice::Missing);
    let output = finish(command.spawn().unwrap());
    output.assert_clear_failure(125, "run without /dev/kvm");
    assert!(
        output.stderr.contains("/dev/kvm") && output.stderr.contains("kvm_intel"),
        "{output:?}"
    );
    brig.assert_nothing_left();
}

fn without_permission_for_kvm_one_line_says_how_to_get_it() {
    let scratch = tempfile::tempdir().unwrap();
    let brig = nobodys_brig(scratch.path());
    let mut command = brig.command(&["run", "--rm", "welcome"]);
    host::with_kvm_device(&mut command, KvmDevice::Private);
    host::as_nobody(&mut command);
    let output = finish(command.spawn().unwrap());
    output.assert_clear_failure(125, "run without permission");
    assert!(
        output.stderr.contains("/dev/kvm") && output.stderr.contains("group kvm"),
        "{output:?}"
    );
    brig.assert_nothing_left();
}

fn without_e2fsprogs_one_line_says_how_to_get_it() {
    let brig = Brig::new();
    let path = tempfile::tempdir().unwrap();
    // Blank disks that are there already need no program.
    std::fs::remove_dir_all(brig.root().join("templates")).unwrap();
    let run = || {
        let mut command = brig.command(&["run", "--rm", "busybox", "true"]);
        command.env("PATH", path.path());
        // On Debian 12 this is /usr/sbin, too.
        host::without_directory(&mut command, Path::new("/sbin"));
        finish(command.spawn().unwrap())
    };
    let output = run();
    output.assert_clear_failure(125, "run without mke2fs");
    assert!(
        output.stderr.contains("mke2fs is missing") && output.stderr.contains("apt-get install e2fsprogs"),
        "{output:?}"
    );
    let other = path.path().join("mke2fs");
    symlink(busybox(), &other).unwrap();
    let output = run();
    output.assert_clear_failure(125, "run with the mke2fs of busybox");
    assert!(
        output.stderr.contains(other.to_str().unwrap())
            && output.stderr.contains("apt-get install e2fsprogs"),
        "{output:?}"
    );
    brig.assert_nothing_left();
}

/// Where busybox is: Debian has it in /bin, which may be a link.
fn busybox() -> &'static Path {
    let path = Path::new("/bin/busybox");
    assert!(
        path.exists(),
        "busybox is missing: apt-get install busybox-static"
    );
    path
}

fn no_root_is_needed() {
    let scratch = tempfile::tempdir().unwrap();
    let brig = nobodys_brig(scratch.path());
    let as_nobody = |arguments: &[&str]| {
        let mut command = brig.command(arguments);
        host::with_kvm_device(&mut command, KvmDevice::Public);
        host::as_nobody(&mut command);
        finish(command.spawn().unwrap())
    };
    let started = as_nobody(&["run", "-d", "--name", "ours", "-p", "127.0.0.1:0:80", "welcome"]);
    assert_eq!(started.code, 0, "{started:?}");
    let port = as_nobody(&["port", "ours", "80/tcp"]).stdout;
    let address = port.lines().next().unwrap().parse().unwrap();
    brig.wait_for_log("ours", "listening");
    assert_eq!(brig_tests::http::get(address, "/healthz").unwrap().text(), "ok\n");
    assert_eq!(as_nobody(&["stop", "ours"]).code, 0);
    assert_eq!(as_nobody(&["rm", "ours"]).code, 0);
    brig.assert_nothing_left();
}

fn a_full_disk_while_loading_is_one_clear_line() {
    let brig = Brig::empty();
    let mut content = vec![0; 4 << 20];
    brig_welcome::pattern::fill(0, &mut content);
    let image = Image::of_files("large", json!({"Cmd": ["/data"]}), &[("data", 0o755, &content)]);
    let archive = write_archive(&image);
    std::fs::create_dir_all(brig.root()).unwrap();
    let mut command = brig.command(&["load", "-i", archive.path().to_str().unwrap()]);
    host::with_little_space(&mut command, brig.root(), 1);
    let output = finish(command.spawn().unwrap());
    output.assert_clear_failure(1, "load with 1 MiB of space");
    assert!(output.stderr.contains("no space left"), "{output:?}");
    brig.assert_nothing_left();
}

fn a_full_disk_while_pulling_is_one_clear_line_and_leaves_nothing() {
    let registry = Registry::start();
    let name = format!("{}/large", registry.host());
    let source = Brig::empty();
    let mut content = vec![0; 4 << 20];
    brig_welcome::pattern::fill(0, &mut content);
    let image = Image::of_files(&name, json!({"Cmd": ["/data"]}), &[("data", 0o755, &content)]);
    let archive = write_archive(&image);
    source.ok(&["load", "-i", archive.path().to_str().unwrap()]);
    source.ok(&["push", &name]);
    let brig = Brig::empty();
    std::fs::create_dir_all(brig.root()).unwrap();
    let mut command = Command::new("sh");
    // What is left is looked at while the small disk is there.
    let script =
        r#""$0" pull "$1"; code=$?; "$0" images -q; find "$BRIG_ROOT/images" -type f -size +1; exit $code"#;
    command
        .args(["-c", script])
        .arg(machine::brig())
        .arg(&name)
        .env("BRIG_ROOT", brig.root())
        .env("BRIG_RUNTIME", brig.runtime())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    host::with_little_space(&mut command, brig.root(), 2);
    let output = finish(command.spawn().unwrap());
    output.assert_clear_failure(1, "pull with 2 MiB of space");
    assert!(output.stderr.contains("no space left"), "{output:?}");
    let last = output.stdout.lines().last().unwrap_or_default();
    assert!(!last.contains("images/"), "{output:?}");
    brig.assert_nothing_left();
}

fn a_full_disk_while_unpacking_is_one_clear_line() {
    // The archive is small, what is in it is not.
    let brig = Brig::empty();
    let content = b"a line that compresses well\n".repeat(1 << 20);
    let image = Image::of_files("swollen", json!({"Cmd": ["/data"]}), &[("data", 0o755, &content)]).gzip();
    let archive = write_archive(&image);
    std::fs::create_dir_all(brig.root()).unwrap();
    let mut command = Command::new("sh");
    command
        .args(["-c", r#""$0" load -i "$1" && exec "$0" run --rm swollen"#])
        .arg(machine::brig())
        .arg(archive.path())
        .env("BRIG_ROOT", brig.root())
        .env("BRIG_RUNTIME", brig.runtime())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    host::with_little_space(&mut command, brig.root(), 8);
    let output = finish(command.spawn().unwrap());
    output.assert_clear_failure(125, "run of an image that takes more than there is");
    assert!(output.stderr.contains("no space left"), "{output:?}");
    brig.assert_nothing_left();
}

fn system_info_tells_the_kind_of_kvm() {
    let brig = Brig::new();
    let text = brig.ok(&["system", "info"]);
    let kind = if machine::is_rig() { "standard" } else { "KVM" };
    assert!(text.contains(kind), "{text}");
    if machine::is_rig() {
        assert!(!text.contains("emulated"), "{text}");
    }
}

fn workarounds_are_active_on_an_emulated_kvm_only() {
    let brig = Brig::new();
    brig.welcome("server", &[]);
    // The word of the VMM that runs it. A brig that does not tell it yet cannot be asked.
    let told: Value = serde_json::from_str(&brig.ok(&["inspect", "server"])).unwrap();
    let active = told
        .pointer("/0/Brig/EmulatedKvmWorkarounds")
        .expect("brig inspect tells what its VMM does");
    let emulated = brig.ok(&["system", "info"]).contains("emulated");
    assert_eq!(active, emulated);
    assert!(
        !(emulated && machine::is_rig()),
        "the rig's KVM is a standard one"
    );
}

fn write_archive(image: &Image) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image.to_oci()).unwrap();
    file
}

/// A brig whose directories nobody may write to.
fn nobodys_brig(directory: &std::path::Path) -> Brig {
    use std::os::unix::fs::{PermissionsExt, chown};
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let home = directory.join("home");
    std::fs::create_dir(&home).unwrap();
    chown(&home, Some(65534), Some(65534)).unwrap();
    Brig::at(&home)
}
