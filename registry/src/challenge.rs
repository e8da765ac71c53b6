//! How a registry asks who the user is: the header `WWW-Authenticate` (RFC 9110, section 11.6.1).

use std::collections::BTreeMap;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Most bytes of a header's value that is read.
const HEADER_BYTES_MAX: usize = 8 << 10;

/// Most challenges, and most parameters of one.
const COUNT_MAX: usize = 16;

/// A way to log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    /// The user's name and password in each request (RFC 7617).
    Basic,
    /// A token that another server gives (distribution-spec's token authentication).
    Bearer {
        /// The address of that server.
        realm: String,
        /// What the registry calls itself there; empty when it does not say.
        service: String,
        /// What the token has to be for; empty when it does not say.
        scope: String,
    },
}

impl Challenge {
    /// The way that is taken of those that an answer's headers offer: tokens before passwords.
    pub fn choose(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE).iter().take(COUNT_MAX) {
            let Ok(text) = value.to_str() else { continue };
            if text.len() > HEADER_BYTES_MAX {
                continue;
            }
            for (scheme, mut parameters) in parse(text) {
                let mut take = |name: &str| parameters.remove(name).unwrap_or_default();
                if scheme.eq_ignore_ascii_case("bearer") {
                    return Some(Self::Bearer {
                        realm: take("realm"),
                        service: take("service"),
                        scope: take("scope"),
                    });
                }
                if scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

type Parameters = BTreeMap<String, String>;

/// The schemes of a header with their parameters. What follows something malformed is left out.
fn parse(text: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = token(rest);
        if word.is_empty() || found.len() > COUNT_MAX {
            return found;
        }
        let spaceless = after.trim_start_matches([' ', '\t']);
        let Some(value) = spaceless.strip_prefix('=') else {
            found.push((word.to_owned(), Parameters::new()));
            rest = after;
            continue;
        };
        let Some((_, parameters)) = found.last_mut() else {
            return found;
        };
        let Some((value, after)) = value_of(value.trim_start_matches([' ', '\t'])) else {
            return found;
        };
        if parameters.len() < COUNT_MAX {
            parameters.entry(word.to_ascii_lowercase()).or_insert(value);
        }
        rest = after;
    }
}

fn token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c| !is_token(c)).unwrap_or(text.len());
    text.split_at(end)
}

/// A quoted or a plain value, and what is behind it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((place, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[place + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn choose(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        Challenge::choose(&headers)
    }

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        let [realm, service, scope] = [realm, service, scope].map(str::to_owned);
        Challenge::Bearer {
            realm,
            service,
            scope,
        }
    }

    #[test]
    fn tokens_are_taken_before_passwords() {
        let header = r#"Bearer realm="https://auth/token",service="registry",scope="repository:a:pull,push""#;
        let expected = Some(bearer("https://auth/token", "registry", "repository:a:pull,push"));
        assert_eq!(choose(&[header]), expected);
        assert_eq!(choose(&[r#"Basic realm="x""#, header]), expected);
        assert_eq!(choose(&[&format!(r#"basic realm="x, y", {header}"#)]), expected);
        assert_eq!(choose(&[r#"Basic realm="x""#]), Some(Challenge::Basic));
        assert_eq!(choose(&["Basic"]), Some(Challenge::Basic));
    }

    #[test]
    fn spaces_quotes_and_escapes_are_read() {
        assert_eq!(
            choose(&[r#"BEARER Realm = "a\"b" , service=s"#]),
            Some(bearer("a\"b", "s", ""))
        );
    }

    #[test]
    fn what_is_malformed_offers_nothing_more() {
        assert_eq!(choose(&["Bearer realm=\"open"]), Some(bearer("", "", "")));
        assert_eq!(choose(&["=x", ""]), None);
        assert_eq!(choose(&["Negotiate abc=="]), None);
        assert_eq!(choose(&[&"Basic ".repeat(10_000)]), None);
    }
}
