//! What can go wrong with a registry.

use std::{error::Error as _, io, path::PathBuf, time::Duration};

use brig_image_store::{StoreError, archive::ArchiveError};
use reqwest::StatusCode;

/// Most characters of a registry's words that a message repeats.
const WORDS_MAX: usize = 200;

/// Why an operation failed. Each message is one line that says what to do where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is malformed, or of a kind that brig does not take.
    #[error(transparent)]
    Image(#[from] ArchiveError),
    /// A configuration file is wrong.
    #[error("cannot use {}: {why}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The credentials that are kept for a registry cannot be used.
    #[error("cannot use the credentials for {host}: {why}")]
    Credentials {
        /// The registry.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The registry cannot be reached, or the connection broke.
    #[error("cannot reach {host}: {why}")]
    Network {
        /// Host, and port if it is not the usual one.
        host: String,
        /// What the network says.
        why: String,
    },
    /// Nothing came for too long.
    #[error("{host} stalled: less than {bytes} bytes in {seconds} s while {what} was transferred")]
    Stalled {
        /// The host.
        host: String,
        /// What was transferred.
        what: String,
        /// Bytes that have to come.
        bytes: u64,
        /// In so many seconds.
        seconds: u64,
    },
    /// It redirects too often.
    #[error("{0} redirects for ever: no answer after {MAX} redirects", MAX = crate::http::REDIRECTS_MAX)]
    Redirects(String),
    /// It redirects to where brig does not go.
    #[error("{host} redirects to {target}, which is refused: {why}")]
    Redirect {
        /// The host.
        host: String,
        /// Where to.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// The registry answers with an error.
    #[error("{host} answers {status} for {what}{words}")]
    Status {
        /// The host.
        host: String,
        /// Its answer.
        status: StatusCode,
        /// What was asked for.
        what: String,
        /// What it says about that, with a colon before it; empty when it says nothing.
        words: String,
        /// How long it wants to be left alone, where it says so.
        retry_after: Option<Duration>,
    },
    /// There is no such image.
    #[error("manifest for {0} not found: the registry has no such image or tag")]
    NotFound(String),
    /// The registry does not give or take it without (other) credentials.
    #[error(
        "access denied to {repository}: the repository does not exist, or it takes `brig login{server}`{words}"
    )]
    Denied {
        /// The repository.
        repository: String,
        /// What `login` takes to log in there, with a space before it; empty for Docker Hub.
        server: String,
        /// What the registry says, with a colon before it.
        words: String,
    },
    /// It refused the user's name and password.
    #[error("{0} refuses the user name or password")]
    Unauthorized(String),
    /// The way that a registry wants users to log in is none that brig knows, or is malformed.
    #[error("cannot log in to {host}: {why}")]
    Challenge {
        /// The host.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// The registry says something that makes no sense.
    #[error("malformed answer of {host} for {what}: {why}")]
    Malformed {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// More bytes than such a thing may have.
    #[error("{what} has more than {limit} bytes: brig takes no more from {host}")]
    TooLong {
        /// The host.
        host: String,
        /// What it is.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes are not those that the digest promises.
    #[error(
        "{what} from {host} has the digest {found} instead of {expected}: the registry or what is before it is damaged or lies"
    )]
    Digest {
        /// The host.
        host: String,
        /// What it is.
        what: String,
        /// The digest that it must have.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// The image is of the first manifest format.
    #[error(
        "{0} is in the manifest format of schema 1, which is out of use: pull and push it with Docker 1.10 or newer first"
    )]
    SchemaOne(String),
    /// A layer's bytes are somewhere else.
    #[error(
        "{reference} has a foreign layer ({media_type}), which is not kept in its registry: brig does not fetch it"
    )]
    Foreign {
        /// The image.
        reference: String,
        /// The layer's type.
        media_type: String,
    },
    /// The image is not made for the platform that is wanted.
    #[error("no image for {wanted} in {reference}, which has {found}: choose one of those with --platform")]
    Platform {
        /// The image.
        reference: String,
        /// What was looked for.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// The image to push is not in the store.
    #[error("no image {0}: `brig images` lists those that there are")]
    NoSuchImage(String),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Usage(String),
    /// A stream of the command's own.
    #[error("{what}")]
    Stream {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether it may be another way the next time.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Network { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => is_transient(*status),
            _ => false,
        }
    }

    /// How long the registry wants to be left alone before the next request.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The whole of it in one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(cause) = source {
            line.push_str(": ");
            line.push_str(&cause.to_string());
            source = cause.source();
        }
        plain(&line, usize::MAX)
    }
}

/// Whether the same request may be answered otherwise the next time (RFC 9110, section 15.6; RFC 6585, section 4).
pub fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// A stranger's words without what could steer a terminal or break a line, cut to `most` characters.
pub fn plain(text: &str, most: usize) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(most)
        .collect();
    text.trim().to_owned()
}

/// What a registry says in the body of an error (distribution-spec, section "Error Codes"), with a colon before it; empty
/// when it says nothing that can be read.
pub fn words(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default)]
        details: String,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(body) = serde_json::from_slice::<Body>(body) else {
        return String::new();
    };
    let text = match body.errors.first() {
        Some(entry) if entry.message.is_empty() => entry.code.to_lowercase(),
        Some(entry) => entry.message.clone(),
        None => body.details,
    };
    match plain(&text, WORDS_MAX) {
        text if text.is_empty() => text,
        text => format!(": {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_one_short_line() {
        let said = words(br#"{"errors":[{"code":"DENIED","message":"no\n\u001b[31mway"}]}"#);
        assert_eq!(said, ": no  [31mway");
        assert_eq!(words(br#"{"errors":[{"code":"DENIED"}]}"#), ": denied");
        assert_eq!(words(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(5000));
        assert!(words(long.as_bytes()).len() < 300);
    }
}
