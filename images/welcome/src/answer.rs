//! From a request to what is sent back.

use std::fmt::Write;

use crate::{
    facts::{Facts, Moment},
    request::{BadRequest, Request},
};

/// What follows the head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// These bytes.
    Bytes(Vec<u8>),
    /// This many bytes of [`crate::pattern`], from its start.
    Pattern(u64),
}

/// An answer, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The media type of the body.
    pub kind: &'static str,
    /// The body.
    pub body: Body,
}

/// What to do with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Answer, after its body has been passed over.
    Answer(Answer),
    /// Hash the body, then answer with [`hash`].
    Hash,
    /// Answer with [`half_closed`], half-close, then read to the end.
    HalfClose,
}

/// Finds out what a request is for.
pub fn route(request: &Request, facts: &Facts) -> Route {
    let read = matches!(request.method.as_str(), "GET" | "HEAD");
    if let Some(count) = request.path.strip_prefix("/bytes/") {
        return Route::Answer(match (read, count.parse()) {
            (false, _) => failure(405, "only GET and HEAD"),
            (true, Ok(count)) => Answer {
                status: 200,
                kind: "application/octet-stream",
                body: Body::Pattern(count),
            },
            (true, Err(_)) => failure(400, "/bytes/N takes a number of bytes"),
        });
    }
    match (read, request.path.as_str()) {
        (true, "/") => Route::Answer(text("text/html; charset=utf-8", facts.to_page(Moment::now()))),
        (true, "/info.json") => Route::Answer(text("application/json", facts.to_json(Moment::now()))),
        (true, "/healthz") => Route::Answer(text("text/plain; charset=utf-8", "ok\n".into())),
        (false, "/sha256" | "/half-close") if request.method != "POST" => {
            Route::Answer(failure(405, "only POST"))
        }
        (false, "/sha256") => Route::Hash,
        (false, "/half-close") => Route::HalfClose,
        (true, "/sha256" | "/half-close") => Route::Answer(failure(405, "only POST")),
        (false, "/" | "/info.json" | "/healthz") => Route::Answer(failure(405, "only GET and HEAD")),
        _ => Route::Answer(failure(404, "there is nothing here")),
    }
}

/// The answer to bytes that are no request.
pub fn refuse(reason: BadRequest) -> Answer {
    match reason {
        BadRequest::TooLong => failure(431, "the request's head is too long"),
        BadRequest::Malformed => failure(400, "this is no HTTP/1.1 request"),
    }
}

/// The answer with a digest.
pub fn hash(digest: &[u8]) -> Answer {
    let mut hex = String::with_capacity(2 * digest.len() + 1);
    for byte in digest {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex.push('\n');
    text("text/plain; charset=utf-8", hex)
}

/// The last answer before a half-close.
pub fn half_closed() -> Answer {
    text("text/plain; charset=utf-8", "half-closed\n".into())
}

/// An answer that says what is wrong.
pub fn failure(status: u16, message: &str) -> Answer {
    Answer {
        status,
        ..text("text/plain; charset=utf-8", format!("{message}\n"))
    }
}

fn text(kind: &'static str, text: String) -> Answer {
    Answer {
        status: 200,
        kind,
        body: Body::Bytes(text.into_bytes()),
    }
}

impl Answer {
    /// The bytes of the head.
    pub fn head(&self, keep_alive: bool) -> Vec<u8> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            411 => "Length Required",
            431 => "Request Header Fields Too Large",
            _ => "Error",
        };
        let length = match &self.body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Pattern(count) => *count,
        };
        let connection = if keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\
             Cache-Control: no-store\r\n\r\n",
            self.status, self.kind
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, path: &str) -> Route {
        let head = format!("{method} {path} HTTP/1.1\r\n\r\n");
        let (request, _) = crate::request::parse(head.as_bytes()).unwrap().unwrap();
        route(&request, &Facts::gather())
    }

    fn status(route: Route) -> u16 {
        match route {
            Route::Answer(answer) => answer.status,
            other => panic!("{other:?} is no answer"),
        }
    }

    #[test]
    fn every_address_answers_its_method_and_no_other() {
        for path in ["/", "/info.json", "/healthz", "/bytes/5"] {
            assert_eq!(status(ask("GET", path)), 200);
            assert_eq!(status(ask("POST", path)), 405);
        }
        assert_eq!(ask("POST", "/sha256"), Route::Hash);
        assert_eq!(ask("POST", "/half-close"), Route::HalfClose);
        for method in ["GET", "DELETE"] {
            assert_eq!(status(ask(method, "/sha256")), 405);
            assert_eq!(status(ask(method, "/half-close")), 405);
            assert_eq!(status(ask(method, "/nothing")), 404);
        }
    }

    #[test]
    fn a_count_that_is_no_number_is_refused() {
        for path in ["/bytes/", "/bytes/-1", "/bytes/x", "/bytes/99999999999999999999"] {
            assert_eq!(status(ask("GET", path)), 400, "{path}");
        }
    }

    #[test]
    fn a_head_tells_length_and_connection() {
        let answer = Answer {
            status: 200,
            kind: "application/octet-stream",
            body: Body::Pattern(7),
        };
        let head = String::from_utf8(answer.head(false)).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.contains("\r\nContent-Length: 7\r\n"));
        assert!(head.contains("\r\nConnection: close\r\n"));
        assert!(head.ends_with("\r\n\r\n"));
    }
}
