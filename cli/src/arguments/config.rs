//! The arguments of `config`.

use brig_engine::settings::Setting;
use clap::{Args, Subcommand};

pub(super) const CONFIG_EXAMPLES: &str = "\
isolation   vm or container: what a new sandbox is walled off by ($BRIG_ISOLATION; vm)
memory      as -m of run ($BRIG_MEMORY)
cpus        as --cpus of run ($BRIG_CPUS)
An option of `run` goes over the environment, and that over what was set. Sandboxes that are there keep what they have. Nothing makes
brig fall back: where there is no usable KVM and nobody has set container, `run` says what is missing.

Examples:
  brig config list
  brig config set isolation container
  brig config get isolation
  brig config unset isolation";

/// What is to be done with settings.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print all settings, and where each comes from
    #[command(visible_alias = "ls")]
    List,
    /// Print the value that counts
    Get(ConfigGet),
    /// Set a value for all sandboxes to come
    Set(ConfigSet),
    /// Forget a value that was set
    Unset(ConfigGet),
}

/// Options of `config get` and `config unset`.
#[derive(Debug, Args)]
pub struct ConfigGet {
    /// isolation, memory or cpus
    pub name: Setting,
}

/// Options of `config set`.
#[derive(Debug, Args)]
pub struct ConfigSet {
    /// isolation, memory or cpus
    pub name: Setting,
    /// The value, as the option of run with this name takes it
    pub value: String,
}
