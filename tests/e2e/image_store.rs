//! What happens to images other than being run: names, archives, removal, and images made of sandboxes.

use std::{fs, path::Path, process::Command};

use brig_tests::{
    archive::Image,
    brig::{Brig, finish},
    machine::Need,
    tests,
};
use serde_json::{Value, json};

tests! {
    Need::Nothing =>
        images_are_named_listed_and_inspected,
        files_are_imported,
        what_is_not_needed_is_pruned_after_a_question,
        wrong_words_about_images_are_one_line;
    Need::Programs(&["skopeo", "gzip", "zstd", "xz", "bzip2"]) => an_archive_of_ours_is_loaded_again_and_taken_by_skopeo;
    Need::Programs(&["script", "bash"]) => archives_are_not_written_to_a_terminal_or_half;
    Need::Kvm =>
        an_image_in_use_is_not_removed,
        a_sandbox_s_files_are_exported_compared_and_committed;
}

fn load(brig: &Brig, image: &Image) {
    let output = brig.run_with_input(&["load", "-q"], image.to_oci());
    assert_eq!(output.code, 0, "{output:?}");
}

fn hello(name: &str) -> Image {
    let config = json!({"Cmd": ["/hello"], "Labels": {"team": "web"}, "Env": ["A=b"]});
    Image::of_files(name, config, &[("hello", 0o755, name.as_bytes())])
}

fn images_are_named_listed_and_inspected() {
    let brig = Brig::empty();
    load(&brig, &hello("one"));
    load(&brig, &hello("two"));
    brig.ok(&["tag", "one", "registry.example:5000/team/one:1"]);
    brig.ok(&["image", "tag", "one", "two"]);
    let list = |more: &[&str]| {
        let mut words = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
        words.extend(more);
        let mut lines: Vec<String> = brig.ok(&words).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(
        list(&[]),
        [
            "<none>:<none>",
            "one:latest",
            "registry.example:5000/team/one:1",
            "two:latest"
        ]
    );
    assert_eq!(list(&["--filter", "dangling=true"]), ["<none>:<none>"]);
    assert_eq!(
        list(&["--filter", "reference=registry.example:5000/*/one"]),
        ["registry.example:5000/team/one:1"]
    );
    assert_eq!(list(&["two"]), ["two:latest"]);
    assert_eq!(list(&["--filter", "label=team=web", "t*"]), ["two:latest"]);
    assert!(list(&["--filter", "label=team=other"]).is_empty());
    assert_eq!(brig.ok(&["images"]), brig.ok(&["image", "ls"]));
    assert!(brig.ok(&["images", "--digests"]).contains("DIGEST"));
    let row: Value = serde_json::from_str(brig.ok(&["images", "--format", "json", "two"]).trim()).unwrap();
    assert_eq!(row["Repository"], "two");

    let inspected: Value = serde_json::from_str(&brig.ok(&["image", "inspect", "two"])).unwrap();
    assert_eq!(inspected[0]["Config"]["Env"], json!(["A=b"]));
    assert_eq!(inspected[0]["RootFS"]["Type"], "layers");
    let format = |template| brig.ok(&["image", "inspect", "--format", template, "two"]);
    assert_eq!(format("{{.Os}}/{{.Architecture}}"), "linux/amd64\n");
    assert_eq!(format("{{json .Config.Cmd}}"), "[\"/hello\"]\n");
    assert_eq!(format("{{index .Config.Labels \"team\"}}"), "web\n");
    assert_eq!(brig.ok(&["history", "-q", "two"]).lines().count(), 1);
    assert!(brig.ok(&["history", "two"]).starts_with("IMAGE"));

    assert_eq!(
        brig.ok(&["rmi", "registry.example:5000/team/one:1"]),
        "Untagged: registry.example:5000/team/one:1\n"
    );
    let id = brig.ok(&["images", "-q", "--no-trunc", "one"]);
    let error = brig.fails(1, &["rmi", id.trim()]);
    assert!(
        error.contains("(must be forced) - image is referenced by several names: one:latest, two:latest"),
        "{error}"
    );
    let removed = brig.ok(&["rmi", "-f", id.trim()]);
    assert!(
        removed.starts_with("Untagged: one:latest\nUntagged: two:latest\nDeleted: sha256:"),
        "{removed}"
    );
    brig.assert_nothing_left();
}

fn an_archive_of_ours_is_loaded_again_and_taken_by_skopeo() {
    let brig = Brig::empty();
    load(&brig, &hello("one").gzip());
    load(&brig, &hello("two"));
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("both.tar");
    let archive = archive.to_str().unwrap();
    brig.ok(&["save", "-o", archive, "one", "two"]);
    let piped = brig.command(&["save", "one", "two"]).output().unwrap();
    assert!(piped.status.success() && piped.stdout == fs::read(archive).unwrap());
    let other = Brig::empty();
    assert_eq!(
        other.ok(&["load", "-i", archive]),
        "Loaded image: one:latest\nLoaded image: two:latest\n"
    );
    assert_eq!(other.ok(&["images", "-q"]), brig.ok(&["images", "-q"]));
    assert_eq!(other.ok(&["system", "check"]), "The image store is whole.\n");
    for (from, to) in [("docker-archive", "one:latest"), ("docker-archive", "two:latest")] {
        let output = Command::new("skopeo")
            .args([
                "copy",
                "--quiet",
                "--insecure-policy",
                &format!("{from}:{archive}:{to}"),
            ])
            .arg(format!("dir:{}", scratch.path().join(to).display()))
            .output()
            .expect("skopeo is installed");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // What others pack, brig takes.
    let theirs = scratch.path().join("theirs.tar");
    let output = Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg(format!("dir:{}", scratch.path().join("one:latest").display()))
        .arg(format!("oci-archive:{}:theirs:1", theirs.display()))
        .output()
        .expect("skopeo is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for (packer, ending) in [("gzip", "gz"), ("zstd", "zst"), ("xz", "xz"), ("bzip2", "bz2")] {
        let status = Command::new(packer)
            .args(["-k", "-q"])
            .arg(&theirs)
            .status()
            .expect("a packer");
        assert!(status.success());
        let packed = format!("{}.{ending}", theirs.display());
        assert_eq!(other.ok(&["load", "-i", &packed]), "Loaded image: theirs:1\n");
        let refused = other.fails(125, &["import", "--max-image-size", "1k", &packed]);
        assert!(refused.contains("write it as"), "{refused}");
    }
    brig.assert_nothing_left();
}

fn archives_are_not_written_to_a_terminal_or_half() {
    let brig = Brig::empty();
    load(&brig, &hello("one"));
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("no/such/out.tar");
    brig.fails(1, &["save", "-o", missing.to_str().unwrap(), "one"]);
    let path = scratch.path().join("out.tar");
    let error = brig.fails(1, &["save", "-o", path.to_str().unwrap(), "nothing"]);
    assert!(error.contains("no such image: nothing"), "{error}");
    assert!(!path.exists());
    // script(1) gives a command a terminal.
    let words = format!("{} save one", brig_tests::machine::brig().display());
    let mut command = Command::new("script");
    command
        .args(["-qec", &words, "/dev/null"])
        .env("BRIG_ROOT", brig.root())
        .env("BRIG_RUNTIME", brig.runtime());
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let output = finish(command.spawn().expect("script is installed"));
    assert!(
        output
            .stdout
            .contains("refusing to write an archive to a terminal"),
        "{output:?}"
    );
    // A reader that goes away.
    let words = format!(
        "{} save one | head -c 100 >/dev/null; exit ${{PIPESTATUS[0]}}",
        brig_tests::machine::brig().display()
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &words])
        .env("BRIG_ROOT", brig.root())
        .env("BRIG_RUNTIME", brig.runtime());
    let output = command.output().unwrap();
    assert!(
        !String::from_utf8_lossy(&output.stderr).contains("panicked"),
        "{output:?}"
    );
    brig.assert_nothing_left();
}

fn files_are_imported() {
    let brig = Brig::empty();
    let layer = hello("x").layer;
    let output = brig.run_with_input(
        &[
            "import",
            "-c",
            "CMD [\"/hello\"]",
            "-c",
            "ENV A=c",
            "-m",
            "mine",
            "-",
            "made:1",
        ],
        layer.clone(),
    );
    assert!(
        output.code == 0 && output.stdout.starts_with("sha256:"),
        "{output:?}"
    );
    let format = |template| brig.ok(&["image", "inspect", "--format", template, "made:1"]);
    assert_eq!(
        format("{{.Config.Cmd}} {{.Config.Env}} {{.Comment}}"),
        "[/hello] [A=c] mine\n"
    );
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("files.tar");
    fs::write(&path, &layer).unwrap();
    brig.ok(&["import", path.to_str().unwrap()]);
    assert!(brig.ok(&["history", "--no-trunc", "made:1"]).contains("mine"));
    let error = brig.fails(1, &["import", "https://example.com/x.tar"]);
    assert!(
        error.contains("curl -L https://example.com/x.tar | brig import -"),
        "{error}"
    );
    let output = brig.run_with_input(&["import", "-"], b"no archive".to_vec());
    output.assert_clear_failure(1, "import of what is no archive");
    brig.fails(125, &["import", "-c", "RUN make", "-"]);
    brig.assert_nothing_left();
}

fn what_is_not_needed_is_pruned_after_a_question() {
    let brig = Brig::empty();
    load(&brig, &hello("one"));
    load(&brig, &hello("two"));
    brig.ok(&["tag", "two", "one"]);
    let asked = |words: &[&str], answer: &str| {
        let output = brig.run_with_input(words, answer.as_bytes().to_vec());
        assert_eq!(output.code, 0, "{output:?}");
        assert!(output.stderr.contains("[y/N]"), "{output:?}");
        output.stdout
    };
    assert_eq!(asked(&["image", "prune"], ""), "");
    assert_eq!(asked(&["image", "prune"], "n\n"), "");
    let pruned = asked(&["image", "prune"], "y\n");
    assert!(
        pruned.starts_with("Deleted Images:\ndeleted: sha256:") && pruned.contains("Total reclaimed space: "),
        "{pruned}"
    );
    // One image, which has both names.
    assert_eq!(brig.ok(&["images", "-q"]).lines().count(), 1);
    assert!(
        brig.ok(&["image", "prune", "-af", "--filter", "label=team=none"])
            .starts_with("Total reclaimed space: 0B")
    );
    let usage = brig.ok(&["system", "df"]);
    assert!(usage.contains("Images          1"), "{usage}");
    assert!(brig.ok(&["system", "df", "-v"]).contains("Images space usage:"));
    let row = usage.lines().find(|line| line.starts_with("Images")).unwrap();
    let size = row.split_whitespace().nth(3).unwrap();
    assert_eq!(row.split_whitespace().nth(4), Some(size), "{usage}");
    let pruned = brig.ok(&["system", "prune", "-af"]);
    assert!(
        pruned.contains("untagged: one:latest\nuntagged: two:latest\n"),
        "{pruned}"
    );
    assert!(
        pruned.ends_with(&format!("Total reclaimed space: {size}\n")),
        "{usage}{pruned}"
    );
    assert_eq!(brig.ok(&["images", "-q"]), "");
    assert_eq!(brig.ok(&["system", "check"]), "The image store is whole.\n");
    brig.assert_nothing_left();
}

fn wrong_words_about_images_are_one_line() {
    let brig = Brig::empty();
    load(&brig, &hello("one"));
    for (code, words) in [
        (1, &["rmi", "nothing"][..]),
        (1, &["tag", "nothing", "x"]),
        (1, &["tag", "one", "UPPER"]),
        (1, &["tag", "one", &format!("x@sha256:{}", "0".repeat(64))]),
        (1, &["history", "nothing"]),
        (1, &["save", "nothing"]),
        (1, &["images", "--filter", "nope=1"]),
        (1, &["images", "--filter", "dangling"]),
        (1, &["images", "--format", "{{.Nope}}"]),
        (1, &["images", "--format", "{{"]),
        (1, &["image", "prune", "-f", "--filter", "until=soon"]),
        (1, &["export", "nothing"]),
        (1, &["commit", "nothing"]),
        (1, &["diff", "nothing"]),
        (125, &["commit", "-c", "COPY a b", "x"]),
        (1, &["save"]),
    ] {
        brig.fails(code, words);
    }
    brig.assert_nothing_left();
}

pub(crate) fn an_image_in_use_is_not_removed() {
    let brig = Brig::new();
    // Asked for, it is in the store.
    brig.ok(&["image", "inspect", "welcome"]);
    brig.ok(&["run", "-d", "--name", "holder", "busybox", "sleep", "1000"]);
    let error = brig.fails(1, &["rmi", "busybox"]);
    assert!(
        error.contains("is being used by running sandbox") && error.contains("(holder)"),
        "{error}"
    );
    assert_eq!(brig.ok(&["rmi", "-f", "busybox"]), "Untagged: busybox:latest\n");
    assert!(
        brig.ok(&["image", "prune", "-af"])
            .contains("untagged: welcome:latest")
    );
    brig.ok(&["stop", "-t", "0", "holder"]);
    brig.ok(&["start", "holder"]);
    brig.ok(&["rm", "-f", "holder"]);
    assert!(brig.ok(&["system", "prune", "-f"]).contains("deleted: sha256:"));
    assert_eq!(brig.ok(&["images", "-q"]), "");
    brig.assert_nothing_left();
}

/// Changes of every kind.
const CHANGES: &str = "set -e; cd /srv; echo new >file; ln file hard; ln -s /no/where soft; mkfifo pipe; mkdir -m 700 empty; \
    dd if=/dev/zero of=sparse bs=1 count=1 seek=1048575 2>/dev/null; chown 33:44 file; \
    rm /bin/uname; rm -r /old/gone; rm -r /old/again; mkdir /old/again; echo x >/old/again/new; chmod 711 /var; \
    echo changed";

pub(crate) fn a_sandbox_s_files_are_exported_compared_and_committed() {
    let brig = Brig::empty();
    let busybox = Image::of_busybox("base", json!({"Cmd": ["sh"]}));
    let mut layer = busybox.layer;
    let end = layer.iter().rposition(|&byte| byte != 0).unwrap() / 512 * 512 + 512;
    layer.truncate(end);
    let more = Image::of_files(
        "more",
        json!({}),
        &[
            ("srv/kept", 0o644, b"kept"),
            ("old/gone/x", 0o644, b"x"),
            ("old/again/hidden", 0o644, b"x"),
            ("var/x", 0o644, b""),
        ],
    );
    layer.extend(more.layer);
    load(
        &brig,
        &Image::of_layer("base", json!({"Cmd": ["sh"], "Env": ["A=b"]}), layer),
    );
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "work",
        "-e",
        "B=c",
        "base",
        "sh",
        "-c",
        &format!("{CHANGES}; sleep 1000"),
    ]);
    brig.wait_for_log("work", "changed");

    let changes = brig.ok(&["diff", "work"]);
    for line in [
        "A /srv/file",
        "A /srv/hard",
        "A /srv/empty",
        "C /srv",
        "D /usr/bin/uname",
        "D /old/gone",
        "D /old/again/hidden",
        "A /old/again/new",
        "C /var",
    ] {
        assert!(
            changes.lines().any(|changed| changed == line),
            "{line} is not in {changes}"
        );
    }
    for hidden in ["/etc/hosts", "/proc", "/dev", "kept"] {
        assert!(!changes.contains(hidden), "{hidden} is in {changes}");
    }
    // A running sandbox goes on, and one that has stopped is the same.
    let id = brig.ok(&[
        "commit",
        "-a",
        "me",
        "-m",
        "by hand",
        "-c",
        "CMD [\"/bin/true\"]",
        "work",
        "made:1",
    ]);
    assert!(id.starts_with("sha256:"), "{id}");
    assert!(brig.ps_line("work").unwrap().contains("Up "));
    brig.ok(&["stop", "-t", "0", "work"]);
    assert_eq!(brig.ok(&["diff", "work"]), changes);

    // One that has never been started has changed nothing but its configuration.
    brig.ok(&["create", "--name", "new", "-u", "33", "base", "id", "-u"]);
    assert_eq!(brig.ok(&["diff", "new"]), "");
    brig.ok(&["commit", "new", "asked"]);
    brig.ok(&["rm", "new"]);
    let asked = brig.ok(&[
        "image",
        "inspect",
        "--format",
        "{{.Config.Cmd}} {{.Config.User}}",
        "asked",
    ]);
    assert_eq!(asked, "[id -u] 33\n");

    let format = |template| brig.ok(&["image", "inspect", "--format", template, "made:1"]);
    assert_eq!(
        format("{{.Config.Cmd}} {{len .RootFS.Layers}} {{.Comment}} {{.Author}}"),
        "[/bin/true] 2 by hand me\n"
    );
    assert!(format("{{.Config.Env}}").contains("B=c"));
    let script = "cd /srv; cat file kept; stat -c '%n %a %u %g %h %F %s' file hard pipe sparse; stat -c '%n %a %u %g %F' empty; readlink soft; \
        ls /bin/uname /old /old/again 2>&1; stat -c %a /var";
    let seen = brig.ok(&["run", "--rm", "made:1", "sh", "-c", script]);
    assert_eq!(
        seen,
        "new\nkeptfile 644 33 44 2 regular file 4\nhard 644 33 44 2 regular file 4\n\
         pipe 644 0 0 1 fifo 0\nsparse 644 0 0 1 regular file 1048576\nempty 700 0 0 directory\n/no/where\nls: /bin/uname: No such file or directory\n\
         /old:\nagain\n\n/old/again:\nnew\n711\n"
    );

    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("work.tar");
    brig.ok(&["export", "-o", archive.to_str().unwrap(), "work"]);
    let listed = Command::new("tar").arg("-tf").arg(&archive).output().unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for path in ["usr/bin/busybox", "srv/kept", "srv/file", "old/again/new"] {
        assert!(
            listed.lines().any(|line| line == path),
            "{path} is not in {listed}"
        );
    }
    assert!(
        !listed.contains("bin/uname") && !listed.contains(".wh."),
        "{listed}"
    );
    let image = brig.ok(&[
        "import",
        "-c",
        "CMD [\"cat\", \"/srv/file\"]",
        archive.to_str().unwrap(),
        "again",
    ]);
    assert!(image.starts_with("sha256:"));
    assert_eq!(brig.ok(&["run", "--rm", "again"]), "new\n");
    assert!(Path::new(&archive).exists());
    let told = |action: &str, format: &str| {
        let filter = format!("event={action}");
        let words = ["events", "--since", "24h", "--until", "0s", "--filter", &filter];
        brig.ok(&[&words[..], &["--filter", "container=work", "--format", format]].concat())
    };
    let id = id.trim();
    assert_eq!(
        told(
            "commit",
            "{{.Actor.Attributes.imageID}} {{.Actor.Attributes.imageRef}}"
        ),
        format!("{id} made:1\n")
    );
    assert_eq!(told("export", "{{.Type}}"), "container\n");
    brig.ok(&["rm", "work"]);
    brig.assert_nothing_left();
}
