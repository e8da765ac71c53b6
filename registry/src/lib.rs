//! Images from and to registries (distribution-spec), into and out of the image store.
//!
//! | module | job |
//! |---|---|
//! | [`config`] | `registries.toml`: what may be spoken to how |
//! | [`credentials`] | Docker's `config.json` and credential helpers |
//! | [`http`] | connections, redirects, bodies with a limit in bytes and in time |
//! | [`session`] | one registry: its address, who the user is, what is tried again |
//! | [`challenge`] | how a registry asks who the user is |
//! | [`document`] | manifests and indexes, and which image of an index is meant |
//! | [`pull`], [`download`] | an image into the store; one blob of it |
//! | [`push`], [`upload`] | an image out of the store; one blob of it |
//! | [`search`] | what a registry has |
//! | [`progress`] | what is told meanwhile |
//!
//! Everything that a registry says is hostile: it is bounded, checked, and shown without what could steer a terminal.
//! The library runs on any tokio runtime; the program `brig-registry` is a thin layer above it.

pub mod challenge;
pub mod config;
pub mod credentials;
pub mod document;
pub mod download;
mod error;
pub mod http;
pub mod progress;
pub mod pull;
pub mod push;
pub mod search;
pub mod session;
pub mod upload;

pub use self::{config::Config, error::Error, error::plain, http::Http};
