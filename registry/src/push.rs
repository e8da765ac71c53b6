//! An image from the store to a registry.

use brig_image_store::{
    Image, ImageName, RepositoryDigest, Store, StoreError,
    archive::{CONFIG_BYTES_MAX, MANIFEST_BYTES_MAX},
    compose,
    digest::Digest,
    manifest::MANIFEST_TYPES,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{
    Body, Method, StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use serde::Deserialize;

use crate::{
    Error,
    document::Repository,
    download::Blob,
    progress::{BlobState, Event, Sink, short},
    pull::Registries,
    upload::{refusal, upload},
};

/// Layers that are uploaded at the same time, as with Docker.
const PARALLEL: usize = 5;

/// What was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The digest of the manifest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
}

/// The manifest that an image is pushed with.
struct Manifest {
    bytes: Vec<u8>,
    media_type: String,
}

/// Pushes the image `image` under the name `name`. What the repository has is not uploaded again.
///
/// # Errors
/// Those of the registry and of the store.
pub async fn push(
    store: &Store,
    registries: &Registries,
    image: &Image,
    name: &ImageName,
    sink: &Sink,
) -> Result<Pushed, Error> {
    let session = registries.session(name.repository.domain())?;
    let shown = name.to_string();
    let from = mountable(image, name);
    let target = Repository::for_push(&session, name.repository.path(), &shown, from);
    let manifest = manifest(store, image)?;
    let config = store
        .document(&image.id.0, CONFIG_BYTES_MAX)?
        .ok_or(StoreError::MissingBlob(image.id.0))?;
    let mut blobs: Vec<Blob> = Vec::new();
    for layer in &image.layers {
        if !blobs.iter().any(|blob| blob.digest == layer.digest) {
            blobs.push(Blob {
                digest: layer.digest,
                size: layer.size,
            });
        }
    }
    for blob in &blobs {
        sink(Event::Blob {
            id: short(&blob.digest),
            state: BlobState::Preparing,
        });
    }
    stream::iter(blobs)
        .map(|blob| upload(store, &target, blob, from, sink))
        .buffer_unordered(PARALLEL)
        .try_collect::<Vec<()>>()
        .await?;
    let config = Blob {
        digest: image.id.0,
        size: config.len() as u64,
    };
    // Docker shows layers alone.
    let silent: Sink = std::sync::Arc::new(|_| {});
    upload(store, &target, config, from, &silent).await?;

    let pushed = Pushed {
        digest: Digest::of(&manifest.bytes),
        size: manifest.bytes.len() as u64,
    };
    put(&target, &name.tag, manifest, pushed.digest).await?;
    store.add_digest(
        &image.id,
        RepositoryDigest {
            repository: name.repository.clone(),
            digest: pushed.digest,
        },
    )?;
    sink(Event::Line {
        id: name.tag.clone(),
        text: format!("digest: {} size: {}", pushed.digest, pushed.size),
    });
    Ok(pushed)
}

/// A repository of the same registry that the image is known to be in.
fn mountable<'a>(image: &'a Image, name: &ImageName) -> Option<&'a str> {
    let mut known = image.digests.iter().map(|digest| &digest.repository);
    known
        .find(|other| other.domain() == name.repository.domain() && **other != name.repository)
        .map(brig_image_store::Repository::path)
}

/// The manifest as it was loaded or pulled; of an image that came without one, a new one, which is the same each time.
fn manifest(store: &Store, image: &Image) -> Result<Manifest, Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Outline {
        #[serde(default)]
        media_type: String,
    }
    let Some(digest) = image.manifest else {
        return written(store, image);
    };
    let bytes = store
        .document(&digest, MANIFEST_BYTES_MAX)?
        .ok_or(StoreError::MissingBlob(digest))?;
    let outline: Outline =
        serde_json::from_slice(&bytes).map_err(|source| brig_image_store::archive::ArchiveError::Json {
            what: "the image's manifest",
            source,
        })?;
    let media_type = match outline.media_type {
        own if MANIFEST_TYPES.contains(&own.as_str()) => own,
        // The OCI's need not say it.
        _ => MANIFEST_TYPES[0].to_owned(),
    };
    Ok(Manifest { bytes, media_type })
}

fn written(store: &Store, image: &Image) -> Result<Manifest, Error> {
    let config = store
        .document(&image.id.0, CONFIG_BYTES_MAX)?
        .ok_or(StoreError::MissingBlob(image.id.0))?;
    Ok(Manifest {
        bytes: compose::manifest::of(image, config.len() as u64),
        media_type: compose::manifest::MANIFEST_TYPE.to_owned(),
    })
}

/// Gives a manifest a tag.
async fn put(target: &Repository<'_>, tag: &str, manifest: Manifest, digest: Digest) -> Result<(), Error> {
    let what = format!("the manifest of {}", target.shown);
    let mut ask = target.ask(Method::PUT, &format!("manifests/{tag}"), &what);
    let kind = HeaderValue::try_from(manifest.media_type.as_str());
    ask.headers.extend(kind.map(|kind| (CONTENT_TYPE, kind)));
    let bytes = bytes::Bytes::from(manifest.bytes);
    let body = || Body::from(bytes.clone());
    let response = target.session.persist(&ask, Some(&body)).await?;
    if response.status() != StatusCode::CREATED {
        return Err(refusal(target, response, &what).await);
    }
    match response.header("docker-content-digest").map(str::parse::<Digest>) {
        Some(Ok(found)) if found != digest => Err(Error::Digest {
            host: target.session.name().to_owned(),
            what,
            expected: digest.to_string(),
            found: found.to_string(),
        }),
        _ => Ok(()),
    }
}
