//! An image from a registry into the store.

use std::{collections::BTreeMap, sync::Arc};

use brig_image_store::{
    Image, Platform, Reference, RepositoryDigest, Store, StoreError,
    archive::{self, ArchiveError},
    digest::Digest,
    manifest::{Descriptor, Manifest},
};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::{
    Error, Http,
    credentials::Credentials,
    document::{Content, Document, Repository, choose},
    download::{Blob, download},
    http::host_of,
    progress::{BlobState, Event, Sink, short},
    session::Session,
};

/// Layers that are downloaded at the same time, as with Docker.
const PARALLEL: usize = 3;

/// What to pull.
#[derive(Clone, Debug)]
pub struct Pull {
    /// The image.
    pub reference: Reference,
    /// What it has to be for; this machine when nothing is said.
    pub platform: Option<Platform>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// What the registry's digest of it is: of a manifest, or of an index.
    pub digest: Digest,
    /// Whether it was not this image that had the name before.
    pub newer: bool,
}

/// Registries, and who the user is there.
#[derive(Clone)]
pub struct Registries {
    /// The connections.
    pub http: Arc<Http>,
    /// Names and passwords, by registry.
    pub credentials: Credentials,
}

impl Registries {
    /// A registry's mirrors and the registry itself, in the order in which they are asked.
    ///
    /// # Errors
    /// An address in the configuration that is none.
    pub fn sessions(&self, host: &str) -> Result<Vec<Session>, Error> {
        let mut sessions = Vec::new();
        for mirror in &self.http.config().registry(host).mirrors {
            let key = reqwest::Url::parse(mirror)
                .map(|url| host_of(&url))
                .unwrap_or_default();
            let credential = self.credentials.get(&key).cloned();
            sessions.push(Session::of_mirror(self.http.clone(), mirror, credential)?);
        }
        sessions.push(self.session(host)?);
        Ok(sessions)
    }

    /// A registry without its mirrors.
    ///
    /// # Errors
    /// When no address can be made of its name.
    pub fn session(&self, host: &str) -> Result<Session, Error> {
        let credential = self.credentials.get(host).cloned();
        Session::of_registry(self.http.clone(), host, credential)
    }
}

/// Pulls an image. What the store has is not downloaded again; an image that has not changed costs one request.
///
/// # Errors
/// Those of the registry, when each of its mirrors fails too; those of the store. No part of the image is visible then.
pub async fn pull(
    store: &Store,
    registries: &Registries,
    wanted: &Pull,
    sink: &Sink,
) -> Result<Pulled, Error> {
    let reference = &wanted.reference;
    let repository = &reference.repository;
    let shown = shown(reference);
    let sessions = registries.sessions(repository.domain())?;
    let sources: Vec<Repository<'_>> = sessions
        .iter()
        .map(|session| Repository::for_pull(session, repository.path(), &shown))
        .collect();
    let line = |id: String, text: String| sink(Event::Line { id, text });
    let asked = asked(reference);

    let old = store.resolve(&canonical(reference))?;
    let known = Known {
        store,
        image: old.as_ref(),
        wanted,
    };
    let (first, found) = first(&sources, &asked, &known).await?;
    line(asked, format!("Pulling from {}", repository.path()));
    let (digest, image) = match found {
        Found::Unchanged(digest, image) => (digest, *image),
        Found::Document(document) => {
            // The one that knows the tag is asked first for what belongs to it.
            let ordered = sources[first..].iter().chain(&sources[..first]);
            let sources: Vec<_> = ordered
                .map(|source| Repository::for_pull(source.session, source.path, &shown))
                .collect();
            let digest = document.digest;
            (digest, take(store, &sources, wanted, *document, sink).await?)
        }
    };
    let newer = old.is_none_or(|old| old.id != image.id);
    line(String::new(), format!("Digest: {digest}"));
    let status = if newer {
        "Downloaded newer image for"
    } else {
        "Image is up to date for"
    };
    line(String::new(), format!("Status: {status} {shown}"));
    Ok(Pulled { image, digest, newer })
}

/// All tags that a registry has of a repository, as references.
///
/// # Errors
/// Those of the registry.
pub async fn tags(registries: &Registries, reference: &Reference) -> Result<Vec<Reference>, Error> {
    let session = registries.session(reference.repository.domain())?;
    let shown = reference.repository.to_string();
    let tags = Repository::for_pull(&session, reference.repository.path(), &shown)
        .tags()
        .await?;
    let reference = |tag: String| {
        format!("{}:{tag}", reference.repository.canonical())
            .parse::<Reference>()
            .map_err(|_| Error::Malformed {
                host: session.name().to_owned(),
                what: format!("the tags of {shown}"),
                why: format!("\"{}\" is no tag", crate::plain(&tag, 100)),
            })
    };
    tags.into_iter().map(reference).collect()
}

/// A reference with its tag or digest, as Docker shows it in the end.
pub fn shown(reference: &Reference) -> String {
    match reference.digest {
        Some(digest) => format!("{}@{digest}", reference.repository),
        None => reference.name().to_string(),
    }
}

/// A reference as the store looks it up. Not as a user wrote it, since that could be the start of an id.
fn canonical(reference: &Reference) -> String {
    match reference.digest {
        Some(digest) => format!("{}@{digest}", reference.repository.canonical()),
        None => reference.name().canonical(),
    }
}

/// The last part of a manifest's address: a digest decides, whatever the tag is.
fn asked(reference: &Reference) -> String {
    match reference.digest {
        Some(digest) => digest.to_string(),
        None => reference.name().tag,
    }
}

/// What the first registry that has the image says of it.
enum Found {
    /// It is what the store has.
    Unchanged(Digest, Box<Image>),
    Document(Box<Document>),
}

/// What the store has of an image that is pulled.
struct Known<'a> {
    store: &'a Store,
    image: Option<&'a Image>,
    wanted: &'a Pull,
}

impl Known<'_> {
    /// Whether the store has all of the image that the registry calls `digest`.
    fn has(&self, digest: Digest) -> Option<Image> {
        let image = self.image?;
        let repository = &self.wanted.reference.repository;
        let same = |known: &RepositoryDigest| known.digest == digest && known.repository == *repository;
        let platform = self.wanted.platform.clone().unwrap_or_else(Platform::host);
        let fits = (&image.os, &image.architecture) == (&platform.os, &platform.architecture);
        (fits && image.digests.iter().any(same) && self.store.is_whole(image)).then(|| image.clone())
    }

    /// Whether asking for the digest alone can be enough.
    fn may_be_current(&self) -> bool {
        let repository = &self.wanted.reference.repository;
        let of_registry = |image: &Image| image.digests.iter().any(|known| known.repository == *repository);
        // A variant is in no record.
        let plain = self
            .wanted
            .platform
            .as_ref()
            .is_none_or(|platform| platform.variant.is_empty());
        plain && self.image.is_some_and(of_registry)
    }
}

/// Asks the registries in order until one has the image.
async fn first(sources: &[Repository<'_>], asked: &str, known: &Known<'_>) -> Result<(usize, Found), Error> {
    let mut last = None;
    for (place, source) in sources.iter().enumerate() {
        match ask(source, asked, known).await {
            Ok(found) => return Ok((place, found)),
            Err(e) => last = Some(e),
        }
    }
    Err(last.unwrap_or_else(|| Error::Usage("there is no registry to pull from".to_owned())))
}

async fn ask(source: &Repository<'_>, asked: &str, known: &Known<'_>) -> Result<Found, Error> {
    if let Ok(digest) = asked.parse::<Digest>()
        && let Some(image) = known.has(digest)
    {
        // Bytes that have this digest have not changed.
        return Ok(Found::Unchanged(digest, Box::new(image)));
    }
    if known.may_be_current()
        && let Some(digest) = source.tag_digest(asked).await?
        && let Some(image) = known.has(digest)
    {
        return Ok(Found::Unchanged(digest, Box::new(image)));
    }
    Ok(Found::Document(Box::new(source.document(asked).await?)))
}

/// Takes an image into the store, from the document that its tag leads to on.
async fn take(
    store: &Store,
    sources: &[Repository<'_>],
    wanted: &Pull,
    document: Document,
    sink: &Sink,
) -> Result<Image, Error> {
    let reference = &wanted.reference;
    let source = &sources[0];
    let platform = wanted.platform.clone().unwrap_or_else(Platform::host);
    let digest = RepositoryDigest {
        repository: reference.repository.clone(),
        digest: document.digest,
    };
    let receiver = Arc::new(store.receive_image()?);
    let found = manifest(source, document, &platform).await?;
    found.check(source.shown)?;
    receiver.add_document(&found.bytes)?;

    let config = config(store, source, &found.manifest.config).await?;
    check_config(&config, &found.manifest, &platform, source.shown)?;
    receiver.add_document(&config)?;

    let layers = unique(&found.manifest.layers)?;
    let bytes = layers
        .iter()
        .fold(0, |all: u64, layer| all.saturating_add(layer.size));
    receiver.check_bytes(bytes)?;
    for (place, layer) in layers.iter().enumerate() {
        let id = short(&layer.digest);
        let state = BlobState::Pulling;
        sink(Event::Blob {
            id: id.clone(),
            state,
        });
        if place >= PARALLEL {
            let state = BlobState::Waiting;
            sink(Event::Blob { id, state });
        }
    }
    let downloaded = stream::iter(layers)
        .map(|layer| download(&receiver, sources, layer, sink))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await;
    if let Err(Error::Store(StoreError::NoSpace { .. })) = downloaded {
        receiver.free_space();
    }
    downloaded?;
    let names = match reference.digest {
        Some(_) => Vec::new(),
        None => vec![reference.name()],
    };
    Ok(receiver.commit(&found.descriptor, &platform, names, vec![digest])?)
}

/// The manifest of the image that is taken.
struct Chosen {
    bytes: Vec<u8>,
    manifest: Manifest,
    descriptor: Descriptor,
}

impl Chosen {
    fn check(&self, shown: &str) -> Result<(), Error> {
        match self.manifest.check() {
            Err(ArchiveError::MediaType(media_type))
                if media_type.contains("foreign") || media_type.contains("nondistributable") =>
            {
                Err(Error::Foreign {
                    reference: shown.to_owned(),
                    media_type,
                })
            }
            other => Ok(other?),
        }
    }
}

/// Follows indexes to a manifest. An index may stand in an index, no deeper.
async fn manifest(
    source: &Repository<'_>,
    mut document: Document,
    platform: &Platform,
) -> Result<Chosen, Error> {
    for _ in 0..3 {
        match document.content {
            Content::Manifest(manifest, media_type) => {
                return Ok(Chosen {
                    descriptor: Descriptor {
                        media_type,
                        digest: document.digest,
                        size: document.bytes.len() as u64,
                        platform: None,
                        annotations: BTreeMap::new(),
                    },
                    bytes: document.bytes,
                    manifest,
                });
            }
            Content::Index(index) => {
                let entry = choose(&index, platform, source.shown)?;
                document = source.document(&entry.digest.to_string()).await?;
            }
        }
    }
    Err(ArchiveError::TooManyIndexes.into())
}

/// An image's configuration, from the store when that has it.
async fn config(store: &Store, source: &Repository<'_>, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
    if let Some(bytes) = store.document(&descriptor.digest, archive::CONFIG_BYTES_MAX)?
        && bytes.len() as u64 == descriptor.size
    {
        return Ok(bytes);
    }
    source.config(descriptor).await
}

fn check_config(config: &[u8], manifest: &Manifest, platform: &Platform, shown: &str) -> Result<(), Error> {
    match archive::check_config(config, manifest.layers.len(), platform) {
        Err(ArchiveError::Platform(found)) => Err(Error::Platform {
            reference: shown.to_owned(),
            wanted: platform.to_string(),
            found,
        }),
        other => Ok(other?),
    }
}

/// The layers, each once: the same blob may be several of them. A digest with two lengths is refused.
fn unique(layers: &[Descriptor]) -> Result<Vec<Blob>, Error> {
    let mut found: Vec<Blob> = Vec::new();
    for layer in layers {
        match found.iter().find(|blob| blob.digest == layer.digest) {
            Some(blob) if blob.size != layer.size => {
                return Err(ArchiveError::Size {
                    digest: layer.digest,
                    expected: blob.size,
                    found: layer.size,
                }
                .into());
            }
            Some(_) => {}
            None => found.push(Blob {
                digest: layer.digest,
                size: layer.size,
            }),
        }
    }
    Ok(found)
}
