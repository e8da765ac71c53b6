//! The tours that newcomers to Docker are taken on.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use brig_tests::{brig::Brig, http, machine::Need, pty::Pty, tests};

use super::ports::free_port;

tests! {
    Need::Kvm => the_welcome_image_is_run_listed_looked_into_and_stopped;
    // Its client is in the image.
    Need::KvmAndServer { image: "redis", client: "sh" } => redis_is_asked_at_a_terminal_and_its_image_removed;
}

pub(crate) fn the_welcome_image_is_run_listed_looked_into_and_stopped() {
    let brig = Brig::new();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let publish = format!("{address}:80");
    let id = brig.ok(&["run", "-d", "-p", &publish, "welcome"]);
    let id = id.trim();
    assert_eq!(id.len(), 64, "{id}");
    brig.wait_for_log(id, "listening");
    let page = http::get(address, "/").unwrap();
    assert_eq!(page.status, 200);
    assert!(page.text().contains("Welcome aboard"), "{}", page.text());

    let line = || {
        let table = brig.ok(&["ps", "-a"]);
        let line = table.lines().find(|line| line.starts_with(&id[..12]));
        line.unwrap_or_else(|| panic!("{table}")).to_owned()
    };
    let running = line();
    for word in ["welcome", "Up ", &format!("{address}->80/tcp")] {
        assert!(running.contains(word), "{running}");
    }
    // Its files: all, what it has changed, and one of them.
    let files = brig.root().join("files.tar");
    brig.ok(&["export", "-o", files.to_str().unwrap(), id]);
    let names: Vec<String> = tar::Archive::new(fs::File::open(&files).unwrap())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert!(names.iter().any(|name| name == "welcome"), "{names:?}");
    assert_eq!(brig.ok(&["diff", id]), "");
    let program = brig.root().join("program");
    brig.ok(&["cp", &format!("{id}:/welcome"), program.to_str().unwrap()]);
    assert!(fs::read(&program).unwrap().starts_with(b"\x7fELF"));

    let start = &id[..3];
    assert_eq!(brig.ok(&["stop", start]), format!("{start}\n"));
    assert_eq!(brig.ok(&["ps", "-q"]), "");
    assert!(line().contains("Exited (0)"), "{}", line());
    assert_eq!(brig.ok(&["rm", start]), format!("{start}\n"));
    assert_eq!(brig.ok(&["ps", "-aq"]), "");
    for file in [files, program] {
        fs::remove_file(file).unwrap();
    }
    brig.assert_nothing_left();
}

pub(crate) fn redis_is_asked_at_a_terminal_and_its_image_removed() {
    let brig = Brig::new();
    brig.load("redis");
    brig.ok(&["run", "-d", "--name", "cache", "redis"]);
    brig.wait_for_log("cache", "Ready to accept connections");
    let mut client = Pty::start(brig.command(&["exec", "-it", "cache", "redis-cli"]), 33, 111);
    client.wait_for("127.0.0.1:6379> ");
    client.type_in("SET test 1\r");
    client.wait_for("OK\r\n");
    client.type_in("GET test\r");
    client.wait_for("\"1\"\r\n");
    client.type_in("exit\r");
    assert_eq!(client.exit_code(), 0);
    assert!(!client.is_raw());

    let refused = |kind: &str| {
        let line = brig.fails(1, &["rmi", "redis"]);
        let why = format!("is being used by {kind} sandbox");
        assert!(line.contains(&why) && line.contains("(cache)"), "{line}");
    };
    refused("running");
    brig.ok(&["stop", "-t", "200", "cache"]);
    refused("stopped");
    brig.ok(&["rm", "cache"]);
    assert!(brig.ok(&["rmi", "redis"]).starts_with("Untagged: redis:latest\n"));
    assert_eq!(brig.ok(&["images", "-q", "redis"]), "");
    brig.assert_nothing_left();
}
