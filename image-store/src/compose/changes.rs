//! The Dockerfile instructions that change an image's configuration (docs.docker.com/reference/dockerfile), as `-c` of
//! `docker commit` and `docker import` takes them. Variables are not expanded.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use crate::image::ExposedPort;

/// Most bytes of one instruction.
const CHANGE_BYTES_MAX: usize = 64 << 10;

/// Most ports of one range.
const RANGE_MAX: u16 = 1000;

/// What a command that is no array is given to, unless the image says another.
const SHELL: [&str; 2] = ["/bin/sh", "-c"];

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Not one of the instructions.
    #[error(
        "cannot change {0:?}: use CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME or \
         WORKDIR"
    )]
    Unknown(String),
    /// An instruction with nothing, or with something that it does not take.
    #[error("invalid change {change:?}: {expected}")]
    Invalid {
        /// As it was written.
        change: String,
        /// What it should look like.
        expected: &'static str,
    },
}

/// One instruction, such as `CMD ["/run"]` or `ENV A=b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// `CMD`.
    Cmd(Words),
    /// `ENTRYPOINT`.
    Entrypoint(Words),
    /// `ENV`: names and values.
    Env(Vec<(String, String)>),
    /// `LABEL`: names and values.
    Label(Vec<(String, String)>),
    /// `EXPOSE`.
    Expose(Vec<ExposedPort>),
    /// `VOLUME`.
    Volume(Vec<String>),
    /// `USER`.
    User(String),
    /// `WORKDIR`.
    WorkingDir(String),
    /// `STOPSIGNAL`.
    StopSignal(String),
    /// `ONBUILD`.
    OnBuild(String),
    /// `HEALTHCHECK`: the member `Healthcheck`.
    Healthcheck(Value),
}

/// A command: its arguments, or a text for the shell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Words {
    /// Arguments.
    Exec(Vec<String>),
    /// A text.
    Shell(String),
}

impl FromStr for Change {
    type Err = ChangeError;

    fn from_str(text: &str) -> Result<Self, ChangeError> {
        let text = text.trim();
        let (keyword, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        let invalid = |expected| ChangeError::Invalid {
            change: shown(text),
            expected,
        };
        if text.len() > CHANGE_BYTES_MAX || text.contains('\0') {
            return Err(invalid("it is too long, or has a NUL byte"));
        }
        let keyword = keyword.to_ascii_uppercase();
        let one = |expected| {
            let some = !rest.is_empty();
            some.then(|| rest.to_owned()).ok_or_else(|| invalid(expected))
        };
        Ok(match keyword.as_str() {
            "CMD" => Self::Cmd(words(rest)),
            "ENTRYPOINT" => Self::Entrypoint(words(rest)),
            "ENV" => Self::Env(pairs(rest).ok_or_else(|| invalid("write it as ENV NAME=value"))?),
            "LABEL" => Self::Label(pairs(rest).ok_or_else(|| invalid("write it as LABEL name=value"))?),
            "EXPOSE" => Self::Expose(ports(rest).ok_or_else(|| invalid("write it as EXPOSE 80/tcp"))?),
            "VOLUME" => match words(rest) {
                Words::Exec(paths) if !paths.is_empty() => Self::Volume(paths),
                Words::Shell(text) => Self::Volume(text.split_whitespace().map(str::to_owned).collect()),
                Words::Exec(_) => return Err(invalid("write it as VOLUME /path")),
            },
            "USER" => Self::User(one("write it as USER name")?),
            "WORKDIR" => Self::WorkingDir(one("write it as WORKDIR /path")?),
            "STOPSIGNAL" => Self::StopSignal(one("write it as STOPSIGNAL SIGTERM")?),
            "ONBUILD" => Self::OnBuild(one("write it as ONBUILD INSTRUCTION")?),
            "HEALTHCHECK" => Self::Healthcheck(healthcheck(rest).ok_or_else(|| {
                invalid("write it as HEALTHCHECK [--interval=30s …] CMD … or HEALTHCHECK NONE")
            })?),
            _ => return Err(ChangeError::Unknown(shown(text))),
        })
    }
}

/// Applies changes to the member `config` of a configuration.
pub fn apply(changes: &[Change], run: &mut Map<String, Value>) {
    let mut has_cmd = false;
    for change in changes {
        match change {
            Change::Cmd(words) => {
                has_cmd = true;
                let command = command(words, run);
                run.insert("Cmd".into(), command);
            }
            Change::Entrypoint(words) => {
                let command = command(words, run);
                run.insert("Entrypoint".into(), command);
                // The command below belongs to the entrypoint below.
                if !has_cmd {
                    run.remove("Cmd");
                }
            }
            Change::Env(pairs) => pairs.iter().for_each(|(name, value)| set_env(run, name, value)),
            Change::Label(pairs) => {
                let labels = object(run, "Labels");
                labels.extend(
                    pairs
                        .iter()
                        .map(|(name, value)| (name.clone(), value.clone().into())),
                );
            }
            Change::Expose(ports) => {
                let exposed = object(run, "ExposedPorts");
                exposed.extend(ports.iter().map(|port| (port.to_string(), json!({}))));
            }
            Change::Volume(paths) => {
                let volumes = object(run, "Volumes");
                volumes.extend(paths.iter().map(|path| (path.clone(), json!({}))));
            }
            Change::User(user) => {
                run.insert("User".into(), user.clone().into());
            }
            Change::WorkingDir(path) => {
                let path = match run.get("WorkingDir").and_then(Value::as_str) {
                    _ if path.starts_with('/') => path.clone(),
                    Some(base) => format!("{}/{path}", base.trim_end_matches('/')),
                    None => format!("/{path}"),
                };
                run.insert("WorkingDir".into(), path.into());
            }
            Change::StopSignal(signal) => {
                run.insert("StopSignal".into(), signal.clone().into());
            }
            Change::OnBuild(instruction) => super::push(
                run.entry("OnBuild").or_insert(Value::Null),
                instruction.clone().into(),
            ),
            Change::Healthcheck(check) => {
                run.insert("Healthcheck".into(), check.clone());
            }
        }
    }
}

fn object<'a>(run: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let value = run.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    value.as_object_mut().expect("it has just been made an object")
}

fn set_env(run: &mut Map<String, Value>, name: &str, value: &str) {
    let entry = Value::from(format!("{name}={value}"));
    let env = run.entry("Env").or_insert(Value::Null);
    let is_same = |other: &Value| {
        other
            .as_str()
            .and_then(|other| other.split_once('='))
            .is_some_and(|(other, _)| other == name)
    };
    match env
        .as_array_mut()
        .and_then(|env| env.iter_mut().find(|other| is_same(other)))
    {
        Some(old) => *old = entry,
        None => super::push(env, entry),
    }
}

fn command(words: &Words, run: &Map<String, Value>) -> Value {
    match words {
        Words::Exec(words) => json!(words),
        Words::Shell(text) => {
            let mut shell = match run.get("Shell") {
                Some(Value::Array(shell)) if !shell.is_empty() => shell.clone(),
                _ => SHELL.map(Value::from).to_vec(),
            };
            shell.push(text.clone().into());
            Value::Array(shell)
        }
    }
}

/// A JSON array of texts, or a text for the shell.
fn words(text: &str) -> Words {
    match serde_json::from_str(text) {
        Ok(words) => Words::Exec(words),
        Err(_) if text.is_empty() => Words::Exec(Vec::new()),
        Err(_) => Words::Shell(text.to_owned()),
    }
}

/// `A=b "C"='d e' …`, or `A the rest`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = split(text)?;
    if !words.first()?.contains('=') {
        let (name, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    let pair = |word: &String| {
        let (name, value) = word.split_once('=')?;
        (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    };
    words.iter().map(pair).collect()
}

/// Words with quotes and backslashes, as in a shell.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().push(characters.next()?),
            (c, Some(open)) if c == open => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

/// `80`, `80/udp`, `8000-8010/tcp`, several of them.
fn ports(text: &str) -> Option<Vec<ExposedPort>> {
    let mut ports = Vec::new();
    for word in text.split_whitespace() {
        let (range, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        if last.checked_sub(first)? >= RANGE_MAX {
            return None;
        }
        for port in first..=last {
            ports.push(format!("{port}/{}", protocol.to_ascii_lowercase()).parse().ok()?);
        }
    }
    (!ports.is_empty()).then_some(ports)
}

/// The member `Healthcheck`; times are nanoseconds there.
fn healthcheck(text: &str) -> Option<Value> {
    if text.eq_ignore_ascii_case("none") {
        return Some(json!({"Test": ["NONE"]}));
    }
    let mut check = json!({});
    let mut rest = text;
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace)?;
        rest = after.trim_start();
        let (name, value) = option.split_once('=')?;
        match name {
            "interval" => check["Interval"] = nanoseconds(value)?.into(),
            "timeout" => check["Timeout"] = nanoseconds(value)?.into(),
            "start-period" => check["StartPeriod"] = nanoseconds(value)?.into(),
            "start-interval" => check["StartInterval"] = nanoseconds(value)?.into(),
            "retries" => check["Retries"] = value.parse::<u32>().ok()?.into(),
            _ => return None,
        }
    }
    let (keyword, command) = rest.split_once(char::is_whitespace)?;
    if !keyword.eq_ignore_ascii_case("cmd") || command.trim().is_empty() {
        return None;
    }
    check["Test"] = match words(command.trim()) {
        Words::Exec(words) => std::iter::once("CMD".to_owned()).chain(words).collect(),
        Words::Shell(text) => json!(["CMD-SHELL", text]),
    };
    Some(check)
}

/// A duration as Go writes it: `1m30s`, `500ms`.
fn nanoseconds(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[end..];
        total += number * unit;
    }
    (total > 0.0 && total < 1e18).then_some(total as i64)
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(base: Value, changes: &[&str]) -> Value {
        let changes: Vec<Change> = changes.iter().map(|change| change.parse().unwrap()).collect();
        let mut run = base.as_object().unwrap().clone();
        apply(&changes, &mut run);
        run.into()
    }

    #[test]
    fn each_instruction_changes_its_member() {
        let run = applied(
            json!({"Env": ["A=1", "B=2"], "WorkingDir": "/srv", "Labels": {"old": "1"}}),
            &[
                r#"CMD ["/run", "-x"]"#,
                "env A=new C='with space'",
                "ENV D the rest of it",
                r#"LABEL a=b "c d"="e f""#,
                "EXPOSE 80 53/udp 8000-8001",
                "VOLUME /data /log",
                "USER www-data",
                "WORKDIR sub",
                "STOPSIGNAL SIGQUIT",
                "ONBUILD RUN make",
                "HEALTHCHECK --interval=1m30s --retries=3 CMD curl localhost",
            ],
        );
        assert_eq!(
            run,
            json!({
                "Cmd": ["/run", "-x"],
                "Env": ["A=new", "B=2", "C=with space", "D=the rest of it"],
                "Labels": {"old": "1", "a": "b", "c d": "e f"},
                "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}},
                "Volumes": {"/data": {}, "/log": {}},
                "User": "www-data",
                "WorkingDir": "/srv/sub",
                "StopSignal": "SIGQUIT",
                "OnBuild": ["RUN make"],
                "Healthcheck": {"Interval": 90_000_000_000_i64, "Retries": 3, "Test": ["CMD-SHELL", "curl localhost"]},
            })
        );
    }

    #[test]
    fn a_text_is_for_the_shell_and_an_entrypoint_drops_the_command_below() {
        let run = applied(json!({"Cmd": ["old"]}), &["ENTRYPOINT exec top"]);
        assert_eq!(run, json!({"Entrypoint": ["/bin/sh", "-c", "exec top"]}));
        let run = applied(
            json!({"Shell": ["/bin/bash", "-ec"]}),
            &["CMD a b", r#"ENTRYPOINT ["/e"]"#],
        );
        assert_eq!(run["Cmd"], json!(["/bin/bash", "-ec", "a b"]));
        assert_eq!(
            applied(json!({"Healthcheck": {}}), &["HEALTHCHECK NONE"])["Healthcheck"]["Test"],
            json!(["NONE"])
        );
    }

    #[test]
    fn what_is_no_change_is_refused() {
        for text in [
            "",
            "RUN make",
            "ENV",
            "ENV A",
            "ENV =x",
            "ENV A='open",
            "LABEL",
            "EXPOSE",
            "EXPOSE http",
            "EXPOSE 0",
            "EXPOSE 1-60000",
            "EXPOSE 9-1",
            "USER",
            "WORKDIR",
            "VOLUME []",
            "HEALTHCHECK",
            "HEALTHCHECK CMD",
            "HEALTHCHECK --interval=x CMD a",
            "HEALTHCHECK --interval=-1s CMD a",
            "HEALTHCHECK --nope=1 CMD a",
        ] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
        let long = format!("ENV A={}", "x".repeat(CHANGE_BYTES_MAX));
        assert!(long.parse::<Change>().unwrap_err().to_string().len() < 300);
    }
}
