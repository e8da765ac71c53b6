//! What a person gets wrong: one clear line, the right exit code, and nothing lost.

use std::fs;

use brig_tests::{archive::Image, brig::Brig, machine::Need, suite::Isolation, tests};
use serde_json::json;
use tempfile::NamedTempFile;

tests! {
    Need::Nothing =>
        an_unknown_image_is_named,
        an_image_without_a_command_asks_for_one,
        unknown_sandboxes_are_named,
        options_that_make_no_sense_are_refused;
    Need::Kvm =>
        an_ambiguous_prefix_is_refused,
        a_user_that_the_image_has_not_is_named;
}

fn an_unknown_image_is_named() {
    let brig = Brig::new();
    let message = brig.fails(125, &["run", "--pull", "never", "no-such-image"]);
    assert!(
        message.contains("no-such-image") && message.contains("brig load"),
        "{message}"
    );
    // Nobody listens at that port.
    let message = brig.fails(125, &["run", "localhost:1/no-such-image"]);
    assert!(
        message.contains("Unable to find image 'localhost:1/no-such-image:latest' locally")
            && message.contains("cannot reach localhost:1"),
        "{message}"
    );
    brig.assert_nothing_left();
}

fn an_image_without_a_command_asks_for_one() {
    let brig = Brig::empty();
    let image = Image::of_files("silent", json!({}), &[("data", 0o644, b"x")]);
    let archive = NamedTempFile::new().unwrap();
    fs::write(archive.path(), image.to_oci()).unwrap();
    brig.ok(&["load", "-i", archive.path().to_str().unwrap()]);
    let message = brig.fails(125, &["run", "silent"]);
    assert!(message.contains("command"), "{message}");
    brig.assert_nothing_left();
}

pub(crate) fn unknown_sandboxes_are_named() {
    let brig = Brig::empty();
    for arguments in [
        &["stop", "ghost"][..],
        &["start", "ghost"],
        &["rm", "ghost"],
        &["logs", "ghost"],
        &["wait", "ghost"],
        &["kill", "ghost"],
        &["inspect", "ghost"],
        &["port", "ghost"],
        &["logs", "../../etc"],
        &["rm", ""],
    ] {
        let message = brig.fails(1, arguments);
        assert!(message.contains(arguments[1]), "{arguments:?}: {message}");
    }
}

pub(crate) fn options_that_make_no_sense_are_refused() {
    let brig = Brig::new();
    for (option, value, word) in [
        ("-p", "80:80:80:80", "80:80:80:80"),
        ("-p", "8080:0", "8080:0"),
        ("-p", "99999:80", "99999:80"),
        ("-p", "53:53/udp", "TCP"),
        ("-p", "1000-1002:80-81", "1000-1002:80-81"),
        ("-m", "lots", "lots"),
        ("-m", "1m", "1m"),
        ("--cpus", "0", "0"),
        ("--cpus", "33", "33"),
        ("--name", "../escape", "../escape"),
        ("-w", "relative", "relative"),
        ("--hostname", "a b", "a b"),
        ("-e", "=x", "=x"),
    ] {
        let message = brig.fails(125, &["run", "--rm", option, value, "busybox", "true"]);
        assert!(message.contains(word), "{option} {value}: {message}");
    }
    // Docker's least is enough for a container, whose limit may also be one that is never reached.
    let least = match Isolation::of_this_test() {
        Isolation::Vm => "63m",
        Isolation::Container => "5m",
    };
    let message = brig.fails(125, &["run", "--rm", "-m", least, "busybox", "true"]);
    assert!(
        message.contains("64 MiB, a container 6 MiB"),
        "{least}: {message}"
    );
    for (size, word) in [
        // More than the machine has, though not more than a guest may have.
        ("200g", "memory"),
        ("9000g", "9216000m"),
    ] {
        match Isolation::of_this_test() {
            Isolation::Vm => {
                let message = brig.fails(125, &["run", "--rm", "-m", size, "busybox", "true"]);
                assert!(message.contains(word), "{message}");
            }
            Isolation::Container => {
                brig.ok(&["run", "--rm", "-m", size, "busybox", "true"]);
            }
        }
    }
    if Isolation::of_this_test() == Isolation::Container {
        brig.ok(&["run", "--rm", "-m", "6m", "busybox", "true"]);
    }
    brig.assert_nothing_left();
}

pub(crate) fn an_ambiguous_prefix_is_refused() {
    let brig = Brig::new();
    brig.ok(&["run", "--name", "original", "busybox", "true"]);
    let id = brig.inspect("original", "/Id");
    let id = id.as_str().unwrap();
    // A second id that starts as the first does comes by chance only, so its record is made by hand.
    let last = if id.ends_with('0') { "1" } else { "0" };
    let other = format!("{}{last}", &id[..63]);
    let directory = |id: &str| brig.root().join("sandboxes").join(id);
    fs::create_dir(directory(&other)).unwrap();
    for file in ["config.json", "state.json"] {
        let text = fs::read_to_string(directory(id).join(file)).unwrap();
        let text = text.replace(id, &other).replace("original", "double");
        fs::write(directory(&other).join(file), text).unwrap();
    }
    assert_eq!(brig.inspect("double", "/Id"), other.as_str());
    let twice = &id[..12];
    let message = brig.fails(1, &["inspect", twice]);
    assert!(message.contains("ambiguous"), "{message}");
}

pub(crate) fn a_user_that_the_image_has_not_is_named() {
    let brig = Brig::new();
    let message = brig.fails(125, &["run", "--rm", "-u", "ahab", "busybox", "true"]);
    assert!(message.contains("ahab"), "{message}");
    brig.assert_nothing_left();
}
