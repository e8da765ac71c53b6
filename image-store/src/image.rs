//! An image as brig knows it: its layers and what its configuration says (image-spec, `config.md`).

use std::{collections::BTreeMap, fmt, str::FromStr};

use brig_protocol::agent::Compression;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};

use crate::{
    digest::Digest,
    reference::{ImageName, RepositoryDigest},
};

/// Hex digits of an id as tables show it.
const SHORT_DIGITS: usize = 12;

/// What identifies an image: the digest of its configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Digest);

impl ImageId {
    /// The 64 hex digits.
    pub fn hex(&self) -> String {
        self.0.hex()
    }

    /// The first 12 hex digits.
    pub fn short(&self) -> String {
        let mut hex = self.hex();
        hex.truncate(SHORT_DIGITS);
        hex
    }
}

/// `sha256:` and 64 hex digits.
impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The digest of its configuration.
    pub id: ImageId,
    /// The names that it has now, sorted; none when they were all given to other images.
    #[serde(skip)]
    pub names: Vec<ImageName>,
    /// What registries call it: a repository and the digest of the manifest, or of the index that leads to it. Sorted;
    /// none when it was never pulled or pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub digests: Vec<RepositoryDigest>,
    /// The digest of its manifest; an archive of the older `docker save` kind has none.
    pub manifest: Option<Digest>,
    /// What it runs.
    pub config: ImageConfig,
    /// Its layers, lowest first.
    pub layers: Vec<Layer>,
    /// When it was built, RFC 3339, as its configuration says.
    pub created: Option<String>,
    /// Bytes of its layers as they are stored.
    pub size: u64,
    /// CPU architecture, as Go names it.
    pub architecture: String,
    /// Operating system, as Go names it.
    pub os: String,
}

impl Image {
    /// Takes note of what else registries call it.
    pub(crate) fn add_digests(&mut self, digests: Vec<RepositoryDigest>) {
        self.digests.extend(digests);
        self.digests.sort_unstable();
        self.digests.dedup();
    }

    /// Every blob that the store keeps for it: layers, configuration, manifest.
    pub fn blobs(&self) -> Vec<Digest> {
        let layers = self.layers.iter().map(|layer| layer.digest);
        layers.chain([self.id.0]).chain(self.manifest).collect()
    }
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// How the blob is compressed.
    pub compression: Compression,
    /// Digest of the uncompressed tar stream, as the configuration says; verified when the layer is unpacked.
    pub diff_id: Digest,
}

/// What an image runs, from its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// Default arguments, or the default command when there is no entrypoint.
    pub cmd: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` …; empty means root.
    pub user: String,
    /// Ports that the image says it listens on, sorted.
    pub exposed_ports: Vec<ExposedPort>,
    /// Paths that the image wants volumes at, sorted.
    pub volumes: Vec<String>,
    /// Name or number of the signal that stops it; `SIGTERM` when there is none.
    pub stop_signal: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How it is found out whether what it runs is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// The shell that runs lines of text; empty means `/bin/sh -c`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// An image's `Healthcheck`. Zero means that the image leaves it open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// `NONE`, `CMD` with a program and its arguments, or `CMD-SHELL` with a line.
    pub test: Vec<String>,
    /// Nanoseconds between two checks.
    pub interval_ns: u64,
    /// Nanoseconds that a check may take.
    pub timeout_ns: u64,
    /// Nanoseconds after the start in which a failure does not count.
    pub start_period_ns: u64,
    /// Nanoseconds between two checks then.
    pub start_interval_ns: u64,
    /// Failures in a row that mean that it is not well.
    pub retries: u32,
}

/// A port that an image listens on. Shown as `80/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExposedPort {
    /// The port, never 0.
    pub port: u16,
    /// Its protocol.
    pub protocol: Transport,
}

/// Protocol of an [`ExposedPort`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol)
    }
}

/// The text is no port with a protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no port of the form 80/tcp")]
pub struct ExposedPortError(String);

impl FromStr for ExposedPort {
    type Err = ExposedPortError;

    fn from_str(text: &str) -> Result<Self, ExposedPortError> {
        let wrong = || ExposedPortError(text.chars().take(40).collect());
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        Ok(Self {
            port: port.parse().ok().filter(|&port| port != 0).ok_or_else(wrong)?,
            protocol: match protocol {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                "sctp" => Transport::Sctp,
                _ => return Err(wrong()),
            },
        })
    }
}

/// An image's configuration as it stands in its JSON document.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigDocument {
    pub created: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub architecture: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    pub os: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    config: RunDocument,
    pub rootfs: RootFsDocument,
}

/// The `rootfs` object of a configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct RootFsDocument {
    #[serde(default, deserialize_with = "null_is_empty")]
    pub diff_ids: Vec<Digest>,
}

/// The `config` object of a configuration, with the names that Go gives its fields.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunDocument {
    #[serde(deserialize_with = "null_is_empty")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_empty")]
    user: String,
    #[serde(deserialize_with = "null_is_empty")]
    exposed_ports: serde_json::Map<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_empty")]
    volumes: serde_json::Map<String, serde_json::Value>,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_is_empty")]
    labels: BTreeMap<String, String>,
    healthcheck: Option<HealthDocument>,
    #[serde(deserialize_with = "null_is_empty")]
    shell: Vec<String>,
}

/// The `Healthcheck` object: nanoseconds, as Go writes a duration. One that is negative counts as none.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HealthDocument {
    #[serde(deserialize_with = "null_is_empty")]
    test: Vec<String>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl From<HealthDocument> for Healthcheck {
    fn from(said: HealthDocument) -> Self {
        let positive = |number: i64| u64::try_from(number).unwrap_or(0);
        Self {
            test: said.test,
            interval_ns: positive(said.interval),
            timeout_ns: positive(said.timeout),
            start_period_ns: positive(said.start_period),
            start_interval_ns: positive(said.start_interval),
            retries: u32::try_from(said.retries).unwrap_or(0),
        }
    }
}

/// Go writes `null` for an empty list, map or pointer.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ConfigDocument {
    /// What the image runs.
    ///
    /// # Errors
    /// A port that is none.
    pub fn run_config(&mut self) -> Result<ImageConfig, ExposedPortError> {
        let run = std::mem::take(&mut self.config);
        let mut exposed_ports = run
            .exposed_ports
            .keys()
            .map(|port| port.parse())
            .collect::<Result<Vec<ExposedPort>, _>>()?;
        exposed_ports.sort_unstable();
        Ok(ImageConfig {
            env: run.env,
            cmd: run.cmd,
            entrypoint: run.entrypoint,
            working_dir: run.working_dir,
            user: run.user,
            exposed_ports,
            volumes: run.volumes.into_iter().map(|(path, _)| path).collect(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            labels: run.labels,
            healthcheck: run.healthcheck.map(Healthcheck::from),
            shell: run.shell,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_nulls_and_missing_fields_are_empty() {
        let json = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["a"],"Labels":null,
            "ExposedPorts":{"80/tcp":{},"53/udp":{},"443":{}},"Volumes":{"/data":{}},"StopSignal":"",
            "Healthcheck":{"Test":["NONE"]},"ArgsEscaped":true},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let mut document: ConfigDocument = serde_json::from_str(json).unwrap();
        let config = document.run_config().unwrap();
        assert_eq!(config.cmd, ["a"]);
        let ports: Vec<_> = config.exposed_ports.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["53/udp", "80/tcp", "443/tcp"]);
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.stop_signal, None);
        assert_eq!(config.healthcheck.unwrap().test, ["NONE"]);
        let bare: ConfigDocument = serde_json::from_str(r#"{"config":null,"rootfs":{}}"#).unwrap();
        assert!(bare.rootfs.diff_ids.is_empty());
    }

    #[test]
    fn a_health_check_and_a_shell_are_read() {
        let json = r#"{"config":{"Shell":["/bin/bash","-c"],"Healthcheck":{"Test":["CMD-SHELL","true"],
            "Interval":30000000000,"Timeout":-5,"StartPeriod":1,"Retries":4}},"rootfs":{}}"#;
        let mut document: ConfigDocument = serde_json::from_str(json).unwrap();
        let config = document.run_config().unwrap();
        assert_eq!(config.shell, ["/bin/bash", "-c"]);
        let check = config.healthcheck.unwrap();
        assert_eq!(check.test, ["CMD-SHELL", "true"]);
        assert_eq!(
            (
                check.interval_ns,
                check.timeout_ns,
                check.start_period_ns,
                check.retries
            ),
            (30_000_000_000, 0, 1, 4)
        );
    }

    #[test]
    fn a_port_that_is_none_is_refused() {
        for text in ["", "0/tcp", "65536/tcp", "80/icmp", "80-81/tcp", "http"] {
            assert!(text.parse::<ExposedPort>().is_err(), "{text}");
        }
    }
}
