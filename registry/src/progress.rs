//! What is told of a transfer while it goes on, in the terms of Docker's Engine API.

use std::sync::Arc;

use serde::Serialize;

/// How a blob is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// It is to be downloaded.
    Pulling,
    /// Another blob has to come first, or another process downloads it.
    Waiting,
    /// Bytes have come.
    Downloading {
        /// So many are there.
        current: u64,
        /// Of so many.
        total: u64,
    },
    /// The transfer failed and will be tried again after a rest.
    Retrying {
        /// Why, in one line.
        why: String,
        /// How often it has been tried.
        tries: u32,
    },
    /// All bytes are there and are what the digest promises.
    Complete,
    /// The store has had it before.
    Exists,
    /// It is to be uploaded.
    Preparing,
    /// Bytes have gone.
    Pushing {
        /// So many have.
        current: u64,
        /// Of so many.
        total: u64,
    },
    /// The registry has it now.
    Pushed,
    /// The registry has had it before.
    LayerExists,
    /// The registry has taken it from another of its repositories.
    Mounted {
        /// That one.
        from: String,
    },
}

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A line about the whole: `latest: Pulling from library/nginx`.
    Line {
        /// What stands before the colon; empty for none.
        id: String,
        /// The words.
        text: String,
    },
    /// How a blob is.
    Blob {
        /// The first 12 digits of its digest.
        id: String,
        /// How it is.
        state: BlobState,
    },
}

/// Where events go. Called from several threads.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// An event as `docker pull` reads it from the Engine API, one JSON object a line.
#[derive(Debug, Serialize)]
pub struct JsonEvent {
    /// The words.
    status: String,
    #[serde(rename = "progressDetail", skip_serializing_if = "Option::is_none")]
    progress_detail: Option<Detail>,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
}

#[derive(Debug, Serialize)]
struct Detail {
    current: u64,
    total: u64,
}

impl BlobState {
    /// Docker's words for it.
    pub fn words(&self) -> String {
        match self {
            Self::Pulling => "Pulling fs layer".to_owned(),
            Self::Waiting => "Waiting".to_owned(),
            Self::Downloading { .. } => "Downloading".to_owned(),
            Self::Retrying { why, tries } => format!("Retrying ({tries}): {why}"),
            Self::Complete => "Pull complete".to_owned(),
            Self::Exists => "Already exists".to_owned(),
            Self::Preparing => "Preparing".to_owned(),
            Self::Pushing { .. } => "Pushing".to_owned(),
            Self::Pushed => "Pushed".to_owned(),
            Self::LayerExists => "Layer already exists".to_owned(),
            Self::Mounted { from } => format!("Mounted from {from}"),
        }
    }

    /// How far a transfer is.
    pub fn bytes(&self) -> Option<(u64, u64)> {
        match *self {
            Self::Downloading { current, total } | Self::Pushing { current, total } => Some((current, total)),
            _ => None,
        }
    }

    /// Whether nothing more is to come.
    pub fn is_end(&self) -> bool {
        matches!(
            self,
            Self::Complete | Self::Exists | Self::Pushed | Self::LayerExists | Self::Mounted { .. }
        )
    }
}

impl From<&Event> for JsonEvent {
    fn from(event: &Event) -> Self {
        match event {
            Event::Line { id, text } => Self {
                status: text.clone(),
                progress_detail: None,
                id: id.clone(),
            },
            Event::Blob { id, state } => Self {
                status: state.words(),
                progress_detail: state.bytes().map(|(current, total)| Detail { current, total }),
                id: id.clone(),
            },
        }
    }
}

/// A digest as events show it.
pub fn short(digest: &brig_image_store::digest::Digest) -> String {
    let mut hex = digest.hex();
    hex.truncate(12);
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_what_docker_reads() {
        let event = Event::Blob {
            id: "abc".into(),
            state: BlobState::Downloading { current: 1, total: 2 },
        };
        assert_eq!(
            serde_json::to_string(&JsonEvent::from(&event)).unwrap(),
            r#"{"status":"Downloading","progressDetail":{"current":1,"total":2},"id":"abc"}"#
        );
    }
}
