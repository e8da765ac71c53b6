//! What brig reads of its own files and of its users': records of sandboxes and snapshots, `registries.toml`, Docker's
//! `config.json`, and the values of options. The first byte says which of them the rest is.
#![no_main]

use std::{env, fmt::Display, fs, path::PathBuf, str::FromStr, sync::OnceLock};

use brig_engine::{
    Isolation, SandboxId, port,
    resources::{Cpus, MemoryMib},
    sandbox::{config::Config, state::State},
    signal::Signal,
    snapshot::store::parse_record,
};
use brig_registry::credentials::CredentialFile;
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else {
        return;
    };
    match kind % 6 {
        0 => same_again::<Config>(bytes),
        1 => same_again::<State>(bytes),
        2 => {
            let _ = parse_record(bytes);
        }
        3 => {
            let path = directory().join("registries.toml");
            fs::write(&path, bytes).expect("a file");
            let _ = brig_registry::Config::load(&[path]);
        }
        4 => {
            fs::write(directory().join("config.json"), bytes).expect("a file");
            if let Ok(file) = CredentialFile::open() {
                let _ = file.get("docker.io");
                let _ = file.get("registry.example:5000");
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                value::<MemoryMib>(text);
                let _ = text.parse::<Cpus>();
                value::<Signal>(text);
                value::<Isolation>(text);
                value::<SandboxId>(text);
                let _ = port::parse(text);
            }
        }
    }
});

/// What is read is written and read again as the same.
fn same_again<T: DeserializeOwned + Serialize + PartialEq>(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<T>(bytes) {
        let text = serde_json::to_vec(&record).expect("a record can be written");
        let again: T = serde_json::from_slice(&text).expect("what was written can be read");
        assert!(again == record);
    }
}

/// What is shown of a value means the same.
fn value<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        assert!(
            value.to_string().parse::<T>().is_ok_and(|again| again == value),
            "{value}"
        );
    }
}

/// Where the files are. Docker's is found there, and no helper of it anywhere.
fn directory() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory").keep();
        // SAFETY: libFuzzer calls the target from one thread, and nothing else of this process reads the environment.
        unsafe {
            env::set_var("DOCKER_CONFIG", &directory);
            env::set_var("PATH", "/nonexistent");
        }
        directory
    })
}
