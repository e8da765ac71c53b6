//! What a registry has: its search endpoint where there is one (Docker Hub's and older registries' `/v1/search`), else
//! the repositories of its catalog (distribution-spec's `/v2/_catalog`) that have the term in their names.

use reqwest::{Method, StatusCode, Url, header::HeaderMap};
use serde::Deserialize;

use crate::{
    Error,
    error::plain,
    http::next_page,
    pull::Registries,
    session::{Ask, Session, Target},
};

/// Most results that may be asked for, as with Docker.
pub const LIMIT_MAX: usize = 100;

/// Most bytes of one answer.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// Repositories that are asked for at a time, and most pages of a catalog.
const PAGE_ENTRIES: usize = 1000;
const PAGES_MAX: usize = 100;

/// Where Docker Hub's search endpoint is.
const DOCKER_HUB_SEARCH: &str = "index.docker.io";

/// Most characters of a description that are kept.
const DESCRIPTION_MAX: usize = 500;

/// An image of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name to pull it by.
    pub name: String,
    /// What its owner says of it.
    pub description: String,
    /// How many like it.
    pub stars: u64,
    /// Whether it is one of those that Docker looks after.
    pub official: bool,
}

/// What is looked for.
#[derive(Clone, Debug)]
pub struct Search {
    /// The registry.
    pub host: String,
    /// Part of a name.
    pub term: String,
    /// Most results.
    pub limit: usize,
}

/// Looks for images.
///
/// # Errors
/// Those of the registry; [`Error::Status`] when it has neither a search endpoint nor a catalog.
pub async fn search(registries: &Registries, wanted: &Search) -> Result<Vec<Found>, Error> {
    let hub = wanted.host == crate::config::DOCKER_HUB;
    let session = if hub {
        Session::of_registry(registries.http.clone(), DOCKER_HUB_SEARCH, None)?
    } else {
        registries.session(&wanted.host)?
    };
    let prefix = if hub {
        String::new()
    } else {
        format!("{}/", wanted.host)
    };
    if let Some(found) = endpoint(&session, wanted, &prefix).await? {
        return Ok(found);
    }
    catalog(&session, wanted, &prefix).await
}

/// The search endpoint's results; `None` when the registry has none.
async fn endpoint(session: &Session, wanted: &Search, prefix: &str) -> Result<Option<Vec<Found>>, Error> {
    #[derive(Deserialize)]
    struct Page {
        #[serde(default)]
        results: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        name: String,
        #[serde(default)]
        description: Option<String>,
        #[serde(default)]
        star_count: u64,
        #[serde(default)]
        is_official: bool,
    }
    let what = "a search";
    let mut query = form();
    query
        .query_pairs_mut()
        .append_pair("q", &wanted.term)
        .append_pair("n", &wanted.limit.to_string());
    let path = format!("v1/search?{}", query.query().unwrap_or_default());
    let response = session.ask(&ask(Target::Path(path), "", what)).await?;
    match response.status() {
        StatusCode::OK => {}
        // What the own catalog asks a password for is told by that one.
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE => return Ok(None),
        _ => return Err(response.into_error(what).await),
    }
    let is_json = response
        .header("content-type")
        .is_some_and(|kind| kind.to_ascii_lowercase().contains("json"));
    if !is_json {
        // A page for people.
        return Ok(None);
    }
    let host = response.host().to_owned();
    let body = response.bytes(what, PAGE_BYTES_MAX).await?;
    let page: Page = serde_json::from_slice(&body).map_err(|e| malformed(&host, what, &e))?;
    let found = page.results.into_iter().take(wanted.limit).map(|entry| Found {
        name: format!("{prefix}{}", plain(&entry.name, 255)),
        description: plain(&entry.description.unwrap_or_default(), DESCRIPTION_MAX),
        stars: entry.star_count,
        official: entry.is_official,
    });
    Ok(Some(found.collect()))
}

/// The repositories of a catalog that have the term in their names.
async fn catalog(session: &Session, wanted: &Search, prefix: &str) -> Result<Vec<Found>, Error> {
    #[derive(Deserialize)]
    struct Page {
        #[serde(default)]
        repositories: Option<Vec<String>>,
    }
    let what = "the catalog";
    let mut found = Vec::new();
    let mut next = Some(Target::Path(format!("v2/_catalog?n={PAGE_ENTRIES}")));
    for _ in 0..PAGES_MAX {
        let Some(target) = next.take() else { break };
        let response = session.ask(&ask(target, "registry:catalog:*", what)).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(session.denied(session.name(), String::new()));
            }
            StatusCode::NOT_FOUND => {
                return Err(Error::Usage(format!(
                    "{} has neither a search endpoint nor a catalog",
                    session.name()
                )));
            }
            _ => return Err(response.into_error(what).await),
        }
        next = response
            .header("link")
            .and_then(|link| next_page(link, response.url()))
            .map(Target::Url);
        let host = response.host().to_owned();
        let body = response.bytes(what, PAGE_BYTES_MAX).await?;
        let page: Page = serde_json::from_slice(&body).map_err(|e| malformed(&host, what, &e))?;
        let repositories = page.repositories.unwrap_or_default();
        let fitting = repositories.iter().filter(|name| name.contains(&wanted.term));
        for name in fitting {
            if found.len() == wanted.limit {
                return Ok(found);
            }
            found.push(Found {
                name: format!("{prefix}{}", plain(name, 255)),
                description: String::new(),
                stars: 0,
                official: false,
            });
        }
    }
    Ok(found)
}

fn ask<'a>(target: Target, scope: &'a str, what: &'a str) -> Ask<'a> {
    Ask {
        method: Method::GET,
        target,
        headers: HeaderMap::new(),
        scope,
        what,
    }
}

/// An address whose query is encoded as a form's.
fn form() -> Url {
    Url::parse("http://form/").expect("a constant address")
}

fn malformed(host: &str, what: &str, error: &serde_json::Error) -> Error {
    Error::Malformed {
        host: host.to_owned(),
        what: what.to_owned(),
        why: plain(&error.to_string(), 200),
    }
}
