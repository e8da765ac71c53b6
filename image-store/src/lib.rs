//! OCI images on disk, in two halves that share a tar reader and decompression.
//!
//! | module | feature | runs | does |
//! |---|---|---|---|
//! | [`store`] | `store` | on the host | loads archives, keeps blobs, records and names, hands out unpack jobs |
//! | [`archive`] | `store` | on the host | takes a `docker save` tar or an OCI layout apart |
//! | [`reference`](mod@reference), [`image`] | `store` | on the host | Docker's names; what an image's configuration says |
//! | [`unpack`] | `unpack` | in a guest | layers in, one EROFS image out |
//! | [`tar`], [`compression`], [`digest`] | both | | the formats below |
//!
//! The host verifies digests and reads the small JSON documents of an image. What is inside of a layer is only ever
//! parsed by [`unpack`], which the agent runs in a guest.

pub mod compression;
pub mod digest;
pub mod tar;

#[cfg(feature = "store")]
pub mod archive;
#[cfg(feature = "store")]
pub mod image;
#[cfg(feature = "store")]
pub mod reference;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "unpack")]
pub mod unpack;

#[cfg(feature = "store")]
pub use self::{
    image::{Image, ImageConfig, ImageId, Layer},
    reference::{ImageName, Reference, ReferenceError},
    store::{LoadProgress, Loaded, Store, StoreError, Unpack, UnpackJob},
};
