//! Templates of `--format`, as Go's text/template writes them, of what people use of it: fields, variables, parentheses, the
//! functions of [`apply`], `if`, `with`, `range`, `else`, `end`, and `-` beside a delimiter to take white space away.

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
    /// `{{$name := …}}`.
    Set(String, Pipe),
    Block(Block),
}

/// `if`, `with` or `range`, up to its `end`.
#[derive(Debug)]
struct Block {
    kind: BlockKind,
    /// The variables that it sets: one, or with `range` two for the key and the item.
    names: Vec<String>,
    pipe: Pipe,
    first: Vec<Node>,
    /// Behind `else`.
    second: Vec<Node>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    If,
    With,
    Range,
}

impl BlockKind {
    fn of(keyword: &str) -> Option<Self> {
        Some(match keyword {
            "if" => Self::If,
            "with" => Self::With,
            "range" => Self::Range,
            _ => return None,
        })
    }
}

/// Calls, each of which gets the result of the one before as its last argument.
type Pipe = Vec<Vec<Word>>;

#[derive(Clone, Debug, PartialEq)]
enum Word {
    /// `.A.B`; empty for `.`.
    Field(Vec<String>),
    /// `$name.A.B`; the name is empty for `$`, which is the value that the template is of.
    Variable(String, Vec<String>),
    Constant(Value),
    Function(String),
    /// `(…).A.B`.
    Group(Pipe, Vec<String>),
}

/// What a block ends with.
enum End {
    End,
    /// With what follows it: `if …`, or nothing.
    Else(String),
}

/// What names mean where they stand.
struct Scope<'a> {
    value: &'a Value,
    variables: &'a [(String, Value)],
}

impl Template {
    /// The template that `text` is.
    ///
    /// # Errors
    /// [`FormatError`].
    pub fn parse(text: &str) -> Result<Self, FormatError> {
        let mut tokens = tokens(text)?.into_iter().peekable();
        let (nodes, end) = block(&mut tokens, 0)?;
        let word = match end {
            None => return Ok(Self(nodes)),
            Some(End::End) => "end",
            Some(End::Else(_)) => "else",
        };
        Err(FormatError(format!("{{{{{word}}}}} without its beginning")))
    }

    /// What it makes of a value.
    ///
    /// # Errors
    /// A field that is not there, a function that cannot do what it is to do.
    pub fn render(&self, value: &Value) -> Result<String, FormatError> {
        let mut text = String::new();
        let mut variables = vec![(String::new(), value.clone())];
        run(&self.0, value, &mut variables, &mut text)?;
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
) -> Result<(Vec<Node>, Option<End>), FormatError> {
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
        let rest = rest.trim();
        if keyword == "end" {
            return Ok((nodes, Some(End::End)));
        }
        if keyword == "else" {
            return Ok((nodes, Some(End::Else(rest.to_owned()))));
        }
        nodes.push(match BlockKind::of(keyword) {
            Some(kind) => Node::Block(conditional(kind, rest, tokens, depth)?),
            None => match declared(&action)? {
                (names, pipe) if names.is_empty() => Node::Print(pipe),
                (mut names, pipe) if names.len() == 1 => Node::Set(names.remove(0), pipe),
                _ => return Err(FormatError(format!("{{{{{action}}}}} sets two variables"))),
            },
        });
    }
    Ok((nodes, None))
}

/// What follows an `if`, a `with` or a `range`, up to its `end`.
fn conditional(
    kind: BlockKind,
    rest: &str,
    tokens: &mut Peekable<IntoIter<Token>>,
    depth: usize,
) -> Result<Block, FormatError> {
    let (names, pipe) = declared(rest)?;
    if names.len() > 1 && kind != BlockKind::Range {
        return Err(FormatError(format!("{{{{… {rest}}}}} sets two variables")));
    }
    let (first, end) = block(tokens, depth + 1)?;
    let open = || FormatError(format!("{{{{… {rest}}}}} without its {{{{end}}}}"));
    let second = match end {
        Some(End::End) => Vec::new(),
        Some(End::Else(more)) if more.is_empty() => match block(tokens, depth + 1)? {
            (nodes, Some(End::End)) => nodes,
            _ => return Err(open()),
        },
        Some(End::Else(more)) => {
            let (keyword, rest) = more.split_once(char::is_whitespace).unwrap_or((&more, ""));
            let kind = BlockKind::of(keyword).filter(|kind| *kind != BlockKind::Range);
            let kind = kind.ok_or_else(|| FormatError(format!("{{{{else {more}}}}} is nothing")))?;
            if depth >= DEPTH_MAX {
                return Err(FormatError("blocks are nested too deeply".to_owned()));
            }
            vec![Node::Block(conditional(kind, rest, tokens, depth + 1)?)]
        }
        None => return Err(open()),
    };
    Ok(Block {
        kind,
        names,
        pipe,
        first,
        second,
    })
}

/// The variables that are set, if any, and what to.
fn declared(text: &str) -> Result<(Vec<String>, Pipe), FormatError> {
    if text.starts_with('$')
        && let Some((names, rest)) = text.split_once(":=")
    {
        let names: Option<Vec<String>> = names
            .split(',')
            .map(|name| name.trim().strip_prefix('$').filter(|name| is_plain(name)))
            .map(|name| name.filter(|name| !name.is_empty()).map(str::to_owned))
            .collect();
        return match names {
            Some(names) if names.len() <= 2 => Ok((names, pipe(rest)?)),
            _ => Err(FormatError(format!("{text:?} sets no variable: $name := …"))),
        };
    }
    Ok((Vec::new(), pipe(text)?))
}

fn pipe(text: &str) -> Result<Pipe, FormatError> {
    match calls(text, 0)? {
        (calls, "") => Ok(calls),
        _ => Err(FormatError("a ) has no beginning".to_owned())),
    }
}

/// The calls up to the end of the text or an unmatched `)`, which is where the rest begins.
fn calls(text: &str, depth: usize) -> Result<(Pipe, &str), FormatError> {
    if depth > DEPTH_MAX {
        return Err(FormatError("parentheses are nested too deeply".to_owned()));
    }
    let mut calls = vec![Vec::new()];
    let mut rest = text.trim_start();
    while let Some(c) = rest.chars().next().filter(|c| *c != ')') {
        if let Some(after) = rest.strip_prefix('|') {
            calls.push(Vec::new());
            rest = after.trim_start();
            continue;
        }
        let (word, after) = if c == '"' || c == '`' {
            string(rest)?
        } else if let Some(inner) = rest.strip_prefix('(') {
            group(inner, depth)?
        } else {
            let end = rest.find(is_end_of_word).unwrap_or(rest.len());
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
    Ok((calls, rest))
}

/// What is in parentheses, of which the first has been read, and the fields that are taken of it.
fn group(text: &str, depth: usize) -> Result<(Word, &str), FormatError> {
    let (inner, rest) = calls(text, depth + 1)?;
    let after = rest
        .strip_prefix(')')
        .ok_or_else(|| FormatError("a ( is not closed".to_owned()))?;
    if !after.starts_with('.') {
        return Ok((Word::Group(inner, Vec::new()), after));
    }
    let end = after.find(is_end_of_word).unwrap_or(after.len());
    let (fields, rest) = after.split_at(end);
    match path(fields).filter(|path| !path.is_empty()) {
        Some(path) => Ok((Word::Group(inner, path), rest)),
        None => Err(FormatError(format!("{fields:?} is no field (.Name)"))),
    }
}

fn is_end_of_word(c: char) -> bool {
    c.is_whitespace() || matches!(c, '|' | '(' | ')')
}

fn is_plain(name: &str) -> bool {
    name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// The names of `.A.B`; none of `.`, which is the value itself.
fn path(text: &str) -> Option<Vec<String>> {
    let path = text.strip_prefix('.')?;
    if path.is_empty() {
        return Some(Vec::new());
    }
    let names = path.split('.').map(str::to_owned);
    let names: Vec<String> = names.collect();
    let good = |name: &String| !name.is_empty() && is_plain(name);
    names.iter().all(good).then_some(names)
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
    if let Some(path) = path(text) {
        return Ok(Word::Field(path));
    }
    if let Some(variable) = text.strip_prefix('$') {
        let at = variable.find('.').unwrap_or(variable.len());
        let (name, fields) = variable.split_at(at);
        let path = if fields.is_empty() {
            Some(Vec::new())
        } else {
            path(fields)
        };
        if let Some(path) = path.filter(|_| is_plain(name)) {
            return Ok(Word::Variable(name.to_owned(), path));
        }
    }
    if let Ok(number) = text.parse::<i64>() {
        return Ok(Word::Constant(number.into()));
    }
    if text == "true" || text == "false" {
        return Ok(Word::Constant((text == "true").into()));
    }
    if FUNCTIONS.contains(&text) {
        return Ok(Word::Function(text.to_owned()));
    }
    Err(FormatError(format!(
        "{text:?} is no field (.Name), no variable ($name) and none of the functions {}",
        FUNCTIONS.join(", ")
    )))
}

/// Values of variables; the last of a name counts.
type Variables = Vec<(String, Value)>;

fn run(
    nodes: &[Node],
    value: &Value,
    variables: &mut Variables,
    text: &mut String,
) -> Result<(), FormatError> {
    let outside = variables.len();
    for node in nodes {
        let scope = Scope { value, variables };
        match node {
            Node::Text(plain) => text.push_str(plain),
            Node::Print(pipe) => text.push_str(&shown(&evaluate(pipe, &scope)?)),
            Node::Set(name, pipe) => {
                let set = evaluate(pipe, &scope)?;
                variables.push((name.clone(), set));
            }
            Node::Block(block) => run_block(block, value, variables, text)?,
        }
    }
    // What a block has set is its own.
    variables.truncate(outside);
    Ok(())
}

fn run_block(
    block: &Block,
    value: &Value,
    variables: &mut Variables,
    text: &mut String,
) -> Result<(), FormatError> {
    let outside = variables.len();
    let found = evaluate(&block.pipe, &Scope { value, variables })?;
    if block.kind != BlockKind::Range {
        let inside = match block.kind {
            BlockKind::With if is_true(&found) => &found,
            _ => value,
        };
        let branch = if is_true(&found) {
            &block.first
        } else {
            &block.second
        };
        let set = block.names.iter().map(|name| (name.clone(), found.clone()));
        variables.extend(set);
        run(branch, inside, variables, text)?;
        variables.truncate(outside);
        return Ok(());
    }
    let items: Vec<(Value, Value)> = match found {
        Value::Array(items) => items
            .into_iter()
            .enumerate()
            .map(|(n, item)| (n.into(), item))
            .collect(),
        Value::Object(members) => members
            .into_iter()
            .map(|(key, member)| (key.into(), member))
            .collect(),
        Value::Null => Vec::new(),
        other => return Err(FormatError(format!("range over {}", shown(&other)))),
    };
    if items.is_empty() {
        return run(&block.second, value, variables, text);
    }
    for (key, item) in items {
        match block.names.as_slice() {
            [] => {}
            [name] => variables.push((name.clone(), item.clone())),
            [first, second, ..] => {
                variables.push((first.clone(), key));
                variables.push((second.clone(), item.clone()));
            }
        }
        run(&block.first, &item, variables, text)?;
        variables.truncate(outside);
    }
    Ok(())
}

fn evaluate(pipe: &Pipe, scope: &Scope<'_>) -> Result<Value, FormatError> {
    let mut result = None;
    for call in pipe {
        let (first, rest) = call
            .split_first()
            .ok_or_else(|| FormatError("nothing to do".to_owned()))?;
        let mut arguments = rest
            .iter()
            .map(|word| operand(word, scope))
            .collect::<Result<Vec<_>, _>>()?;
        arguments.extend(result.take());
        result = Some(match first {
            Word::Function(name) => apply(name, &arguments)?,
            word if arguments.is_empty() => operand(word, scope)?,
            word => match operand(word, scope)? {
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

fn operand(word: &Word, scope: &Scope<'_>) -> Result<Value, FormatError> {
    match word {
        Word::Constant(constant) => Ok(constant.clone()),
        Word::Function(name) => apply(name, &[]),
        Word::Field(path) => member(scope.value, path),
        Word::Group(pipe, path) => member(&evaluate(pipe, scope)?, path),
        Word::Variable(name, path) => {
            let mut set = scope.variables.iter().rev();
            let found = set.find(|(set, _)| set == name);
            let (_, value) = found.ok_or_else(|| FormatError(format!("there is no variable ${name}")))?;
            member(value, path)
        }
    }
}

fn member(value: &Value, path: &[String]) -> Result<Value, FormatError> {
    let mut found = value;
    for part in path {
        found = found
            .get(part)
            .ok_or_else(|| FormatError(format!("there is no field .{}", path.join("."))))?;
    }
    Ok(found.clone())
}

const FUNCTIONS: [&str; 23] = [
    "json", "index", "len", "join", "split", "lower", "upper", "title", "truncate", "pad", "slice", "print",
    "printf", "println", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not",
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
        ("title", [value]) => title(&shown(value)).into(),
        ("split", [value, Value::String(between)]) => {
            shown(value).split(between.as_str()).collect::<Vec<_>>().into()
        }
        ("truncate", [value, length]) => {
            let most = length.as_u64().ok_or_else(wrong)?;
            let most = usize::try_from(most).map_err(|_| wrong())?;
            shown(value).chars().take(most).collect::<String>().into()
        }
        ("pad", [value, before, after]) => {
            let spaces = |count: &Value| {
                let count = count.as_u64().filter(|count| *count <= WIDTH_MAX);
                count.map(|count| " ".repeat(count as usize))
            };
            let (before, after) = spaces(before).zip(spaces(after)).ok_or_else(wrong)?;
            format!("{before}{}{after}", shown(value)).into()
        }
        ("slice", [value, bounds @ ..]) => slice(value, bounds).ok_or_else(wrong)?,
        ("and", [first, rest @ ..]) => {
            let all = std::iter::once(first).chain(rest);
            let decides = all.clone().find(|value| !is_true(value));
            decides.or(all.last()).cloned().unwrap_or_default()
        }
        ("or", [first, rest @ ..]) => {
            let all = std::iter::once(first).chain(rest);
            let decides = all.clone().find(|value| is_true(value));
            decides.or(all.last()).cloned().unwrap_or_default()
        }
        ("lt" | "le" | "gt" | "ge", [first, second]) => {
            let order = match (first, second) {
                (Value::Number(first), Value::Number(second)) => first.as_f64().partial_cmp(&second.as_f64()),
                (Value::String(first), Value::String(second)) => Some(first.cmp(second)),
                _ => None,
            };
            let order = order.ok_or_else(wrong)?;
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        ("printf", [Value::String(format), values @ ..]) => printf(format, values)?.into(),
        ("println", values) => (texts(values).join(" ") + "\n").into(),
        ("print", values) => texts(values).concat().into(),
        ("eq", [first, rest @ ..]) if !rest.is_empty() => rest.contains(first).into(),
        ("ne", [first, second]) => (first != second).into(),
        ("not", [value]) => (!is_true(value)).into(),
        _ => return Err(wrong()),
    })
}

/// Widest that something is made by spaces.
const WIDTH_MAX: u64 = 1000;

/// Each word with a capital.
fn title(text: &str) -> String {
    let mut begins = true;
    let letter = |c: char| {
        let shown: String = if begins {
            c.to_uppercase().collect()
        } else {
            c.to_string()
        };
        begins = c.is_whitespace();
        shown
    };
    text.chars().map(letter).collect()
}

/// A part of a text or of a list: from where, and up to where.
fn slice(value: &Value, bounds: &[Value]) -> Option<Value> {
    let mut numbers = Vec::new();
    for bound in bounds {
        numbers.push(usize::try_from(bound.as_u64()?).ok()?);
    }
    let (from, to) = match numbers.as_slice() {
        [] => (0, None),
        [from] => (*from, None),
        [from, to] => (*from, Some(*to)),
        _ => return None,
    };
    Some(match value {
        Value::String(text) => text.get(from..to.unwrap_or(text.len()))?.into(),
        Value::Array(items) => items.get(from..to.unwrap_or(items.len()))?.to_vec().into(),
        _ => return None,
    })
}

/// As Go's for `%s`, `%v`, `%d`, `%t`, `%q` and `%%`, with `-` or `0`, a width and a precision.
fn printf(format: &str, values: &[Value]) -> Result<String, FormatError> {
    let wrong = || FormatError(format!("printf cannot do {format:?}"));
    let mut values = values.iter();
    let mut text = String::new();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(flag) = rest.next_if(|c| matches!(c, '-' | '0')) {
            flags.push(flag);
        }
        let number = |rest: &mut Peekable<std::str::Chars<'_>>| {
            let mut digits = String::new();
            while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            digits.parse::<u64>().ok()
        };
        let width = number(&mut rest).unwrap_or(0);
        let precision = rest.next_if_eq(&'.').map(|_| number(&mut rest).unwrap_or(0));
        if width > WIDTH_MAX {
            return Err(wrong());
        }
        let verb = rest.next().ok_or_else(wrong)?;
        if verb == '%' {
            text.push('%');
            continue;
        }
        let value = values.next().ok_or_else(wrong)?;
        let mut one = match verb {
            's' | 'v' | 'd' | 't' => shown(value),
            'q' => Value::from(shown(value)).to_string(),
            _ => return Err(wrong()),
        };
        if let Some(precision) = precision {
            one = one
                .chars()
                .take(usize::try_from(precision).unwrap_or(usize::MAX))
                .collect();
        }
        let missing = (width as usize).saturating_sub(one.chars().count());
        match (flags.contains('-'), flags.contains('0')) {
            (true, _) => text.extend([one, " ".repeat(missing)]),
            (false, true) => text.extend(["0".repeat(missing), one]),
            (false, false) => text.extend([" ".repeat(missing), one]),
        }
    }
    Ok(text)
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
            "Ports": [{"HostPort": "80"}],
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
            (
                "{{range $n, $tag := .Tags}}{{$n}}={{$tag}} {{$.Id}};{{end}}",
                "0=a:1 abc;1=b:2 abc;",
            ),
            (
                "{{range $name, $_ := .Config.Labels}}{{$name}}{{end}}",
                "org.name",
            ),
            ("{{range $tag := .Tags}}{{$tag}}{{end}}", "a:1b:2"),
            ("{{(index .Ports 0).HostPort}}", "80"),
            (
                "{{with .Config}}{{.User}}{{len .Cmd}}{{end}}{{with .Nothing}}x{{else}}none{{end}}",
                "2none",
            ),
            (
                "{{$a := .Id}}{{$a}}{{if .Yes}}{{$a := 1}}{{$a}}{{end}}{{$a}}",
                "abc1abc",
            ),
            ("{{if .Nothing}}a{{else if eq .Size 12}}b{{else}}c{{end}}", "b"),
            ("{{if and .Yes (not .Nothing)}}both{{end}}", "both"),
            ("{{or .Nothing .Id}}{{if gt .Size 11}}!{{end}}", "abc!"),
            (
                r#"{{printf "%-4s|%3d|%q|%.2s|%%" .Id .Size .Id .Id}}"#,
                "abc | 12|\"abc\"|ab|%",
            ),
            (r#"{{split "a:b" ":"}}{{title "a bc"}}"#, "[a b]A Bc"),
            ("{{slice .Id 1}}{{truncate .Id 2}}{{pad .Id 1 1}}", "bcab abc "),
            (r#"{{"}}"}}{{`raw`}}{{/* said */}}"#, "}}raw"),
            (r"{{.Id}}\t{{.Size}}", "abc\t12"),
            (
                "{{.}}",
                "map[Config:map[Cmd:[/run -x] Labels:map[org.name:x y] User:] Empty:[] Id:abc Nothing:<no value> \
                       Ports:[map[HostPort:80]] Size:12 Tags:[a:1 b:2] Yes:true]",
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
            "{{$nope}}",
            "{{$a, $b := .Id}}",
            "{{if $a, $b := .Id}}{{end}}",
            "{{$ := .Id}}",
            "{{(.Id}}",
            "{{.Id)}}",
            "{{(.Id).}}",
            "{{else if .Id}}",
            "{{if .Id}}{{else range .Tags}}{{end}}",
            r#"{{printf "%x" .Id}}"#,
            r#"{{printf "%s"}}"#,
            "{{slice .Id 9}}",
            &"{{if .Id}}{{else if .Id}}".repeat(40),
            &format!("{{{{{}.Id}}}}", "(".repeat(100_000)),
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
