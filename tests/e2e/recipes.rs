//! The recipes under `images`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use brig_tests::{
    brig::{Brig, Output},
    machine::{self, Need},
    registry::Registry,
    tests,
};
use serde_json::Value;

tests! {
    Need::Recipes =>
        a_recipe_makes_the_same_bytes_from_scratch_and_shares_the_layer_below,
        the_command_of_the_recipes_says_what_is_wrong;
    Need::RecipesAndRegistry => an_image_is_built_into_a_registry;
    Need::KvmAndServer { image: "debian-slim", client: "sh" } => debian_slim_has_its_programs_and_a_package_database;
}

/// Runs `images/build`, however long it takes: it may have to download and pack all that it needs.
fn build(words: &[&str]) -> Output {
    let mut command = Command::new(machine::recipes().join("build"));
    // What must not matter: the caller's mask, hour, language and directory.
    command
        .args(words)
        .env("TZ", "Asia/Tokyo")
        .env("LANG", "de_DE.UTF-8")
        .current_dir("/");
    command.stdin(Stdio::null());
    let output = command.output().expect("images/build starts");
    Output {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A document of an image layout.
fn document(layout: &Path, descriptor: &Value) -> Value {
    let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
    serde_json::from_slice(&fs::read(layout.join("blobs").join(digest)).unwrap()).unwrap()
}

fn manifest(layout: &Path) -> Value {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    document(layout, &index["manifests"][0])
}

fn a_recipe_makes_the_same_bytes_from_scratch_and_shares_the_layer_below() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { scratch.path().join(name) };
    let out = |name: &str| path(name).display().to_string();
    for words in [
        vec!["redis", &out("cached.tar")],
        vec!["--no-cache", "redis", &out("anew.tar")],
        vec!["redis", &format!("{}/", out("redis"))],
        vec!["debian-slim", &format!("{}/", out("debian-slim"))],
    ] {
        let output = build(&words);
        assert_eq!(output.code, 0, "{words:?}: {output:?}");
    }
    assert!(
        fs::read(path("cached.tar")).unwrap() == fs::read(path("anew.tar")).unwrap(),
        "the two archives are not the same"
    );

    let (redis, slim) = (manifest(&path("redis")), manifest(&path("debian-slim")));
    assert_eq!(redis["layers"].as_array().unwrap().len(), 2);
    assert_eq!(slim["layers"].as_array().unwrap().len(), 1);
    assert_eq!(redis["layers"][0], slim["layers"][0]);
    let config = document(&path("redis"), &redis["config"]);
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    assert_eq!(config["history"].as_array().unwrap().len(), 2);
    assert_eq!(config["config"]["Healthcheck"]["Test"][1], "redis-cli");
}

fn an_image_is_built_into_a_registry() {
    let registry = Registry::start();
    let name = format!("{}/team/box:1", registry.host());
    let scratch = tempfile::tempdir().unwrap();
    let layout = scratch.path().join("busybox");
    let output = build(&["busybox", &format!("{}/", layout.display())]);
    assert_eq!(output.code, 0, "{output:?}");
    let push = |environment: &[(&str, &str)]| {
        let mut command = Command::new(machine::recipes().join("build"));
        command
            .args(["--push", &name, "busybox"])
            .envs(environment.iter().copied());
        let output = command.env("DOCKER_CONFIG", scratch.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    push(&[("BRIG", machine::brig().to_str().unwrap())]);
    let brig = Brig::empty();
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let pulled = brig.ok(&["pull", &name]);
    let digest = format!("Digest: {}\n", index["manifests"][0]["digest"].as_str().unwrap());
    assert!(pulled.contains(&digest), "{pulled} {index}");
}

fn the_command_of_the_recipes_says_what_is_wrong() {
    for words in [
        &[][..],
        &["redis"],
        &["--push"],
        &["../images/redis", "out.tar"],
        &["--fast", "redis", "out.tar"],
    ] {
        let output = build(words);
        assert_eq!(output.code, 2, "{words:?}: {output:?}");
        assert!(output.stderr.contains("usage: images/build"), "{output:?}");
        assert!(output.stderr.contains("debian-slim"), "{output:?}");
    }
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("file"), "").unwrap();
    let output = build(&["busybox", scratch.path().to_str().unwrap()]);
    assert_eq!(output.code, 1, "{output:?}");
    assert!(output.stderr.contains("is not empty"), "{output:?}");
}

fn debian_slim_has_its_programs_and_a_package_database() {
    let brig = Brig::new();
    brig.load("debian-slim");
    let script = "dpkg -l | awk '$1 == \"ii\" { print $2 }'; . /etc/os-release; echo $ID; stat -c %a:%g /etc/shadow; id -un www-data";
    let output = brig.ok(&["run", "--rm", "debian-slim", "bash", "-c", script]);
    let lines: Vec<_> = output.lines().collect();
    for package in ["base-files", "coreutils", "libc6:amd64"] {
        assert!(lines.contains(&package), "{package} is not in {output}");
    }
    assert_eq!(lines[lines.len() - 3..], ["debian", "640:42", "www-data"]);
}
