//! Files in and out of sandboxes: `cp`, and of containers `diff`, `export` and `commit` (those of guests are in `layers.rs`).

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use brig_tests::{brig::Brig, machine::Need, suite::Isolation, tests};

tests! {
    Need::Kvm => files_go_in_and_out_of_a_sandbox_that_runs_or_not;
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A directory with a file, a program, a link and a directory in it.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("deep")).unwrap();
    fs::write(at.join("file"), "bytes\n").unwrap();
    fs::write(at.join("deep/run"), vec![7; 100_000]).unwrap();
    symlink("file", at.join("link")).unwrap();
    for (name, bits) in [("file", 0o640), ("deep/run", 0o755), ("deep", 0o750), ("", 0o711)] {
        fs::set_permissions(at.join(name), fs::Permissions::from_mode(bits)).unwrap();
    }
}

fn assert_tree(at: &Path) {
    assert_eq!(fs::read_to_string(at.join("file")).unwrap(), "bytes\n");
    assert_eq!(fs::read(at.join("deep/run")).unwrap(), vec![7; 100_000]);
    assert_eq!(fs::read_link(at.join("link")).unwrap(), Path::new("file"));
    let modes = ["file", "deep/run", "deep", ""].map(|name| mode(&at.join(name)));
    assert_eq!(modes, [0o640, 0o755, 0o750, 0o711]);
}

pub(crate) fn files_go_in_and_out_of_a_sandbox_that_runs_or_not() {
    let brig = Brig::new();
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    make_tree(&at("tree"));
    brig.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "100000"]);

    // A directory to a name that is not there, and into one that is; a file likewise.
    brig.ok(&["cp", &text("tree"), "box:/tmp/new"]);
    brig.ok(&["cp", &text("tree/."), "box:tmp/new"]);
    brig.ok(&["cp", "-q", &text("tree"), "box:/tmp/new/deep/"]);
    let look =
        "cd /tmp/new; stat -c '%a %n' . file deep/run; readlink link; md5sum <deep/tree/deep/run; ls deep";
    let said = brig.ok(&["exec", "box", "sh", "-c", look]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[..4],
        ["711 .", "640 file", "755 deep/run", "file"],
        "{said}"
    );
    assert_eq!(lines[5..], ["run", "tree"], "{said}");
    brig.ok(&["cp", "box:/tmp/new", &text("back")]);
    assert_tree(&at("back"));
    assert_tree(&at("back/deep/tree"));
    brig.ok(&["cp", "-L", "box:/tmp/new/link", &text("alone")]);
    assert_eq!(fs::read_to_string(at("alone")).unwrap(), "bytes\n");
    for (from, to) in [
        ("box:/none", "x"),
        ("box:/tmp/new", "alone"),
        ("box:/tmp/new/file", "none/x"),
    ] {
        let line = brig.fails(1, &["cp", from, &text(to)]);
        assert!(
            line.contains("No such file") || line.contains("Not a directory"),
            "{line}"
        );
    }
    assert!(
        brig.fails(1, &["cp", &text("tree"), "box:/tmp/new/file"])
            .contains("Not a directory")
    );
    assert!(brig.fails(1, &["cp", "a", "b"]).contains("needs a sandbox"));

    // An archive, with its owners.
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(2);
    header.set_mode(0o4711);
    header.set_uid(1234);
    header.set_gid(99);
    archive.append_data(&mut header, "of/owner", &b"hi"[..]).unwrap();
    let output = brig.run_with_input(&["cp", "-", "box:/tmp"], archive.into_inner().unwrap());
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        brig.ok(&["exec", "box", "stat", "-c", "%u:%g %a", "/tmp/of/owner"]),
        "1234:99 4711\n"
    );
    let output = brig.command(&["cp", "box:/tmp/of", "-"]).output().unwrap();
    let mut archive = tar::Archive::new(output.stdout.as_slice());
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (
                entry.path().unwrap().to_str().unwrap().to_owned(),
                entry.header().uid().unwrap(),
            )
        })
        .collect();
    assert_eq!(names.last().unwrap(), &("of/owner".to_owned(), 1234), "{names:?}");
    brig.ok(&["cp", "box:/tmp/of/owner", &text("plain")]);
    assert_eq!(
        (mode(&at("plain")), fs::metadata(at("plain")).unwrap().uid()),
        (0o711, 0)
    );

    nothing_leads_out(&brig, scratch.path());

    if Isolation::of_this_test() == Isolation::Container {
        let changes = brig.ok(&["diff", "box"]);
        for line in ["A /tmp/new/deep/run", "C /tmp", "A /tmp/of/owner"] {
            assert!(
                changes.lines().any(|found| found == line),
                "no {line} in {changes}"
            );
        }
        assert!(!changes.contains("/etc/hosts"), "{changes}");
        brig.ok(&["export", "-o", &text("all.tar"), "box"]);
        let file = fs::File::open(at("all.tar")).unwrap();
        let has = |name: &str| {
            let mut all = tar::Archive::new(&file);
            std::io::Seek::rewind(&mut &file).unwrap();
            all.entries()
                .unwrap()
                .any(|entry| entry.unwrap().path().unwrap() == Path::new(name))
        };
        assert!(has("tmp/of/owner") && has("usr/bin/busybox"));
        brig.ok(&["commit", "box", "again"]);
        assert_eq!(
            brig.ok(&["run", "--rm", "again", "cat", "/tmp/new/file"]),
            "bytes\n"
        );
    }

    // And when it does not run.
    brig.ok(&["stop", "-t", "0", "box"]);
    brig.ok(&["cp", "box:/tmp/new/.", &text("later")]);
    assert_tree(&at("later"));
    brig.ok(&["cp", &text("tree/file"), "box:/tmp/stopped"]);
    assert!(
        brig.fails(1, &["cp", "box:/none", &text("x")])
            .contains("No such file")
    );
    brig.ok(&["start", "box"]);
    assert_eq!(brig.ok(&["exec", "box", "cat", "/tmp/stopped"]), "bytes\n");
    brig.ok(&["rm", "-f", "box"]);
    brig.assert_nothing_left();
}

/// Links of the sandbox's, and such as stand here already, in the way of what is copied.
fn nothing_leads_out(brig: &Brig, scratch: &Path) {
    let outside = scratch.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "untouched").unwrap();
    let script = format!(
        "mkdir -p /tmp/evil/l && echo evil >/tmp/evil/l/secret && ln -s {0}/secret /tmp/evil/direct && \
         ln -s ../../../../../../../../../etc /tmp/up && echo inside >/etc/marker",
        outside.display()
    );
    brig.ok(&["exec", "box", "sh", "-c", &script]);
    // Resolved in the sandbox, however many .. there are.
    let found = scratch.join("marker");
    brig.ok(&["cp", "box:/tmp/up/marker", found.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&found).unwrap(), "inside\n");
    let into = scratch.join("into");
    fs::create_dir_all(into.join("evil")).unwrap();
    symlink(&outside, into.join("evil/l")).unwrap();
    let line = brig.fails(1, &["cp", "box:/tmp/evil", into.to_str().unwrap()]);
    assert!(line.contains("refused"), "{line}");
    fs::remove_file(into.join("evil/l")).unwrap();
    brig.ok(&["cp", "box:/tmp/evil", into.to_str().unwrap()]);
    assert_eq!(
        fs::read_link(into.join("evil/direct")).unwrap(),
        outside.join("secret")
    );
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}
