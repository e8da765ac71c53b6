//! Which registries may be spoken to how: `registries.toml`, and directories of certificates as Docker has them.
//!
//! ```toml
//! stall-timeout = 30                  # seconds without enough bytes until a transfer is tried again
//! attempts = 5                        # how often something is tried that brings no byte
//!
//! [registry."docker.io"]
//! mirrors = ["https://mirror.example", "http://10.0.0.5:5000"]
//!
//! [registry."registry.example:5000"]
//! insecure = true                     # no certificate is asked for, and plain HTTP will do
//! ca = "/etc/ssl/private-ca.pem"
//! client-certificate = "/etc/ssl/me.pem"
//! client-key = "/etc/ssl/me.key"
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use crate::Error;

/// Most bytes of a configuration file or of a certificate's.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where Docker looks for certificates of a registry: `HOST:PORT/*.crt`, `client.cert` and `client.key`.
const DOCKER_CERTIFICATES: &str = "/etc/docker/certs.d";

/// The name of the registry that is meant when none is named.
pub const DOCKER_HUB: &str = "docker.io";

/// What the files say.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    stall_timeout: Option<u64>,
    attempts: Option<u32>,
    #[serde(default)]
    registry: BTreeMap<String, Registry>,
}

/// What is said of one registry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registry {
    /// Whether it is spoken to without a certificate, or by plain HTTP.
    #[serde(default)]
    pub insecure: bool,
    /// Base addresses of registries that have the same images, tried in order before it.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// PEM file with certificates of authorities that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// PEM file with the certificate that brig shows.
    pub client_certificate: Option<PathBuf>,
    /// PEM file with its key.
    pub client_key: Option<PathBuf>,
}

/// The configuration of all registries.
#[derive(Clone, Debug)]
pub struct Config {
    registries: BTreeMap<String, Registry>,
    /// Directories with one for each registry, called `HOST` or `HOST:PORT`. The certificate and key that the last of them
    /// has for a registry are the ones that are shown.
    pub certificates: Vec<PathBuf>,
    /// How long a transfer may go on without enough bytes.
    pub stall_timeout: Duration,
    /// How often something is tried that brings no byte.
    pub attempts: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            certificates: vec![PathBuf::from(DOCKER_CERTIFICATES)],
            stall_timeout: Duration::from_secs(30),
            attempts: 5,
        }
    }
}

impl Config {
    /// Reads files, of which each later one wins. Those that do not exist say nothing.
    ///
    /// # Errors
    /// [`Error::Config`] when one cannot be read, is no TOML, or says what brig does not know.
    pub fn load(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut config = Self::default();
        for path in paths {
            let Some(text) = read(path)? else { continue };
            let wrong = |why: String| Error::Config {
                path: path.clone(),
                why,
            };
            let text = String::from_utf8(text).map_err(|e| wrong(e.to_string()))?;
            let document: Document = toml::from_str(&text).map_err(|e| wrong(e.message().to_owned()))?;
            if let Some(seconds) = document.stall_timeout {
                if seconds == 0 {
                    return Err(wrong("stall-timeout has to be at least 1 second".to_owned()));
                }
                config.stall_timeout = Duration::from_secs(seconds);
            }
            if let Some(attempts) = document.attempts {
                if !(1..=100).contains(&attempts) {
                    return Err(wrong("attempts has to be from 1 to 100".to_owned()));
                }
                config.attempts = attempts;
            }
            for (host, registry) in document.registry {
                if registry.client_certificate.is_some() != registry.client_key.is_some() {
                    return Err(wrong(format!(
                        "registry \"{host}\": client-certificate and client-key go together"
                    )));
                }
                config.registries.insert(host, registry);
            }
        }
        Ok(config)
    }

    /// Lets a registry be spoken to without a certificate or encryption.
    pub fn allow_insecure(&mut self, host: &str) {
        self.registries.entry(host.to_owned()).or_default().insecure = true;
    }

    /// What is said of the registry `host` (with its port, if it has one).
    pub fn registry(&self, host: &str) -> Registry {
        self.registries.get(host).cloned().unwrap_or_default()
    }

    /// The files that registries' entries name.
    pub fn files(&self) -> Vec<PathBuf> {
        let of = |registry: &Registry| {
            [&registry.ca, &registry.client_certificate, &registry.client_key].map(Clone::clone)
        };
        self.registries.values().flat_map(of).flatten().collect()
    }

    /// Whether `host` may be spoken to without a certificate or encryption: as with Docker, the own machine may be.
    pub fn is_insecure(&self, host: &str) -> bool {
        self.registry(host).insecure || is_loopback(host)
    }
}

/// Certificates for one registry, in PEM.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    /// Authorities that are trusted beside the system's.
    pub authorities: Vec<Vec<u8>>,
    /// The certificate and the key that brig shows.
    pub identity: Option<Vec<u8>>,
}

impl Certificates {
    /// What the configuration and the directories of certificates have for `host`.
    ///
    /// # Errors
    /// A file that the configuration names cannot be read, or there is a certificate without its key.
    pub fn load(config: &Config, host: &str) -> Result<Self, Error> {
        let registry = config.registry(host);
        let mut found = Self::default();
        for directory in &config.certificates {
            found.add(&directory.join(host))?;
        }
        if let Some(path) = &registry.ca {
            found.authorities.push(require(path)?);
        }
        if let (Some(certificate), Some(key)) = (&registry.client_certificate, &registry.client_key) {
            let mut pem = require(certificate)?;
            pem.push(b'\n');
            pem.extend(require(key)?);
            found.identity = Some(pem);
        }
        Ok(found)
    }

    /// Adds what a directory has: `*.crt` are authorities, `NAME.cert` with `NAME.key` is shown.
    fn add(&mut self, directory: &Path) -> Result<(), Error> {
        let Ok(entries) = fs::read_dir(directory) else {
            return Ok(());
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.authorities.extend(read(&path)?),
                Some("cert") => {
                    let mut pem = require(&path)?;
                    pem.push(b'\n');
                    pem.extend(require(&path.with_extension("key"))?);
                    self.identity = Some(pem);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.authorities.is_empty() && self.identity.is_none()
    }
}

/// A file's content, or `None` when there is no file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let wrong = |e: io::Error| Error::Config {
        path: path.to_path_buf(),
        why: e.to_string(),
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => Err(wrong(io::ErrorKind::FileTooLarge.into())),
        Ok(_) => fs::read(path).map(Some).map_err(wrong),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(wrong(e)),
    }
}

fn require(path: &Path) -> Result<Vec<u8>, Error> {
    read(path)?.ok_or_else(|| Error::Config {
        path: path.to_path_buf(),
        why: "there is no such file".to_owned(),
    })
}

/// Whether a registry is on the own machine: `localhost`, or an address of 127.0.0.0/8 or `::1`, with or without a port.
pub fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("registries.toml");
        fs::write(&path, text).unwrap();
        Config::load(&[directory.path().join("missing"), path])
    }

    #[test]
    fn only_the_own_machine_is_insecure_by_itself() {
        let config = Config::default();
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.9.1",
            "[::1]:5000",
        ] {
            assert!(config.is_insecure(host), "{host}");
        }
        for host in [
            "docker.io",
            "localhost.example",
            "10.0.0.1:5000",
            "128.0.0.1",
            "[fe80::1]",
        ] {
            assert!(!config.is_insecure(host), "{host}");
        }
    }

    #[test]
    fn a_file_says_what_is_allowed_for_each_registry() {
        let config = load(
            "stall-timeout = 2\n[registry.\"a.example:5000\"]\ninsecure = true\nmirrors = [\"http://m\"]\n",
        );
        let config = config.unwrap();
        assert!(config.is_insecure("a.example:5000") && !config.is_insecure("a.example"));
        assert_eq!(config.registry("a.example:5000").mirrors, ["http://m"]);
        assert_eq!(config.stall_timeout, Duration::from_secs(2));
    }

    #[test]
    fn directories_of_certificates_are_as_dockers() {
        let directory = tempfile::tempdir().unwrap();
        let of_host = directory.path().join("a.example:5000");
        fs::create_dir(&of_host).unwrap();
        for (name, text) in [
            ("b.crt", "B"),
            ("a.crt", "A"),
            ("client.cert", "C"),
            ("client.key", "K"),
            ("x", "X"),
        ] {
            fs::write(of_host.join(name), text).unwrap();
        }
        let config = Config {
            certificates: vec![directory.path().join("missing"), directory.path().to_owned()],
            ..Config::default()
        };
        let found = Certificates::load(&config, "a.example:5000").unwrap();
        assert_eq!(found.authorities, [b"A".to_vec(), b"B".to_vec()]);
        assert_eq!(found.identity.as_deref(), Some(&b"C\nK"[..]));
        assert!(Certificates::load(&config, "a.example").unwrap().is_empty());
        fs::remove_file(of_host.join("client.key")).unwrap();
        let line = Certificates::load(&config, "a.example:5000")
            .unwrap_err()
            .to_string();
        assert!(line.contains("client.key: there is no such file"), "{line}");
    }

    #[test]
    fn what_a_file_says_wrong_is_one_line_with_its_name() {
        for text in [
            "x = 1",
            "[registry.a]\ninsecure = 3",
            "[registry.a]\nclient-key = \"/k\"",
            "stall-timeout = 0",
            "attempts = 0",
            "=",
        ] {
            let line = load(text).unwrap_err().to_string();
            assert!(line.contains("registries.toml") && !line.contains('\n'), "{line}");
        }
    }
}
