//! A sandbox of a snapshot at its first start: it goes on where the saved one was, with its process running already.

use std::fs::{self, File};

use brig_protocol::agent::Identity;

use super::start::{Start, Streams, open_disk, whole};
use crate::{
    Error,
    clock::{Stage, Timing},
    disk::{self, DISK_BYTES},
    error::{chain, one_line},
    guest::{Disk, Guest, Kvm, Origin, SavedGuest},
    snapshot::{Layout, Snapshot, Snapshots},
    spec::files_with,
    template::with_volumes,
    volume::Held,
};

/// Most characters of a kernel's release.
const KERNEL_TEXT: usize = 64;

impl Start<'_> {
    /// The snapshot that the sandbox goes on from, named `name`, and its volumes, which become copies of what is in that.
    pub(super) fn open_snapshot(&self, name: &str) -> Result<(Snapshot, Vec<Held>), Error> {
        let snapshot = Snapshots::new(self.paths).open(name)?;
        let volumes = self.open_volumes(&snapshot.volumes)?;
        Ok((snapshot, volumes))
    }

    /// Goes on from a snapshot: the process runs already.
    pub(super) async fn resume(
        &self,
        name: &str,
        snapshot: Snapshot,
        volumes: Vec<Held>,
        kvm: &Kvm,
        image: File,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams, Layout), Error> {
        let layout = snapshot.record.layout;
        if image.metadata().map_err(Error::Runtime)?.len() != snapshot.record.image_bytes {
            let reason = format!("needs the image {} as it was unpacked then", self.config.image);
            return Err(Error::snapshot(name, reason));
        }
        disk::copy_whole(&snapshot.disk, &self.directory.disk())?;
        let gone_on = self.go_on(snapshot, volumes, kvm, image, timing).await;
        if gone_on.is_err() {
            // The next start is the first again.
            let _ = fs::remove_file(self.directory.disk());
        }
        match gone_on {
            Ok((guest, streams)) => Ok((guest, streams, layout)),
            Err(Error::Vmm(e)) if e.is_of_host() => Err(e.into()),
            Err(e) => Err(Error::snapshot(name, format!("cannot go on here: {}", chain(&e)))),
        }
    }

    async fn go_on(
        &self,
        snapshot: Snapshot,
        volumes: Vec<Held>,
        kvm: &Kvm,
        image: File,
        timing: &mut Timing,
    ) -> Result<(Guest, Streams), Error> {
        let disks = self.snapshot_disks(image, snapshot.record.layout, &volumes)?;
        let (near, far) = Streams::pairs(self.config.stdin, self.config.tty)?;
        let plan = SavedGuest {
            saved: snapshot.saved,
            disks,
            io: self.config.device_rates.of_guest(),
            streams: far,
            identity: Some(Identity {
                hostname: self.config.hostname.clone(),
                files: files_with(
                    self.config.id.as_str(),
                    &self.config.hostname,
                    &self.config.options,
                ),
            }),
            origin: Origin::Snapshot,
            kernel: one_line(&snapshot.record.kernel, KERNEL_TEXT),
        };
        let mut guest = Guest::restore(self.host, kvm, plan, self.console()?, timing).await?;
        guest.vmm.keep_volumes(volumes);
        if let Err(failure) = guest.awake(timing).await {
            return Err(guest.explain(failure).await);
        }
        if self.count {
            guest.count(Stage::Ready, timing).await;
        }
        Ok((guest, near))
    }

    fn snapshot_disks(&self, image: File, layout: Layout, volumes: &[Held]) -> Result<Vec<Disk>, Error> {
        let image = whole(image, false)?;
        let own = whole(open_disk(&self.directory.disk())?, true)?;
        let volumes = self.volume_disks(volumes)?;
        Ok(match layout {
            Layout::Booted => [image, own].into_iter().chain(volumes).collect(),
            Layout::Fresh => with_volumes(vec![image.in_slot(), own, Disk::empty_slot(true)], volumes),
            Layout::Used => {
                // The guest has it mounted, and nothing in it uses it: its length is all that has to be right.
                let directory = self.directory.path();
                let make = || {
                    let file = tempfile::tempfile_in(directory)?;
                    file.set_len(DISK_BYTES)?;
                    Disk::whole(file, true)
                };
                let mounted = make().map_err(Error::file("make a file in", directory))?;
                with_volumes(vec![image.in_slot(), mounted, own.in_slot()], volumes)
            }
        })
    }
}
