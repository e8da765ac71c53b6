//! The head of an HTTP/1.1 request (RFC 9112), as far as this server needs it.

/// Most bytes of a request's head.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The method as it was sent.
    pub method: String,
    /// The path, without its query.
    pub path: String,
    /// Bytes of the body, when the head says.
    pub content_length: Option<u64>,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Whether the body comes in chunks, which this server does not read.
    pub chunked: bool,
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRequest {
    /// The head is over [`HEAD_BYTES_MAX`].
    TooLong,
    /// The head is not HTTP/1.x.
    Malformed,
}

/// Takes the head that `bytes` start with: the request and the bytes that its head has. `None` while it is not whole.
///
/// # Errors
/// [`BadRequest`] when no more bytes can make a request of it.
pub fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, BadRequest> {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return if bytes.len() >= HEAD_BYTES_MAX {
            Err(BadRequest::TooLong)
        } else {
            Ok(None)
        };
    };
    if end > HEAD_BYTES_MAX {
        return Err(BadRequest::TooLong);
    }
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| BadRequest::Malformed)?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BadRequest::Malformed);
    };
    if method.is_empty() || !target.starts_with('/') || !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Err(BadRequest::Malformed);
    }
    let mut request = Request {
        method: method.into(),
        path: target.split_once('?').map_or(target, |(path, _)| path).into(),
        content_length: None,
        keep_alive: version == "HTTP/1.1",
        expects_continue: false,
        chunked: false,
    };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(BadRequest::Malformed)?;
        request.read_header(name, value.trim())?;
    }
    Ok(Some((request, end + 4)))
}

impl Request {
    fn read_header(&mut self, name: &str, value: &str) -> Result<(), BadRequest> {
        if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().map_err(|_| BadRequest::Malformed)?;
            if self.content_length.is_some_and(|other| other != length) {
                return Err(BadRequest::Malformed);
            }
            self.content_length = Some(length);
        } else if name.eq_ignore_ascii_case("connection") {
            if value.eq_ignore_ascii_case("close") {
                self.keep_alive = false;
            } else if value.eq_ignore_ascii_case("keep-alive") {
                self.keep_alive = true;
            }
        } else if name.eq_ignore_ascii_case("expect") {
            self.expects_continue = value.eq_ignore_ascii_case("100-continue");
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            self.chunked = true;
        }
        Ok(())
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_cut_at_the_end_of_its_head() {
        let bytes =
            b"POST /sha256?x=1 HTTP/1.1\r\nHost: a\r\ncontent-LENGTH: 3\r\nExpect: 100-continue\r\n\r\nabc";
        let (request, used) = parse(bytes).unwrap().unwrap();
        assert_eq!(&bytes[used..], b"abc");
        assert_eq!(
            request,
            Request {
                method: "POST".into(),
                path: "/sha256".into(),
                content_length: Some(3),
                keep_alive: true,
                expects_continue: true,
                chunked: false,
            }
        );
    }

    #[test]
    fn a_part_of_a_head_asks_for_more() {
        assert_eq!(parse(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
        assert_eq!(parse(b""), Ok(None));
    }

    #[test]
    fn an_endless_head_is_refused() {
        let bytes = vec![b'a'; HEAD_BYTES_MAX];
        assert_eq!(parse(&bytes), Err(BadRequest::TooLong));
    }

    #[test]
    fn what_is_not_http_is_refused() {
        for head in [
            "GET / SPDY/3\r\n\r\n",
            "GET /\r\n\r\n",
            "GET  / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nno colon\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "\r\n\r\n",
        ] {
            assert_eq!(parse(head.as_bytes()), Err(BadRequest::Malformed), "{head:?}");
        }
    }

    #[test]
    fn the_connection_header_decides_over_the_version() {
        let keep = |head: &str| parse(head.as_bytes()).unwrap().unwrap().0.keep_alive;
        assert!(!keep("GET / HTTP/1.0\r\n\r\n"));
        assert!(keep("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!keep("GET / HTTP/1.1\r\nConnection: close\r\n\r\n"));
    }
}
