//! Manifests and indexes from a registry, and which image of an index is meant.

use brig_image_store::{
    Platform,
    archive::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX},
    digest::Digest,
    manifest::{Descriptor, INDEX_TYPES, Index, MANIFEST_TYPES, Manifest},
};
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, HeaderMap, HeaderValue},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    Error,
    error::plain,
    http::next_page,
    session::{Ask, Session, Target},
};

/// Header of a manifest's digest (distribution-spec).
const DIGEST_HEADER: &str = "docker-content-digest";

/// Most pages of a list of tags.
const PAGES_MAX: usize = 100;

/// Media types of the format that came before manifests had digests.
const SCHEMA_ONE_TYPES: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];

/// What a manifest that is none of these may be called by servers that do not know better.
const VAGUE_TYPES: [&str; 4] = ["", "application/json", "application/octet-stream", "text/plain"];

/// A repository of a registry, for reading or for writing.
pub struct Repository<'a> {
    /// The registry.
    pub session: &'a Session,
    /// The path of the repository.
    pub path: &'a str,
    /// The image as messages name it.
    pub shown: &'a str,
    /// What a token has to be for.
    pub scope: String,
}

/// A manifest or an index, with the bytes that its digest is of.
#[derive(Debug)]
pub struct Document {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What is in them.
    pub content: Content,
}

/// What a document is.
#[derive(Debug)]
pub enum Content {
    /// The images of several platforms.
    Index(Index),
    /// One image. The media type is the document's own.
    Manifest(Manifest, String),
}

impl<'a> Repository<'a> {
    /// The repository at `path` for reading.
    pub fn for_pull(session: &'a Session, path: &'a str, shown: &'a str) -> Self {
        Self {
            session,
            path,
            shown,
            scope: format!("repository:{path}:pull"),
        }
    }

    /// The same for reading and writing. `from` is another repository of the registry that blobs may be taken from.
    pub fn for_push(session: &'a Session, path: &'a str, shown: &'a str, from: Option<&str>) -> Self {
        let mut scope = format!("repository:{path}:pull,push");
        if let Some(from) = from {
            // A token server that does not give this gives the rest: then the blobs are uploaded.
            scope.extend([" repository:", from, ":pull"]);
        }
        Self {
            session,
            path,
            shown,
            scope,
        }
    }

    /// A request to this repository.
    pub fn ask<'b>(&'b self, method: Method, path: &str, what: &'b str) -> Ask<'b> {
        Ask {
            method,
            target: Target::Path(format!("v2/{}/{path}", self.path)),
            headers: HeaderMap::new(),
            scope: &self.scope,
            what,
        }
    }

    /// The digest that the registry says a tag has now, without its document; `None` when it does not say.
    ///
    /// # Errors
    /// As [`Repository::document`].
    pub async fn tag_digest(&self, tag: &str) -> Result<Option<Digest>, Error> {
        let mut ask = self.ask(Method::HEAD, &format!("manifests/{tag}"), self.shown);
        ask.headers.insert(ACCEPT, accepted());
        let response = self.session.ask(&ask).await?;
        match response.status() {
            StatusCode::OK => Ok(response
                .header(DIGEST_HEADER)
                .and_then(|digest| digest.parse().ok())),
            // Some registries know no HEAD; whatever is wrong, GET tells it with words.
            _ => Ok(None),
        }
    }

    /// All tags of the repository.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Denied`], [`Error::Malformed`], [`Error::TooLong`]; those of the network.
    pub async fn tags(&self) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let what = format!("the tags of {}", self.shown);
        let mut found = Vec::new();
        let mut ask = self.ask(Method::GET, "tags/list", &what);
        for _ in 0..PAGES_MAX {
            let response = self.session.ask(&ask).await?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Err(Error::NotFound(self.shown.to_owned())),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.session.denied(self.shown, String::new()));
                }
                _ => return Err(response.into_error(&what).await),
            }
            let next = response
                .header("link")
                .and_then(|link| next_page(link, response.url()));
            let host = response.host().to_owned();
            let body = response.bytes(&what, MANIFEST_BYTES_MAX).await?;
            let page: Page = json(&body).map_err(|why| Error::Malformed {
                host,
                what: what.clone(),
                why,
            })?;
            found.extend(page.tags.unwrap_or_default());
            match next {
                Some(url) => ask.target = Target::Url(url),
                None => return Ok(found),
            }
        }
        Ok(found)
    }

    /// The document that a tag or a digest names.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Denied`], [`Error::SchemaOne`], [`Error::Digest`], [`Error::Malformed`],
    /// [`Error::TooLong`]; those of the network.
    pub async fn document(&self, tag_or_digest: &str) -> Result<Document, Error> {
        let what = format!("the manifest of {}", self.shown);
        let mut ask = self.ask(Method::GET, &format!("manifests/{tag_or_digest}"), &what);
        ask.headers.insert(ACCEPT, accepted());
        let response = self.session.ask(&ask).await?;
        let host = response.host().to_owned();
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(Error::NotFound(self.shown.to_owned())),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let words = match response.into_error(&what).await {
                    Error::Status { words, .. } => words,
                    _ => String::new(),
                };
                return Err(self.session.denied(self.shown, words));
            }
            _ => return Err(response.into_error(&what).await),
        }
        let kind = media_type(response.header("content-type").unwrap_or_default());
        let said: Option<Digest> = response
            .header(DIGEST_HEADER)
            .and_then(|digest| digest.parse().ok());
        if SCHEMA_ONE_TYPES.contains(&kind.as_str()) {
            return Err(Error::SchemaOne(self.shown.to_owned()));
        }
        let bytes = response.bytes(&what, MANIFEST_BYTES_MAX).await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = tag_or_digest.parse::<Digest>().ok().or(said)
            && expected != digest
        {
            return Err(Error::Digest {
                host,
                what,
                expected: expected.to_string(),
                found: digest.to_string(),
            });
        }
        let content = self.parse(&bytes, &kind, &host)?;
        Ok(Document {
            bytes,
            digest,
            content,
        })
    }

    /// Reads a document. What it calls itself counts, and where it does not, what the server calls it.
    ///
    /// # Errors
    /// [`Error::SchemaOne`], [`Error::Malformed`].
    pub fn parse(&self, bytes: &[u8], kind: &str, host: &str) -> Result<Content, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Outline {
            #[serde(default)]
            schema_version: Option<u64>,
            #[serde(default)]
            media_type: Option<String>,
        }
        let malformed = |why: String| Error::Malformed {
            host: host.to_owned(),
            what: format!("the manifest of {}", self.shown),
            why,
        };
        let known = INDEX_TYPES.contains(&kind) || MANIFEST_TYPES.contains(&kind);
        if !known && !VAGUE_TYPES.contains(&kind) {
            return Err(malformed(format!("it is of the type \"{}\"", plain(kind, 100))));
        }
        let outline: Outline = json(bytes).map_err(malformed)?;
        if outline.schema_version == Some(1) {
            return Err(Error::SchemaOne(self.shown.to_owned()));
        }
        let own = outline.media_type.filter(|own| !own.is_empty());
        if let Some(own) = &own
            && known
            && own != kind
        {
            // An image that is one thing to one program and something else to the next (GHSA-77vh-xpmg-72qh).
            return Err(malformed(format!(
                "it is of the type \"{kind}\" and says that it is \"{}\"",
                plain(own, 100)
            )));
        }
        let kind = own.unwrap_or_else(|| kind.to_owned());
        if INDEX_TYPES.contains(&kind.as_str()) {
            return Ok(Content::Index(json(bytes).map_err(malformed)?));
        }
        if MANIFEST_TYPES.contains(&kind.as_str()) {
            return Ok(Content::Manifest(json(bytes).map_err(malformed)?, kind));
        }
        Err(malformed("it does not say what it is".to_owned()))
    }

    /// An image's configuration.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Digest`]; those of the network.
    pub async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let what = format!("the configuration of {}", self.shown);
        let too_long = |host: &str| Error::TooLong {
            host: host.to_owned(),
            what: what.clone(),
            limit: CONFIG_BYTES_MAX,
        };
        if descriptor.size > CONFIG_BYTES_MAX {
            return Err(too_long(self.session.name()));
        }
        let ask = self.ask(Method::GET, &format!("blobs/{}", descriptor.digest), &what);
        let response = self.session.ask(&ask).await?;
        if response.status() != StatusCode::OK {
            return Err(response.into_error(&what).await);
        }
        let host = response.host().to_owned();
        let bytes = response.bytes(&what, descriptor.size).await?;
        let found = Digest::of(&bytes);
        if found != descriptor.digest || bytes.len() as u64 != descriptor.size {
            return Err(Error::Digest {
                host,
                what,
                expected: descriptor.digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }
}

/// The entry of an index that is for `wanted`: the first, as with Docker.
///
/// # Errors
/// [`Error::Platform`] with those that there are.
pub fn choose<'a>(index: &'a Index, wanted: &Platform, shown: &str) -> Result<&'a Descriptor, Error> {
    let images = || {
        let usable =
            |entry: &&Descriptor| !entry.is_attestation() && (entry.is_manifest() || entry.is_index());
        index.manifests.iter().filter(usable)
    };
    let fits = |entry: &&Descriptor| match &entry.platform {
        Some(platform) => platform.fits(wanted),
        None => false,
    };
    // An index may leave the platform to the image's configuration.
    let silent = || images().find(|entry| entry.platform.is_none());
    if let Some(entry) = images().find(fits).or_else(silent) {
        return Ok(entry);
    }
    let mut found: Vec<String> = Vec::new();
    for platform in images().filter_map(|entry| entry.platform.as_ref()) {
        let platform = platform.to_string();
        if !found.contains(&platform) && found.len() < 20 {
            found.push(platform);
        }
    }
    Err(Error::Platform {
        reference: shown.to_owned(),
        wanted: wanted.to_string(),
        found: if found.is_empty() {
            "no images".to_owned()
        } else {
            found.join(", ")
        },
    })
}

/// A content type without its parameters.
fn media_type(value: &str) -> String {
    let value = value.split(';').next().unwrap_or_default();
    value.trim().to_ascii_lowercase()
}

fn accepted() -> HeaderValue {
    // The types of schema 1 as well, so that its answer is one that can be told apart.
    HeaderValue::from_static(
        "application/vnd.oci.image.index.v1+json, \
         application/vnd.docker.distribution.manifest.list.v2+json, \
         application/vnd.oci.image.manifest.v1+json, \
         application/vnd.docker.distribution.manifest.v2+json, \
         application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1",
    )
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|e| plain(&e.to_string(), 200))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[Option<&str>]) -> Index {
        let entry = |(number, platform): (usize, Option<&str>)| {
            let platform = platform.map(|text| {
                let (os, architecture) = text.split_once('/').unwrap();
                format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#)
            });
            format!(
                r#"{{"mediaType":"{}","digest":"{}","size":{number}{}}}"#,
                MANIFEST_TYPES[0],
                Digest::of(&[number as u8]),
                platform.unwrap_or_default()
            )
        };
        let entries: Vec<_> = platforms.iter().copied().enumerate().map(entry).collect();
        serde_json::from_str(&format!(r#"{{"manifests":[{}]}}"#, entries.join(","))).unwrap()
    }

    #[test]
    fn the_image_of_the_wanted_platform_is_chosen() {
        let host = Platform::host();
        let all = index(&[Some("linux/arm64"), Some("linux/amd64"), Some("linux/amd64")]);
        assert_eq!(choose(&all, &host, "x").unwrap().size, 1);
        assert_eq!(choose(&index(&[None]), &host, "x").unwrap().size, 0);
        let others = index(&[Some("linux/arm64"), Some("linux/s390x")]);
        let line = choose(&others, &host, "x").unwrap_err().line();
        assert!(
            line.contains("linux/arm64, linux/s390x") && line.contains("--platform"),
            "{line}"
        );
    }

    #[test]
    fn a_content_type_counts_without_its_parameters() {
        assert_eq!(media_type("Application/JSON; charset=utf-8"), "application/json");
    }
}
