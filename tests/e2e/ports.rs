//! Published ports: what comes out at one end is what went in at the other.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    archive::sha256,
    brig::Brig,
    http,
    machine::{self, Need},
    server, tests,
};
use brig_welcome::pattern;

tests! {
    Need::Kvm =>
        two_hundred_requests_in_a_row_are_right_to_the_byte,
        fifty_connections_at_once_are_all_served,
        a_download_and_an_upload_keep_their_checksums,
        a_client_may_close_its_half_first,
        a_server_may_close_its_half_first,
        a_stalled_reader_stalls_nobody_else,
        every_form_of_publishing_is_understood,
        a_port_is_free_again_after_stop,
        what_ports_have_carried_is_counted;
}

/// Bytes of a large transfer. A guest kernel that KVM interprets copies some 3 MB/s.
fn large() -> u64 {
    if machine::is_rig() { 64 << 20 } else { 8 << 20 }
}

pub(crate) fn two_hundred_requests_in_a_row_are_right_to_the_byte() {
    let address = server::shared().address;
    for number in 0..200 {
        // Sizes around those of packets and buffers.
        let size = [0, 1, 17, 1460, 4096, 5000][number % 6] + number;
        let answer = http::get(address, &format!("/bytes/{size}")).unwrap();
        assert_eq!(answer.status, 200);
        assert!(
            answer.body == expected(size),
            "request {number} for {size} bytes came back wrong"
        );
    }
}

pub(crate) fn fifty_connections_at_once_are_all_served() {
    let address = server::shared().address;
    // All are open, and half of a request is sent on each, before the first is finished.
    let mut clients: Vec<_> = (0..50)
        .map(|number| {
            let mut stream = http::connect(address).unwrap();
            write!(stream, "GET /bytes/{} HTTP/1.1\r\n", 1000 + number).unwrap();
            stream
        })
        .collect();
    for stream in &mut clients {
        stream.write_all(b"Connection: close\r\n\r\n").unwrap();
    }
    for (number, stream) in clients.iter_mut().enumerate() {
        let answer = http::read_answer(stream).unwrap();
        assert!(
            answer.body == expected(1000 + number),
            "connection {number} came back wrong"
        );
    }
}

pub(crate) fn a_download_and_an_upload_keep_their_checksums() {
    let address = server::shared().address;
    let size = large();
    let mut data = vec![0; size as usize];
    pattern::fill(0, &mut data);
    let digest = sha256(&data);

    let mut stream = http::connect(address).unwrap();
    http::ask(&mut stream, &format!("/bytes/{size}")).unwrap();
    assert_eq!(http::hash_answer(&mut stream).unwrap(), (size, digest.clone()));

    let mut stream = http::connect(address).unwrap();
    write!(
        stream,
        "POST /sha256 HTTP/1.1\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream.write_all(&data).unwrap();
    assert_eq!(http::read_answer(&mut stream).unwrap().text().trim(), digest);
}

pub(crate) fn a_client_may_close_its_half_first() {
    let address = server::shared().address;
    let mut stream = http::connect(address).unwrap();
    // Without a length the body ends where this half ends, and only then can the answer come.
    stream.write_all(b"POST /sha256 HTTP/1.1\r\n\r\nabc").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        http::read_answer(&mut stream).unwrap().text().trim(),
        sha256(b"abc")
    );
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the server's end is seen");
}

pub(crate) fn a_server_may_close_its_half_first() {
    let server = server::shared();
    let mut stream = http::connect(server.address).unwrap();
    stream.write_all(b"POST /half-close HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(http::read_answer(&mut stream).unwrap().status, 200);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the server's half is closed");
    stream.write_all(&b"x".repeat(100_000)).unwrap();
    drop(stream);
    server.brig.wait_for_log(server.name, "then read 100000 bytes");
}

pub(crate) fn a_stalled_reader_stalls_nobody_else() {
    let address = server::shared().address;
    // More than all buffers on the way hold, and nobody reads it.
    let mut stalled = http::connect(address).unwrap();
    http::ask(&mut stalled, "/bytes/1000000000").unwrap();
    assert_eq!(stalled.read(&mut [0; 100]).unwrap(), 100, "it has begun");
    for _ in 0..5 {
        assert!(http::get(address, "/bytes/100000").unwrap().body == expected(100_000));
    }
    // It is still there, and goes on where it was.
    let mut rest = vec![0; 200_000];
    stalled.read_exact(&mut rest).unwrap();
}

pub(crate) fn every_form_of_publishing_is_understood() {
    let brig = Brig::new();
    let [first, second] = free_neighbours();
    let fixed = free_port();
    let fixed_form = format!("{fixed}:80");
    let range_form = format!("127.0.0.1:{first}-{second}:80-81");
    brig.ok(&[
        "run",
        "-d",
        "--name",
        "server",
        "-p",
        &fixed_form,
        "--publish",
        "127.0.0.1:0:80",
        "-p",
        "80",
        "-p",
        &range_form,
        "welcome",
    ]);
    brig.wait_for_log("server", "listening");
    let ports = brig.ok(&["port", "server"]);
    let of = |container: &str| -> Vec<SocketAddr> {
        let lines = ports
            .lines()
            .filter_map(|line| line.strip_prefix(container)?.strip_prefix(" -> "));
        lines.map(|line| line.parse().unwrap()).collect()
    };
    let published = of("80/tcp");
    assert!(
        published.contains(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, fixed))),
        "{ports}"
    );
    assert!(
        published.contains(&SocketAddr::from((Ipv4Addr::LOCALHOST, first))),
        "{ports}"
    );
    assert_eq!(
        of("81/tcp"),
        [SocketAddr::from((Ipv4Addr::LOCALHOST, second))],
        "{ports}"
    );
    assert!(published.iter().all(|address| address.port() != 0), "{ports}");
    let mut numbers: Vec<u16> = published
        .iter()
        .filter(|address| address.is_ipv4())
        .map(SocketAddr::port)
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 4, "four forms, four ports: {ports}");
    for port in numbers {
        assert_eq!(
            http::get((Ipv4Addr::LOCALHOST, port).into(), "/healthz")
                .unwrap()
                .text(),
            "ok\n"
        );
    }
    // Nobody listens at 81 inside: the connection ends, and nothing else is harmed.
    let mut refused = http::connect((Ipv4Addr::LOCALHOST, second).into()).unwrap();
    assert!(matches!(refused.read(&mut [0]), Ok(0) | Err(_)));
    assert!(http::get((Ipv4Addr::LOCALHOST, fixed).into(), "/healthz").is_ok());
}

pub(crate) fn a_port_is_free_again_after_stop() {
    let brig = Brig::new();
    let address = brig.welcome("server", &[]);
    assert!(TcpListener::bind(address).is_err(), "the port is held");
    let taken = format!("127.0.0.1:{}:80", address.port());
    let message = brig.fails(125, &["run", "-d", "--name", "second", "-p", &taken, "welcome"]);
    assert!(
        message.contains(&address.to_string()) && message.contains("in use"),
        "{message}"
    );
    brig.ok(&["stop", "server"]);
    // Bound anew as a server does it: connections that have just ended do not stand in its way.
    drop(TcpListener::bind(address).expect("the port is free"));
    brig.ok(&["start", "server"]);
    brig.wait_for_log("server", "listening");
    let again = brig.port("server", "80/tcp");
    let deadline = Instant::now() + Duration::from_secs(60);
    while http::get(again, "/healthz").is_err() {
        assert!(Instant::now() < deadline, "it does not serve after start");
        thread::yield_now();
    }
}

pub(crate) fn what_ports_have_carried_is_counted() {
    let brig = Brig::new();
    let address = brig.welcome("server", &[]);
    let carried = || {
        let format = ["stats", "--no-stream", "--format", "{{.NetIO}}", "server"];
        brig.ok(&format).trim().to_owned()
    };
    assert_eq!(carried(), "0B / 0B");
    for _ in 0..3 {
        let answer = http::get(address, "/bytes/100000").unwrap();
        assert_eq!(answer.body.len(), 100_000);
    }
    let mut stream = http::connect(address).unwrap();
    write!(
        stream,
        "POST /sha256 HTTP/1.1\r\nContent-Length: 50000\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream.write_all(&expected(50_000)).unwrap();
    assert_eq!(http::read_answer(&mut stream).unwrap().status, 200);
    // With the heads of three requests and one, and of four answers.
    let carried = carried();
    let (received, sent) = carried.split_once(" / ").unwrap();
    let kilobytes = |size: &str| size.strip_suffix("kB").unwrap().parse::<f64>().unwrap();
    assert!((50.1..52.0).contains(&kilobytes(received)), "{carried}");
    assert!((300.1..303.0).contains(&kilobytes(sent)), "{carried}");
}

fn expected(size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    pattern::fill(0, &mut bytes);
    bytes
}

/// A port that nobody listens at. Another program may take it meanwhile, which the kernel makes unlikely by handing
/// out ports at random.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Two such ports, one after the other.
fn free_neighbours() -> [u16; 2] {
    let pair = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
        let first = listener.local_addr().ok()?.port();
        let second = first.checked_add(1)?;
        TcpListener::bind((Ipv4Addr::LOCALHOST, second))
            .ok()
            .map(|_| [first, second])
    };
    (0..1000)
        .find_map(|_| pair())
        .expect("two free ports beside each other")
}
