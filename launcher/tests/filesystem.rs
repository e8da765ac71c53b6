//! The filesystems of a sandbox, and images that try to have them somewhere else.

mod common;

use std::fs;

use brig_protocol::{
    agent::StartFailure,
    spec::{FileImages, FileSpec, SandboxSpec},
};
use common::{Image, chain};

#[test]
fn the_devices_work_and_their_modes_and_links_are_dockers() {
    let said = Image::new().shell(
        "head -c 4 /dev/zero | wc -c; echo x > /dev/null; head -c 8 /dev/urandom | wc -c; \
         stat -c '%n %a %t:%T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty; \
         for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done; ls /dev",
    );
    assert_eq!(
        said,
        "4\n8\n/dev/null 666 1:3\n/dev/zero 666 1:5\n/dev/full 666 1:7\n/dev/random 666 1:8\n\
         /dev/urandom 666 1:9\n/dev/tty 666 5:0\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n\
         /proc/self/fd/2\npts/ptmx\nfd\nfull\nmqueue\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\n\
         tty\nurandom\nzero\n"
    );
}

#[test]
fn a_device_node_that_root_makes_opens_nothing() {
    // The null device: were it not for the mount, it could be opened on any machine.
    let said = Image::new().shell(
        "for d in / /tmp /dev /dev/shm; do mkdir -p $d; mknod -m 666 $d/made c 1 3 || echo $d: not made; \
         (: <$d/made) 2>/dev/null && echo $d: opened; done; stat -c %F /made; \
         mknod /dev/block b 7 0; (: <$d/block) 2>/dev/null && echo block: opened; \
         mv /dev/made /dev/moved; (: >/dev/moved) 2>/dev/null && echo moved: opened; \
         for n in null zero random urandom; do head -c 1 /dev/$n >/dev/null || echo $n; done; \
         : >/dev/null || echo null: not written; umount /dev/null 2>/dev/null && echo unmounted; true",
    );
    assert_eq!(said, "character special file\n");
}

#[test]
fn mounts_have_their_options() {
    let said = Image::new().shell("cat /proc/mounts");
    let line = |target: &str| {
        let field = format!(" {target} ");
        said.lines()
            .find(|line| line.contains(&field))
            .unwrap_or_else(|| panic!("{target} in {said}"))
            .to_owned()
    };
    assert!(line("/proc").starts_with("proc /proc proc rw,nosuid,nodev,noexec,relatime"));
    assert!(line("/sys").starts_with("sysfs /sys sysfs ro,nosuid,nodev,noexec,relatime"));
    assert!(
        line("/dev").starts_with("tmpfs /dev tmpfs rw,nosuid,nodev,size=65536k,mode=755"),
        "{}",
        line("/dev")
    );
    assert!(line("/dev/pts").contains("gid=5,mode=620,ptmxmode=666"));
    assert!(line("/dev/shm").starts_with("shm /dev/shm tmpfs rw,nosuid,nodev,noexec,relatime,size=1024k"));
    assert!(line("/proc/sys").contains(" ro,"));
}

#[test]
fn hidden_paths_are_empty_and_read_only_ones_cannot_be_written() {
    let said = Image::new().shell(
        "wc -c < /proc/timer_list; wc -c < /proc/keys; ls /sys/firmware | wc -l; \
         touch /sys/firmware/x 2>&1 | grep -c 'Read-only'; \
         (echo x > /proc/sys/kernel/domainname) 2>&1 | grep -c 'Read-only'",
    );
    assert_eq!(said, "0\n0\n0\n1\n1\n");
}

#[test]
fn nothing_of_the_hosts_tree_is_left_in_the_mount_namespace() {
    let image = Image::new();
    let said = image.shell("cut -d' ' -f5 /proc/self/mountinfo");
    assert_eq!(said.lines().next(), Some("/"));
    assert_eq!(said.lines().filter(|&target| target == "/").count(), 1, "{said}");
    for target in said.lines() {
        let ours = [
            "/proc",
            "/sys",
            "/dev",
            "/etc/hosts",
            "/etc/hostname",
            "/etc/resolv.conf",
        ];
        assert!(
            target == "/" || ours.iter().any(|path| target.starts_with(path)),
            "{said}"
        );
    }
    // The way out of a chroot.
    let said = image.shell("cd /; ls ../../.. | head -n 1; ls /proc/1/root/ | head -n 1");
    assert_eq!(said, "bin\nbin\n");
}

#[test]
fn the_engines_files_can_be_written_and_the_images_are_untouched() {
    let image = Image::new();
    image.write("etc/hosts", "the image's\n");
    assert_eq!(
        image.shell("cat /etc/hosts; echo more >> /etc/hosts; cat /etc/hosts; stat -c %a /etc/hosts"),
        "127.0.0.1 localhost\n127.0.0.1 localhost\nmore\n644\n"
    );
    assert_eq!(
        fs::read_to_string(image.path().join("etc/hosts")).unwrap(),
        "the image's\n"
    );
    // The next start begins with what the engine says.
    assert_eq!(image.shell("cat /etc/hosts"), "127.0.0.1 localhost\n");
}

#[test]
fn a_link_of_an_engines_file_is_followed_inside_of_the_image_only() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("hosts");
    fs::write(&victim, "the host's").unwrap();
    let image = Image::new();
    image.link("etc/hosts", victim.to_str().unwrap());
    image.link(
        "etc/resolv.conf",
        "../../../../../../../run/systemd/resolve/stub-resolv.conf",
    );
    let said = image.shell("cat /etc/hosts /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf");
    assert_eq!(
        said,
        "127.0.0.1 localhost\nnameserver 192.0.2.1\nnameserver 192.0.2.1\n"
    );
    assert_eq!(fs::read_to_string(victim).unwrap(), "the host's");
}

/// A spec whose file is for images that have one.
fn with_machine_id(image: &Image, script: &str) -> SandboxSpec {
    let mut spec = image.spec(&["sh", "-c", script]);
    spec.files.push(FileSpec {
        path: "/etc/machine-id".into(),
        content: b"0123456789abcdef0123456789abcdef\n".to_vec(),
        mode: 0o444,
        images: FileImages::WithFile,
    });
    spec
}

#[test]
fn a_file_that_takes_an_images_place_comes_to_images_that_have_a_regular_one() {
    let look = "cat /etc/machine-id; stat -c '%a %F' /etc/machine-id";
    let image = Image::new();
    image.write("etc/machine-id", "");
    let said = image.shell_of(&with_machine_id(&image, look));
    assert_eq!(said, "0123456789abcdef0123456789abcdef\n444 regular file\n");
    assert_eq!(fs::read(image.path().join("etc/machine-id")).unwrap(), b"");

    let image = Image::new();
    image.write("var/lib/dbus/id", "the image's");
    image.link("etc/machine-id", "/var/lib/dbus/id");
    let said = image.shell_of(&with_machine_id(&image, "cat /var/lib/dbus/id"));
    assert_eq!(said, "0123456789abcdef0123456789abcdef\n");
}

#[test]
fn images_without_a_regular_file_get_none_in_its_place() {
    let outside = tempfile::tempdir().unwrap();
    let host = outside.path().join("id");
    fs::write(&host, "the host's").unwrap();
    let directory = |image: &Image| fs::create_dir_all(image.path().join("etc/machine-id")).unwrap();
    type State<'a> = (&'a dyn Fn(&Image), &'a str);
    let states: [State<'_>; 5] = [
        (&|_| (), "gone\n"),
        (&directory, "directory\n"),
        (
            &|image| image.link("etc/machine-id", "nowhere"),
            "symbolic link\n",
        ),
        (
            &|image| image.link("etc/machine-id", "machine-id"),
            "symbolic link\n",
        ),
        (
            &|image| image.link("etc/machine-id", host.to_str().unwrap()),
            "symbolic link\n",
        ),
    ];
    for (make, found) in states {
        let image = Image::new();
        make(&image);
        let look = "stat -c %F /etc/machine-id 2>/dev/null || echo gone";
        assert_eq!(image.shell_of(&with_machine_id(&image, look)), found);
    }
    assert_eq!(fs::read_to_string(host).unwrap(), "the host's");
}

#[test]
fn an_image_whose_proc_or_sys_is_a_link_is_refused() {
    for path in ["proc", "sys"] {
        let image = Image::new();
        image.link(path, "/tmp");
        let error = image.run(&image.spec(&["true"])).unwrap_err();
        assert_eq!(
            chain(&error),
            format!("mount target \"/{path}\" is a symbolic link in the image")
        );
        assert_eq!(error.kind(), StartFailure::Other);
    }
}

#[test]
fn an_image_whose_dev_is_a_link_has_its_devices_where_the_link_points() {
    let outside = tempfile::tempdir().unwrap();
    let image = Image::new();
    image.link("dev", outside.path().to_str().unwrap());
    // The target of the link does not exist inside of the image.
    let error = image.run(&image.spec(&["true"])).unwrap_err();
    assert!(
        chain(&error).starts_with("cannot create /dev: "),
        "{}",
        chain(&error)
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    image.link("dev", "/tmp");
    assert_eq!(image.shell("ls -d /tmp/null; echo x > /dev/null"), "/tmp/null\n");
}

#[test]
fn a_passwd_file_that_is_a_link_is_looked_up_inside_of_the_image() {
    let image = Image::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("passwd"), "web:x:0:0::/:\n").unwrap();
    image.link("etc/passwd", outside.path().join("passwd").to_str().unwrap());
    let mut spec = image.spec(&["id"]);
    spec.process.user = "web".into();
    let error = image.run(&spec).unwrap_err();
    assert_eq!(error.kind(), StartFailure::UnknownUser);
}

#[test]
fn a_passwd_file_that_would_never_end_is_refused() {
    for path in ["etc/passwd", "etc/group"] {
        let image = Image::new();
        let file = image.path().join(path);
        fs::remove_file(&file).unwrap();
        let fifo = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &file, fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let error = image.run(&image.spec(&["true"])).unwrap_err();
        assert_eq!(
            chain(&error),
            format!("cannot read /{path} of the image: not a regular file")
        );
        fs::remove_file(&file).unwrap();
        image.link(path, "/dev/zero");
        let error = image.run(&image.spec(&["true"])).unwrap_err();
        assert_eq!(
            chain(&error),
            format!("cannot read /{path} of the image: not a regular file")
        );
    }
}

#[test]
fn a_null_device_of_the_images_own_hides_nothing_and_is_refused() {
    let image = Image::new();
    image.write("dev/null", "not null");
    let mut spec = image.spec(&["true"]);
    spec.mounts.retain(|mount| mount.kind == "proc");
    let error = image.run(&spec).unwrap_err();
    assert!(
        chain(&error).ends_with("/dev/null is not the null device"),
        "{}",
        chain(&error)
    );
}
