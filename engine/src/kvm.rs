//! `/dev/kvm`: opening it, and finding out once a host what kind it is.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsFd,
    time::Duration,
};

use brig_protocol::vmm::{Command, Event, KvmKind};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{
    Error, Paths,
    cpu::Cpu,
    sandbox::write_record,
    vmm::{Spawn, VmmError, describe_end},
};

/// How long the probe's few instructions may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// Opens `/dev/kvm`.
///
/// # Errors
/// [`Error::NoKvm`], [`Error::KvmPermission`], [`Error::Kvm`].
pub fn open() -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NoKvm,
            io::ErrorKind::PermissionDenied => Error::KvmPermission,
            // The node is there and no driver behind it: ENODEV or ENXIO.
            _ if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => Error::NoKvm,
            _ => Error::Kvm(e),
        })
}

/// The remembered answer and the host that gave it.
#[derive(Serialize, Deserialize)]
struct Remembered {
    host: Host,
    kvm: KvmKind,
}

/// What the answer depends on.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Host {
    boot_id: String,
    kernel: String,
    cpu: String,
    microcode: String,
}

impl Host {
    fn this() -> Self {
        let cpu = Cpu::this();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            boot_id: boot_id.trim().to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            cpu: cpu.name.clone(),
            microcode: cpu.microcode.clone(),
        }
    }
}

/// What kind of KVM this host has, when that has been found out already.
pub fn remembered(paths: &Paths) -> Option<KvmKind> {
    let bytes = fs::read(paths.kvm_cache()).ok()?;
    let remembered: Remembered = serde_json::from_slice(&bytes).ok()?;
    (remembered.host == Host::this()).then_some(remembered.kvm)
}

/// What kind of KVM `kvm` is: remembered, or asked of a VMM.
///
/// # Errors
/// [`Error::Vmm`]. An answer that cannot be remembered is no error.
pub async fn kind(paths: &Paths, kvm: &File, spawn: &dyn Spawn) -> Result<KvmKind, Error> {
    if let Some(kind) = remembered(paths) {
        return Ok(kind);
    }
    let kvm = probe(kvm, spawn).await?;
    let host = Host::this();
    let _ = write_record(&paths.kvm_cache(), &Remembered { host, kvm });
    Ok(kvm)
}

/// Asks a VMM.
async fn probe(kvm: &File, spawn: &dyn Spawn) -> Result<KvmKind, Error> {
    let mut vmm = spawn.spawn()?;
    let ask = async {
        vmm.channel.send(&Command::Probe, &[kvm.as_fd()]).await?;
        vmm.channel.event().await
    };
    let answer = timeout(PROBE_TIMEOUT, ask).await;
    let result = match answer {
        Ok(Ok(Event::Probed { kvm })) => Ok(kvm),
        Ok(Ok(Event::Failed { message } | Event::Refused { message })) => {
            Err(VmmError::Failed(crate::error::one_line(&message, 1000)).into())
        }
        Ok(Ok(_)) => Err(VmmError::Ended("answered the probe with something else".into()).into()),
        Ok(Err(_)) => Err(VmmError::Ended(describe_end(vmm.ended().await)).into()),
        Err(_) => Err(VmmError::Timeout(PROBE_TIMEOUT.as_secs()).into()),
    };
    vmm.kill().await;
    result
}

/// Whether a kind of KVM interprets the guest's kernel.
pub fn is_emulated(kvm: KvmKind) -> bool {
    kvm == KvmKind::Emulated
}

/// A kind of KVM in words, for `brig system info`.
pub fn describe(kvm: KvmKind) -> &'static str {
    match kvm {
        KvmKind::Standard => "standard: hardware virtualization (VMX or SVM) runs the guest's kernel",
        KvmKind::Emulated => {
            "emulated: without hardware virtualization KVM interprets the guest's kernel; workarounds are active, and starts take seconds"
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::LocalSet;

    use super::*;
    use crate::test_support::{FakeVmm, paths};

    #[tokio::test]
    async fn the_probe_is_asked_once_a_host() {
        let (_temporary, paths) = paths();
        let device = File::open("/dev/null").unwrap();
        LocalSet::new()
            .run_until(async {
                let fake = FakeVmm::new(|vmm| vmm.answer_probe(KvmKind::Emulated));
                assert_eq!(kind(&paths, &device, &fake).await.unwrap(), KvmKind::Emulated);
                assert_eq!(kind(&paths, &device, &fake).await.unwrap(), KvmKind::Emulated);
                assert_eq!(fake.spawned(), 1);
            })
            .await;
    }

    #[tokio::test]
    async fn an_answer_of_another_boot_is_asked_for_again() {
        let (_temporary, paths) = paths();
        let device = File::open("/dev/null").unwrap();
        let mut host = Host::this();
        host.boot_id = "before".into();
        write_record(
            &paths.kvm_cache(),
            &Remembered {
                host,
                kvm: KvmKind::Emulated,
            },
        )
        .unwrap();
        LocalSet::new()
            .run_until(async {
                let fake = FakeVmm::new(|vmm| vmm.answer_probe(KvmKind::Standard));
                assert_eq!(kind(&paths, &device, &fake).await.unwrap(), KvmKind::Standard);
            })
            .await;
    }

    #[tokio::test]
    async fn a_vmm_that_dies_in_the_probe_is_an_error() {
        let (_temporary, paths) = paths();
        let device = File::open("/dev/null").unwrap();
        LocalSet::new()
            .run_until(async {
                let fake = FakeVmm::new(drop);
                assert!(matches!(
                    kind(&paths, &device, &fake).await,
                    Err(Error::Vmm(VmmError::Ended(_)))
                ));
                assert!(!paths.kvm_cache().exists());
            })
            .await;
    }
}
