//! Templates: guests that were booted once, made ready, and saved before anything of a user's ran in them. A sandbox
//! starts as a copy-on-write restore of the one of its shape.
//!
//! | module | job |
//! |---|---|
//! | [`key`] | what a template is made from, which decides whether it can be used |
//! | [`cache`] | templates on disk: finding, publishing, listing, dropping and evicting them |
//! | [`make`] | making one when there is none |
//!
//! The saved guest has three disks: an empty slot for an image, the blank disk, mounted, which a sandbox that starts for
//! the first time gets a copy of, and an empty slot for the disk of a sandbox that ran before.

pub mod cache;
pub mod key;
pub mod make;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::{
    cache::{Cache, Found, Listed, Template},
    key::{Ingredients, Key},
    make::{Ensured, ensure},
};
use crate::{
    resources::{Cpus, MemoryMib},
    sandbox::Config,
};

/// Part of each template's key: another one whenever what is in a template, or how it is used, changes.
pub const TEMPLATE_VERSION: u32 = 2;

/// Set to anything but nothing or `0`, guests boot and no template is made or used.
pub const OFF_VARIABLE: &str = "BRIG_NO_TEMPLATE";

/// What a user chooses of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// vCPUs.
    pub vcpus: u8,
    /// Memory.
    pub memory: MemoryMib,
}

impl Shape {
    /// Of a sandbox with this much of each; `None` stands for what a sandbox gets when the user says nothing.
    pub fn new(cpus: Option<Cpus>, memory: Option<MemoryMib>) -> Self {
        Self {
            vcpus: cpus.unwrap_or(Cpus::DEFAULT).vcpus(),
            memory: memory.unwrap_or(MemoryMib::DEFAULT),
        }
    }

    /// Of a sandbox.
    pub fn of(config: &Config) -> Self {
        Self::new(Some(config.cpus), Some(config.memory))
    }

    /// Of the guests that unpack images: the default, so that its template serves them too, or less on a small host.
    pub fn unpack() -> Self {
        let memory = MemoryMib::DEFAULT.check_host().unwrap_or(MemoryMib::UNPACK);
        Self::new(None, Some(memory))
    }
}

/// What a user is told when a template is of no use.
pub(crate) fn dropped_notice(key: &Key, reason: &str) -> String {
    format!(
        "the template {} cannot be used and is dropped, the guest boots: {reason}",
        key.short()
    )
}

/// Whether [`OFF_VARIABLE`] says that no templates are wanted.
pub fn switched_off() -> bool {
    std::env::var_os(OFF_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0")
}
