//! What happens to sandboxes, images and volumes: the engine's side of the [journal](brig_image_store::journal).

use std::path::Path;

pub use brig_image_store::journal::{Actor, DIRECTORY, Event, Journal, Kind};
use jiff::Timestamp;

use crate::{
    Error,
    log::{Dated, LineReader, LogOptions},
    sandbox::Config,
};

impl Dated for Event {
    fn time(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.time_nano.into()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// Something has happened to the sandbox of `config`; `more` is what the action tells.
pub(crate) fn note(journal: &Journal, config: &Config, action: &str, more: &[(&str, String)]) {
    let isolation = config.isolation.to_string();
    let own = [
        ("image", config.image.as_str()),
        ("name", config.name.as_str()),
        ("isolation", isolation.as_str()),
    ];
    let labels = config
        .labels
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let more = more.iter().map(|(name, value)| (*name, value.as_str()));
    let all = labels.chain(own).chain(more);
    journal.note(Kind::Container, action, config.id.as_str(), all);
}

/// What the journal in `directory` holds from `since` on, and what is appended while it is read.
///
/// # Errors
/// [`Error::File`].
pub fn read(directory: &Path, since: Option<Timestamp>) -> Result<LineReader<Event>, Error> {
    let path = Journal::log(directory);
    let options = LogOptions { tail: None, since };
    LineReader::open(&path, options).map_err(Error::file("read", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SandboxId, test_support::config};

    #[test]
    fn an_event_of_a_sandbox_names_it_and_its_isolation_and_is_read_while_others_follow() {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::new(directory.path().to_owned());
        let mut reader = read(directory.path(), None).unwrap();
        let mut config = config(SandboxId::random().unwrap(), "web".into());
        config.labels.insert("name".into(), "not its name".into());
        config.labels.insert("team".into(), "blue".into());
        for code in ["3", "4"] {
            note(&journal, &config, "die", &[("exitCode", code.into())]);
            let event = reader.next().unwrap().unwrap();
            assert_eq!((event.kind, event.action.as_str()), (Kind::Container, "die"));
            assert_eq!(event.actor.id, config.id.as_str());
            let attribute = |name: &str| event.actor.attributes[name].as_str();
            assert_eq!(attribute("name"), "web");
            assert_eq!(attribute("isolation"), "vm");
            assert_eq!(attribute("team"), "blue");
            assert_eq!(attribute("exitCode"), code);
        }
        assert!(reader.next().unwrap().is_none());
    }
}
