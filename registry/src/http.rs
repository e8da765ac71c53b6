//! HTTP to hosts that may be hostile: connections, redirects, and bodies with a limit in bytes and in time.
//!
//! Nothing is followed or kept that a registry needs not: no cookies, no decompression, HTTP/1.1 only. Redirects are
//! followed here and not by the library, since credentials must not travel along.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, Once, PoisonError},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use reqwest::{
    Body, Certificate, Client, Identity, Method, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, LOCATION},
    redirect,
};
use tokio::time::timeout;

use crate::{
    Error,
    config::{Certificates, Config, is_loopback},
    error::plain,
};

/// Most redirects that are followed.
pub const REDIRECTS_MAX: usize = 10;

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How many times the stall timeout an answer to an upload may take: a registry moves the bytes to where it keeps them.
const UPLOAD_PATIENCE: u32 = 10;

/// Bytes that have to come in each stall timeout.
const PACE_BYTES: u64 = 4 << 10;

/// Most bytes of an answer that is no success, of which a few words are shown.
const ERROR_BYTES_MAX: u64 = 64 << 10;

const USER_AGENT: &str = concat!("brig/", env!("CARGO_PKG_VERSION"));

/// The connections of a process, by host.
#[derive(Debug)]
pub struct Http {
    config: Arc<Config>,
    clients: Mutex<BTreeMap<(String, bool), Client>>,
}

/// One request.
pub struct Request<'a> {
    /// `GET`, `PUT` …
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// Headers other than `Authorization`.
    pub headers: HeaderMap,
    /// Who asks. Sent to this request's host alone.
    pub authorization: Option<HeaderValue>,
    /// What is sent.
    pub body: Option<Body>,
    /// Whether the host has to have a certificate that is trusted.
    pub verify: bool,
    /// What it is about, for messages.
    pub what: &'a str,
}

/// An answer, whose body has not been read.
#[derive(Debug)]
pub struct Response {
    inner: reqwest::Response,
    host: String,
    pace: Pace,
}

/// How fast bytes have to come.
#[derive(Clone, Debug)]
struct Pace {
    timeout: Duration,
    /// Time that is left of the current period, and the bytes that came in it.
    left: Duration,
    bytes: u64,
}

impl Http {
    /// Connections as `config` says.
    pub fn new(config: Arc<Config>) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // Another one that the process has chosen already is as good.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        Self {
            config,
            clients: Mutex::default(),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The client for a host. Those about which nothing is configured share one.
    fn client(&self, host: &str, verify: bool) -> Result<Client, Error> {
        let certificates = Certificates::load(&self.config, host)?;
        let loopback = is_loopback(host);
        let own = !verify || loopback || !certificates.is_empty();
        let key = (if own { host.to_owned() } else { String::new() }, verify);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let mut builder = Client::builder()
            .user_agent(USER_AGENT)
            .http1_only()
            .redirect(redirect::Policy::none())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .tls_danger_accept_invalid_certs(!verify);
        if loopback {
            // No proxy can reach this machine's own registry; Docker does not ask one either.
            builder = builder.no_proxy();
        }
        let wrong = |why: String| Error::Config {
            path: format!("the certificates for {host}").into(),
            why,
        };
        let mut authorities = Vec::new();
        for pem in &certificates.authorities {
            authorities.extend(Certificate::from_pem_bundle(pem).map_err(|e| wrong(reason(&e)))?);
        }
        if verify && !authorities.is_empty() {
            builder = builder.tls_certs_merge(authorities);
        }
        if let Some(pem) = &certificates.identity {
            builder = builder.identity(Identity::from_pem(pem).map_err(|e| wrong(reason(&e)))?);
        }
        let client = builder.build().map_err(|e| wrong(reason(&e)))?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    /// Sends one request; a redirect is an answer like others.
    ///
    /// # Errors
    /// [`Error::Network`], [`Error::Stalled`], [`Error::Config`].
    pub async fn send(&self, request: Request<'_>) -> Result<Response, Error> {
        let host = host_of(&request.url);
        let patience = match request.body {
            // How far an upload is, its own stream watches.
            Some(_) => self.config.stall_timeout * UPLOAD_PATIENCE,
            None => self.config.stall_timeout,
        };
        let uploads = request.body.is_some();
        let mut builder = self
            .client(&host, request.verify)?
            .request(request.method, request.url)
            .headers(request.headers);
        if let Some(authorization) = request.authorization {
            builder = builder.header(AUTHORIZATION, authorization);
        }
        if let Some(body) = request.body {
            builder = builder.body(body);
        }
        let stalled = || Error::Stalled {
            host: host.clone(),
            what: request.what.to_owned(),
            bytes: PACE_BYTES,
            seconds: patience.as_secs(),
        };
        let sent = if uploads {
            // The time of the upload itself is not limited here.
            builder.send().await
        } else {
            timeout(patience, builder.send()).await.map_err(|_| stalled())?
        };
        let inner = sent.map_err(|e| network(&host, &e))?;
        Ok(Response {
            inner,
            pace: Pace::new(self.config.stall_timeout),
            host,
        })
    }

    /// Sends a request without a body and follows redirects. Who asks is told to no other origin.
    ///
    /// # Errors
    /// As [`Http::send`]; [`Error::Redirect`] and [`Error::Redirects`].
    pub async fn get(&self, request: Request<'_>) -> Result<Response, Error> {
        let first = host_of(&request.url);
        let Request {
            method,
            mut url,
            headers,
            mut authorization,
            mut verify,
            what,
            ..
        } = request;
        for _ in 0..=REDIRECTS_MAX {
            let response = self
                .send(Request {
                    method: method.clone(),
                    url: url.clone(),
                    headers: headers.clone(),
                    authorization: authorization.clone(),
                    body: None,
                    verify,
                    what,
                })
                .await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).map(HeaderValue::to_str);
            let target = redirect_target(&url, location.and_then(Result::ok))?;
            if target.origin() != url.origin() {
                authorization = None;
                verify = !self.config.is_insecure(&host_of(&target));
            }
            url = target;
        }
        Err(Error::Redirects(first))
    }
}

/// Where an answer redirects to, if brig goes there from `url`.
fn redirect_target(url: &Url, location: Option<&str>) -> Result<Url, Error> {
    let refuse = |target: &str, why| Error::Redirect {
        host: host_of(url),
        target: plain(target, 200),
        why,
    };
    let Some(location) = location else {
        return Err(refuse("nowhere", "the address is missing or unreadable"));
    };
    let target = url
        .join(location)
        .map_err(|_| refuse(location, "that is no address"))?;
    match (url.scheme(), target.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(refuse(location, "it is not encrypted")),
        _ => return Err(refuse(location, "brig speaks HTTP only")),
    }
    if target.host_str().is_none_or(str::is_empty) {
        return Err(refuse(location, "that is no address"));
    }
    if !target.username().is_empty() || target.password().is_some() {
        return Err(refuse(location, "it has a password in it"));
    }
    Ok(target)
}

impl Response {
    /// The answer's status.
    pub fn status(&self) -> StatusCode {
        self.inner.status()
    }

    /// The answer's headers.
    pub fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.inner.headers().get(name)?.to_str().ok()
    }

    /// Where the answer came from, after redirects.
    pub fn url(&self) -> &Url {
        self.inner.url()
    }

    /// The host that answered.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Bytes of the body, if the answer says how many.
    pub fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// The next bytes of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Error::Network`] when the connection breaks or the body ends before its length, [`Error::Stalled`].
    pub async fn chunk(&mut self, what: &str) -> Result<Option<bytes::Bytes>, Error> {
        let began = Instant::now();
        let Ok(chunk) = timeout(self.pace.left, self.inner.chunk()).await else {
            return Err(Error::Stalled {
                host: self.host.clone(),
                what: what.to_owned(),
                bytes: PACE_BYTES,
                seconds: self.pace.timeout.as_secs(),
            });
        };
        let chunk = chunk.map_err(|e| network(&self.host, &e))?;
        self.pace.note(
            began.elapsed(),
            chunk.as_ref().map_or(0, |bytes| bytes.len() as u64),
        );
        Ok(chunk)
    }

    /// The whole body, which may have `limit` bytes.
    ///
    /// # Errors
    /// [`Error::TooLong`]; as [`Response::chunk`].
    pub async fn bytes(mut self, what: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let too_long = |host: &str| Error::TooLong {
            host: host.to_owned(),
            what: what.to_owned(),
            limit,
        };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_long(&self.host));
        }
        let mut body = Vec::new();
        while let Some(bytes) = self.chunk(what).await? {
            if (body.len() + bytes.len()) as u64 > limit {
                return Err(too_long(&self.host));
            }
            body.extend_from_slice(&bytes);
        }
        Ok(body)
    }

    /// The error that an answer other than a success is.
    pub async fn into_error(mut self, what: &str) -> Error {
        let status = self.status();
        let retry_after = self.retry_after();
        let host = self.host.clone();
        let mut body = Vec::new();
        // What cannot be read says nothing.
        while let Ok(Some(bytes)) = self.chunk(what).await {
            if (body.len() + bytes.len()) as u64 > ERROR_BYTES_MAX {
                break;
            }
            body.extend_from_slice(&bytes);
        }
        Error::Status {
            host,
            status,
            what: what.to_owned(),
            words: crate::error::words(&body),
            retry_after,
        }
    }

    /// How long a busy server wants to be left alone, if it says so: in seconds, or as a date (RFC 9110, section 10.2.3).
    pub fn retry_after(&self) -> Option<Duration> {
        rest_until(self.header("retry-after")?, Timestamp::now())
    }
}

/// The time from `now` until what a header `Retry-After` says; none when that has passed.
fn rest_until(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(value).ok()?.timestamp();
    Some(Duration::try_from(then.duration_since(now)).unwrap_or_default())
}

impl Pace {
    fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            left: timeout,
            bytes: 0,
        }
    }

    /// Takes note of a wait and of what it brought.
    fn note(&mut self, waited: Duration, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= PACE_BYTES {
            *self = Self::new(self.timeout);
        } else {
            self.left = self.left.saturating_sub(waited);
        }
    }
}

/// Host of an address, with its port unless that is the scheme's usual one.
pub fn host_of(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// The address of the next page: `</v2/_catalog?last=x&n=100>; rel="next"` (RFC 8288). One of another host is none.
pub fn next_page(link: &str, page: &Url) -> Option<Url> {
    let (address, parameters) = link.strip_prefix('<')?.split_once('>')?;
    if !parameters.contains("next") {
        return None;
    }
    let url = page.join(address).ok()?;
    (url.origin() == page.origin() && url != *page).then_some(url)
}

fn network(host: &str, error: &reqwest::Error) -> Error {
    let why = if error.is_timeout() {
        "no connection within 15 s: is this machine connected, and the registry running?".to_owned()
    } else {
        reason(error)
    };
    let hint = if why.contains("UnknownIssuer") || why.contains("BadSignature") {
        ": name its authority as `ca` in registries.toml, or use --insecure-registry"
    } else {
        ""
    };
    Error::Network {
        host: host.to_owned(),
        why: format!("{}{hint}", plain(&why, 300)),
    }
}

/// What is at the bottom of an error: the library's own words around it say nothing more. What a user can do about the
/// commonest ones is added.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    let said = error.to_string();
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => {
            "nothing listens there: is the registry running?".to_owned()
        }
        Some(io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable) => {
            "there is no way to it: is this machine connected?".to_owned()
        }
        _ if said.contains("lookup address") => {
            "no such host is known: check the name, and HTTPS_PROXY where a proxy is needed".to_owned()
        }
        _ => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_of_bytes_does_not_extend_the_time() {
        let mut pace = Pace::new(Duration::from_secs(10));
        for _ in 0..3 {
            pace.note(Duration::from_secs(3), 1);
        }
        assert_eq!(pace.left, Duration::from_secs(1));
        pace.note(Duration::from_secs(1), PACE_BYTES);
        assert_eq!(pace.left, Duration::from_secs(10));
    }

    #[test]
    fn a_rest_is_asked_for_in_seconds_or_by_a_date() {
        let now: Timestamp = "1994-11-06T08:49:30Z".parse().unwrap();
        for (value, seconds) in [
            ("0", 0),
            (" 120 ", 120),
            ("Sun, 06 Nov 1994 08:49:37 GMT", 7),
            ("Sun, 06 Nov 1994 08:49:00 GMT", 0),
        ] {
            assert_eq!(
                rest_until(value, now),
                Some(Duration::from_secs(seconds)),
                "{value}"
            );
        }
        for value in ["", "soon", "-1", "1.5", "99999999999999999999"] {
            assert_eq!(rest_until(value, now), None, "{value}");
        }
    }

    #[test]
    fn a_redirect_never_gives_up_encryption() {
        let url = Url::parse("https://registry.example/v2/x").unwrap();
        for target in [
            "http://registry.example/v2/x",
            "http://127.0.0.1/",
            "file:///etc/passwd",
        ] {
            assert!(redirect_target(&url, Some(target)).is_err(), "{target}");
        }
        let next = redirect_target(&url, Some("../y")).unwrap();
        assert_eq!(next.as_str(), "https://registry.example/y");
    }

    #[test]
    fn a_host_has_its_port_where_that_is_unusual() {
        for (url, host) in [
            ("https://a.example/v2/", "a.example"),
            ("https://a.example:443/", "a.example"),
            ("http://[::1]:5000/", "[::1]:5000"),
        ] {
            assert_eq!(host_of(&Url::parse(url).unwrap()), host);
        }
    }

    #[test]
    fn the_next_page_is_of_the_same_host() {
        let page = Url::parse("http://r:5000/v2/_catalog?n=1").unwrap();
        let next = |link: &str| next_page(link, &page).map(|url| url.to_string());
        assert_eq!(
            next(r#"</v2/_catalog?last=a&n=1>; rel="next""#).as_deref(),
            Some("http://r:5000/v2/_catalog?last=a&n=1")
        );
        assert_eq!(next(r#"<http://other/v2/_catalog>; rel="next""#), None);
        assert_eq!(next(r#"</v2/_catalog?n=1>; rel="next""#), None);
        assert_eq!(next("nonsense"), None);
    }
}
