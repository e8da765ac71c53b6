//! What happens to images, sandboxes and volumes, one JSON object a line as Docker's API writes it (`GET /events`), in
//! `events/log.json` of brig's root. This is the writer, which all who make something happen have; the engine reads.
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
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::store::files;

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
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            kind,
            action: action.to_owned(),
            actor: Actor {
                id: id.to_owned(),
                attributes,
            },
            scope: "local".to_owned(),
            time: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            time_nano: i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        }
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

    /// The one of brig's root at `root`.
    pub fn of_root(root: &Path) -> Self {
        Self::new(root.join(DIRECTORY))
    }

    /// The newest file of the journal in `directory`.
    pub fn log(directory: &Path) -> PathBuf {
        directory.join("log.json")
    }

    /// Something has happened to whom `id` is. Of what is said twice in `attributes` the last counts.
    pub fn note<'a>(
        &self,
        kind: Kind,
        action: &str,
        id: &str,
        attributes: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) {
        let attributes = attributes
            .into_iter()
            .map(|(name, value)| (name.to_owned(), cut(value)))
            .collect();
        // See above: nobody is to be kept from what they do by this.
        let _ = self.try_append(&Event::new(kind, action, id, attributes), FILE_BYTES);
    }

    /// As [`Self::note`], with values that belong to the caller.
    pub fn other(&self, kind: Kind, action: &str, id: &str, more: &[(&str, String)]) {
        self.note(
            kind,
            action,
            id,
            more.iter().map(|(name, value)| (*name, value.as_str())),
        );
    }

    fn try_append(&self, event: &Event, limit: u64) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let path = Self::log(&self.directory);
        // Held for moments only, so that two do not both move the file away.
        let _lock = files::lock(&self.directory.join("lock")).map_err(io::Error::other)?;
        if fs::metadata(&path).is_ok_and(|found| found.len() + line.len() as u64 > limit) {
            fs::rename(&path, path.with_extension("json.1"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path().to_owned());
        (directory, journal)
    }

    /// The events of a file, the oldest first.
    fn events(path: &Path) -> Vec<Event> {
        let text = fs::read_to_string(path).unwrap();
        let event = |line| serde_json::from_str(line).unwrap();
        text.lines().map(event).collect()
    }

    #[test]
    fn an_event_is_what_dockers_api_says() {
        let (directory, journal) = journal();
        let long = "x".repeat(10_000);
        let attributes = [("name", "first"), ("team", long.as_str()), ("name", "web")];
        journal.note(Kind::Image, "tag", "sha256:0f", attributes);
        let text = fs::read_to_string(Journal::log(directory.path())).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["Type"], "image");
        assert_eq!(value["Action"], "tag");
        assert_eq!(value["Actor"]["ID"], "sha256:0f");
        let attributes = &value["Actor"]["Attributes"];
        assert_eq!(attributes["name"], "web");
        assert_eq!(attributes["team"].as_str().unwrap().len(), VALUE_CHARACTERS);
        assert_eq!(value["time"], value["timeNano"].as_i64().unwrap() / 1_000_000_000);
    }

    #[test]
    fn a_journal_takes_no_more_than_two_files_of_the_limit() {
        let (directory, journal) = journal();
        let path = Journal::log(directory.path());
        let older = path.with_extension("json.1");
        for n in 0..100 {
            let event = Event::new(Kind::Image, "pull", &n.to_string(), BTreeMap::new());
            journal.try_append(&event, 1000).unwrap();
            assert_eq!(events(&path).last().unwrap().actor.id, n.to_string());
        }
        let bytes = |path: &Path| fs::metadata(path).unwrap().len();
        assert!(bytes(&path) <= 1000 && bytes(&older) <= 1000);
    }

    #[test]
    fn writers_at_the_same_time_lose_nothing() {
        let (directory, journal) = journal();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let journal = &journal;
                scope.spawn(move || {
                    for n in 0..50 {
                        journal.note(Kind::Volume, "create", &format!("{thread}.{n}"), []);
                    }
                });
            }
        });
        let all = events(&Journal::log(directory.path()));
        let seen: std::collections::BTreeSet<_> = all.iter().map(|event| &event.actor.id).collect();
        assert_eq!(seen.len(), 200);
    }
}
