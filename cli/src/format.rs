//! Templates of `--format`, as Go's text/template writes them, of a small part: fields, the functions of [`apply`], `if`,
//! `range`, `else`, `end`, and `-` beside a delimiter to take white space away.

use std::{iter::Peekable, vec::IntoIter};

use serde_json::Value;

/// Deepest nesting of blocks.
const DEPTH_MAX: usize = 32;

/// Why a template cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct FormatError(String);

impl std::fmt::Display for FormatError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "invalid format: {}", self.0)
    }
}

/// A template.
#[derive(Debug)]
pub struct Template(Vec<Node>);

#[derive(Debug)]
enum Node {
    Text(String),
    Print(Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    Range(Pipe, Vec<Node>, Vec<Node>),
}

/// Calls, each of which gets the result of the one before as its last argument.
type Pipe = Vec<Vec<Word>>;

#[derive(Clone, Debug, PartialEq)]
enum Word {
    /// `.A.B`; empty for `.`.
    Field(Vec<String>),
    Constant(Value),
    Function(String),
}

impl Template {
    /// The template that `text` is.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut tokens = tokens(text)?.into_iter().peekable();
        let (nodes, end) = block(&mut tokens, 0)?;
        match end {
            None => Ok(Self(nodes)),
            Some(word) => Err(FormatError(format!("{{{{{word}}}}} without its beginning"))),
        }
    }

    /// What it makes of a value.
    ///
    /// # Errors
    /// A field that is not there, a function that cannot do what it is to do.
    pub fn render(&self, value: &Value) -> Result<String, FormatError> {
        let mut text = String::new();
        run(&self.0, value, &mut text)?;
        Ok(text)
    }
}

enum Token {
    Text(String),
    Action(String),
}

fn tokens(text: &str) -> Result<Vec<Token>, FormatError> {
    // As Docker does for its own formats.
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    let mut tokens = Vec::new();
    let (mut rest, mut trim) = (text.as_str(), false);
    loop {
        let (before, after) = rest.split_once("{{").unwrap_or((rest, ""));
        let trim_before = after.starts_with("- ");
        let before = if trim { before.trim_start() } else { before };
        let before = if trim_before { before.trim_end() } else { before };
        if !before.is_empty() {
            tokens.push(Token::Text(before.to_owned()));
        }
        if !rest.contains("{{") {
            return Ok(tokens);
        }
        let end = action_end(after).ok_or_else(|| FormatError("a {{ is not closed".to_owned()))?;
        let action = &after[..end];
        rest = &after[end + 2..];
        trim = action.ends_with(" -");
        let action = action.strip_prefix('-').unwrap_or(action);
        let action = action.strip_suffix(" -").unwrap_or(action).trim();
        if !action.starts_with("/*") {
            tokens.push(Token::Action(action.to_owned()));
        }
    }
}

/// Where the `}}` is that is in no string.
fn action_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match quote {
            None if text[at..].starts_with("}}") => return Some(at),
            None if matches!(c, '"' | '`') => quote = Some(c),
            Some('"') if c == '\\' => {
                characters.next();
            }
            Some(open) if c == open => quote = None,
            _ => {}
        }
    }
    None
}

/// Nodes up to an `else`, an `end` or the end of the text, and which of them it was.
fn block(
    tokens: &mut Peekable<IntoIter<Token>>,
    depth: usize,
) -> Result<(Vec<Node>, Option<&'static str>), FormatError> {
    if depth > DEPTH_MAX {
        return Err(FormatError("blocks are nested too deeply".to_owned()));
    }
    let mut nodes = Vec::new();
    while let Some(token) = tokens.next() {
        let action = match token {
            Token::Text(text) => {
                nodes.push(Node::Text(text));
                continue;
            }
            Token::Action(action) => action,
        };
        let (keyword, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match keyword {
            "end" => return Ok((nodes, Some("end"))),
            "else" if rest.is_empty() => return Ok((nodes, Some("else"))),
            "if" | "range" => {
                let pipe = pipe(rest)?;
                let (first, mut end) = block(tokens, depth + 1)?;
                let mut second = Vec::new();
                if end == Some("else") {
                    (second, end) = block(tokens, depth + 1)?;
                }
                if end != Some("end") {
                    return Err(FormatError(format!("{{{{{keyword}}}}} without its {{{{end}}}}")));
                }
                nodes.push(match keyword {
                    "if" => Node::If(pipe, first, second),
                    _ => Node::Range(pipe, first, second),
                });
            }
            _ => nodes.push(Node::Print(pipe(&action)?)),
        }
    }
    Ok((nodes, None))
}

fn pipe(text: &str) -> Result<Pipe, FormatError> {
    let mut calls = vec![Vec::new()];
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix('|') {
            calls.push(Vec::new());
            rest = after.trim_start();
            continue;
        }
        let (word, after) = if c == '"' || c == '`' {
            string(rest)?
        } else {
            let end = rest
                .find(|c: char| c.is_whitespace() || c == '|')
                .unwrap_or(rest.len());
            (word(&rest[..end])?, &rest[end..])
        };
        if let Some(call) = calls.last_mut() {
            call.push(word);
        }
        rest = after.trim_start();
    }
    if calls.iter().any(Vec::is_empty) {
        return Err(FormatError(format!("{{{{{text}}}}} says nothing")));
    }
    Ok(calls)
}

fn string(text: &str) -> Result<(Word, &str), FormatError> {
    let open = FormatError("a string is not closed".to_owned());
    if let Some(raw) = text.strip_prefix('`') {
        let (content, after) = raw.split_once('`').ok_or(open)?;
        return Ok((Word::Constant(content.into()), after));
    }
    let mut strings = serde_json::Deserializer::from_str(text).into_iter::<String>();
    match strings.next() {
        Some(Ok(content)) => Ok((Word::Constant(content.into()), &text[strings.byte_offset()..])),
        _ => Err(open),
    }
}

fn word(text: &str) -> Result<Word, FormatError> {
    if let Some(path) = text.strip_prefix('.') {
        let parts: Vec<String> = path
            .split('.')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        let plain = |part: &String| part.chars().all(|c| c.is_alphanumeric() || c == '_');
        if parts.iter().all(plain) && !text.contains("..") && !(path.ends_with('.')) {
            return Ok(Word::Field(parts));
        }
    } else if let Ok(number) = text.parse::<i64>() {
        return Ok(Word::Constant(number.into()));
    } else if text == "true" || text == "false" {
        return Ok(Word::Constant((text == "true").into()));
    } else if FUNCTIONS.contains(&text) {
        return Ok(Word::Function(text.to_owned()));
    }
    Err(FormatError(format!(
        "{text:?} is no field (.Name) and none of the functions {}",
        FUNCTIONS.join(", ")
    )))
}

fn run(nodes: &[Node], value: &Value, text: &mut String) -> Result<(), FormatError> {
    for node in nodes {
        match node {
            Node::Text(plain) => text.push_str(plain),
            Node::Print(pipe) => text.push_str(&shown(&evaluate(pipe, value)?)),
            Node::If(pipe, yes, no) => {
                let branch = if is_true(&evaluate(pipe, value)?) { yes } else { no };
                run(branch, value, text)?;
            }
            Node::Range(pipe, each, none) => {
                let items = match evaluate(pipe, value)? {
                    Value::Array(items) => items,
                    Value::Object(members) => members.into_iter().map(|(_, member)| member).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(FormatError(format!("range over {}", shown(&other)))),
                };
                if items.is_empty() {
                    run(none, value, text)?;
                }
                for item in &items {
                    run(each, item, text)?;
                }
            }
        }
    }
    Ok(())
}

fn evaluate(pipe: &Pipe, value: &Value) -> Result<Value, FormatError> {
    let mut result = None;
    for call in pipe {
        let (first, rest) = call
            .split_first()
            .ok_or_else(|| FormatError("nothing to do".to_owned()))?;
        let mut arguments = rest
            .iter()
            .map(|word| operand(word, value))
            .collect::<Result<Vec<_>, _>>()?;
        arguments.extend(result.take());
        result = Some(match first {
            Word::Function(name) => apply(name, &arguments)?,
            word if arguments.is_empty() => operand(word, value)?,
            word => match operand(word, value)? {
                // `{{.Label "team"}}` of Docker's lists.
                members @ Value::Object(_) if arguments.len() == 1 => {
                    apply("index", &[members, arguments.remove(0)])?
                }
                _ => {
                    return Err(FormatError(
                        "a field is no function: it takes no arguments".to_owned(),
                    ));
                }
            },
        });
    }
    Ok(result.unwrap_or_default())
}

fn operand(word: &Word, value: &Value) -> Result<Value, FormatError> {
    match word {
        Word::Constant(constant) => Ok(constant.clone()),
        Word::Function(name) => apply(name, &[]),
        Word::Field(path) => {
            let mut found = value;
            for part in path {
                found = found
                    .get(part)
                    .ok_or_else(|| FormatError(format!("there is no field .{}", path.join("."))))?;
            }
            Ok(found.clone())
        }
    }
}

const FUNCTIONS: [&str; 11] = [
    "json", "index", "len", "join", "lower", "upper", "println", "eq", "ne", "not", "print",
];

fn apply(name: &str, arguments: &[Value]) -> Result<Value, FormatError> {
    let wrong = || FormatError(format!("{name} cannot take what it is given"));
    let texts = |values: &[Value]| values.iter().map(shown).collect::<Vec<_>>();
    Ok(match (name, arguments) {
        ("json", [value]) => value.to_string().into(),
        ("index", [value, keys @ ..]) => {
            let mut found = value.clone();
            for key in keys {
                found = match (&found, key) {
                    (Value::Object(members), Value::String(key)) => {
                        members.get(key).cloned().unwrap_or_default()
                    }
                    (Value::Array(items), key) => {
                        let at = key.as_u64().and_then(|at| items.get(usize::try_from(at).ok()?));
                        at.cloned()
                            .ok_or_else(|| FormatError(format!("there is no item {}", shown(key))))?
                    }
                    // A missing key of a map of texts is an empty text, with Go.
                    (Value::Null, _) => Value::from(""),
                    _ => return Err(wrong()),
                };
            }
            if found.is_null() { "".into() } else { found }
        }
        ("len", [Value::Array(items)]) => items.len().into(),
        ("len", [Value::Object(members)]) => members.len().into(),
        ("len", [Value::String(text)]) => text.len().into(),
        ("len", [Value::Null]) => 0.into(),
        ("join", [Value::Array(items), Value::String(between)]) => texts(items).join(between).into(),
        ("join", [Value::Null, _]) => "".into(),
        ("lower", [value]) => shown(value).to_lowercase().into(),
        ("upper", [value]) => shown(value).to_uppercase().into(),
        ("println", values) => (texts(values).join(" ") + "\n").into(),
        ("print", values) => texts(values).concat().into(),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => rest.contains(first).into(),
        ("ne", [first, second]) => (first != second).into(),
        ("not", [value]) => (!is_true(value)).into(),
        _ => return Err(wrong()),
    })
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
}

/// As Go prints a value.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
        Value::Object(members) => {
            let members: Vec<_> = members
                .iter()
                .map(|(key, value)| format!("{key}:{}", shown(value)))
                .collect();
            format!("map[{}]", members.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(template: &str) -> Result<String, FormatError> {
        let value = json!({
            "Id": "abc", "Size": 12, "Tags": ["a:1", "b:2"], "Empty": [], "Nothing": null, "Yes": true,
            "Config": {"Labels": {"org.name": "x y"}, "User": "", "Cmd": ["/run", "-x"]},
        });
        Template::parse(template)?.render(&value)
    }

    #[test]
    fn what_go_does_with_these_is_done() {
        for (template, expected) in [
            ("plain", "plain"),
            ("{{.Id}} {{ .Size }}", "abc 12"),
            (
                "{{.Config.Cmd}}|{{.Config.Labels}}",
                "[/run -x]|map[org.name:x y]",
            ),
            ("{{json .Config.Cmd}}", r#"["/run","-x"]"#),
            ("{{.Config.Labels | json}}", r#"{"org.name":"x y"}"#),
            (r#"{{index .Config.Labels "org.name"}}"#, "x y"),
            (r#"{{index .Config.Labels "missing"}}"#, ""),
            (r#"{{index .Nothing "missing"}}"#, ""),
            (r#"{{.Config.Labels "org.name"}}{{.Config.Labels "none"}}"#, "x y"),
            ("{{index .Tags 1}}", "b:2"),
            ("{{len .Tags}}{{len .Nothing}}", "20"),
            (r#"{{join .Tags ", "}}"#, "a:1, b:2"),
            ("{{upper .Id}}{{.Id | lower}}", "ABCabc"),
            ("{{range .Tags}}{{.}};{{end}}", "a:1;b:2;"),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            (
                "{{if .Config.User}}user{{else}}root{{end}}{{if .Yes}}!{{end}}",
                "root!",
            ),
            (
                r#"{{if eq .Id "abc" }}same{{end}}{{if not .Yes}}no{{end}}"#,
                "same",
            ),
            ("a  {{- .Id -}}  b", "aabcb"),
            ("{{.Nothing}}", "<no value>"),
            (r#"{{"}}"}}{{`raw`}}{{/* said */}}"#, "}}raw"),
            (r"{{.Id}}\t{{.Size}}", "abc\t12"),
            (
                "{{.}}",
                "map[Config:map[Cmd:[/run -x] Labels:map[org.name:x y] User:] Empty:[] Id:abc Nothing:<no value> \
                       Size:12 Tags:[a:1 b:2] Yes:true]",
            ),
        ] {
            assert_eq!(render(template).as_deref(), Ok(expected), "{template}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        for template in [
            "{{",
            "{{}}",
            "{{.Id",
            "{{.Missing}}",
            "{{.Id.Deeper}}",
            "{{nope .Id}}",
            "{{.Id .Size}}",
            "{{end}}",
            "{{else}}",
            "{{if .Id}}",
            "{{range .Id}}{{end}}",
            "{{.Id |}}",
            "{{\"open}}",
            "{{index .Tags 9}}",
            "{{index .Tags -1}}",
            "{{join .Tags}}",
            "{{..Id}}",
            "{{.Id-x}}",
            &"{{if .Id}}".repeat(40),
        ] {
            let error = render(template).unwrap_err().to_string();
            assert!(
                error.starts_with("invalid format: ") && !error.contains('\n'),
                "{template}: {error}"
            );
        }
    }
}
