//! Images to and from a real registry, with another client beside brig.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use brig_tests::{
    archive::Image,
    brig::{Brig, finish},
    machine::Need,
    registry::{Proxy, Registry, Wire, Wishes},
    tests,
};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

tests! {
    Need::Registry =>
        an_image_goes_to_a_registry_and_comes_back_unchanged,
        other_clients_read_what_brig_pushed_and_brig_what_they_pushed,
        a_registry_with_passwords_takes_a_login,
        a_credential_helper_is_asked,
        a_registry_with_a_certificate_is_verified,
        a_registry_that_wants_a_certificate_is_shown_one,
        an_encrypted_registry_is_reached_through_a_proxy,
        a_cut_upload_is_sent_again_and_what_another_repository_has_is_not,
        processes_that_pull_the_same_image_download_each_layer_once,
        a_killed_pull_is_gone_on_with,
        a_mirror_is_asked_before_docker_hub,
        all_tags_are_pulled_and_pushed,
        a_registry_is_searched,
        an_image_for_another_machine_is_pulled_but_not_run,
        what_cannot_be_pulled_or_pushed_is_one_line;
    Need::KvmAndRegistry =>
        a_missing_image_is_pulled_and_run;
}

/// Loads an image of one incompressible file under this name.
fn load(brig: &Brig, name: &str, bytes: usize) {
    let mut content = vec![0; bytes];
    brig_welcome::pattern::fill(name.len() as u64, &mut content);
    let image = Image::of_files(name, json!({"Cmd": ["/data"]}), &[("data", 0o755, &content)]);
    load_archive(brig, &image.gzip().to_oci());
}

fn load_archive(brig: &Brig, archive: &[u8]) {
    let file = NamedTempFile::new().unwrap();
    fs::write(file.path(), archive).unwrap();
    brig.ok(&[Path::new("load"), Path::new("-i"), file.path()]);
}

/// The id that `images` shows for an image.
fn id(brig: &Brig) -> String {
    brig.ok(&["images", "-q", "--no-trunc"]).trim().to_owned()
}

fn skopeo(arguments: &[&str]) -> String {
    let output = Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "skopeo {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn an_image_goes_to_a_registry_and_comes_back_unchanged() {
    let registry = Registry::start();
    let wire = Wire::to(registry.address());
    let latest = format!("{}/team/app", wire.host());
    let (one, two) = (Brig::empty(), Brig::empty());
    load(&one, &latest, 300_000);
    let pushed = one.ok(&["push", &latest]);
    assert!(
        pushed.starts_with(&format!("The push refers to repository [{latest}]\n")),
        "{pushed}"
    );
    assert!(
        pushed.contains(": Pushed\n") && pushed.contains("latest: digest: sha256:"),
        "{pushed}"
    );
    // Nothing is sent twice.
    let again = one.ok(&["push", &latest]);
    assert!(again.contains(": Layer already exists\n"), "{again}");

    wire.take();
    let pulled = two.ok(&["pull", &latest]);
    assert!(
        pulled.starts_with("Using default tag: latest\nlatest: Pulling from team/app\n"),
        "{pulled}"
    );
    for line in [
        ": Pulling fs layer\n".to_owned(),
        ": Pull complete\n".to_owned(),
        "\nDigest: sha256:".to_owned(),
        format!("\nStatus: Downloaded newer image for {latest}:latest\n{latest}:latest\n"),
    ] {
        assert!(pulled.contains(&line), "no {line:?} in {pulled}");
    }
    assert_eq!(id(&one), id(&two));
    // Manifest, configuration, layer.
    assert_eq!(wire.take().len(), 3);

    let second = two.ok(&["pull", &latest]);
    assert!(second.contains("Status: Image is up to date for"), "{second}");
    assert_eq!(wire.take(), ["HEAD /v2/team/app/manifests/latest"]);
    assert_eq!(two.ok(&["pull", "-q", &latest]), format!("{latest}:latest\n"));
    let digest = pulled
        .lines()
        .find_map(|line| line.strip_prefix("Digest: "))
        .unwrap();
    wire.take();
    two.ok(&["pull", &format!("{latest}@{digest}")]);
    assert_eq!(wire.take(), [""; 0]);
    let told = |brig: &Brig, action: &str| {
        let filter = format!("event={action}");
        let format = "{{.Actor.ID}} {{.Actor.Attributes.name}}";
        let words = ["events", "--since", "1h", "--until", "0s", "--filter", &filter];
        brig.ok(&[&words[..], &["--filter", "type=image", "--format", format]].concat())
    };
    let line = format!("{latest}:latest {latest}\n");
    assert_eq!(told(&one, "push"), line.repeat(2));
    assert_eq!(
        told(&two, "pull"),
        format!("{}{latest}@{digest} {latest}\n", line.repeat(3))
    );
    two.assert_nothing_left();
}

fn other_clients_read_what_brig_pushed_and_brig_what_they_pushed() {
    let registry = Registry::start();
    let name = format!("{}/app", registry.host());
    let brig = Brig::empty();
    load(&brig, &name, 200_000);
    brig.ok(&["push", &name]);
    let directory = tempfile::tempdir().unwrap();
    let layout = format!("oci:{}:x", directory.path().join("layout").display());
    let from = format!("docker://{name}:latest");
    skopeo(&["copy", "--src-tls-verify=false", &from, &layout]);
    let raw = skopeo(&["inspect", "--raw", "--tls-verify=false", &from]);
    assert!(
        raw.contains("application/vnd.oci.image.manifest.v1+json"),
        "{raw}"
    );
    for (tag, format) in [("oci", "oci"), ("docker", "v2s2")] {
        let to = format!("docker://{name}:{tag}");
        skopeo(&[
            "copy",
            "--dest-tls-verify=false",
            "--format",
            format,
            &layout,
            &to,
        ]);
        let other = Brig::empty();
        other.ok(&["pull", &format!("{name}:{tag}")]);
        let raw: Value =
            serde_json::from_str(&skopeo(&["inspect", "--raw", "--tls-verify=false", &to])).unwrap();
        assert_eq!(raw["config"]["digest"], id(&other).as_str(), "{format}");
        // And to the registry again, byte for byte.
        let pushed = other.ok(&["push", &format!("{name}:{tag}")]);
        let after = skopeo(&["inspect", "--tls-verify=false", &to]);
        let after: Value = serde_json::from_str(&after).unwrap();
        assert!(
            pushed.contains(after["Digest"].as_str().unwrap()),
            "{pushed} {after}"
        );
    }
    // An archive of `docker save` has no manifest: it gets one.
    let old = Brig::empty();
    let image = Image::of_files(
        &format!("{}/old", registry.host()),
        json!({"Cmd": ["/x"]}),
        &[("x", 0o755, b"x")],
    );
    load_archive(&old, &image.to_docker());
    old.ok(&["push", &format!("{}/old", registry.host())]);
    let from = format!("docker://{}/old:latest", registry.host());
    skopeo(&["copy", "--src-tls-verify=false", &from, &layout]);
}

fn a_registry_with_passwords_takes_a_login() {
    let registry = Registry::with(Wishes {
        password: true,
        ..Wishes::default()
    });
    let host = registry.host();
    let name = format!("{host}/app");
    let brig = Brig::empty();
    load(&brig, &name, 1000);
    let message = brig.fails(1, &["push", &name]);
    assert!(message.contains(&format!("brig login {host}")), "{message}");
    let message = brig.fails(1, &["pull", &name]);
    assert!(message.contains("access denied"), "{message}");
    let message = brig.fails(125, &["run", &format!("{host}/other")]);
    assert!(message.contains("access denied"), "{message}");

    let wrong = brig.run_with_input(
        &["login", "-u", "me", "--password-stdin", &host],
        b"wrong".to_vec(),
    );
    wrong.assert_clear_failure(1, "login with a wrong password");
    assert!(
        wrong.stderr.contains("refuses the user name or password"),
        "{wrong:?}"
    );
    let right = brig.run_with_input(
        &["login", "-u", "me", "--password-stdin", &host],
        b"se:cret\n".to_vec(),
    );
    assert_eq!(
        (right.code, right.stdout.as_str()),
        (0, "Login Succeeded\n"),
        "{right:?}"
    );
    let file = brig.root().join("docker/config.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    brig.ok(&["push", &name]);
    brig.ok(&["pull", &name]);
    brig.ok(&["search", &format!("{host}/")]);

    assert_eq!(
        brig.ok(&["logout", &host]),
        format!("Removing login credentials for {host}\n")
    );
    assert_eq!(brig.ok(&["logout", &host]), format!("Not logged in to {host}\n"));
    brig.fails(1, &["pull", &name]);
    let message = brig.fails(1, &["login", &host]);
    assert!(message.contains("--password-stdin"), "{message}");
}

fn a_credential_helper_is_asked() {
    let registry = Registry::with(Wishes {
        password: true,
        ..Wishes::default()
    });
    let host = registry.host();
    let brig = Brig::empty();
    let name = format!("{host}/app");
    load(&brig, &name, 1000);
    let bin = brig.root().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let kept = brig.root().join("kept");
    let script = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat >{0} ;;\nerase) rm -f {0} ;;\n\
         get) if [ -f {0} ]; then cat {0}; else echo 'credentials not found in native keychain'; exit 1; fi ;;\nesac\n",
        kept.display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = brig.root().join("docker");
    fs::create_dir_all(&config).unwrap();
    fs::write(config.join("config.json"), r#"{"credsStore":"test"}"#).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let run = |arguments: &[&str]| finish(brig.command(arguments).env("PATH", &path).spawn().unwrap());
    run(&["push", &name]).assert_clear_failure(1, "push without a login");
    let login = run(&["login", "-u", "me", "-p", "se:cret", &host]);
    assert_eq!(login.code, 0, "{login:?}");
    assert!(fs::read_to_string(&kept).unwrap().contains("se:cret"));
    let file = fs::read_to_string(config.join("config.json")).unwrap();
    assert!(!file.contains("auth\""), "{file}");
    let pushed = run(&["push", &name]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert_eq!(run(&["logout", &host]).code, 0);
    assert!(!kept.exists());
    run(&["pull", &name]).assert_clear_failure(1, "pull after a logout");
    fs::write(config.join("config.json"), r#"{"credsStore":"missing"}"#).unwrap();
    let output = run(&["pull", &name]);
    output.assert_clear_failure(1, "pull with a helper that is not there");
    assert!(output.stderr.contains("docker-credential-missing"), "{output:?}");
}

fn a_registry_with_a_certificate_is_verified() {
    let registry = Registry::with(Wishes {
        tls: true,
        password: true,
        ..Wishes::default()
    });
    let host = registry.host();
    let name = format!("{host}/app");
    let brig = Brig::empty();
    load(&brig, &name, 100_000);
    // This machine's own registries need no certificate.
    let login = brig.run_with_input(
        &["login", "-u", "me", "--password-stdin", &host],
        b"se:cret".to_vec(),
    );
    assert_eq!(login.code, 0, "{login:?}");
    brig.ok(&["push", &name]);
    // One that an authority is named for does.
    let configure = |authority: &Path| {
        let text = format!("[registry.\"{host}\"]\nca = \"{}\"\n", authority.display());
        fs::write(brig.root().join("registries.toml"), text).unwrap();
    };
    configure(&registry.authority());
    brig.ok(&["pull", &name]);
    let other = Registry::with(Wishes {
        tls: true,
        ..Wishes::default()
    });
    configure(&other.authority());
    let message = brig.fails(1, &["pull", &name]);
    assert!(
        message.contains("certificate") && message.contains("registries.toml"),
        "{message}"
    );
}

fn a_registry_that_wants_a_certificate_is_shown_one() {
    let registry = Registry::with(Wishes {
        client_certificate: true,
        ..Wishes::default()
    });
    let (certificate, key) = registry.client();
    let host = registry.host();
    let name = format!("{host}/app");
    // In brig's own configuration.
    let brig = Brig::empty();
    load(&brig, &name, 100_000);
    let message = brig.fails(1, &["push", &name]);
    assert!(message.contains(&host), "{message}");
    let text = format!(
        "[registry.\"{host}\"]\nca = \"{}\"\nclient-certificate = \"{}\"\nclient-key = \"{}\"\n",
        registry.authority().display(),
        certificate.display(),
        key.display()
    );
    fs::write(brig.root().join("registries.toml"), text).unwrap();
    brig.ok(&["push", &name]);
    // In a directory as Docker has it.
    let other = Brig::empty();
    let directory = other.root().join("certs.d").join(&host);
    fs::create_dir_all(&directory).unwrap();
    fs::copy(registry.authority(), directory.join("ca.crt")).unwrap();
    let message = other.fails(1, &["pull", &name]);
    assert!(message.contains(&host), "{message}");
    fs::copy(certificate, directory.join("client.cert")).unwrap();
    fs::copy(key, directory.join("client.key")).unwrap();
    other.ok(&["pull", &name]);
    assert_eq!(id(&brig), id(&other));
}

fn an_encrypted_registry_is_reached_through_a_proxy() {
    let registry = Registry::with(Wishes {
        tls: true,
        ..Wishes::default()
    });
    let proxy = Proxy::start();
    let host = format!("registry.example:{}", registry.address().port());
    let name = format!("{host}/app");
    let brig = Brig::empty();
    load(&brig, &name, 100_000);
    let text = format!(
        "attempts = 1\n[registry.\"{host}\"]\nca = \"{}\"\n",
        registry.authority().display()
    );
    fs::write(brig.root().join("registries.toml"), text).unwrap();
    let run = |words: &[&str], variables: &[(&str, &str)]| {
        let mut command = brig.command(words);
        for variable in ["https_proxy", "no_proxy", "NO_PROXY", "ALL_PROXY", "all_proxy"] {
            command.env_remove(variable);
        }
        finish(command.envs(variables.iter().copied()).spawn().unwrap())
    };
    let address = proxy.url();
    let pushed = run(&["push", &name], &[("HTTPS_PROXY", &address)]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    let tunnels = proxy.take();
    assert!(
        !tunnels.is_empty() && tunnels.iter().all(|tunnel| *tunnel == host),
        "{tunnels:?}"
    );
    brig.ok(&["rmi", &name]);
    let pulled = run(&["pull", &name], &[("HTTPS_PROXY", &address)]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    assert!(!proxy.take().is_empty());
    let direct = run(
        &["pull", &name],
        &[
            ("HTTPS_PROXY", address.as_str()),
            ("NO_PROXY", "registry.example"),
        ],
    );
    direct.assert_clear_failure(1, "pull without the proxy");
    assert!(proxy.take().is_empty());
    let refused = run(&["pull", "other.example:1/app"], &[("HTTPS_PROXY", &address)]);
    refused.assert_clear_failure(1, "pull of what the proxy does not know");
    assert!(
        refused.stderr.contains("cannot reach other.example:1"),
        "{refused:?}"
    );
}

fn a_cut_upload_is_sent_again_and_what_another_repository_has_is_not() {
    let registry = Registry::start();
    let wire = Wire::to(registry.address());
    let name = format!("{}/app", wire.host());
    let brig = Brig::empty();
    load(&brig, &name, 8_000_000);
    wire.cut_after(3_000_000);
    let pushed = brig.ok(&["push", &name]);
    assert!(
        pushed.contains(": Retrying (") && pushed.contains(": Pushed\n"),
        "{pushed}"
    );
    assert!(
        wire.take()
            .iter()
            .filter(|request| request.starts_with("PATCH"))
            .count()
            >= 2
    );
    // The other name is of the same registry.
    let other = format!("{}/team/copy", wire.host());
    brig.ok(&["tag", &name, &other]);
    let mounted = brig.ok(&["push", &other]);
    assert!(mounted.contains(": Mounted from app\n"), "{mounted}");
    assert!(!wire.take().iter().any(|request| request.starts_with("PATCH")));
    let third = Brig::empty();
    third.ok(&["pull", &other]);
    assert_eq!(id(&third), id(&brig));
}

fn processes_that_pull_the_same_image_download_each_layer_once() {
    let registry = Registry::start();
    let wire = Wire::to(registry.address());
    let name = format!("{}/app", wire.host());
    let source = Brig::empty();
    load(&source, &name, 4_000_000);
    source.ok(&["push", &name]);
    wire.take();
    let brig = Brig::empty();
    let children: Vec<_> = (0..6)
        .map(|_| brig.command(&["pull", &name]).spawn().unwrap())
        .collect();
    for child in children {
        let output = finish(child);
        assert_eq!(output.code, 0, "{output:?}");
    }
    assert_eq!(id(&brig), id(&source));
    let layers = wire
        .take()
        .into_iter()
        .filter(|request| request.starts_with("GET") && request.contains("/blobs/"));
    // Of the configuration, which is small, each may have asked for its own.
    let mut blobs: Vec<String> = layers.collect();
    let config = id(&brig);
    blobs.retain(|request| !request.ends_with(&config));
    assert_eq!(blobs.len(), 1, "{blobs:?}");
    brig.assert_nothing_left();
}

fn a_killed_pull_is_gone_on_with() {
    let registry = Registry::start();
    let name = format!("{}/app", registry.host());
    let source = Brig::empty();
    load(&source, &name, 30_000_000);
    source.ok(&["push", &name]);
    let brig = Brig::empty();
    let mut child = brig
        .command(&["pull", "--progress", "json", &name])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    let begun = std::io::BufRead::lines(stdout)
        .map_while(Result::ok)
        .any(|line| line.contains(r#""status":"Downloading""#));
    assert!(begun);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(brig.ok(&["images", "-q"]), "");
    brig.ok(&["pull", &name]);
    assert_eq!(id(&brig), id(&source));
}

fn a_mirror_is_asked_before_docker_hub() {
    let registry = Registry::start();
    let source = Brig::empty();
    let name = format!("{}/library/app", registry.host());
    load(&source, &name, 1000);
    source.ok(&["push", &name]);
    let brig = Brig::empty();
    fs::create_dir_all(brig.root()).unwrap();
    let mirrors = format!(
        "mirrors = [\"http://localhost:1\", \"http://{}\"]",
        registry.host()
    );
    fs::write(
        brig.root().join("registries.toml"),
        format!("[registry.\"docker.io\"]\n{mirrors}\n"),
    )
    .unwrap();
    let pulled = brig.ok(&["pull", "app"]);
    assert!(
        pulled.ends_with("Status: Downloaded newer image for app:latest\ndocker.io/library/app:latest\n"),
        "{pulled}"
    );
    fs::write(brig.root().join("registries.toml"), "mirors = 1\n").unwrap();
    let message = brig.fails(1, &["pull", "app"]);
    assert!(
        message.contains("registries.toml") && message.contains("mirors"),
        "{message}"
    );
}

fn all_tags_are_pulled_and_pushed() {
    let registry = Registry::start();
    let name = format!("{}/app", registry.host());
    let source = Brig::empty();
    load(&source, &name, 1000);
    source.ok(&["push", &name]);
    for tag in ["1", "2"] {
        let to = format!("docker://{name}:{tag}");
        let from = format!("docker://{name}:latest");
        skopeo(&[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &from,
            &to,
        ]);
    }
    let brig = Brig::empty();
    brig.ok(&["pull", "-a", &name]);
    let table = brig.ok(&["images"]);
    for tag in [" 1 ", " 2 ", " latest "] {
        assert!(table.contains(tag), "{table}");
    }
    let pushed = brig.ok(&["push", "--all-tags", &name]);
    assert_eq!(pushed.matches(": digest: sha256:").count(), 3, "{pushed}");
    brig.fails(1, &["pull", "-a", &format!("{name}:1")]);
}

fn a_registry_is_searched() {
    let registry = Registry::start();
    let brig = Brig::empty();
    for image in ["team/one", "team/two", "other"] {
        let name = format!("{}/{image}", registry.host());
        load(&brig, &name, 100);
        brig.ok(&["push", &name]);
    }
    let host = registry.host();
    let table = brig.ok(&["search", &format!("{host}/team")]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME ") && lines[0].ends_with("DESCRIPTION   STARS   OFFICIAL"),
        "{table}"
    );
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[1].starts_with(&format!("{host}/team/one ")), "{table}");
    let one = brig.ok(&["search", "--limit", "1", "--format", "json", &format!("{host}/o")]);
    let value: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(value["Name"], format!("{host}/other"));
    assert_eq!(
        brig.ok(&["search", "-f", "stars=1", &format!("{host}/")])
            .lines()
            .count(),
        1
    );
    let message = brig.fails(125, &["search", "-f", "colour=red", &format!("{host}/")]);
    assert!(message.contains("stars=NUMBER"), "{message}");
}

fn an_image_for_another_machine_is_pulled_but_not_run() {
    let registry = Registry::start();
    let source = Brig::empty();
    let name = format!("{}/app", registry.host());
    load(&source, &name, 100);
    source.ok(&["push", &name]);
    // The same with another architecture in its configuration.
    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    let there = format!("oci:{}:x", layout.display());
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{name}:latest"),
        &there,
    ]);
    let blobs = layout.join("blobs/sha256");
    let read = |digest: &Value| {
        fs::read_to_string(blobs.join(digest.as_str().unwrap().trim_start_matches("sha256:"))).unwrap()
    };
    let put = |text: &str| {
        let hex = brig_tests::archive::sha256(text.as_bytes());
        fs::write(blobs.join(&hex), text).unwrap();
        (json!(format!("sha256:{hex}")), json!(text.len()))
    };
    let index = fs::read_to_string(layout.join("index.json")).unwrap();
    let mut index: Value = serde_json::from_str(&index).unwrap();
    let mut manifest: Value = serde_json::from_str(&read(&index["manifests"][0]["digest"])).unwrap();
    let config = read(&manifest["config"]["digest"]).replace("amd64", "arm64");
    (manifest["config"]["digest"], manifest["config"]["size"]) = put(&config);
    let (digest, size) = put(&manifest.to_string());
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = (digest, size);
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    let arm = format!("{name}:arm");
    skopeo(&[
        "copy",
        "--dest-tls-verify=false",
        &there,
        &format!("docker://{arm}"),
    ]);

    let brig = Brig::empty();
    let message = brig.fails(1, &["pull", &arm]);
    assert!(
        message.contains("linux/arm64") && message.contains("--platform"),
        "{message}"
    );
    brig.ok(&["pull", "--platform", "linux/arm64", &arm]);
    let message = brig.fails(125, &["run", &arm]);
    assert!(
        message.contains("is for linux/arm64") && message.contains("brig runs linux/amd64"),
        "{message}"
    );
    let message = brig.fails(125, &["run", "--platform", "linux/arm64", &arm]);
    assert!(message.contains("linux/amd64 only"), "{message}");
}

fn what_cannot_be_pulled_or_pushed_is_one_line() {
    let registry = Registry::start();
    let host = registry.host();
    let brig = Brig::empty();
    for (code, arguments, word) in [
        (1, vec!["pull", "UPPER"], "lower-case"),
        (1, vec!["pull", "a@sha256:12"], "sha256:12"),
        (125, vec!["pull", "--platform", "linux", "a"], "linux/amd64"),
        (1, vec!["pull"], "NAME"),
        (125, vec!["pull", "--nope", "a"], "--nope"),
        (125, vec!["search", "--limit", "0", "a"], "--limit"),
        (1, vec!["push", "ghost"], "ghost"),
        (1, vec!["push", "-a", "ghost"], "ghost"),
        (1, vec!["pull", "localhost:1/a"], "localhost:1"),
        (125, vec!["run", "--pull", "sometimes", "a"], "sometimes"),
        (
            125,
            vec!["run", "--pull", "always", "localhost:1/a"],
            "localhost:1",
        ),
    ] {
        let message = brig.fails(code, &arguments);
        assert!(message.contains(word), "{arguments:?}: {message}");
    }
    let message = brig.fails(1, &["pull", &format!("{host}/a/b:c")]);
    assert!(
        message.contains(&format!("manifest for {host}/a/b:c not found")),
        "{message}"
    );
    for command in ["pull", "push", "login", "logout", "search"] {
        let help = brig.ok(&[command, "--help"]);
        assert!(help.contains(&format!("Usage: brig {command}")), "{help}");
    }
    brig.assert_nothing_left();
}

fn a_missing_image_is_pulled_and_run() {
    let registry = Registry::start();
    let wire = Wire::to(registry.address());
    let name = format!("{}/busybox", wire.host());
    let brig = Brig::new();
    load_archive(
        &brig,
        &Image::of_busybox(&name, json!({"Cmd": ["echo", "pulled"]}))
            .gzip()
            .to_oci(),
    );
    brig.ok(&["push", &name]);
    let other = Brig::new();
    let output = other.run(&["run", "--rm", &name]);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (0, "pulled\n"),
        "{output:?}"
    );
    assert!(
        output
            .stderr
            .starts_with(&format!("Unable to find image '{name}:latest' locally\n"))
            && output.stderr.contains("Status: Downloaded newer image"),
        "{output:?}"
    );
    wire.take();
    assert_eq!(other.ok(&["run", "--rm", &name]), "pulled\n");
    assert_eq!(wire.take(), [""; 0]);
    let again = other.run(&["run", "--rm", "-q", "--pull", "always", &name]);
    assert_eq!(
        (again.stdout.as_str(), wire.take().len()),
        ("pulled\n", 1),
        "{again:?}"
    );
    assert!(!again.stderr.contains("Pulling"), "{again:?}");
    let id = other.ok(&["create", "--pull", "always", "--name", "made", &name]);
    assert_eq!((id.trim().len(), wire.take().len()), (64, 1), "{id}");
    assert!(other.ps_line("made").unwrap().contains(" Created "));
    other.ok(&["rm", "made"]);
    other.ok(&["rmi", &name]);
    let message = other.fails(1, &["create", "--max-image-size", "1m", &name]);
    assert!(message.contains("--max-image-size"), "{message}");
    assert_eq!(other.ok(&["ps", "-aq"]), "");
    other.assert_nothing_left();
}
