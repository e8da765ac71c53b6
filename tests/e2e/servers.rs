//! Real servers, from the recipes under `images`, and their real clients.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use brig_tests::{
    brig::{Brig, COMMAND_LIMIT, Output, finish},
    http,
    machine::Need,
    suite::Isolation,
    tests,
};

tests! {
    Need::Kvm => busyboxs_web_server_serves_a_directory;
    Need::KvmAndServer { image: "nginx", client: "curl" } => nginx_serves_with_its_stock_configuration;
    Need::KvmAndServer { image: "redis", client: "redis-cli" } => redis_keeps_what_redis_cli_tells_it;
    // On an emulated KVM making the cluster takes longer than a test may.
    Need::StandardKvmAndServer { image: "postgres", client: "psql" } =>
        postgres_lets_psql_in_with_the_password_and_keeps_every_committed_row;
    Need::KvmAndServer { image: "python", client: "python3" } => python_answers_a_python_script;
    Need::KvmAndServer { image: "node", client: "curl" } => node_answers_curl;
    // Minutes until it listens where KVM interprets the guest's kernel.
    Need::StandardKvmAndServer { image: "java", client: "curl" } => copies_of_a_warm_java_have_not_begun_again;
}

/// Between two questions whether a server is there by now.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Starts a sandbox of an image with its port published on the loopback, and returns the address. `line` is what it prints
/// when it listens: a dynamic program takes seconds until then where KVM interprets the guest's kernel.
fn start(brig: &Brig, image: &str, port: &str, more: &[&str], line: &str) -> SocketAddr {
    brig.load(image);
    let publish = format!("127.0.0.1:0:{port}");
    let mut arguments = vec!["run", "-d", "--name", image, "-p", &publish];
    arguments.extend(more);
    brig.ok(&arguments);
    brig.wait_for_log(image, line);
    brig.port(image, &format!("{port}/tcp"))
}

/// Stops a sandbox in its own way, which it has time for, and removes it.
fn stop(brig: &Brig, name: &str) {
    brig.ok(&["stop", "-t", "200", name]);
    let line = brig.ps_line(name).unwrap();
    assert!(line.contains("Exited (0)"), "{line}");
    brig.ok(&["rm", name]);
    brig.assert_nothing_left();
}

/// Runs a client on the host.
fn ask(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_remove("http_proxy")
        .env("no_proxy", "*");
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    finish(command.spawn().expect("the client starts"))
}

/// What a client prints that has to succeed.
fn answer(program: &str, arguments: &[&str]) -> String {
    let output = ask(program, arguments);
    assert_eq!(output.code, 0, "{program} {arguments:?}: {output:?}");
    output.stdout.trim_end().to_owned()
}

/// Copies of a warm server that are made.
const COPIES: usize = 2;

/// Saves a sandbox that serves `port`, starts copies of it that have its name and a number, and returns their addresses.
/// Sandbox and copies run afterwards; the snapshot does not last. Of a container there are none.
fn warm_copies(brig: &Brig, name: &str, port: &str) -> Vec<SocketAddr> {
    if Isolation::of_this_test() == Isolation::Container {
        return Vec::new();
    }
    brig.ok(&["snapshot", "create", name, "warm"]);
    let publish = format!("127.0.0.1:0:{port}");
    let addresses = (0..COPIES).map(|number| {
        let copy = format!("{name}{number}");
        brig.ok(&[
            "run",
            "-d",
            "--rm",
            "--snapshot",
            "warm",
            "--name",
            &copy,
            "-p",
            &publish,
        ]);
        brig.port(&copy, &format!("{port}/tcp"))
    });
    let addresses = addresses.collect();
    brig.ok(&["snapshot", "rm", "warm"]);
    addresses
}

/// Ends the copies that [`warm_copies`] made.
fn remove_copies(brig: &Brig, name: &str) {
    if Isolation::of_this_test() == Isolation::Container {
        return;
    }
    for number in 0..COPIES {
        brig.ok(&["rm", "-f", &format!("{name}{number}")]);
    }
}

pub(crate) fn redis_keeps_what_redis_cli_tells_it() {
    let brig = Brig::new();
    let address = start(&brig, "redis", "6379", &["redis"], "Ready to accept connections");
    let port = address.port().to_string();
    let redis = |words: &[&str]| {
        let mut arguments = vec!["-h", "127.0.0.1", "-p", &port];
        arguments.extend(words);
        answer("redis-cli", &arguments)
    };
    assert_eq!(redis(&["set", "greeting", "hello"]), "OK");
    assert_eq!(redis(&["append", "greeting", " world"]), "11");
    assert_eq!(redis(&["get", "greeting"]), "hello world");
    assert_eq!(redis(&["config", "get", "dir"]), "dir\n/data");
    // To a file in that directory, which the entrypoint's user may write to.
    assert_eq!(redis(&["save"]), "OK");
    assert!(redis(&["info", "server"]).contains("redis_mode:standalone"));
    // Copies of the server have its filled cache, and from then on caches of their own.
    let copies = warm_copies(&brig, "redis", "6379");
    for (number, address) in copies.iter().enumerate() {
        let port = address.port().to_string();
        let copy = |words: &[&str]| answer("redis-cli", &[&["-h", "127.0.0.1", "-p", &port], words].concat());
        assert_eq!(copy(&["append", "greeting", &number.to_string()]), "12");
        assert_eq!(copy(&["get", "greeting"]), format!("hello world{number}"));
    }
    assert_eq!(redis(&["get", "greeting"]), "hello world");
    remove_copies(&brig, "redis");
    stop(&brig, "redis");
}

pub(crate) fn postgres_lets_psql_in_with_the_password_and_keeps_every_committed_row() {
    let brig = Brig::new();
    brig.load("postgres");
    let refused = brig.run(&["run", "--rm", "postgres"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("POSTGRES_PASSWORD"), "{refused:?}");

    // What is not synced cannot be lost here: the host does not crash.
    let variables = ["POSTGRES_PASSWORD=kept secret", "POSTGRES_INITDB_ARGS=--no-sync"];
    let run = |name: &str| {
        let volume = ["-v", "cluster:/var/lib/postgresql/data"];
        let words = [
            &["run", "-d", "--name", name, "-p", "127.0.0.1:0:5432"][..],
            &["-e", variables[0], "-e", variables[1]],
            &volume[..],
            &["postgres"],
        ];
        brig.ok(&words.concat());
    };
    run("postgres");
    let ask = |name: &str, password: &str, sql: &str| {
        let to = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres password='{password}' sslmode=disable",
            brig.port(name, "5432/tcp").port()
        );
        psql(&to, sql)
    };
    let ready = wait_for(|| ask("postgres", "kept secret", "select 1"));
    assert_eq!(ready.stdout, "1\n", "{ready:?}");
    let output = ask("postgres", "guessed", "select 1");
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("password authentication failed"),
        "{output:?}"
    );
    let made = ask("postgres", "kept secret", "create table ships (number int)");
    assert_eq!(made.code, 0, "{made:?}");
    let mut committed = 0;
    let mut commit = |name: &str| {
        for _ in 0..10 {
            committed += 1;
            let output = ask(
                name,
                "kept secret",
                &format!("insert into ships values ({committed})"),
            );
            assert_eq!(output.code, 0, "{output:?}");
        }
        committed
    };
    // The cluster is kept, and not made again.
    let keeps = |name: &str, committed: i32| {
        let sql = "select count(*), min(number), max(number) from ships";
        let output = wait_for(|| ask(name, "kept secret", sql));
        assert_eq!(
            output.stdout,
            format!("{committed}|1|{committed}\n"),
            "{output:?}"
        );
    };
    let rows = commit("postgres");
    brig.ok(&["stop", "-t", "200", "postgres"]);
    brig.ok(&["start", "postgres"]);
    keeps("postgres", rows);
    // All of its processes but the first, which recovers.
    let rows = commit("postgres");
    brig.run(&["exec", "postgres", "sh", "-c", "kill -9 -1"]);
    keeps("postgres", rows);
    let rows = commit("postgres");
    brig.ok(&["kill", "postgres"]);
    brig.ok(&["wait", "postgres"]);
    brig.ok(&["start", "postgres"]);
    keeps("postgres", rows);
    let rows = commit("postgres");
    brig.ok(&["rm", "-f", "postgres"]);
    run("heir");
    keeps("heir", rows);
    stop(&brig, "heir");
    brig.ok(&["volume", "rm", "cluster"]);
    brig.assert_nothing_left();
}

fn psql(to: &str, sql: &str) -> Output {
    let words = [
        "--no-psqlrc",
        "--no-password",
        "-At",
        "-v",
        "ON_ERROR_STOP=1",
        "-c",
        sql,
        to,
    ];
    ask("psql", &words)
}

/// Asks until there is an answer, where no line in a log says when there will be one.
fn wait_for(ask: impl Fn() -> Output) -> Output {
    let deadline = Instant::now() + COMMAND_LIMIT;
    loop {
        let output = ask();
        if output.code == 0 || Instant::now() > deadline {
            return output;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

pub(crate) fn python_answers_a_python_script() {
    // In the sandbox: a server that says what it is, when it had its imports done, and what the digest of the request is.
    let server = "
import hashlib, http.server, json, sys, time
imported = time.time_ns()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        answer = json.dumps({'version': sys.version_info[0], 'imported': imported, 'sha256': hashlib.sha256(body).hexdigest()}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
server = http.server.ThreadingHTTPServer(('', 8000), Handler)
print('listening', flush=True)
server.serve_forever()
";
    let client = "
import hashlib, json, sys, urllib.request
body = bytes(range(256)) * 1000
urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
answer = json.load(urllib.request.urlopen(sys.argv[1], data=body, timeout=300))
assert answer['version'] == 3 and answer['sha256'] == hashlib.sha256(body).hexdigest(), answer
print(answer['imported'])
";
    let brig = Brig::new();
    let more = ["python", "python3", "-c", server];
    let address = start(&brig, "python", "8000", &more, "listening");
    let url = format!("http://{address}/");
    let imported = answer("python3", &["-c", client, &url]);
    // Copies of the process have not begun again.
    for address in warm_copies(&brig, "python", "8000") {
        let url = format!("http://{address}/");
        assert_eq!(answer("python3", &["-c", client, &url]), imported);
    }
    remove_copies(&brig, "python");
    brig.ok(&["rm", "-f", "python"]);
    brig.assert_nothing_left();
}

fn copies_of_a_warm_java_have_not_begun_again() {
    // It is compiled when it starts. It says when its main began, and how often it has been asked.
    let server = r#"
import com.sun.net.httpserver.HttpServer;
public class Server {
    static long asked;
    public static void main(String[] arguments) throws Exception {
        long began = System.nanoTime();
        HttpServer server = HttpServer.create(new java.net.InetSocketAddress(8000), 0);
        server.createContext("/", exchange -> {
            byte[] answer = (began + " " + ++asked).getBytes();
            exchange.sendResponseHeaders(200, answer.length);
            exchange.getResponseBody().write(answer);
            exchange.close();
        });
        server.start();
        System.out.println("listening");
    }
}
"#;
    let brig = Brig::new();
    let script = "printf %s \"$1\" >/tmp/Server.java && exec java -XX:+UseSerialGC /tmp/Server.java";
    let more = ["-m", "768m", "java", "sh", "-c", script, "sh", server];
    let address = start(&brig, "java", "8000", &more, "listening");
    let ask = |address: SocketAddr| {
        let said = answer("curl", &["-sS", "--fail", &format!("http://{address}/")]);
        let (began, asked) = said.split_once(' ').unwrap();
        (began.to_owned(), asked.parse::<u64>().unwrap())
    };
    let (began, _) = ask(address);
    assert_eq!(ask(address), (began.clone(), 2));
    for address in warm_copies(&brig, "java", "8000") {
        assert_eq!(ask(address), (began.clone(), 3));
    }
    remove_copies(&brig, "java");
    brig.ok(&["rm", "-f", "java"]);
    brig.assert_nothing_left();
}

pub(crate) fn node_answers_curl() {
    let server = "
const server = require('node:http').createServer((request, response) => {
    let length = 0;
    request.on('data', chunk => length += chunk.length);
    request.on('end', () => response.end(`${request.method} ${request.url} with ${length} bytes\\n`));
});
server.listen(3000, () => console.log('listening'));
process.on('SIGTERM', () => server.close());
";
    let brig = Brig::new();
    // The entrypoint sees that the first word is an option.
    let address = start(&brig, "node", "3000", &["node", "-e", server], "listening");
    let url = format!("http://{address}/ships?n=1");
    assert_eq!(
        answer("curl", &["-sS", "--fail", &url]),
        "GET /ships?n=1 with 0 bytes"
    );
    assert_eq!(
        answer("curl", &["-sS", "--fail", "--data-binary", "twelve bytes", &url]),
        "POST /ships?n=1 with 12 bytes"
    );
    stop(&brig, "node");
}

pub(crate) fn nginx_serves_with_its_stock_configuration() {
    let brig = Brig::new();
    brig.load("nginx");
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
    for wanted in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        assert!(addresses.iter().any(|address| address.ip() == wanted), "{ports}");
    }
    for address in addresses {
        // Nothing says from outside when nginx has begun to listen.
        let url = format!("http://{address}/");
        let page = wait_for(|| ask("curl", &["-sS", "--fail", &url])).stdout;
        assert!(page.contains("Welcome to nginx!"), "{page}");
        assert_eq!(http::get(address, "/missing").unwrap().status, 404);
    }
    // The access log is a link to standard output, the error log to standard error.
    brig.wait_for_log("web", "GET /missing HTTP/1.1\" 404");
    // Who comes through a published port is not trusted as one who comes from within is.
    let log = brig.ok(&["logs", "web"]);
    let mut clients = log.lines().filter(|line| line.contains("HTTP/1.1\""));
    let outside = ["192.0.0.8 ", "100::8 "];
    assert!(
        clients.all(|line| outside.iter().any(|from| line.starts_with(from))),
        "{log}"
    );
    stop(&brig, "web");
}

pub(crate) fn busyboxs_web_server_serves_a_directory() {
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
    let deadline = Instant::now() + COMMAND_LIMIT;
    let answer = loop {
        match http::get(address, "/") {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < deadline, "{address} does not serve: {error}"),
        }
        thread::sleep(POLL_INTERVAL);
    };
    assert_eq!(answer.text(), "from busybox\n");
}
