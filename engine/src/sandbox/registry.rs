//! All sandboxes of a root: making, finding, listing and removing them.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use brig_image_store::removal::remove_tree;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::Deserialize;

use super::{Config, Directory, Sandbox, lock::Lock, state::Ender};
use crate::{
    Error, SandboxId,
    events::{self, Journal},
    id::{ID_DIGITS, is_lower_hex},
    name,
    volume::Volumes,
};

/// Starts the names of directories that are not sandboxes yet or not any more.
const HIDDEN: &str = ".";

/// How often a random name may be taken already before digits are added to it.
const NAME_ATTEMPTS: u32 = 8;

/// The sandboxes of one root.
#[derive(Clone, Debug)]
pub struct Registry {
    directory: PathBuf,
}

impl Registry {
    /// The sandboxes in `directory`, which exists.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The files of the sandbox with this id.
    pub fn directory(&self, id: &SandboxId) -> Directory {
        Directory::new(self.directory.join(id.as_str()))
    }

    /// Makes the sandbox `id`. `prepare` fills its directory before anyone else sees it. The name is `wanted`, or a random one.
    ///
    /// # Errors
    /// [`Error::NameInUse`], [`Error::InvalidName`], those of `prepare`, [`Error::File`]. Nothing is left then.
    pub fn create(
        &self,
        id: SandboxId,
        wanted: Option<&str>,
        config: impl FnOnce(SandboxId, String) -> Config,
        prepare: impl FnOnce(&Directory) -> Result<(), Error>,
    ) -> Result<Config, Error> {
        wanted.map_or(Ok(()), name::check)?;
        let _lock = self.lock()?;
        self.sweep();
        let taken = self.taken_names()?;
        let name = match wanted {
            Some(name) => {
                is_free(name, &taken)?;
                name.to_owned()
            }
            None => free_name(&taken, &id)?,
        };
        let config = config(id, name);
        let hidden = Directory::new(self.directory.join(format!("{HIDDEN}new-{}", config.id)));
        let final_path = self.directory.join(config.id.as_str());
        let made = make_directory(hidden.path())
            .and_then(|()| prepare(&hidden))
            .and_then(|()| hidden.write_new(&config))
            .and_then(|()| fs::rename(hidden.path(), &final_path).map_err(Error::file("make", &final_path)));
        if let Err(e) = made {
            let _ = fs::remove_dir_all(hidden.path());
            return Err(e);
        }
        self.directory(&config.id).note("create", &[]);
        Ok(config)
    }

    /// Checks a name that the user chose, and that no sandbox has it.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NameInUse`].
    pub fn check_name(&self, name: &str) -> Result<(), Error> {
        name::check(name)?;
        is_free(name, &self.taken_names()?)
    }

    /// Gives a sandbox another name.
    ///
    /// # Errors
    /// [`Error::InvalidName`], [`Error::NameInUse`], [`Error::NoSuchSandbox`], [`Error::File`].
    pub fn rename(&self, id: &SandboxId, name: &str) -> Result<(), Error> {
        name::check(name)?;
        let _lock = self.lock()?;
        is_free(name, &self.taken_names()?)?;
        let directory = self.directory(id);
        let missing = || Error::NoSuchSandbox(id.to_string());
        let config = directory.read_config().map_err(|e| e.missing_as(missing))?;
        let old = format!("/{}", config.name);
        directory.write_config(&Config {
            name: name.to_owned(),
            ..config
        })?;
        directory.note("rename", &[("oldName", old)]);
        Ok(())
    }

    /// Changes what a sandbox is made with, and gives what it is then.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::File`].
    pub fn change(&self, id: &SandboxId, change: impl FnOnce(&mut Config)) -> Result<Config, Error> {
        // As for names: nobody else writes it meanwhile.
        let _lock = self.lock()?;
        let directory = self.directory(id);
        let missing = || Error::NoSuchSandbox(id.to_string());
        let mut config = directory.read_config().map_err(|e| e.missing_as(missing))?;
        change(&mut config);
        directory.write_config(&config)?;
        Ok(config)
    }

    /// Notes that somebody wants a sandbox to be stopped that does not run. One that is being started is left alone.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn set_stopped(&self, id: &SandboxId) -> Result<(), Error> {
        let directory = self.directory(id);
        if let Some(_held) = Lock::try_take(&directory.lock())? {
            let state = directory.read_state()?;
            directory.write_state(&state.by(Ender::User))?;
        }
        Ok(())
    }

    /// All sandboxes, the newest first. One that cannot be read is left out: it must not keep the others from being
    /// shown.
    ///
    /// # Errors
    /// [`Error::File`] when the directory of sandboxes cannot be read.
    pub fn list(&self) -> Result<Vec<Sandbox>, Error> {
        let mut sandboxes: Vec<Sandbox> = self
            .ids()?
            .iter()
            .filter_map(|id| self.directory(id).load().ok())
            .collect();
        sandboxes.sort_by(|a, b| {
            b.config
                .created
                .cmp(&a.config.created)
                .then_with(|| a.id().cmp(b.id()))
        });
        Ok(sandboxes)
    }

    /// The sandbox with this id, name or unique prefix of an id, in this order, as Docker looks.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::AmbiguousPrefix`], [`Error::File`].
    pub fn find(&self, reference: &str) -> Result<Sandbox, Error> {
        let unknown = || Error::NoSuchSandbox(reference.to_owned());
        if let Ok(id) = reference.parse::<SandboxId>() {
            return self.load(&id);
        }
        let sandboxes = self.list()?;
        if let Some(sandbox) = sandboxes.iter().find(|s| s.config.name == reference) {
            return Ok(sandbox.clone());
        }
        if reference.is_empty() || reference.len() > ID_DIGITS || !is_lower_hex(reference) {
            return Err(unknown());
        }
        let mut matches = sandboxes
            .into_iter()
            .filter(|s| s.id().as_str().starts_with(reference));
        match (matches.next(), matches.next()) {
            (Some(sandbox), None) => Ok(sandbox),
            (None, _) => Err(unknown()),
            (Some(_), Some(_)) => Err(Error::AmbiguousPrefix(reference.to_owned())),
        }
    }

    /// The sandbox with this id.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::File`], [`Error::Record`].
    pub fn load(&self, id: &SandboxId) -> Result<Sandbox, Error> {
        self.directory(id)
            .load()
            .map_err(|e| e.missing_as(|| Error::NoSuchSandbox(id.to_string())))
    }

    /// Removes the files of a sandbox whose lock the caller holds, and its volumes that have no names, where they go too. Readers
    /// see it whole or not at all.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn remove(&self, id: &SandboxId, _held: &Lock, with_volumes: bool) -> Result<(), Error> {
        let path = self.directory.join(id.as_str());
        let hidden = self.directory.join(format!("{HIDDEN}removed-{id}"));
        let config = self.directory(id).read_config();
        let removed = claim(&path).and_then(|_claimed| {
            fs::rename(&path, &hidden)?;
            remove_tree(&hidden)
        });
        match removed {
            Ok(()) => {
                if let (Ok(config), Some(root)) = (config, self.directory.parent()) {
                    events::note(&Journal::of_root(root), &config, "destroy", &[]);
                    // Who else has them is looked for among all sandboxes.
                    if with_volumes && !config.mounts.is_empty() {
                        let others = self.list().unwrap_or_default();
                        Volumes::new(root).forget_anonymous(&config.mounts, &others);
                    }
                }
                Ok(())
            }
            // Another removal or a sweep was faster.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::file("remove", &path)(e)),
        }
    }

    /// The names of all sandboxes. Less is read for them than for [`Self::list`]: there may be hundreds at each creation.
    fn taken_names(&self) -> Result<Vec<Named>, Error> {
        let named = |id: &SandboxId| self.directory(id).read_config_as::<Named>().ok();
        Ok(self.ids()?.iter().filter_map(named).collect())
    }

    fn ids(&self) -> Result<Vec<SandboxId>, Error> {
        Ok(self
            .names()?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect())
    }

    fn names(&self) -> Result<Vec<String>, Error> {
        fs::read_dir(&self.directory)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()))
                    .collect()
            })
            .map_err(Error::file("list", &self.directory))
    }

    /// Held while names are looked at and given.
    fn lock(&self) -> Result<Lock, Error> {
        Lock::take(&self.directory.with_extension("lock"))
    }

    /// Removes what a killed creation or removal left. The caller holds the lock, so no creation is under way.
    fn sweep(&self) {
        for name in self.names().unwrap_or_default() {
            if name.starts_with(HIDDEN) {
                let path = self.directory.join(name);
                if let Ok(Some(_claimed)) = claim(&path) {
                    let _ = remove_tree(&path);
                }
            }
        }
    }
}

/// Of a configuration, what creating another sandbox needs.
#[derive(Deserialize)]
struct Named {
    id: SandboxId,
    name: String,
}

fn is_free(name: &str, taken: &[Named]) -> Result<(), Error> {
    match taken.iter().find(|sandbox| sandbox.name == name) {
        Some(other) => Err(Error::NameInUse {
            name: name.to_owned(),
            id: other.id.short().to_owned(),
        }),
        None => Ok(()),
    }
}

fn free_name(taken: &[Named], id: &SandboxId) -> Result<String, Error> {
    let mut candidate = name::random()?;
    for _ in 0..NAME_ATTEMPTS {
        if taken.iter().all(|sandbox| sandbox.name != candidate) {
            return Ok(candidate);
        }
        candidate = name::random()?;
    }
    Ok(format!("{candidate}_{}", id.short()))
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(Error::file("make", path))
}

/// Takes a directory for its removal, until the result is dropped or this process ends; `None` when another has it. Full
/// directories are moved while a tree goes, so two that remove it would get into each other's way.
fn claim(path: &Path) -> io::Result<Option<File>> {
    let directory = File::open(path)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::{
        sandbox::{State, Status},
        test_support::{config, live},
    };

    fn registry() -> (tempfile::TempDir, Registry) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().join("sandboxes");
        fs::create_dir(&directory).unwrap();
        (temporary, Registry::new(directory))
    }

    #[test]
    fn a_sandbox_gets_another_name_that_no_other_has() {
        let (_temporary, registry) = registry();
        let web = create(&registry, Some("web")).unwrap();
        create(&registry, Some("db")).unwrap();
        registry.rename(&web.id, "www").unwrap();
        assert_eq!(registry.find("www").unwrap().id(), &web.id);
        assert!(matches!(registry.find("web"), Err(Error::NoSuchSandbox(_))));
        for name in ["db", "www"] {
            let refused = registry.rename(&web.id, name);
            assert!(matches!(refused, Err(Error::NameInUse { .. })), "{name}");
        }
        assert!(matches!(
            registry.rename(&web.id, "-x"),
            Err(Error::InvalidName(_))
        ));
        let gone = SandboxId::random().unwrap();
        assert!(matches!(
            registry.rename(&gone, "new"),
            Err(Error::NoSuchSandbox(_))
        ));
        // The old one is free.
        create(&registry, Some("web")).unwrap();
    }

    fn create(registry: &Registry, name: Option<&str>) -> Result<Config, Error> {
        registry.create(SandboxId::random()?, name, config, |_| Ok(()))
    }

    #[test]
    fn a_sandbox_is_found_by_id_name_and_unique_prefix() {
        let (_temporary, registry) = registry();
        let made = create(&registry, Some("web")).unwrap();
        for reference in [made.id.as_str(), made.id.short(), &made.id.as_str()[..1], "web"] {
            assert_eq!(registry.find(reference).unwrap().config, made, "{reference}");
        }
    }

    #[test]
    fn unknown_references_say_so() {
        let (_temporary, registry) = registry();
        create(&registry, Some("web")).unwrap();
        for reference in ["", "nope", "zz", "../web", &"0".repeat(64), &"0".repeat(65)] {
            assert!(
                matches!(registry.find(reference), Err(Error::NoSuchSandbox(_))),
                "{reference}"
            );
        }
    }

    #[test]
    fn a_prefix_of_two_ids_is_ambiguous() {
        let (_temporary, registry) = registry();
        // With seventeen ids two must start with the same of sixteen digits.
        let ids: Vec<_> = (0..17).map(|_| create(&registry, None).unwrap().id).collect();
        let shared = ids
            .iter()
            .map(|id| &id.as_str()[..1])
            .find(|digit| ids.iter().filter(|id| id.as_str().starts_with(digit)).count() > 1)
            .unwrap();
        assert!(matches!(registry.find(shared), Err(Error::AmbiguousPrefix(_))));
    }

    #[test]
    fn a_name_belongs_to_one_sandbox() {
        let (_temporary, registry) = registry();
        create(&registry, Some("web")).unwrap();
        assert!(matches!(
            create(&registry, Some("web")),
            Err(Error::NameInUse { .. })
        ));
        assert_eq!(registry.list().unwrap().len(), 1);
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        let (_temporary, registry) = registry();
        let result = registry.create(SandboxId::random().unwrap(), None, config, |directory| {
            fs::write(directory.disk(), "half").unwrap();
            Err(Error::NoHome)
        });
        assert!(result.is_err());
        assert!(registry.names().unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_creation_left_is_swept_by_the_next() {
        let (_temporary, registry) = registry();
        fs::create_dir(registry.directory.join(".new-dead")).unwrap();
        create(&registry, None).unwrap();
        assert_eq!(registry.names().unwrap().len(), 1);
    }

    #[test]
    fn a_removal_that_is_under_way_is_left_alone_until_its_process_ends() {
        let (_temporary, registry) = registry();
        let going = registry.directory.join(".removed-0");
        fs::create_dir(&going).unwrap();
        let claimed = claim(&going).unwrap().unwrap();
        assert!(claim(&going).unwrap().is_none());
        registry.sweep();
        assert!(going.exists());
        drop(claimed);
        registry.sweep();
        assert!(!going.exists());
    }

    #[test]
    fn a_sandbox_whose_supervisor_died_is_shown_as_exited_and_can_be_removed() {
        let (_temporary, registry) = registry();
        let made = create(&registry, None).unwrap();
        let directory = registry.directory(&made.id);
        let lock = Lock::try_take(&directory.lock()).unwrap().unwrap();
        directory
            .write_state(&State::created().running(Timestamp::now(), live()))
            .unwrap();
        let sandbox = registry.load(&made.id).unwrap();
        assert!(sandbox.is_running() && sandbox.supervised);

        drop(lock);
        let sandbox = registry.load(&made.id).unwrap();
        assert_eq!(
            (sandbox.state.status, sandbox.state.exit_code),
            (Status::Exited, 137)
        );
        assert!(!sandbox.supervised);
        assert_eq!(directory.read_state().unwrap(), sandbox.state);

        let lock = Lock::try_take(&directory.lock()).unwrap().unwrap();
        registry.remove(&made.id, &lock, false).unwrap();
        assert!(matches!(registry.load(&made.id), Err(Error::NoSuchSandbox(_))));
        assert!(registry.names().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_does_not_hide_the_other_sandboxes() {
        let (_temporary, registry) = registry();
        let broken = create(&registry, None).unwrap();
        create(&registry, None).unwrap();
        fs::write(registry.directory(&broken.id).state(), "{").unwrap();
        assert_eq!(registry.list().unwrap().len(), 1);
        assert!(matches!(registry.load(&broken.id), Err(Error::Record { .. })));
    }
}
