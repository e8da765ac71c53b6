//! What happens to sandboxes, images and volumes, one JSON object a line as Docker's API writes it (`GET /events`), in
//! `events/log.json` of the root.
//!
//! Whoever makes something happen appends the line: there is no daemon that could. The journal has at most two files,
//! `log.json` and the older `log.json.1`, and is read while it is written. It is a service to whoever watches: that it cannot be
//! written (a full disk) stops nothing.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Error,
    log::{Dated, LineReader, LogOptions, older},
    sandbox::{Config, lock::Lock},
};

/// The journal's directory in the root.
pub const DIRECTORY: &str = "events";

/// Bytes of `log.json` before it is moved to `log.json.1`: some 15,000 events.
const FILE_BYTES: u64 = 8 << 20;

/// Most characters of an attribute's value, such as a label's.
const VALUE_CHARACTERS: usize = 4096;

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A sandbox, in Docker's word.
    Container,
    /// An image.
    Image,
    /// A volume.
    Volume,
}

impl Kind {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Container => "container",
            Self::Image => "image",
            Self::Volume => "volume",
        }
    }
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// What it is about.
    #[serde(rename = "Type")]
    pub kind: Kind,
    /// What has happened, in Docker's words: `start`, `die`, `exec_die`.
    #[serde(rename = "Action")]
    pub action: String,
    /// To whom.
    #[serde(rename = "Actor")]
    pub actor: Actor,
    /// Always `local`.
    pub scope: String,
    /// Seconds since 1970.
    pub time: i64,
    /// Nanoseconds since 1970.
    #[serde(rename = "timeNano")]
    pub time_nano: i64,
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Actor {
    /// The id of the sandbox, the id or the name of the image, the name of the volume.
    #[serde(rename = "ID")]
    pub id: String,
    /// What else is known: `name`, `image`, `isolation`, labels, and what the action tells.
    #[serde(rename = "Attributes")]
    pub attributes: BTreeMap<String, String>,
}

impl Event {
    /// Of `actor`, now.
    fn new(kind: Kind, action: &str, id: &str, attributes: BTreeMap<String, String>) -> Self {
        let now = Timestamp::now();
        Self {
            kind,
            action: action.to_owned(),
            actor: Actor {
                id: id.to_owned(),
                attributes,
            },
            scope: "local".to_owned(),
            time: now.as_second(),
            time_nano: i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX),
        }
    }
}

impl Dated for Event {
    fn time(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.time_nano.into()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// Writes events.
#[derive(Clone, Debug)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// The one in `directory`, which is made with the root.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The one of the root at `root`, see [`crate::Paths::events`].
    pub fn of_root(root: &Path) -> Self {
        Self::new(root.join(DIRECTORY))
    }

    /// Something has happened to the sandbox of `config`; `more` is what the action tells.
    pub fn sandbox(&self, config: &Config, action: &str, more: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = config
            .labels
            .iter()
            .map(|(name, value)| (name.clone(), cut(value)))
            .collect();
        let own = [
            ("image", config.image.clone()),
            ("name", config.name.clone()),
            ("isolation", config.isolation.to_string()),
        ];
        for (name, value) in own.iter().chain(more) {
            attributes.insert((*name).to_owned(), cut(value));
        }
        self.append(&Event::new(
            Kind::Container,
            action,
            config.id.as_str(),
            attributes,
        ));
    }

    /// Something has happened to an image or a volume.
    pub fn other(&self, kind: Kind, action: &str, id: &str, more: &[(&str, String)]) {
        let attributes = more
            .iter()
            .map(|(name, value)| ((*name).to_owned(), cut(value)))
            .collect();
        self.append(&Event::new(kind, action, id, attributes));
    }

    fn append(&self, event: &Event) {
        // See above: nobody is to be kept from what they do by this.
        let _ = self.try_append(event, FILE_BYTES);
    }

    fn try_append(&self, event: &Event, limit: u64) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let path = log(&self.directory);
        // Held for moments only, so that two do not both move the file away.
        let _lock = Lock::take(&self.directory.join("lock")).map_err(io::Error::other)?;
        if fs::metadata(&path).is_ok_and(|found| found.len() + line.len() as u64 > limit) {
            fs::rename(&path, older(&path))?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)?
            .write_all(&line)
    }
}

fn cut(value: &str) -> String {
    value.chars().take(VALUE_CHARACTERS).collect()
}

fn log(directory: &Path) -> PathBuf {
    directory.join("log.json")
}

/// What the journal in `directory` holds from `since` on, and what is appended while it is read.
///
/// # Errors
/// [`Error::File`].
pub fn read(directory: &Path, since: Option<Timestamp>) -> Result<LineReader<Event>, Error> {
    let path = log(directory);
    let options = LogOptions { tail: None, since };
    LineReader::open(&path, options).map_err(Error::file("read", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SandboxId, test_support::config};

    fn journal() -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path().to_owned());
        (directory, journal)
    }

    #[test]
    fn an_event_is_what_dockers_api_says_and_names_the_isolation() {
        let (directory, journal) = journal();
        let mut config = config(SandboxId::random().unwrap(), "web".into());
        config.labels.insert("team".into(), "x".repeat(10_000));
        journal.sandbox(&config, "die", &[("exitCode", "3".into())]);
        let text = fs::read_to_string(log(directory.path())).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["Type"], "container");
        assert_eq!(value["Action"], "die");
        assert_eq!(value["Actor"]["ID"], config.id.as_str());
        let attributes = &value["Actor"]["Attributes"];
        assert_eq!(attributes["name"], "web");
        assert_eq!(attributes["isolation"], "vm");
        assert_eq!(attributes["exitCode"], "3");
        assert_eq!(attributes["team"].as_str().unwrap().len(), VALUE_CHARACTERS);
        assert_eq!(value["time"], value["timeNano"].as_i64().unwrap() / 1_000_000_000);
    }

    #[test]
    fn a_journal_takes_no_more_than_two_files_of_the_limit_and_is_read_over_their_change() {
        let (directory, journal) = journal();
        let event = |n: usize| Event::new(Kind::Image, "pull", &n.to_string(), BTreeMap::new());
        let mut reader = read(directory.path(), None).unwrap();
        for n in 0..100 {
            journal.try_append(&event(n), 1000).unwrap();
            assert_eq!(reader.next().unwrap().unwrap().actor.id, n.to_string());
        }
        let bytes = |path: &Path| fs::metadata(path).unwrap().len();
        let path = log(directory.path());
        assert!(bytes(&path) <= 1000 && bytes(&older(&path)) <= 1000);
        assert!(reader.next().unwrap().is_none());
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let (directory, journal) = journal();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let journal = &journal;
                scope.spawn(move || {
                    for n in 0..50 {
                        journal.other(Kind::Volume, "create", &format!("{thread}.{n}"), &[]);
                    }
                });
            }
        });
        let mut reader = read(directory.path(), None).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        while let Some(event) = reader.next().unwrap() {
            seen.insert(event.actor.id);
        }
        assert_eq!(seen.len(), 200);
    }
}
