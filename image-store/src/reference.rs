//! Names of images, in Docker's grammar (`github.com/distribution/reference`, `reference.go` and `normalize.go`).
//!
//! ```text
//! reference := name [ ":" tag ] [ "@" digest ]
//! name      := [ domain "/" ] component { "/" component }
//! domain    := host [ ":" port ]
//! component := [a-z0-9]+ { ( "." | "_" | "__" | "-"+ ) [a-z0-9]+ }
//! tag       := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}
//! ```
//! A name without a domain is of `docker.io`, one without a slash of `docker.io/library`; a missing tag means `latest`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

/// Most bytes of a domain and path together.
pub const NAME_BYTES_MAX: usize = 255;

/// Most bytes of a tag.
pub const TAG_BYTES_MAX: usize = 128;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library/";
const DEFAULT_TAG: &str = "latest";

/// Why a text is no name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text has another form.
    #[error("invalid image name \"{0}\": write it as in nginx:1.25 or registry.example:5000/team/app:tag")]
    Format(String),
    /// Upper case in the path, the mistake most often made.
    #[error("invalid image name \"{0}\": the repository name must be lower-case")]
    Uppercase(String),
    /// Domain and path are too long.
    #[error("invalid image name: it has more than {NAME_BYTES_MAX} characters before the tag")]
    TooLong,
    /// What follows the `@` is no digest.
    #[error("invalid image name: {0}")]
    Digest(DigestError),
}

impl From<DigestError> for ReferenceError {
    fn from(error: DigestError) -> Self {
        Self::Digest(error)
    }
}

/// Where an image is kept: a registry's domain and the path there, both always present.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    domain: String,
    path: String,
}

impl Repository {
    /// The registry, such as `docker.io` or `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path in the registry, such as `library/nginx`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and path, nothing left out: `docker.io/library/nginx`.
    pub fn canonical(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    fn parse(name: &str, whole: &str) -> Result<Self, ReferenceError> {
        let (domain, path) = split_domain(name);
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_PREFIX}{path}")
        } else {
            path.to_string()
        };
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(shown(whole)));
        }
        if domain.len() + 1 + path.len() > NAME_BYTES_MAX {
            return Err(ReferenceError::TooLong);
        }
        if !is_domain(domain) || !path.split('/').all(is_component) {
            return Err(ReferenceError::Format(shown(whole)));
        }
        Ok(Self {
            domain: domain.to_string(),
            path,
        })
    }
}

/// As Docker shows it: without what is the default.
impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.domain == DEFAULT_DOMAIN {
            return f.write_str(self.path.strip_prefix(OFFICIAL_PREFIX).unwrap_or(&self.path));
        }
        write!(f, "{}/{}", self.domain, self.path)
    }
}

/// A name that an image has in the store: repository and tag.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    /// Where the image is kept.
    pub repository: Repository,
    /// Its tag; `latest` when none was given.
    pub tag: String,
}

impl ImageName {
    /// The whole name, nothing left out: `docker.io/library/nginx:latest`.
    pub fn canonical(&self) -> String {
        format!("{}:{}", self.repository.canonical(), self.tag)
    }
}

/// As Docker shows it: `nginx:latest`.
impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

impl FromStr for ImageName {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let reference: Reference = text.parse()?;
        if reference.digest.is_some() {
            return Err(ReferenceError::Format(shown(text)));
        }
        Ok(reference.name())
    }
}

impl Serialize for ImageName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.canonical())
    }
}

impl<'de> Deserialize<'de> for ImageName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// What a registry calls an image: the digest of a manifest or an index in a repository.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryDigest {
    /// Where it is kept.
    pub repository: Repository,
    /// The digest of the document that a tag leads to.
    pub digest: Digest,
}

/// As Docker shows it: `nginx@sha256:…`.
impl fmt::Display for RepositoryDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.digest)
    }
}

impl Serialize for RepositoryDigest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}@{}", self.repository.canonical(), self.digest))
    }
}

impl<'de> Deserialize<'de> for RepositoryDigest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let reference: Reference = String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)?;
        let repository = reference.repository;
        match reference.digest {
            Some(digest) => Ok(Self { repository, digest }),
            None => Err(D::Error::custom("a digest is missing")),
        }
    }
}

/// What a user writes to mean an image: a repository with a tag, a digest, both or neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where the image is kept.
    pub repository: Repository,
    /// The tag, when one was given.
    pub tag: Option<String>,
    /// The digest of the manifest, when one was given. It decides, whatever the tag is.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Repository and tag, `latest` when none was given.
    pub fn name(&self) -> ImageName {
        ImageName {
            repository: self.repository.clone(),
            tag: self.tag.clone().unwrap_or_else(|| DEFAULT_TAG.to_string()),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the domain's port.
        let after_slash = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[after_slash..].find(':') {
            Some(colon) => (
                &rest[..after_slash + colon],
                Some(&rest[after_slash + colon + 1..]),
            ),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Format(shown(text)));
        }
        Ok(Self {
            repository: Repository::parse(name, text)?,
            tag: tag.map(str::to_string),
            digest,
        })
    }
}

/// What of a wrong name is repeated in a message.
fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Tells a domain from the first component of a path, as Docker does: it has a dot, a colon or an upper-case
/// letter, or it is `localhost`.
fn split_domain(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_DEFAULT_DOMAIN, path)) => (DEFAULT_DOMAIN, path),
        Some((first, path))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, path)
        }
        _ => (DEFAULT_DOMAIN, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) => {
                let hex = |b: u8| b.is_ascii_hexdigit() || b == b':';
                if address.is_empty() || !address.bytes().all(hex) {
                    return false;
                }
                match port.strip_prefix(':') {
                    Some(port) => (None, Some(port)),
                    None if port.is_empty() => (None, None),
                    None => return false,
                }
            }
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

fn is_component(component: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = component.as_bytes();
    loop {
        let word = rest.iter().take_while(|&&b| alphanumeric(b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        let separator = rest.iter().take_while(|&&b| !alphanumeric(b)).count();
        match &rest[..separator] {
            [] => return true,
            [b'.' | b'_'] | [b'_', b'_'] => {}
            dashes if dashes.iter().all(|&b| b == b'-') => {}
            _ => return false,
        }
        rest = &rest[separator..];
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_BYTES_MAX
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ImageName {
        text.parse().unwrap()
    }

    #[test]
    fn defaults_are_filled_in_and_left_out_again() {
        for (text, canonical, familiar) in [
            ("nginx", "docker.io/library/nginx:latest", "nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25", "nginx:1.25"),
            (
                "docker.io/library/nginx",
                "docker.io/library/nginx:latest",
                "nginx:latest",
            ),
            (
                "index.docker.io/nginx",
                "docker.io/library/nginx:latest",
                "nginx:latest",
            ),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("host:5000/a/b:t", "host:5000/a/b:t", "host:5000/a/b:t"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("Host/a", "Host/a:latest", "Host/a:latest"),
        ] {
            assert_eq!(name(text).canonical(), canonical);
            assert_eq!(name(text).to_string(), familiar);
            assert_eq!(name(&name(text).canonical()), name(text));
        }
    }

    #[test]
    fn separators_follow_the_grammar() {
        for good in ["a.b", "a_b", "a__b", "a---b", "0/1/2"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a..b",
            "a___b",
            "a_-b",
            "-a",
            "a-",
            ".a",
            "a b",
            "a:",
            "a:-t",
            "a:t:u",
            "a@",
            "a@sha256:12",
            "é",
            "h_st.x/a",
            "h:p/a",
            "[::1/a",
            "[g]/a",
            "a\0",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        assert!(matches!(
            "Nginx".parse::<Reference>(),
            Err(ReferenceError::Uppercase(_))
        ));
    }

    #[test]
    fn lengths_are_bounded() {
        assert!("a".repeat(300).parse::<Reference>().is_err());
        assert!(format!("a:{}", "t".repeat(128)).parse::<Reference>().is_ok());
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
    }

    #[test]
    fn a_digest_is_taken_beside_a_tag() {
        let digest = Digest::of(b"x");
        let reference: Reference = format!("nginx:1@{digest}").parse().unwrap();
        assert_eq!(reference.digest, Some(digest));
        assert_eq!(reference.name().to_string(), "nginx:1");
        assert!(format!("nginx@{digest}").parse::<ImageName>().is_err());
    }
}
