//! The commands about images: `image …` and the shorter forms.
//!
//! | module | commands |
//! |---|---|
//! | [`list`] | `images`, and the filters that `image prune` has too |
//! | [`remove`] | `rmi`, `tag`, `image prune` |
//! | [`show`] | `image inspect`, `history` |
//! | [`transfer`] | `save`, `load`, `import` |

pub mod filter;
pub mod list;
pub mod remove;
pub mod show;
pub mod transfer;

use brig_engine::Engine;

use super::registry;
use crate::{
    arguments::{Image, Registry},
    failure::Failure,
};

/// `brig image …`.
pub fn dispatch(engine: &Engine, command: Image) -> Result<i32, Failure> {
    match command {
        Image::Pull(handed) => Err(registry::hand_over(engine, Registry::Pull(handed))),
        Image::Push(handed) => Err(registry::hand_over(engine, Registry::Push(handed))),
        Image::Ls(options) => list::list(engine, &options),
        Image::Rm(options) => remove::remove(engine, &options),
        Image::Prune(options) => remove::prune(engine, &options),
        Image::Inspect(options) => show::inspect(engine, &options),
        Image::History(options) => show::history(engine, &options),
        Image::Tag(options) => remove::tag(engine, &options),
        Image::Save(options) => transfer::save(engine, &options),
        Image::Load(options) => transfer::load(engine, &options),
        Image::Import(options) => transfer::import(engine, &options),
    }
}
