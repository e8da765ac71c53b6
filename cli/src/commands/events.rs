//! `events`.

use std::time::Duration;

use brig_engine::{
    Engine,
    events::{Event, Kind},
    log::Dated,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::print;
use crate::{arguments::Events, failure::Failure, format::Template, moment};

/// `brig events`.
pub async fn events(engine: &Engine, options: &Events) -> Result<i32, Failure> {
    let moment = |text: &Option<String>| text.as_deref().map(moment::parse).transpose();
    let (since, until) = (moment(&options.since)?, moment(&options.until)?);
    let filters = Filters::new(engine, &options.filter)?;
    let shape = Shape::new(options.format.as_deref())?;
    let show = |event: &Event| {
        if filters.fit(event) {
            print(&format!("{}\n", shape.line(event)?))?;
        }
        Ok::<(), Failure>(())
    };
    let now = Timestamp::now();
    let is_over = |event: &Event| until.is_some_and(|until| event.time() > until);
    // What is still to come is later than a time that has passed.
    if let Some(until) = until
        && until <= now
    {
        let mut journal = engine.events(Some(since.unwrap_or(now)))?;
        while let Some(event) = journal.next()? {
            if !is_over(&event) {
                show(&event)?;
            }
        }
        return Ok(0);
    }
    let mut journal = engine.follow_events(Some(since.unwrap_or(now)))?;
    loop {
        let event = match until {
            None => journal.next().await?,
            Some(until) => {
                let left = Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default();
                match tokio::time::timeout(left, journal.next()).await {
                    Ok(event) => event?,
                    Err(_) => return Ok(0),
                }
            }
        };
        if is_over(&event) {
            return Ok(0);
        }
        show(&event)?;
    }
}

/// How an event is printed.
enum Shape {
    /// `TIME TYPE ACTION ID (NAME=VALUE, …)`.
    Line,
    Json,
    Template(Template),
}

impl Shape {
    fn new(format: Option<&str>) -> Result<Self, Failure> {
        match format {
            None => Ok(Self::Line),
            // Docker's API takes this form too.
            Some("json" | "{{json .}}") => Ok(Self::Json),
            Some(text) => Ok(Self::Template(Template::parse(text)?)),
        }
    }

    fn line(&self, event: &Event) -> Result<String, Failure> {
        match self {
            Self::Line => {
                let attributes = event.actor.attributes.iter();
                let attributes: Vec<String> = attributes
                    .map(|(name, value)| plain(&format!("{name}={value}")))
                    .collect();
                Ok(format!(
                    "{:.9} {} {} {} ({})",
                    event.time(),
                    event.kind.as_str(),
                    plain(&event.action),
                    plain(&event.actor.id),
                    attributes.join(", ")
                ))
            }
            Self::Json => Ok(as_json(event).to_string()),
            Self::Template(template) => Ok(template.render(&fields(event))?),
        }
    }
}

/// Without what could steer a terminal: a command's words are among it.
fn plain(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().map(visible).collect()
}

/// As Docker's API has it: of sandboxes also in the words of its first versions.
fn as_json(event: &Event) -> Value {
    let mut value = json!(event);
    if event.kind == Kind::Container {
        value["status"] = event.action.clone().into();
        value["id"] = event.actor.id.clone().into();
        value["from"] = event.actor.attributes.get("image").cloned().into();
    }
    value
}

/// What templates name.
fn fields(event: &Event) -> Value {
    json!({
        "Type": event.kind.as_str(),
        "Action": event.action,
        "Status": event.action,
        "ID": event.actor.id,
        "From": event.actor.attributes.get("image"),
        "Actor": event.actor,
        "Scope": event.scope,
        "Time": event.time,
        "TimeNano": event.time_nano,
    })
}

/// A name of an image without its tag.
fn without_tag(name: &str) -> &str {
    match name.rsplit_once(':') {
        // What follows the last colon may be a registry's port, and the start of a path.
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// What an event must be. Several of one kind are alternatives, but labels, of which it must have all.
#[derive(Debug, Default)]
struct Filters {
    /// Ids, or names and beginnings of ids of what is no more.
    sandboxes: Vec<String>,
    actions: Vec<String>,
    images: Vec<String>,
    isolations: Vec<String>,
    labels: Vec<(String, Option<String>)>,
    kinds: Vec<String>,
    volumes: Vec<String>,
}

impl Filters {
    fn new(engine: &Engine, texts: &[String]) -> Result<Self, Failure> {
        let mut filters = Self::default();
        for text in texts {
            let wrong = |why: &str| Failure::command(format!("invalid filter {text:?}: {why}"));
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| wrong("write it as KEY=VALUE"))?;
            let value = value.to_owned();
            match key {
                "container" => {
                    // One that is renamed meanwhile is still the one that was meant.
                    let found = engine.find(&value).ok();
                    let id = found.map(|sandbox| sandbox.id().to_string());
                    filters.sandboxes.push(id.unwrap_or(value));
                }
                "event" => filters.actions.push(value),
                "image" => filters.images.push(value),
                "isolation" => filters.isolations.push(value),
                "label" => filters.labels.push(match value.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (value, None),
                }),
                "type" => filters.kinds.push(value),
                "volume" => filters.volumes.push(value),
                _ => {
                    return Err(wrong(
                        "there are container, event, image, isolation, label, type, volume",
                    ));
                }
            }
        }
        Ok(filters)
    }

    fn fit(&self, event: &Event) -> bool {
        let actor = &event.actor;
        let attribute = |name: &str| actor.attributes.get(name).map_or("", String::as_str);
        let any = |wanted: &[String], is: &dyn Fn(&str) -> bool| {
            wanted.is_empty() || wanted.iter().any(|wanted| is(wanted))
        };
        let is_of = |kind, text: &str, name: &str| {
            event.kind == kind && (actor.id == text || attribute(name) == text)
        };
        any(&self.sandboxes, &|text| {
            is_of(Kind::Container, text, "name")
                || event.kind == Kind::Container && !text.is_empty() && actor.id.starts_with(text)
        }) && any(&self.actions, &|text| {
            // `exec_start: sh` is an `exec_start`.
            event.action == text || event.action.split(':').next() == Some(text)
        }) && any(&self.images, &|text| {
            // As with Docker a repository means its tags, too.
            let is_name = |name: &str| name == text || !text.is_empty() && without_tag(name) == text;
            match event.kind {
                Kind::Image => is_name(&actor.id) || is_name(attribute("name")),
                _ => is_name(attribute("image")),
            }
        }) && any(&self.isolations, &|text| attribute("isolation") == text)
            && any(&self.kinds, &|text| event.kind.as_str() == text)
            && any(&self.volumes, &|text| is_of(Kind::Volume, text, "volume"))
            && self.labels.iter().all(|(name, value)| {
                let found = actor.attributes.get(name);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| value == found))
            })
    }
}

#[cfg(test)]
mod tests {
    use brig_engine::Paths;

    use super::*;

    fn event(action: &str) -> Event {
        serde_json::from_value(json!({
            "Type": "container",
            "Action": action,
            "Actor": { "ID": "0f3c", "Attributes": { "image": "nginx", "name": "web", "isolation": "vm", "team": "a" } },
            "scope": "local",
            "time": 1,
            "timeNano": 1_500_000_000_i64,
        }))
        .unwrap()
    }

    #[test]
    fn a_line_is_dockers_and_cannot_steer_a_terminal() {
        let line = Shape::new(None)
            .unwrap()
            .line(&event("exec_start: \u{1b}[2J"))
            .unwrap();
        assert_eq!(
            line,
            "1970-01-01T00:00:01.500000000Z container exec_start:  [2J 0f3c (image=nginx, isolation=vm, name=web, team=a)"
        );
        let json = Shape::new(Some("json")).unwrap().line(&event("die")).unwrap();
        let value: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (value["status"].as_str(), value["from"].as_str()),
            (Some("die"), Some("nginx"))
        );
        let shape = Shape::new(Some("{{.Action}} {{.Actor.Attributes.name}}")).unwrap();
        assert_eq!(shape.line(&event("die")).unwrap(), "die web");
    }

    #[test]
    fn filters_of_one_kind_are_alternatives_and_labels_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let paths = Paths {
            root: path("root"),
            runtime: path("run"),
            lib: path("lib"),
        };
        let engine = Engine::open(paths).unwrap();
        let fit = |texts: &[&str], action: &str| {
            let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
            Filters::new(&engine, &texts).unwrap().fit(&event(action))
        };
        assert!(fit(&[], "die"));
        assert!(fit(
            &["event=start", "event=die", "container=web", "container=other"],
            "die"
        ));
        assert!(fit(&["event=exec_start", "container=0f"], "exec_start: sh -c x"));
        assert!(!fit(&["event=exec"], "exec_start: sh"));
        assert!(!fit(&["event=start"], "die"));
        assert!(fit(
            &["isolation=vm", "image=nginx", "type=container", "label=team=a"],
            "die"
        ));
        assert!(!fit(&["isolation=container"], "die"));
        assert!(!fit(&["label=team", "label=other"], "die"));
        assert!(!fit(&["volume=web"], "die"));
        assert!(Filters::new(&engine, &["colour=red".into()]).is_err());
    }
}
