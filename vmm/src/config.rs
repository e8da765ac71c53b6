//! Turns a boot or restore command and its descriptors into what a machine is built from. Everything that a supervisor says
//! is checked here and nowhere else.

use std::{
    collections::HashSet,
    fs::File,
    io,
    os::{
        fd::{FromRawFd, IntoRawFd, OwnedFd},
        unix::fs::FileTypeExt,
    },
};

use brig_protocol::vmm::{
    BootConfig, DiskConfig, FdIndex, IoLimits, KvmKind, MEMORY_MIB_MAX, MEMORY_MIB_MIN, RestoreConfig,
    SavedStream, SegmentConfig, VCPUS_MAX,
};
use kvm_ioctls::Kvm;
use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, fcntl_setfl, seek};

use crate::{
    devices::virtio::block::{Disk, disk::SECTOR_BYTES},
    layout::VIRTIO_DEVICES_MAX,
    snapshot::DiskState,
};

/// Most disks of a guest: vsock, entropy and balloon have a slot each.
pub const DISKS_MAX: usize = VIRTIO_DEVICES_MAX - 3;

/// Why a boot command is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A descriptor is named that did not come, or twice.
    #[error("Descriptor {0} is missing or used twice")]
    Descriptor(FdIndex),
    /// Over or under the limit.
    #[error("A guest has 1 to {VCPUS_MAX} vCPUs, not {0}")]
    Vcpus(u8),
    /// Over or under the limit.
    #[error("A guest has {MEMORY_MIB_MIN} to {MEMORY_MIB_MAX} MiB of memory, not {0}")]
    Memory(u32),
    /// Over the limit.
    #[error("A guest has at most {DISKS_MAX} disks, not {0}")]
    Disks(usize),
    /// A disk is not as it must be.
    #[error("Disk {index} is unusable")]
    Disk {
        /// Its place in the list.
        index: usize,
        /// What is wrong.
        #[source]
        source: DiskError,
    },
    /// A port is listed twice.
    #[error("Port {0} has two listeners")]
    Listener(u32),
    /// The command line has a character that would end or distort it.
    #[error("The kernel command line has a control character")]
    CommandLine,
    /// A descriptor cannot be examined.
    #[error("Cannot examine the {what}")]
    Examine {
        /// Which one.
        what: &'static str,
        /// errno.
        #[source]
        source: io::Error,
    },
}

/// What is wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A writable disk is one file.
    #[error("A writable disk has one segment, not {0}")]
    Segments(usize),
    /// A writable disk consists of whole sectors.
    #[error("Its length of {0} bytes is no multiple of {SECTOR_BYTES}")]
    Sectors(u64),
    /// A segment is longer than its file.
    #[error("Its file has {file} bytes, not {length}")]
    TooShort {
        /// Bytes of the file.
        file: u64,
        /// Bytes that the segment should have.
        length: u64,
    },
    /// Neither a regular file nor a block device, or not open for writing.
    #[error("Its descriptor is of the wrong kind")]
    Kind,
    /// What the guest is told of its size is impossible.
    #[error("A guest cannot be told that it has {0} bytes")]
    ShownBytes(u64),
    /// Longer than any file.
    #[error("It is too large")]
    TooLarge,
    /// fstat(2) failed.
    #[error("Its file cannot be examined")]
    Examine(#[source] io::Error),
}

/// What a machine is built from.
#[derive(Debug)]
pub struct MachineConfig {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// What kind of KVM it is.
    pub kind: KvmKind,
    /// vCPUs.
    pub vcpus: u8,
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// ELF vmlinux.
    pub kernel: File,
    /// cpio archive.
    pub initrd: File,
    /// Bytes of it.
    pub initrd_bytes: u64,
    /// Where the kernel's log goes; non-blocking.
    pub console: OwnedFd,
    /// For the end of the command line.
    pub extra_command_line: String,
    /// Block devices in order.
    pub disks: Vec<Slot>,
    /// How fast they are.
    pub io: IoLimits,
    /// Ports that the guest may connect to.
    pub listeners: Vec<(u32, OwnedFd)>,
}

/// What a machine is restored from.
#[derive(Debug)]
pub struct RestoredMachineConfig {
    /// `/dev/kvm`.
    pub kvm: Kvm,
    /// What kind of KVM it is.
    pub kind: KvmKind,
    /// The saved memory.
    pub memory: File,
    /// Everything else.
    pub state: File,
    /// Where the kernel's log goes; non-blocking.
    pub console: OwnedFd,
    /// Block devices in order.
    pub disks: Vec<Slot>,
    /// How fast they are.
    pub io: IoLimits,
    /// New host ends of saved connections.
    pub streams: Vec<(SavedStream, OwnedFd)>,
    /// Pages to map ahead.
    pub prefetch: Option<File>,
}

/// A block device.
#[derive(Debug)]
pub struct Slot {
    /// The disk in it.
    pub disk: Disk,
    /// What the guest is told of it.
    pub shown: DiskState,
}

/// The descriptors of a message, each to be taken once.
struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    fn take(&mut self, index: FdIndex) -> Result<OwnedFd, ConfigError> {
        self.0
            .get_mut(usize::from(index))
            .and_then(Option::take)
            .ok_or(ConfigError::Descriptor(index))
    }
}

/// Takes `/dev/kvm`, which is descriptor 0 of a probe and of a boot.
///
/// # Errors
/// [`ConfigError::Descriptor`].
pub fn take_kvm(fds: Vec<OwnedFd>) -> Result<Kvm, ConfigError> {
    Ok(kvm(Descriptors(fds.into_iter().map(Some).collect()).take(0)?))
}

fn kvm(fd: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is open and handed over. Whether it is /dev/kvm is for KVM_GET_API_VERSION to say.
    unsafe { Kvm::from_raw_fd(fd.into_raw_fd()) }
}

impl MachineConfig {
    /// Checks `config`, whose descriptors are `fds`.
    ///
    /// # Errors
    /// [`ConfigError`] says what is wrong.
    pub fn new(config: BootConfig, fds: Vec<OwnedFd>) -> Result<Self, ConfigError> {
        if config.vcpus == 0 || config.vcpus > VCPUS_MAX {
            return Err(ConfigError::Vcpus(config.vcpus));
        }
        if !(MEMORY_MIB_MIN..=MEMORY_MIB_MAX).contains(&config.memory_mib) {
            return Err(ConfigError::Memory(config.memory_mib));
        }
        if config.disks.len() > DISKS_MAX {
            return Err(ConfigError::Disks(config.disks.len()));
        }
        if config.extra_command_line.chars().any(char::is_control) {
            return Err(ConfigError::CommandLine);
        }
        let mut fds = Descriptors(fds.into_iter().map(Some).collect());
        let kvm = kvm(fds.take(0)?);
        let initrd = File::from(fds.take(config.initrd)?);
        let initrd_bytes = length(&initrd).map_err(|source| ConfigError::Examine {
            what: "initrd",
            source,
        })?;
        Ok(Self {
            kvm,
            kind: config.kvm,
            vcpus: config.vcpus,
            memory_bytes: u64::from(config.memory_mib) << 20,
            kernel: File::from(fds.take(config.kernel)?),
            initrd,
            initrd_bytes,
            console: non_blocking(fds.take(config.console)?)?,
            extra_command_line: config.extra_command_line,
            disks: disks(config.disks, &mut fds)?,
            io: config.io,
            listeners: listeners(&config.listeners, &mut fds)?,
        })
    }
}

impl RestoredMachineConfig {
    /// Checks `config`, whose descriptors are `fds`.
    ///
    /// # Errors
    /// [`ConfigError`] says what is wrong.
    pub fn new(config: RestoreConfig, fds: Vec<OwnedFd>) -> Result<Self, ConfigError> {
        if config.disks.len() > DISKS_MAX {
            return Err(ConfigError::Disks(config.disks.len()));
        }
        let mut fds = Descriptors(fds.into_iter().map(Some).collect());
        Ok(Self {
            kvm: kvm(fds.take(0)?),
            kind: config.kvm,
            memory: File::from(fds.take(config.memory)?),
            state: File::from(fds.take(config.state)?),
            console: non_blocking(fds.take(config.console)?)?,
            disks: disks(config.disks, &mut fds)?,
            io: config.io,
            streams: config
                .streams
                .iter()
                .map(|rejoin| Ok((rejoin.stream, fds.take(rejoin.socket)?)))
                .collect::<Result<_, ConfigError>>()?,
            prefetch: config
                .prefetch
                .map(|index| fds.take(index).map(File::from))
                .transpose()?,
        })
    }
}

/// Takes the two files of a [`brig_protocol::vmm::Command::Save`], memory and state, or of a `RecordPages`.
///
/// # Errors
/// [`ConfigError::Descriptor`].
pub fn take_two_files(fds: Vec<OwnedFd>) -> Result<(File, File), ConfigError> {
    let mut fds = Descriptors(fds.into_iter().map(Some).collect());
    Ok((File::from(fds.take(0)?), File::from(fds.take(1)?)))
}

fn listeners(
    configs: &[brig_protocol::vmm::ListenerConfig],
    fds: &mut Descriptors,
) -> Result<Vec<(u32, OwnedFd)>, ConfigError> {
    let mut ports = HashSet::new();
    configs
        .iter()
        .map(|listener| {
            if ports.insert(listener.port) {
                Ok((listener.port, fds.take(listener.socket)?))
            } else {
                Err(ConfigError::Listener(listener.port))
            }
        })
        .collect()
}

fn disks(configs: Vec<DiskConfig>, fds: &mut Descriptors) -> Result<Vec<Slot>, ConfigError> {
    configs
        .into_iter()
        .enumerate()
        .map(|(index, config)| {
            let files = config
                .segments
                .iter()
                .map(|segment| fds.take(segment.file).map(File::from))
                .collect::<Result<Vec<_>, _>>()?;
            slot(&config, files).map_err(|source| ConfigError::Disk { index, source })
        })
        .collect()
}

fn slot(config: &DiskConfig, files: Vec<File>) -> Result<Slot, DiskError> {
    let disk = disk(config, files)?;
    let shown_bytes = config.shown_bytes.unwrap_or(disk.bytes());
    if !shown_bytes.is_multiple_of(SECTOR_BYTES) || i64::try_from(shown_bytes).is_err() {
        return Err(DiskError::ShownBytes(shown_bytes));
    }
    let shown = DiskState {
        shown_bytes,
        writable: disk.is_writable(),
    };
    Ok(Slot { disk, shown })
}

fn disk(config: &DiskConfig, files: Vec<File>) -> Result<Disk, DiskError> {
    for (file, segment) in files.iter().zip(&config.segments) {
        check_segment(file, segment, config.writable)?;
    }
    let lengths = config.segments.iter().map(|segment| segment.length);
    let mut parts: Vec<_> = files.into_iter().zip(lengths).collect();
    if !config.writable {
        return Disk::read_only(parts).ok_or(DiskError::TooLarge);
    }
    match (parts.pop(), parts.is_empty()) {
        (None, _) if config.shown_bytes.is_some() => Ok(Disk::empty_slot()),
        (Some((file, length)), true) if length % SECTOR_BYTES == 0 => Ok(Disk::writable(file, length)),
        (Some((_, length)), true) => Err(DiskError::Sectors(length)),
        (last, _) => Err(DiskError::Segments(parts.len() + usize::from(last.is_some()))),
    }
}

fn check_segment(file: &File, segment: &SegmentConfig, writable: bool) -> Result<(), DiskError> {
    let kind = file.metadata().map_err(DiskError::Examine)?.file_type();
    let mode = fcntl_getfl(file).map_err(|e| DiskError::Examine(e.into()))? & OFlags::RWMODE;
    if !(kind.is_file() || kind.is_block_device()) || writable && mode != OFlags::RDWR {
        return Err(DiskError::Kind);
    }
    let bytes = length(file).map_err(DiskError::Examine)?;
    if bytes < segment.length {
        return Err(DiskError::TooShort {
            file: bytes,
            length: segment.length,
        });
    }
    Ok(())
}

/// Bytes of a regular file or a block device.
fn length(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

fn non_blocking(fd: OwnedFd) -> Result<OwnedFd, ConfigError> {
    fcntl_getfl(&fd)
        .and_then(|flags| fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
        .map_err(|e| ConfigError::Examine {
            what: "console",
            source: e.into(),
        })?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use brig_protocol::vmm::ListenerConfig;

    use super::*;

    fn file(bytes: u64) -> OwnedFd {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file.into()
    }

    /// A good configuration: kvm, kernel, initrd, console, and one writable disk of 8 KiB as descriptor 4.
    fn good() -> (BootConfig, Vec<OwnedFd>) {
        let (_reader, writer) = io::pipe().unwrap();
        let config = BootConfig {
            vcpus: 1,
            memory_mib: 128,
            kvm: KvmKind::Standard,
            kernel: 1,
            initrd: 2,
            console: 3,
            extra_command_line: String::new(),
            disks: vec![DiskConfig {
                segments: vec![SegmentConfig {
                    file: 4,
                    length: 8192,
                }],
                writable: true,
                shown_bytes: None,
            }],
            io: IoLimits::default(),
            listeners: vec![ListenerConfig {
                port: 1024,
                socket: 5,
            }],
        };
        (
            config,
            vec![
                file(0),
                file(0),
                file(77),
                writer.into(),
                file(8192),
                UnixStream::pair().unwrap().0.into(),
                file(0),
            ],
        )
    }

    fn refused(change: impl FnOnce(&mut BootConfig)) -> ConfigError {
        let (mut config, fds) = good();
        change(&mut config);
        MachineConfig::new(config, fds).unwrap_err()
    }

    #[test]
    fn a_good_configuration_passes() {
        let (config, fds) = good();
        let machine = MachineConfig::new(config, fds).unwrap();
        assert_eq!(machine.initrd_bytes, 77);
        assert_eq!(machine.memory_bytes, 128 << 20);
        assert_eq!(machine.disks[0].disk.bytes(), 8192);
    }

    #[test]
    fn numbers_over_their_limits_are_refused() {
        assert!(matches!(refused(|c| c.vcpus = 0), ConfigError::Vcpus(0)));
        assert!(matches!(refused(|c| c.vcpus = 33), ConfigError::Vcpus(33)));
        assert!(matches!(refused(|c| c.memory_mib = 63), ConfigError::Memory(63)));
        assert!(matches!(
            refused(|c| c.memory_mib = u32::MAX),
            ConfigError::Memory(_)
        ));
        assert!(matches!(
            refused(|c| c.disks = vec![c.disks[0].clone(); DISKS_MAX + 1]),
            ConfigError::Disks(_)
        ));
        assert!(matches!(
            refused(|c| c.extra_command_line = "a\0b".to_owned()),
            ConfigError::CommandLine
        ));
    }

    #[test]
    fn a_descriptor_that_is_missing_or_used_twice_is_refused() {
        assert!(matches!(refused(|c| c.console = 7), ConfigError::Descriptor(7)));
        assert!(matches!(refused(|c| c.kernel = 0), ConfigError::Descriptor(0)));
        assert!(matches!(
            refused(|c| c.listeners[0].socket = 4),
            ConfigError::Descriptor(4)
        ));
        assert!(matches!(
            refused(|c| {
                c.listeners.push(ListenerConfig {
                    port: 1024,
                    socket: 0,
                });
            }),
            ConfigError::Listener(1024)
        ));
    }

    #[test]
    fn disks_that_do_not_match_their_files_are_refused() {
        let disk_error = |change: fn(&mut DiskConfig)| match refused(|c| change(&mut c.disks[0])) {
            ConfigError::Disk { index: 0, source } => source,
            other => panic!("{other}"),
        };
        assert!(matches!(
            disk_error(|d| d.segments[0].length = 8193),
            DiskError::TooShort {
                file: 8192,
                length: 8193
            }
        ));
        assert!(matches!(
            disk_error(|d| d.segments[0].length = 100),
            DiskError::Sectors(100)
        ));
        assert!(matches!(
            disk_error(|d| d.segments.push(SegmentConfig { file: 6, length: 0 })),
            DiskError::Segments(2)
        ));
        assert!(matches!(
            disk_error(|d| d.segments.clear()),
            DiskError::Segments(0)
        ));
        assert!(matches!(disk_error(|d| d.segments[0].file = 5), DiskError::Kind));
    }
}
