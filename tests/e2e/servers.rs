//! Real programs, from Debian's packages.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    brig::Brig,
    http,
    machine::{self, Need},
    tests,
};

tests! {
    Need::Kvm =>
        nginx_serves_with_its_stock_configuration,
        busyboxs_web_server_serves_a_directory;
}

/// A dynamic server with its libraries takes seconds to start where KVM interprets the guest's kernel.
const START_LIMIT: Duration = Duration::from_secs(300);

fn nginx_serves_with_its_stock_configuration() {
    let brig = Brig::new();
    let archive = machine::image_archive("nginx");
    brig.ok(&["load", "-i", archive.to_str().unwrap()]);
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "127.0.0.1:0:80",
        "-p",
        "[::1]:0:80",
        "nginx",
    ]);
    let ports = brig.ok(&["port", "web", "80/tcp"]);
    let addresses: Vec<SocketAddr> = ports.lines().map(|line| line.parse().unwrap()).collect();
    assert!(
        addresses
            .iter()
            .any(|address| address.ip() == Ipv4Addr::LOCALHOST),
        "{ports}"
    );
    assert!(
        addresses
            .iter()
            .any(|address| address.ip() == Ipv6Addr::LOCALHOST),
        "{ports}"
    );
    for address in addresses {
        let answer = wait_for_answer(address);
        assert_eq!(answer.status, 200);
        assert!(answer.text().contains("Welcome to nginx!"), "{}", answer.text());
        assert_eq!(http::get(address, "/missing").unwrap().status, 404);
    }
    // The access log is a link to standard output, the error log to standard error.
    brig.wait_for_log("web", "GET /missing HTTP/1.1\" 404");
    brig.ok(&["stop", "-t", "120", "web"]);
    let line = brig.ps_line("web").unwrap();
    assert!(line.contains("Exited (0)"), "{line}");
    brig.ok(&["rm", "web"]);
    brig.assert_nothing_left();
}

fn busyboxs_web_server_serves_a_directory() {
    let brig = Brig::new();
    let script = "mkdir /www && echo from busybox >/www/index.html && exec httpd -f -p 8000 -h /www";
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-p",
        "127.0.0.1:0:8000",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    let address = brig.port("web", "8000/tcp");
    assert_eq!(wait_for_answer(address).text(), "from busybox\n");
}

/// Asks until there is an answer: nothing says from outside when a server has begun to listen.
fn wait_for_answer(address: SocketAddr) -> http::Answer {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match http::get(address, "/") {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{address} does not serve: {error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}
