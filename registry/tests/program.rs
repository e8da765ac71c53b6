//! The program, with what comes from its surroundings: proxies, Docker's file of credentials and its helpers, terminals,
//! signals.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use common::{Image, Server, answer, head, noise, stall};
use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A brig that has nothing.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        fs::create_dir_all(home.path("images")).unwrap();
        fs::create_dir_all(home.path("docker")).unwrap();
        home
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Says how registries are spoken to.
    fn configure(&self, text: &str) {
        fs::write(self.path("registries.toml"), text).unwrap();
    }

    /// Docker's file.
    fn docker(&self, document: &Value) {
        fs::write(self.path("docker/config.json"), document.to_string()).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brig-registry"));
        command
            .args(words)
            .env("BRIG_ROOT", self.0.path())
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(variable).env_remove(variable.to_lowercase());
        }
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn store(&self) -> brig_image_store::Store {
        brig_image_store::Store::open(&self.path("images")).unwrap()
    }

    /// What a pull that was ended has left: nothing that is visible, and a store that works.
    fn assert_works(&self) {
        assert_eq!(self.store().list().unwrap(), []);
        assert_eq!(self.store().check().unwrap(), []);
        assert_eq!(fs::read_dir(self.path("images/tmp")).unwrap().count(), 0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn assert_success(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    text(&output.stdout)
}

/// Asserts a failure in one line, and gives it.
fn complaint(output: &Output) -> String {
    let line = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(line.starts_with("brig: ") && line.lines().count() == 1, "{line}");
    line
}

#[test]
fn a_proxy_is_asked_for_other_machines_registries_alone() {
    let image = Image::of_bytes(200_000);
    let served = image.clone();
    // A proxy is asked for whole addresses.
    let proxy = Server::start(move |request, stream| {
        let Some(path) = request.path.strip_prefix("http://registry.example:5000") else {
            return answer(stream, "502 Bad Gateway", &[], b"");
        };
        let mut request = request.clone();
        request.path = path.to_owned();
        served.serve(&request, stream)
    });
    let address = format!("http://{}", proxy.address);
    let home = Home::new();
    home.configure("attempts = 1\n[registry.\"registry.example:5000\"]\ninsecure = true\n");
    let pull = |name: &str, variables: &[(&str, &str)]| {
        home.command(&["pull", name])
            .envs(variables.iter().copied())
            .output()
            .unwrap()
    };
    let name = "registry.example:5000/app:1";
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let home = Home::new();
        home.configure("attempts = 1\n[registry.\"registry.example:5000\"]\ninsecure = true\n");
        let mut command = home.command(&["pull", name]);
        let before = proxy.count(|request| request.path.contains("/blobs/"));
        assert_success(&command.env(variable, &address).output().unwrap());
        let after = proxy.count(|request| request.path.contains("/blobs/"));
        assert_eq!(after, before + 2, "{variable}");
    }
    // Who is meant to be reached directly is.
    let before = proxy.requests().len();
    let line = complaint(&pull(
        name,
        &[("HTTP_PROXY", &address), ("NO_PROXY", "other.example,.example")],
    ));
    assert!(line.contains("cannot reach registry.example:5000"), "{line}");
    let direct = image.clone();
    let own = Server::start(move |request, stream| direct.serve(request, stream));
    let name = format!("{}/app:1", own.address);
    assert_success(&pull(&name, &[("HTTP_PROXY", &address), ("ALL_PROXY", &address)]));
    assert_eq!(proxy.requests().len(), before);
    // One that is not there is named.
    let line = complaint(&pull(
        "registry.example:5000/app:2",
        &[("HTTP_PROXY", "http://127.0.0.1:1")],
    ));
    assert!(line.contains("cannot reach registry.example:5000"), "{line}");
}

/// A registry that wants tokens of a token server which gives them for an identity token alone.
fn with_identity_tokens(image: &Image) -> (Server, Server) {
    let tokens = Server::start(|request, stream| {
        let body = text(&request.body);
        let json = [("Content-Type", "application/json")];
        let fits = [
            "grant_type=refresh_token",
            "refresh_token=lasting",
            "service=s",
            "client_id=brig",
        ];
        if request.method == "POST" && fits.iter().all(|pair| body.contains(pair)) {
            return answer(stream, "200 OK", &json, br#"{"access_token":"short"}"#);
        }
        if request.path.contains("offline_token=true")
            && request.header("authorization") == Some("Basic bWU6c2VjcmV0")
        {
            let both = br#"{"token":"short","refresh_token":"lasting"}"#;
            return answer(stream, "200 OK", &json, both);
        }
        answer(stream, "401 Unauthorized", &[], b"")
    });
    let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, tokens.address);
    let image = image.clone();
    let registry = Server::start(move |request, stream| {
        if request.header("authorization") != Some("Bearer short") {
            return answer(
                stream,
                "401 Unauthorized",
                &[("WWW-Authenticate", &challenge)],
                b"",
            );
        }
        if request.path == "/v2/" {
            return answer(stream, "200 OK", &[], b"{}");
        }
        image.serve(request, stream)
    });
    (registry, tokens)
}

#[test]
fn an_identity_token_is_given_for_tokens() {
    let (registry, tokens) = with_identity_tokens(&Image::of_bytes(1000));
    let host = registry.address.to_string();
    let name = format!("{host}/app:1");
    // In Docker's file.
    let home = Home::new();
    home.docker(&json!({"auths": {&host: {"auth": "", "identitytoken": "lasting"}}}));
    assert_success(&home.run(&["pull", &name]));
    assert_eq!(tokens.requests().len(), 1);
    // By a helper, which says so by its user's name.
    let home = Home::new();
    let helper = home.path("docker-credential-test");
    let script = "#!/bin/sh\n[ $1 = get ] && echo '{\"Username\":\"<token>\",\"Secret\":\"lasting\"}'\n";
    // Not by this process: a child forked meanwhile would hold it open for writing, and it could not be executed.
    fs::write(home.path("script"), script).unwrap();
    let mut install = Command::new("install");
    install.args(["-m", "755"]).arg(home.path("script")).arg(&helper);
    assert!(install.status().unwrap().success());
    home.docker(&json!({"credHelpers": {&host: "test"}}));
    let path = format!("{}:{}", home.0.path().display(), std::env::var("PATH").unwrap());
    assert_success(&home.command(&["pull", &name]).env("PATH", path).output().unwrap());
    // One that is out of date.
    let home = Home::new();
    home.docker(&json!({"auths": {&host: {"identitytoken": "old"}}}));
    let line = complaint(&home.run(&["pull", &name]));
    assert!(
        line.contains("refuses the user name or password") && !line.contains("old"),
        "{line}"
    );
}

#[test]
fn a_login_keeps_an_identity_token_in_the_place_of_the_password() {
    let (registry, _tokens) = with_identity_tokens(&Image::of_bytes(1000));
    let host = registry.address.to_string();
    let home = Home::new();
    let login = home.run(&["login", "-u", "me", "-p", "secret", &host]);
    assert_eq!(assert_success(&login), "Login Succeeded\n");
    let file = fs::read_to_string(home.path("docker/config.json")).unwrap();
    let document: Value = serde_json::from_str(&file).unwrap();
    assert_eq!(document["auths"][&host]["identitytoken"], "lasting");
    assert!(!file.contains("bWU6c2VjcmV0"), "{file}");
    assert_success(&home.run(&["pull", &format!("{host}/app:1")]));
    let wrong = home.run(&["login", "-u", "me", "-p", "wrong", &host]);
    assert_eq!(wrong.status.code(), Some(1));
    let lines = text(&wrong.stderr);
    assert!(lines.ends_with("refuses the user name or password\n"), "{lines}");
}

#[test]
fn a_search_endpoint_is_asked_before_the_catalog() {
    let server = Server::start(|request, stream| {
        let json = [("Content-Type", "application/json; charset=utf-8")];
        assert_eq!(request.path, "/v1/search?q=we+b&n=25");
        let page = json!({"num_results": 2, "results": [
            {"name": "team/web", "description": "serves\u{1b}[2J pages", "star_count": 7, "is_official": false},
            {"name": "web", "description": null, "star_count": 30, "is_official": true},
        ]});
        answer(stream, "200 OK", &json, page.to_string().as_bytes())
    });
    let host = server.address;
    let home = Home::new();
    let table = assert_success(&home.run(&["search", &format!("{host}/we b")]));
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(rows[0], ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]);
    assert_eq!(
        rows[1],
        [&format!("{host}/team/web"), "serves", "[2J", "pages", "7"]
    );
    assert_eq!(rows[2], [&format!("{host}/web"), "30", "[OK]"]);
    let official = home.run(&[
        "search",
        "-f",
        "is-official=true",
        "--format",
        "json",
        &format!("{host}/we b"),
    ]);
    let found: Value = serde_json::from_str(&assert_success(&official)).unwrap();
    assert_eq!(found["StarCount"], "30");
}

#[test]
fn a_catalog_is_read_page_by_page() {
    let server = Server::start(|request, stream| {
        let json = ("Content-Type", "application/json");
        let page = |names: &[&str]| json!({"repositories": names}).to_string().into_bytes();
        match request.path.as_str() {
            "/v2/_catalog?n=1000" => {
                let next = ("Link", "</v2/_catalog?n=1000&last=b>; rel=\"next\"");
                answer(stream, "200 OK", &[json, next], &page(&["a-web", "b"]))
            }
            "/v2/_catalog?n=1000&last=b" => {
                let next = ("Link", "<_catalog?n=1000&last=d>; rel=\"next\"");
                answer(stream, "200 OK", &[json, next], &page(&["c", "d-web"]))
            }
            "/v2/_catalog?n=1000&last=d" => answer(stream, "200 OK", &[json], &page(&["e-web", "web-f"])),
            _ => answer(stream, "404 Not Found", &[], b""),
        }
    });
    let home = Home::new();
    let found = |more: &[&str]| {
        let term = format!("{}/web", server.address);
        let words: Vec<&str> = ["search", "--format", "json"]
            .iter()
            .chain(more)
            .copied()
            .chain([term.as_str()])
            .collect();
        let lines = assert_success(&home.run(&words));
        let name = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            row["Name"]
                .as_str()
                .unwrap()
                .rsplit('/')
                .next()
                .unwrap()
                .to_owned()
        };
        lines.lines().map(name).collect::<Vec<_>>()
    };
    assert_eq!(found(&[]), ["a-web", "d-web", "e-web", "web-f"]);
    let before = server.requests().len();
    assert_eq!(found(&["--limit", "1"]), ["a-web"]);
    // The search endpoint, which is not there, and two pages at most.
    assert!(server.requests().len() <= before + 3);

    let neither = Server::start(|_, stream| answer(stream, "404 Not Found", &[], b""));
    let line = complaint(&home.run(&["search", &format!("{}/web", neither.address)]));
    assert!(line.contains("neither a search endpoint nor a catalog"), "{line}");
}

/// The two ends of a new terminal of 100 columns.
fn terminal() -> (File, File) {
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let path = ptsname(&controller, Vec::new()).unwrap();
    let terminal = rustix::fs::open(path.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let size = rustix::termios::Winsize {
        ws_row: 40,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    (File::from(controller), File::from(terminal))
}

/// What a terminal has been sent until nobody has it open any more.
fn shown(mut controller: File) -> String {
    let mut bytes = Vec::new();
    // The end is an error there: EIO (pty(7)).
    let _ = controller.read_to_end(&mut bytes);
    text(&bytes)
}

#[test]
fn a_terminal_gets_a_bar_a_layer_and_everything_else_lines() {
    let image = Image::new(&[noise(2_000_000), noise(1_500_000)]);
    let served = image.clone();
    let server = Server::start(move |request, stream| served.serve(request, stream));
    let name = format!("{}/app:1", server.address);
    let home = Home::new();
    let (controller, terminal) = terminal();
    let mut command = home.command(&["pull", &name]);
    let mut child = command.env("TERM", "xterm").stdout(terminal).spawn().unwrap();
    // The parent's end has to go, or the terminal never ends.
    drop(command);
    let shown = shown(controller);
    assert!(child.wait().unwrap().success(), "{shown}");
    for layer in &image.layers {
        let id = &layer.hex()[..12];
        assert!(shown.contains(&format!("{id}: Pull complete")), "{shown:?}");
        assert!(shown.contains(&format!("{id}: Downloading [")), "{shown:?}");
    }
    assert!(shown.contains("\u{1b}["), "{shown:?}");
    assert!(shown.ends_with(&format!("{name}\r\n")), "{shown:?}");

    let lines = assert_success(&Home::new().run(&["pull", &name]));
    assert!(
        !lines.contains('\u{1b}') && !lines.contains("Downloading"),
        "{lines:?}"
    );
    assert!(
        lines.contains(&format!("{}: Pull complete\n", &image.layers[0].hex()[..12])),
        "{lines}"
    );
}

/// Starts a pull that has got 1,000,000 of its layer's bytes when this returns.
fn pull_half(home: &Home, name: &str) -> Child {
    let mut child = home
        .command(&["pull", "--progress", "json", name])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let half = |line: String| {
        let event: Value = serde_json::from_str(&line).unwrap();
        event["progressDetail"]["current"].as_u64() >= Some(900_000)
    };
    assert!(lines.any(|line| half(line.unwrap())));
    // What is told has come over the network; a thread of its own writes it.
    let written = || {
        let downloads = fs::read_dir(home.path("images/downloads")).unwrap();
        let bytes = downloads.map(|file| file.unwrap().metadata().map_or(0, |data| data.len()));
        bytes.max() >= Some(900_000)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !written() {
        assert!(Instant::now() < deadline, "the download is not written");
        sleep(Duration::from_millis(5));
    }
    child
}

#[test]
fn an_interrupted_pull_says_what_is_left_and_the_next_goes_on() {
    let image = Image::of_bytes(2_000_000);
    let served = image.clone();
    // However often one pull asks, its download is not whole.
    let stalls = Arc::new(AtomicBool::new(true));
    let still = Arc::clone(&stalls);
    let server = Server::start(move |request, stream| {
        if request.is_blob(&served.layers[0]) && still.load(Ordering::Relaxed) {
            let from = request.header("range").map_or(0, |range| {
                range
                    .trim_start_matches("bytes=")
                    .trim_end_matches('-')
                    .parse()
                    .unwrap()
            });
            if from == 0 {
                head(stream, "200 OK", &[], Some(2_000_000))?;
                std::io::Write::write_all(stream, &served.layer()[..1_000_000])?;
            } else {
                let range = format!("bytes {from}-1999999/2000000");
                head(
                    stream,
                    "206 Partial Content",
                    &[("Content-Range", &range)],
                    Some(2_000_000 - from),
                )?;
            }
            return stall(stream);
        }
        served.serve(request, stream)
    });
    let name = format!("{}/app:1", server.address);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let home = Home::new();
        let child = pull_half(&home, &name);
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert_eq!(
            text(&output.stderr),
            "brig: interrupted: what has come of the image is kept, and the next pull goes on from there\n"
        );
        home.assert_works();
        if signal == Signal::HUP {
            stalls.store(false, Ordering::Relaxed);
            assert_success(&home.run(&["pull", &name]));
            let last = server
                .requests()
                .into_iter()
                .rev()
                .find(|request| request.is_blob(&image.layers[0]));
            let range = last.unwrap().header("range").map(str::to_owned);
            let from = range
                .unwrap()
                .trim_start_matches("bytes=")
                .trim_end_matches('-')
                .parse::<u64>();
            assert!((900_000..=1_000_000).contains(&from.unwrap()));
            assert_eq!(home.store().list().unwrap().len(), 1);
        }
    }
}

#[test]
fn three_layers_are_downloaded_at_a_time() {
    let image = Image::new(&[noise(1000), noise(2000), noise(3000)]);
    let served = image.clone();
    // None is answered before all three have been asked for.
    let all = Arc::new(Barrier::new(3));
    let server = Server::start(move |request, stream| {
        if served.layers.iter().any(|layer| request.is_blob(layer)) {
            all.wait();
        }
        served.serve(request, stream)
    });
    let home = Home::new();
    home.configure("stall-timeout = 20\nattempts = 1\n");
    assert_success(&home.run(&["pull", &format!("{}/app:1", server.address)]));
}

#[test]
fn an_image_that_is_larger_than_allowed_is_refused_before_it_comes() {
    let image = Image::of_bytes(2_000_000);
    let served = image.clone();
    let server = Server::start(move |request, stream| served.serve(request, stream));
    let name = format!("{}/app:1", server.address);
    let home = Home::new();
    let line = complaint(&home.run(&["pull", "--max-image-size", "1m", &name]));
    assert_eq!(
        line,
        "brig: the layers of the image have more than 1 MiB: --max-image-size allows more\n"
    );
    assert_eq!(server.count(|request| request.is_blob(&image.layers[0])), 0);
    home.assert_works();
    assert_success(&home.run(&["pull", "--max-image-size", "2m", &name]));
    let output = home.run(&["pull", "--max-image-size", "lots", &name]);
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("write it as 500m or 16g"),
        "{output:?}"
    );
    let help = assert_success(&home.run(&["pull", "--help"]));
    assert!(help.contains("16 GiB"), "{help}");
}

#[test]
fn certificates_without_a_key_are_told() {
    let server = Server::start(|_, stream| answer(stream, "404 Not Found", &[], b""));
    let host = server.address.to_string();
    let home = Home::new();
    let directory = home.path("certs.d").join(&host);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("client.cert"), "x").unwrap();
    let line = complaint(&home.run(&["pull", &format!("{host}/app")]));
    assert!(line.contains("client.key: there is no such file"), "{line}");
    fs::write(directory.join("client.key"), "x").unwrap();
    let line = complaint(&home.run(&["pull", &format!("{host}/app")]));
    assert!(line.contains(&format!("the certificates for {host}")), "{line}");
}

#[test]
fn rests_that_a_registry_asks_for_are_kept() {
    let image = Image::of_bytes(1000);
    let served = image.clone();
    let first = AtomicUsize::new(0);
    let server = Server::start(move |request, stream| {
        if request.is_blob(&served.layers[0]) && first.fetch_add(1, Ordering::Relaxed) == 0 {
            return answer(stream, "503 Service Unavailable", &[("Retry-After", "2")], b"");
        }
        served.serve(request, stream)
    });
    let began = std::time::Instant::now();
    assert_success(&Home::new().run(&["pull", &format!("{}/app:1", server.address)]));
    assert!(began.elapsed().as_secs() >= 2);
}
