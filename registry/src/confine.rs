//! What this process gives up before it connects to anything: new privileges, and files other than those that it needs.
//!
//! A hostile registry that takes it over can still spoil the image store, which no process trusts without digests, write
//! events that never happened, and use the credentials that were read for that registry. It cannot read the user's other files, write any, or start a program.

use std::path::Path;

use brig_image_store::journal;
use brig_registry::Config;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};

/// What is read to resolve names and to know certificates.
const READ: [&str; 8] = [
    "/etc",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/lib",
    "/lib64",
    // Where `/etc/resolv.conf` leads to.
    "/run",
];

/// Gives up what is not needed. An older kernel confines less, and that is no error.
pub fn confine(root: &Path, config: &Config) {
    // prctl(2): a setuid program, if it were started, would be an ordinary one.
    let _ = rustix::thread::set_no_new_privs(true);
    let _ = restrict(root, config);
}

fn restrict(root: &Path, config: &Config) -> Result<(), landlock::RulesetError> {
    let abi = ABI::V3;
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .create()?;
    let own = config.files();
    let read_only = READ.iter().map(Path::new).chain(own.iter().map(AsRef::as_ref));
    for path in read_only {
        rules = add(rules, path, read)?;
    }
    rules = add(rules, &root.join("registries.toml"), read)?;
    for directory in &config.certificates {
        rules = add(rules, directory, read)?;
    }
    let write = AccessFs::from_all(abi) & !AccessFs::Execute;
    for directory in ["images", journal::DIRECTORY] {
        rules = add(rules, &root.join(directory), write)?;
    }
    rules.restrict_self()?;
    Ok(())
}

fn add(
    rules: landlock::RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, landlock::RulesetError> {
    // What is not there need not be allowed.
    let Ok(file) = PathFd::new(path) else {
        return Ok(rules);
    };
    let is_file = path.is_file();
    let access = if is_file {
        access & AccessFs::from_file(ABI::V3)
    } else {
        access
    };
    rules.add_rule(PathBeneath::new(file, access))
}
