//! What a user has set for all sandboxes to come: a small file, over which the environment goes, over which an option goes.
//!
//! `config.json` in brig's root is one object of texts, as [`Setting::check`] takes them.

use std::{collections::BTreeMap, env, fmt, io, path::PathBuf, str::FromStr};

use crate::{
    Error, Isolation, Paths, isolation,
    resources::{Cpus, MemoryMib},
    sandbox::{read_record, write_record},
};

/// Something that can be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// What a new sandbox is walled off by.
    Isolation,
    /// The memory of a new sandbox.
    Memory,
    /// The CPUs of a new sandbox.
    Cpus,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody has said anything.
    Default,
    /// The file.
    File,
    /// A variable of the environment.
    Environment,
}

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(BTreeMap<String, String>);

impl Setting {
    /// All, in the order in which they are listed.
    pub const ALL: [Self; 3] = [Self::Isolation, Self::Memory, Self::Cpus];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Isolation => "isolation",
            Self::Memory => "memory",
            Self::Cpus => "cpus",
        }
    }

    /// The variable that goes over the file.
    pub fn variable(self) -> &'static str {
        match self {
            Self::Isolation => isolation::VARIABLE,
            Self::Memory => "BRIG_MEMORY",
            Self::Cpus => "BRIG_CPUS",
        }
    }

    /// What it is when nobody says anything. An empty text is nothing: a guest's own default, and no limit of a container.
    pub fn default_value(self) -> &'static str {
        match self {
            Self::Isolation => "vm",
            Self::Memory | Self::Cpus => "",
        }
    }

    /// Checks a value.
    ///
    /// # Errors
    /// As those of the option of `run` with the same name.
    pub fn check(self, value: &str) -> Result<(), Error> {
        match self {
            Self::Isolation => value.parse::<Isolation>().map(drop),
            Self::Memory => value.parse::<MemoryMib>().map(drop),
            Self::Cpus => value.parse::<Cpus>().map(drop),
        }
    }
}

impl FromStr for Setting {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|setting| setting.as_str() == text);
        found.ok_or_else(|| Error::NoSuchSetting(text.to_owned()))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Settings {
    /// What the file says; nothing when there is none.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Record`]; [`Error::Setting`] for what is in it and should not be.
    pub fn read(paths: &Paths) -> Result<Self, Error> {
        let path = file(paths);
        let settings = match read_record(&path) {
            Ok(entries) => Self(entries),
            Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(e) => return Err(e),
        };
        for (name, value) in &settings.0 {
            let checked = name.parse::<Setting>().and_then(|setting| setting.check(value));
            checked.map_err(|e| Error::Setting {
                place: path.display().to_string(),
                source: Box::new(e),
            })?;
        }
        Ok(settings)
    }

    /// Sets something in the file, or removes it from there.
    ///
    /// # Errors
    /// Those of [`Setting::check`] and of the file.
    pub fn set(paths: &Paths, setting: Setting, value: Option<&str>) -> Result<(), Error> {
        let mut settings = Self::read(paths)?;
        match value {
            Some(value) => {
                setting.check(value)?;
                settings.0.insert(setting.to_string(), value.to_owned());
            }
            None => _ = settings.0.remove(setting.as_str()),
        }
        write_record(&file(paths), &settings.0)
    }

    /// The value that counts, and where it comes from.
    ///
    /// # Errors
    /// [`Error::Setting`] when the environment says what cannot be.
    pub fn value(&self, setting: Setting) -> Result<(String, Source), Error> {
        self.value_with(setting, |name| {
            env::var_os(name).map(|value| value.to_string_lossy().into_owned())
        })
    }

    fn value_with(
        &self,
        setting: Setting,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<(String, Source), Error> {
        let name = setting.variable();
        if let Some(value) = variable(name).filter(|value| !value.is_empty()) {
            setting.check(&value).map_err(|e| Error::Setting {
                place: format!("${name}"),
                source: Box::new(e),
            })?;
            return Ok((value, Source::Environment));
        }
        Ok(match self.0.get(setting.as_str()) {
            Some(value) => (value.clone(), Source::File),
            None => (setting.default_value().to_owned(), Source::Default),
        })
    }

    /// What a new sandbox is walled off by.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn isolation(&self) -> Result<Isolation, Error> {
        self.value(Setting::Isolation)?.0.parse()
    }

    /// The memory of a new sandbox, when anybody has said anything.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn memory(&self) -> Result<Option<MemoryMib>, Error> {
        self.parsed(Setting::Memory)
    }

    /// The CPUs of a new sandbox, when anybody has said anything.
    ///
    /// # Errors
    /// As [`Self::value`].
    pub fn cpus(&self) -> Result<Option<Cpus>, Error> {
        self.parsed(Setting::Cpus)
    }

    fn parsed<T: FromStr<Err = Error>>(&self, setting: Setting) -> Result<Option<T>, Error> {
        let (value, _) = self.value(setting)?;
        if value.is_empty() {
            Ok(None)
        } else {
            value.parse().map(Some)
        }
    }
}

fn file(paths: &Paths) -> PathBuf {
    paths.root.join("config.json")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::test_support::paths;

    fn nothing(_: &str) -> Option<String> {
        None
    }

    #[test]
    fn a_value_comes_from_the_environment_else_from_the_file() {
        let (_directory, paths) = paths();
        paths.make().unwrap();
        let value = |variable: fn(&str) -> Option<String>| {
            Settings::read(&paths)
                .unwrap()
                .value_with(Setting::Isolation, variable)
        };
        assert_eq!(value(nothing).unwrap(), ("vm".into(), Source::Default));
        Settings::set(&paths, Setting::Isolation, Some("container")).unwrap();
        assert_eq!(value(nothing).unwrap(), ("container".into(), Source::File));
        let says_vm = |name: &str| (name == "BRIG_ISOLATION").then(|| "vm".to_owned());
        assert_eq!(value(says_vm).unwrap(), ("vm".into(), Source::Environment));
        assert_eq!(value(|_| Some(String::new())).unwrap().1, Source::File);
        let error = value(|_| Some("jail".to_owned())).unwrap_err();
        assert!(
            crate::error::chain(&error).contains("$BRIG_ISOLATION: invalid isolation \"jail\""),
            "{error:?}"
        );
        Settings::set(&paths, Setting::Isolation, None).unwrap();
        assert_eq!(value(nothing).unwrap().1, Source::Default);
    }

    #[test]
    fn what_cannot_be_is_not_set_and_not_read() {
        let (_directory, paths) = paths();
        paths.make().unwrap();
        for (setting, value) in [
            (Setting::Isolation, "none"),
            (Setting::Memory, "1k"),
            (Setting::Cpus, "many"),
            (Setting::Cpus, ""),
        ] {
            assert!(
                Settings::set(&paths, setting, Some(value)).is_err(),
                "{setting} {value}"
            );
        }
        assert_eq!(Settings::read(&paths).unwrap(), Settings::default());
        Settings::set(&paths, Setting::Memory, Some("256m")).unwrap();
        Settings::set(&paths, Setting::Cpus, Some("1.5")).unwrap();
        let settings = Settings::read(&paths).unwrap();
        assert_eq!(settings.value_with(Setting::Memory, nothing).unwrap().0, "256m");
        assert_eq!(settings.value_with(Setting::Cpus, nothing).unwrap().0, "1.5");
        for text in [
            "{\"isolation\": \"jail\"}",
            "{\"colour\": \"red\"}",
            "{\"memory\": 5}",
            "vm",
        ] {
            fs::write(file(&paths), text).unwrap();
            let line = crate::error::chain(&Settings::read(&paths).unwrap_err());
            assert!(line.contains("config.json") && !line.contains('\n'), "{line}");
        }
    }
}
