//! OCI images on disk, in two halves that share a tar reader and decompression.
//!
//! | module | feature | runs | does |
//! |---|---|---|---|
//! | [`store`] | `store` | on the host | loads archives, keeps blobs, records and names, hands out unpack jobs |
//! | [`archive`] | `store` | on the host | takes a `docker save` tar or an OCI layout apart |
//! | [`compose`] | `store` | on the host | new images: configuration and manifest around a layer |
//! | [`reference`](mod@reference), [`image`], [`manifest`] | `store` | on the host | Docker's names; what an image's documents say |
//! | `packed` | `store` | on the host | archives that are compressed as a whole |
//! | [`journal`] | `store` | on the host | tells what has happened |
//! | [`limits`] | `store` | on the host | how large an image may be |
//! | [`unpack`] | `unpack` | in a guest | layers in, one EROFS image out |
//! | [`copy`] | both | at both ends | trees of files to and from a sandbox |
//! | [`tar`], [`compression`], [`digest`] | both | | the formats below |
//!
//! The host verifies digests and reads the small JSON documents of an image. What is inside of a layer is only ever
//! parsed by [`unpack`], which the agent runs in a guest.

pub mod compression;
#[cfg(any(feature = "store", feature = "unpack"))]
pub mod copy;
pub mod digest;
#[cfg(any(feature = "store", feature = "unpack"))]
pub mod removal;
pub mod tar;

#[cfg(feature = "store")]
pub mod archive;
#[cfg(feature = "store")]
pub mod compose;
#[cfg(feature = "store")]
pub mod image;
#[cfg(feature = "store")]
pub mod journal;
#[cfg(feature = "store")]
pub mod limits;
#[cfg(feature = "store")]
pub mod manifest;
#[cfg(feature = "store")]
mod packed;
#[cfg(feature = "store")]
pub mod reference;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "unpack")]
pub mod unpack;

#[cfg(feature = "store")]
pub use self::{
    image::{Healthcheck, Image, ImageConfig, ImageId, Layer, Transport},
    limits::{MaxImageSize, MaxImageSizeError},
    manifest::Platform,
    reference::{ImageName, Reference, ReferenceError, Repository, RepositoryDigest},
    store::{
        DirectoryJob, Incoming, LoadProgress, Loaded, Prune, Removed, Store, StoreError, Unpack,
        UnpackDirectory, UnpackJob, User,
    },
};
