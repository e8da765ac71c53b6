//! Filters of images: `--filter` of `images`, and the pattern of `images`; and those of everything that is pruned.

use std::collections::BTreeMap;

use brig_engine::Engine;
use brig_image_store::{Image, ImageName};
use jiff::Timestamp;

use crate::{failure::Failure, moment};

/// What an image must be.
#[derive(Debug, Default)]
pub struct Filters {
    dangling: Option<bool>,
    references: Vec<Pattern>,
    /// Key, value, and whether the image must have it.
    labels: Vec<(String, Option<String>, bool)>,
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

/// What something must be that `prune` is to remove.
#[derive(Debug, Default)]
pub struct PruneFilters {
    /// Key, value, and whether it must have it.
    labels: Vec<(String, Option<String>, bool)>,
    until: Option<Timestamp>,
}

impl PruneFilters {
    /// Reads them.
    pub fn new(texts: &[String]) -> Result<Self, Failure> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = split(text)?;
            match key {
                "until" => filters.until = Some(moment::parse(value)?),
                "label" => filters.labels.push(label(value, true)),
                "label!" => filters.labels.push(label(value, false)),
                _ => return Err(unknown(key, "until, label, label!")),
            }
        }
        Ok(filters)
    }

    /// Whether what was made then and has these labels is meant.
    pub fn fit(&self, made: Timestamp, labels: &BTreeMap<String, String>) -> bool {
        self.until.is_none_or(|until| made < until) && have(labels, &self.labels)
    }

    /// Whether an image is meant. One that does not say when it was made is older than nothing.
    pub fn fit_image(&self, image: &Image) -> bool {
        self.until
            .is_none_or(|until| created(image).is_some_and(|made| made < until))
            && have(&image.config.labels, &self.labels)
    }
}

/// Whether what has `found` has, or has not, each of the wanted labels.
fn have(found: &BTreeMap<String, String>, wanted: &[(String, Option<String>, bool)]) -> bool {
    wanted.iter().all(|(key, value, wanted)| {
        let found = found.get(key);
        let has = found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found));
        has == *wanted
    })
}

impl Filters {
    /// Reads those of `images`.
    pub fn of_list(engine: &Engine, texts: &[String]) -> Result<Self, Failure> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = split(text)?;
            match key {
                "dangling" => filters.dangling = Some(boolean(text, value)?),
                "reference" => filters.references.push(Pattern::new(value)?),
                "label" => filters.labels.push(label(value, true)),
                "before" => filters.before = created(&engine.find_image(value)?),
                "since" => filters.since = created(&engine.find_image(value)?),
                "until" => {
                    let until = moment::parse(value)?;
                    filters.before = Some(filters.before.map_or(until, |before| before.min(until)));
                }
                _ => {
                    return Err(unknown(key, "dangling, reference, label, before, since, until"));
                }
            }
        }
        Ok(filters)
    }

    /// Adds the argument of `images`: a repository or a name.
    pub fn add_reference(&mut self, pattern: &str) -> Result<(), Failure> {
        self.references.push(Pattern::new(pattern)?);
        Ok(())
    }

    /// Whether an image is meant.
    pub fn fits(&self, image: &Image) -> bool {
        let made = created(image);
        let earlier =
            |limit: Option<Timestamp>| limit.is_none_or(|limit| made.is_some_and(|made| made < limit));
        self.dangling
            .is_none_or(|dangling| dangling == image.names.is_empty())
            && (self.references.is_empty() || image.names.iter().any(|name| self.names(name)))
            && have(&image.config.labels, &self.labels)
            && earlier(self.before)
            && self
                .since
                .is_none_or(|since| made.is_some_and(|made| made > since))
    }

    /// Whether a name of an image that fits is to be shown.
    pub fn names(&self, name: &ImageName) -> bool {
        self.references.is_empty() || self.references.iter().any(|pattern| pattern.fits(name))
    }
}

fn split(text: &str) -> Result<(&str, &str), Failure> {
    text.split_once('=')
        .ok_or_else(|| Failure::command(format!("invalid filter {text:?}: write it as KEY=VALUE")))
}

fn unknown(key: &str, known: &str) -> Failure {
    Failure::command(format!("invalid filter {key:?}: there are {known}"))
}

fn boolean(text: &str, value: &str) -> Result<bool, Failure> {
    match value {
        "true" | "1" | "True" | "TRUE" | "t" | "T" => Ok(true),
        "false" | "0" | "False" | "FALSE" | "f" | "F" => Ok(false),
        _ => Err(Failure::command(format!(
            "invalid filter {text:?}: write true or false"
        ))),
    }
}

fn label(text: &str, wanted: bool) -> (String, Option<String>, bool) {
    match text.split_once('=') {
        Some((key, value)) => (key.to_owned(), Some(value.to_owned()), wanted),
        None => (text.to_owned(), None, wanted),
    }
}

/// When an image was made, as its configuration says.
pub fn created(image: &Image) -> Option<Timestamp> {
    image.created.as_deref()?.parse().ok()
}

/// A pattern of names: `*` and `?` stand for anything but a slash, `[a-z]` for one of these.
#[derive(Debug)]
struct Pattern(glob::Pattern);

impl Pattern {
    fn new(text: &str) -> Result<Self, Failure> {
        let pattern = glob::Pattern::new(text);
        pattern
            .map(Self)
            .map_err(|e| Failure::command(format!("invalid pattern {text:?}: {}", e.msg)))
    }

    /// As Docker: the pattern is of the whole name or of the name without its tag, each as it is shown; a name without
    /// anything left out is taken, too.
    fn fits(&self, name: &ImageName) -> bool {
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: false,
        };
        [
            name.to_string(),
            name.repository.to_string(),
            name.canonical(),
            name.repository.canonical(),
        ]
        .iter()
        .any(|text| self.0.matches_with(text, options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_names_as_they_are_shown() {
        let name: ImageName = "registry.example/team/app:1.2".parse().unwrap();
        for pattern in [
            "registry.example/team/app",
            "registry.example/*/app:1.*",
            "registry.example/team/app:1.?",
        ] {
            assert!(Pattern::new(pattern).unwrap().fits(&name), "{pattern}");
        }
        for pattern in ["app", "*", "registry.example/*", "registry.example/team/app:2"] {
            assert!(!Pattern::new(pattern).unwrap().fits(&name), "{pattern}");
        }
        let nginx: ImageName = "nginx".parse().unwrap();
        for pattern in ["nginx", "ng*:latest", "docker.io/library/nginx"] {
            assert!(Pattern::new(pattern).unwrap().fits(&nginx), "{pattern}");
        }
        assert!(Pattern::new("[").is_err());
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        for text in ["x", "x=y", "label"] {
            assert!(PruneFilters::new(&[text.to_owned()]).is_err(), "{text}");
        }
    }
}
