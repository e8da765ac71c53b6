//! What `container` isolation takes from the host: the program brig-cell, ids, cgroups, and a directory for the writable layer.

pub(crate) mod cgroups;
pub mod ids;
mod process;

pub(crate) use self::{
    cgroups::Cgroups,
    process::{NAME, empty},
};
pub use self::{ids::HostIds, process::BrigCell};
