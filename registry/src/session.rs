//! A conversation with one registry: which address it answers at, who the user is, and what is tried again.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{
    Body, Method, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use crate::{
    Error,
    challenge::Challenge,
    config::{Certificates, DOCKER_HUB, is_loopback},
    credentials::Credential,
    error::is_transient,
    http::{Http, Request, Response, host_of},
};

/// Where Docker Hub answers.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The rest before the first repetition; each further one is twice as long.
const BACKOFF: Duration = Duration::from_millis(250);

/// The longest rest.
const BACKOFF_MAX: Duration = Duration::from_secs(20);

/// The longest rest that a registry may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// How often a registry is tried that has never answered: a name that does not exist seldom comes into being.
const FIRST_ATTEMPTS: u32 = 3;

/// Most bytes of a token server's answer.
const TOKEN_BYTES_MAX: u64 = 1 << 20;

/// A base address of a registry.
#[derive(Clone, Debug)]
struct Base {
    url: Url,
    verify: bool,
}

/// A conversation with a registry, or with a mirror.
pub struct Session {
    http: Arc<Http>,
    /// The name that is shown: the registry's in references, or the mirror's address.
    name: String,
    bases: Vec<Base>,
    /// The one that has answered.
    chosen: Mutex<Option<Base>>,
    credential: Option<Credential>,
    /// What has been accepted, by scope.
    accepted: Mutex<BTreeMap<String, HeaderValue>>,
}

/// What is asked of a registry.
#[derive(Clone)]
pub struct Ask<'a> {
    /// `GET`, `PUT` …
    pub method: Method,
    /// A path below the base, or the address that the registry itself has named.
    pub target: Target,
    /// Headers.
    pub headers: HeaderMap,
    /// What a token has to be for: `repository:library/nginx:pull`.
    pub scope: &'a str,
    /// What it is about, for messages.
    pub what: &'a str,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A path, with its query, below the registry's base.
    Path(String),
    /// An address.
    Url(Url),
}

impl Session {
    /// With the registry that references call `host`.
    ///
    /// # Errors
    /// [`Error::Usage`] when no address can be made of it; [`Error::Config`].
    pub fn of_registry(http: Arc<Http>, host: &str, credential: Option<Credential>) -> Result<Self, Error> {
        let address = if host == DOCKER_HUB { DOCKER_HUB_HOST } else { host };
        let base = |scheme: &str, verify| -> Result<Base, Error> {
            let url = Url::parse(&format!("{scheme}://{address}/"));
            let url =
                url.map_err(|e| Error::Usage(format!("\"{host}\" is no address of a registry: {e}")))?;
            Ok(Base { url, verify })
        };
        let certified = !Certificates::load(http.config(), host)?.authorities.is_empty();
        let bases = if !http.config().is_insecure(host) || certified {
            vec![base("https", true)?]
        } else if is_loopback(host) {
            // Nobody listens in between, and most registries there have no certificate.
            vec![base("http", false)?, base("https", false)?]
        } else {
            vec![base("https", false)?, base("http", false)?]
        };
        Ok(Self::new(http, host, bases, credential))
    }

    /// With a mirror at `address`, such as `https://mirror.example`.
    ///
    /// # Errors
    /// [`Error::Usage`] when that is no address.
    pub fn of_mirror(http: Arc<Http>, address: &str, credential: Option<Credential>) -> Result<Self, Error> {
        let wrong = || {
            Error::Usage(format!(
                "\"{address}\" is no address of a mirror: write it as in https://host"
            ))
        };
        let mut url = Url::parse(address).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong());
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        let host = host_of(&url);
        let verify = !http.config().is_insecure(&host);
        Ok(Self::new(http, &host, vec![Base { url, verify }], credential))
    }

    fn new(http: Arc<Http>, name: &str, bases: Vec<Base>, credential: Option<Credential>) -> Self {
        Self {
            http,
            name: name.to_owned(),
            bases,
            chosen: Mutex::new(None),
            credential,
            accepted: Mutex::default(),
        }
    }

    /// The registry's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The connections that it uses.
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// How often something is tried.
    pub fn attempts(&self) -> u32 {
        self.http.config().attempts
    }

    /// Asks, and asks again where that may help: after errors of the network and those of a busy server.
    ///
    /// # Errors
    /// Those of [`Session::once`] when the last attempt fails as well.
    pub async fn ask(&self, ask: &Ask<'_>) -> Result<Response, Error> {
        self.persist(ask, None).await
    }

    /// As [`Session::ask`], with a body that is made anew for each attempt.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub async fn persist(
        &self,
        ask: &Ask<'_>,
        body: Option<&(dyn Fn() -> Body + Sync)>,
    ) -> Result<Response, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let attempts = match self.answered() {
                Some(_) => self.attempts(),
                None => self.attempts().min(FIRST_ATTEMPTS),
            };
            let rest = match self.once(ask, body).await {
                Ok(response) if !is_transient(response.status()) => return Ok(response),
                Ok(response) if tries >= attempts => return Ok(response),
                Ok(response) => match rest(response.retry_after(), tries) {
                    Some(rest) => rest,
                    None => return Ok(response),
                },
                Err(e) if e.is_transient() && tries < attempts => backoff(tries),
                Err(e) => return Err(e),
            };
            tokio::time::sleep(rest).await;
        }
    }

    /// Asks once; a second time when the registry wants to know who asks. A `body` is made anew for each of them.
    ///
    /// # Errors
    /// Those of the network; [`Error::Denied`], [`Error::Unauthorized`], [`Error::Challenge`].
    pub async fn once(
        &self,
        ask: &Ask<'_>,
        body: Option<&(dyn Fn() -> Body + Sync)>,
    ) -> Result<Response, Error> {
        let known = self.accepted(ask.scope);
        let response = self.send(ask, known.clone(), body).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        // A response from elsewhere is no question of this registry's.
        let Some(challenge) = Challenge::choose(response.headers()) else {
            return Ok(response);
        };
        let asker = response.url().clone();
        // The connection is free for the next request once the answer has been read.
        let _ = response.into_error(ask.what).await;
        let authorization = self.authorize(&challenge, &asker, ask.scope).await?;
        if known.as_ref() == Some(&authorization) {
            return Err(self.refused());
        }
        let response = self.send(ask, Some(authorization.clone()), body).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let words = match response.into_error(ask.what).await {
                Error::Status { words, .. } => words,
                _ => String::new(),
            };
            return Err(match challenge {
                Challenge::Basic => self.refused(),
                Challenge::Bearer { .. } => self.denied(ask.what, words),
            });
        }
        self.accepted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(ask.scope.to_owned(), authorization);
        Ok(response)
    }

    /// The error of a repository that is not for this user.
    pub fn denied(&self, what: &str, words: String) -> Error {
        Error::Denied {
            repository: what.to_owned(),
            server: match self.name.as_str() {
                DOCKER_HUB => String::new(),
                name => format!(" {name}"),
            },
            words,
        }
    }

    fn refused(&self) -> Error {
        match self.credential {
            Some(_) => Error::Unauthorized(self.name.clone()),
            None => self.denied(&self.name, String::new()),
        }
    }

    fn accepted(&self, scope: &str) -> Option<HeaderValue> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.get(scope).cloned()
    }

    fn answered(&self) -> Option<Base> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sends to the base that has answered; before one has, to each until one does.
    async fn send(
        &self,
        ask: &Ask<'_>,
        authorization: Option<HeaderValue>,
        body: Option<&(dyn Fn() -> Body + Sync)>,
    ) -> Result<Response, Error> {
        if let Some(base) = self.answered() {
            return self.send_to(&base, ask, authorization, body).await;
        }
        let mut bases = self.bases.iter().peekable();
        loop {
            let Some(base) = bases.next() else {
                return Err(Error::Usage(format!("{} has no address", self.name)));
            };
            let response = self.send_to(base, ask, authorization.clone(), body).await;
            let other = bases.peek().is_some();
            match &response {
                // An encrypted server answers so when it is spoken to in plain text.
                Ok(answer) if other && answer.status() == StatusCode::BAD_REQUEST => continue,
                Err(Error::Network { .. }) if other => continue,
                Ok(_) => {
                    *self.chosen.lock().unwrap_or_else(PoisonError::into_inner) = Some(base.clone());
                }
                Err(_) => {}
            }
            return response;
        }
    }

    async fn send_to(
        &self,
        base: &Base,
        ask: &Ask<'_>,
        authorization: Option<HeaderValue>,
        body: Option<&(dyn Fn() -> Body + Sync)>,
    ) -> Result<Response, Error> {
        let (url, own) = match &ask.target {
            Target::Path(path) => {
                let url = base
                    .url
                    .join(path)
                    .map_err(|e| Error::Usage(format!("{path}: {e}")))?;
                (url, true)
            }
            Target::Url(url) => (url.clone(), url.origin() == base.url.origin()),
        };
        let verify = if own {
            base.verify
        } else {
            !self.http.config().is_insecure(&host_of(&url))
        };
        let request = Request {
            method: ask.method.clone(),
            url,
            headers: ask.headers.clone(),
            // Another host is none that the user has given a password for.
            authorization: authorization.filter(|_| own),
            body: body.map(|body| body()),
            verify,
            what: ask.what,
        };
        match ask.method {
            Method::GET | Method::HEAD => self.http.get(request).await,
            _ => self.http.send(request).await,
        }
    }

    /// The value of the header `Authorization` that meets a challenge.
    async fn authorize(&self, challenge: &Challenge, asker: &Url, scope: &str) -> Result<HeaderValue, Error> {
        if let Some(base) = self.answered()
            && base.url.origin() != asker.origin()
        {
            return Err(self.challenge("another host that it redirects to asks for a password"));
        }
        match challenge {
            Challenge::Basic => match &self.credential {
                Some(Credential::Password { user, password }) => self.basic(user, password),
                _ => Err(self.denied(&self.name, String::new())),
            },
            Challenge::Bearer {
                realm,
                service,
                scope: asked,
            } => {
                if let Some(Credential::Bearer(token)) = &self.credential {
                    return self.secret(format!("Bearer {token}"));
                }
                let scope = if scope.is_empty() { asked } else { scope };
                let token = self.token(realm, service, scope, asker, false).await?;
                self.secret(format!("Bearer {}", token.access()))
            }
        }
    }

    /// Asks a token server for a token (distribution-spec's token authentication, and its OAuth2 variant for identity
    /// tokens). `lasting` asks for an identity token beside it.
    async fn token(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
        asker: &Url,
        lasting: bool,
    ) -> Result<Token, Error> {
        let mut url =
            Url::parse(realm).map_err(|_| self.challenge("the address of its token server is none"))?;
        let host = host_of(&url);
        let insecure = self.http.config().is_insecure(&host);
        match url.scheme() {
            "https" => {}
            "http" if asker.scheme() == "http" || insecure => {}
            "http" => return Err(self.challenge("its token server is not encrypted")),
            _ => return Err(self.challenge("its token server does not speak HTTP")),
        }
        if url.host_str().is_none_or(str::is_empty) || !url.username().is_empty() {
            return Err(self.challenge("the address of its token server is none"));
        }
        let what = format!("a token for {}", self.name);
        let mut pairs = vec![("service", service)];
        pairs.extend(
            scope
                .split(' ')
                .filter(|scope| !scope.is_empty())
                .map(|scope| ("scope", scope)),
        );
        let mut request = Request {
            method: Method::GET,
            url: url.clone(),
            headers: HeaderMap::new(),
            authorization: None,
            body: None,
            verify: !insecure,
            what: &what,
        };
        let response = if let Some(Credential::Identity(token)) = &self.credential {
            pairs.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "brig"),
                ("refresh_token", token),
            ]);
            let mut form = Url::parse("http://form/").map_err(|_| self.challenge("impossible form"))?;
            form.query_pairs_mut().extend_pairs(pairs);
            request.method = Method::POST;
            request.body = Some(Body::from(form.query().unwrap_or_default().to_owned()));
            let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers.insert(CONTENT_TYPE, kind);
            self.http.send(request).await?
        } else {
            if let Some(Credential::Password { user, password }) = &self.credential {
                pairs.push(("account", user));
                request.authorization = Some(self.basic(user, password)?);
            }
            if lasting {
                pairs.extend([("client_id", "brig"), ("offline_token", "true")]);
            }
            url.query_pairs_mut().extend_pairs(pairs);
            request.url = url;
            self.http.get(request).await?
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.refused()),
            _ => return Err(response.into_error(&what).await),
        }
        let body = response.bytes(&what, TOKEN_BYTES_MAX).await?;
        let token: Token = serde_json::from_slice(&body).map_err(|_| Error::Malformed {
            host: host.clone(),
            what: what.clone(),
            why: "it is no JSON object with a token".to_owned(),
        })?;
        if token.access().is_empty() {
            return Err(Error::Malformed {
                host,
                what,
                why: "there is no token in it".to_owned(),
            });
        }
        Ok(token)
    }

    /// Logs in: whether the registry takes the credential. An identity token, where its token server gives one.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when it does not; those of the network.
    pub async fn log_in(&self) -> Result<Option<Credential>, Error> {
        let what = "logging in";
        let ask = Ask {
            method: Method::GET,
            target: Target::Path("v2/".to_owned()),
            headers: HeaderMap::new(),
            scope: "",
            what,
        };
        let response = self.send(&ask, None, None).await?;
        match response.status() {
            StatusCode::OK => return Ok(None),
            StatusCode::UNAUTHORIZED => {}
            _ => return Err(response.into_error(what).await),
        }
        let asker = response.url().clone();
        let challenge = Challenge::choose(response.headers())
            .ok_or_else(|| self.challenge("it asks in no way that brig knows"))?;
        let _ = response.into_error(what).await;
        let mut lasting = None;
        let authorization = match &challenge {
            Challenge::Basic => self.authorize(&challenge, &asker, "").await?,
            Challenge::Bearer { realm, service, .. } => {
                let token = self.token(realm, service, "", &asker, true).await?;
                lasting = Some(token.lasting.clone())
                    .filter(|token| !token.is_empty())
                    .map(Credential::Identity);
                self.secret(format!("Bearer {}", token.access()))?
            }
        };
        let response = self.send(&ask, Some(authorization), None).await?;
        match response.status() {
            StatusCode::OK => Ok(lasting),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.refused()),
            _ => Err(response.into_error(what).await),
        }
    }

    fn basic(&self, user: &str, password: &str) -> Result<HeaderValue, Error> {
        self.secret(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    fn secret(&self, text: String) -> Result<HeaderValue, Error> {
        let mut value = HeaderValue::try_from(text)
            .map_err(|_| self.challenge("the token has characters that no header can have"))?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn challenge(&self, why: &str) -> Error {
        Error::Challenge {
            host: self.name.clone(),
            why: why.to_owned(),
        }
    }
}

/// What a token server gives. Older ones call the token `token`, newer ones `access_token`, most write both.
#[derive(Deserialize)]
struct Token {
    #[serde(default, rename = "token")]
    old: String,
    #[serde(default, rename = "access_token")]
    new: String,
    /// For other tokens, another time.
    #[serde(default, rename = "refresh_token")]
    lasting: String,
}

impl Token {
    fn access(&self) -> &str {
        if self.old.is_empty() { &self.new } else { &self.old }
    }
}

/// The rest after a failure that may pass, `tries` attempts having failed; none when there should be no further one.
pub fn rest_after(error: &Error, tries: u32) -> Option<Duration> {
    if error.is_transient() {
        rest(error.retry_after(), tries)
    } else {
        None
    }
}

/// What the registry asks for counts; one that wants to be left alone for very long is.
fn rest(asked: Option<Duration>, tries: u32) -> Option<Duration> {
    match asked {
        Some(rest) if rest > RETRY_AFTER_MAX => None,
        Some(rest) => Some(rest),
        None => Some(backoff(tries)),
    }
}

/// The rest after the `tries`th failure: doubled each time, and somewhat different in each process.
fn backoff(tries: u32) -> Duration {
    let whole = BACKOFF
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(BACKOFF_MAX);
    // Each of these states is seeded at random, which is all that is needed here.
    let random = RandomState::new().build_hasher().finish() % 1000;
    whole / 2 + whole.mul_f64(random as f64 / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_grow_and_are_bounded() {
        for tries in 1..40 {
            let rest = backoff(tries);
            assert!(rest >= BACKOFF / 2 && rest <= BACKOFF_MAX, "{tries}: {rest:?}");
        }
        assert!(backoff(6) > backoff(1));
    }

    #[test]
    fn what_a_registry_asks_for_counts_unless_that_is_very_long() {
        let minute = Duration::from_secs(60);
        assert_eq!(rest(Some(Duration::ZERO), 9), Some(Duration::ZERO));
        assert_eq!(rest(Some(minute), 1), Some(minute));
        assert_eq!(rest(Some(minute + Duration::from_secs(1)), 1), None);
        assert!(rest(None, 1).is_some());
    }
}
