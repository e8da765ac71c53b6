//! Sandboxes: making, starting, watching, stopping and removing them.
//!
//! | module | job |
//! |---|---|
//! | [`engine`] | what a command line or an API server asks for: [`Engine`] |
//! | [`sandbox`] | a sandbox's records and directory, and finding one |
//! | [`supervisor`] | the process of one running sandbox |
//! | [`control`], [`frames`] | what the two above say to each other |
//! | [`guest`], [`vmm`], [`kvm`], [`host`], [`cpu`], [`console`] | a guest, the process that runs it, and what it takes from the host |
//! | [`isolation`], [`cell`] | sandboxes without a guest, on the host's kernel |
//! | [`template`] | booted guests, saved once, that sandboxes start as copies of |
//! | [`snapshot`] | running sandboxes, saved by their users, that any number of others start as copies of |
//! | [`files`] | what templates and snapshots are on the disk |
//! | [`clock`], [`perf`] | when what happened in a start, and what it cost the host |
//! | [`unpack`] | images become EROFS files, in a guest |
//! | [`pack`] | files of sandboxes become archives and layers, in a guest |
//! | [`stats`] | what a running sandbox takes of the host |
//! | [`spec`], [`disk`] | what a guest is given |
//! | [`turns`] | how many come up at the same time |
//! | [`volume`] | files that outlive sandboxes |
//! | [`log`] | the output of sandboxes |
//! | [`events`] | what has happened to whom |
//! | [`inspect`] | a sandbox as Docker's API describes a container |
//! | [`security`] | the walls around a running sandbox, as the kernel tells them |
//! | [`options`] | what users want of a sandbox beside its image and its command |
//! | [`port`], [`resources`], [`signal`], [`name`], [`id`] | values that users write |
//!
//! There is no daemon: state is on disk, and any number of processes may use one root at the same time. A sandbox's
//! supervisor is the only one that writes its state while it lives, which its lock shows.

pub mod cell;
pub mod clock;
pub mod console;
pub mod control;
pub mod cpu;
pub mod device_rate;
pub mod disk;
pub mod engine;
pub mod error;
pub mod events;
pub mod files;
pub mod frames;
pub mod guest;
pub mod host;
pub mod id;
pub mod inspect;
pub mod isolation;
pub mod kvm;
pub mod log;
mod mke2fs;
pub mod name;
pub mod options;
pub mod pack;
pub mod paths;
pub mod perf;
pub mod port;
pub mod resources;
pub mod sandbox;
pub mod security;
pub mod settings;
pub mod signal;
pub mod snapshot;
pub mod spec;
pub mod stats;
pub mod supervisor;
pub mod template;
pub use brig_protocol::tool;
#[cfg(test)]
mod test_support;
pub mod turns;
pub mod unpack;
pub mod vmm;
pub mod volume;

pub use self::{
    engine::{CreateOptions, Engine},
    error::Error,
    id::SandboxId,
    isolation::Isolation,
    paths::Paths,
};
