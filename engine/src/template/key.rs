//! What a template is made from. Two guests with the same ingredients are interchangeable; anything else that differs, a
//! program, a processor, the host's kernel, makes another template.

use std::{fmt, fs, os::unix::fs::MetadataExt, path::Path, str::FromStr};

use brig_image_store::digest::Digest;
use brig_protocol::{agent::VERSION as AGENT_VERSION, vmm::KvmKind};
use serde::{Deserialize, Serialize};

use super::{Shape, TEMPLATE_VERSION};
use crate::{
    Error, Paths,
    cpu::Cpu,
    disk,
    id::{ID_DIGITS, SHORT_DIGITS, is_lower_hex},
    spec::{FRESH_DISK, model_spec},
};

/// A file that is taken to be the same as long as these are: megabytes are not read at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileIdentity {
    /// Device.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Modification time, in nanoseconds since 1970.
    pub modified_ns: i64,
}

impl FileIdentity {
    /// The identity of the file at `path`, which belongs to brig's installation.
    ///
    /// # Errors
    /// [`Error::Installation`].
    pub fn of(path: &Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path).map_err(|source| Error::Installation {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: metadata
                .mtime()
                .saturating_mul(1_000_000_000)
                .saturating_add(metadata.mtime_nsec()),
        })
    }
}

/// Everything that a saved guest depends on but its shape: brig's programs and the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// brig-vmm.
    pub vmm: FileIdentity,
    /// The guest's kernel.
    pub kernel: FileIdentity,
    /// The initrd with the agent.
    pub initrd: FileIdentity,
    /// Version of the messages to the agent.
    pub agent: u32,
    /// What kind of KVM.
    pub kvm: KvmKind,
    /// The processor.
    pub cpu: Cpu,
    /// `uname -r` of the host: what KVM saves and takes back may change with it.
    pub host_kernel: String,
}

impl Platform {
    /// Of the programs of `paths` on this host.
    ///
    /// # Errors
    /// [`Error::Installation`].
    pub fn this(paths: &Paths, kvm: KvmKind) -> Result<Self, Error> {
        Ok(Self {
            vmm: FileIdentity::of(&paths.vmm())?,
            kernel: FileIdentity::of(&paths.kernel())?,
            initrd: FileIdentity::of(&paths.initrd())?,
            agent: AGENT_VERSION,
            kvm,
            cpu: Cpu::this().clone(),
            host_kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        })
    }
}

/// Everything that decides whether a template fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingredients {
    /// [`TEMPLATE_VERSION`].
    pub version: u32,
    /// The guest's size.
    pub shape: Shape,
    /// brig's programs and the host.
    pub platform: Platform,
    /// The blank disk that is mounted in it.
    pub disk: String,
    /// SHA-256 of the spec that it was prepared for.
    pub spec: String,
}

impl Ingredients {
    /// What a template of this shape would be made from here and now.
    ///
    /// # Errors
    /// [`Error::Installation`].
    pub fn gather(paths: &Paths, kvm: KvmKind, shape: Shape) -> Result<Self, Error> {
        Ok(Self {
            version: TEMPLATE_VERSION,
            shape,
            platform: Platform::this(paths, kvm)?,
            disk: disk::blank_name(),
            spec: Digest::of(&json(&model_spec(FRESH_DISK))).hex(),
        })
    }

    /// The name that stands for them.
    pub fn key(&self) -> Key {
        Key(Digest::of(&json(self)).hex())
    }
}

/// Plain structures of numbers and text always have a JSON form.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// The id of a template: 64 lowercase hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

impl Key {
    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits.
    pub fn short(&self) -> &str {
        &self.0[..SHORT_DIGITS]
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.len() == ID_DIGITS && is_lower_hex(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::NoSuchTemplate(text.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{resources::MemoryMib, test_support::paths};

    fn shape() -> Shape {
        Shape::new(None, None)
    }

    #[test]
    fn the_same_ingredients_have_the_same_key() {
        let (_temporary, paths) = paths();
        let gather = || Ingredients::gather(&paths, KvmKind::Standard, shape()).unwrap();
        assert_eq!(gather().key(), gather().key());
        assert_eq!(gather().key().as_str().parse::<Key>().unwrap(), gather().key());
    }

    #[test]
    fn each_ingredient_changes_the_key() {
        let (_temporary, paths) = paths();
        let gather = || Ingredients::gather(&paths, KvmKind::Standard, shape()).unwrap();
        let mut keys = vec![gather().key()];
        for file in [paths.vmm(), paths.kernel(), paths.initrd()] {
            fs::write(&file, "another").unwrap();
            keys.push(gather().key());
            // As many bytes in another file.
            fs::write(file.with_extension("other"), "another").unwrap();
            fs::rename(file.with_extension("other"), &file).unwrap();
            keys.push(gather().key());
        }
        let changes: [fn(&mut Ingredients); 10] = [
            |i| i.version += 1,
            |i| i.shape.vcpus += 1,
            |i| i.shape.memory = MemoryMib::UNPACK,
            |i| i.platform.kvm = KvmKind::Emulated,
            |i| i.platform.agent += 1,
            |i| i.platform.cpu.microcode.push('1'),
            |i| i.platform.cpu.flags.push_str(" x"),
            |i| i.platform.host_kernel.push('1'),
            |i| i.disk.push('1'),
            |i| i.spec.push('1'),
        ];
        for change in changes {
            let mut changed = gather();
            change(&mut changed);
            keys.push(changed.key());
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn a_missing_program_is_named() {
        let (_temporary, paths) = paths();
        fs::remove_file(paths.vmm()).unwrap();
        let error = Ingredients::gather(&paths, KvmKind::Standard, shape()).unwrap_err();
        assert!(error.to_string().contains("brig-vmm"), "{error}");
    }
}
