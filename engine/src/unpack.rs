//! An image's layers become one EROFS file, in a guest of its own: the host parses nothing of what is in them.

mod directory;
#[cfg(test)]
mod tests;

use std::{fs::File, time::Duration};

pub use self::directory::ensure_directory;
use brig_image_store::{Image, MaxImageSize, Store, Unpack, UnpackJob};
pub use brig_protocol::agent::UnpackCosts;
use brig_protocol::{
    agent::{FromAgent, ToAgent, UnpackFailure, UnpackSpec},
    vmm::{Event, IoLimits},
};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    Error, Paths,
    clock::{self, monotonic_ns},
    console::Console,
    disk,
    error::{chain, one_line},
    guest::{Disk, Failure, Guest, Kvm, Origin, Plan, SavedGuest},
    host::Host,
    resources::MemoryMib,
    spec::{FRESH_DISK, USED_DISK},
    template::{Cache, Found, Ingredients, Shape, dropped_notice, with_volumes},
    vmm::VmmError,
};

/// How long the agent may be silent. It reports often; the largest step between two reports is one file's.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

/// What a user chooses of an unpack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Boot the guest, even when there is a template.
    pub cold: bool,
    /// How large the image may be.
    pub max_size: MaxImageSize,
}

/// How an unpack went. Times are of the host's `CLOCK_MONOTONIC`, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// It began; waiting for others that unpack the same image comes before.
    pub began_ns: u64,
    /// The guest was ready.
    pub ready_ns: u64,
    /// The agent had written the image.
    pub unpacked_ns: u64,
    /// The image was in the store, on the disk.
    pub done_ns: u64,
    /// What the agent says of its time; untrusted.
    pub costs: UnpackCosts,
    /// Bytes of all compressed layers.
    pub compressed_bytes: u64,
    /// Bytes of the image.
    pub bytes: u64,
    /// Inodes in it, as the agent says; untrusted.
    pub inodes: u64,
}

/// What a user is told of an unpack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// How far it is, in compressed bytes of all layers.
    Progress {
        /// Bytes read so far; untrusted, and at most `total`.
        bytes: u64,
        /// All bytes.
        total: u64,
    },
    /// One line about how it goes.
    Notice(String),
}

/// Makes sure that `image` is unpacked, in a guest from a template when there is one. Returns its EROFS file, and how the
/// unpack went if one was needed. Waits when another process unpacks it just now. Dropping the future ends the guest and
/// leaves nothing behind. Needs a [`tokio::task::LocalSet`].
///
/// # Errors
/// [`Error::Unpack`] with what the agent said; those of booting a guest; [`Error::Image`].
pub async fn ensure(
    paths: &Paths,
    host: &dyn Host,
    store: &Store,
    image: &Image,
    options: Options,
    report: &mut dyn FnMut(Report),
) -> Result<(File, Option<Timing>), Error> {
    let (store, wanted) = (store.clone(), image.clone());
    let found = spawn_blocking(move || store.begin_unpack(&wanted, options.max_size))
        .await
        .map_err(|e| Error::Runtime(std::io::Error::other(e)))??;
    match found {
        Unpack::Done(file) => Ok((file, None)),
        Unpack::Job(job) => {
            let (file, timing) = run(paths, host, image, *job, options, report).await?;
            Ok((file, Some(timing)))
        }
    }
}

async fn run(
    paths: &Paths,
    host: &dyn Host,
    image: &Image,
    job: UnpackJob,
    options: Options,
    report: &mut dyn FnMut(Report),
) -> Result<(File, Timing), Error> {
    let began_ns = monotonic_ns();
    let total = job.spec().layers.iter().map(|layer| layer.length).sum();
    report(Report::Progress { bytes: 0, total });
    let (mut guest, target) = guest_for(paths, host, &|| disks(&job), options.cold, report).await?;
    let spec = UnpackSpec {
        target,
        ..job.spec().clone()
    };
    let ready_ns = monotonic_ns();
    // A guest that has just failed says why below.
    let _ = guest.tell(&ToAgent::Unpack(spec)).await;
    let result = unpacked(&mut guest, total, report).await;
    match result {
        Ok(Ok(done)) => {
            let unpacked_ns = monotonic_ns();
            // From here on nothing writes to the file.
            guest.vmm.kill().await;
            let file = job.commit(done.bytes)?;
            let timing = Timing {
                began_ns,
                ready_ns,
                unpacked_ns,
                done_ns: monotonic_ns(),
                costs: done.costs,
                compressed_bytes: total,
                bytes: done.bytes,
                inodes: done.inodes,
            };
            Ok((file, timing))
        }
        Ok(Err((kind, message))) => Err(Error::Unpack {
            image: name_of(image),
            message: describe(kind, message, options.max_size, job.spec()),
        }),
        Err(failure) => {
            let error = guest.explain(failure).await;
            Err(Error::Unpack {
                image: name_of(image),
                message: chain(&error),
            })
        }
    }
}

/// Two disks for a guest that does one job, made anew for each attempt to start it.
pub(crate) type JobDisks<'a> = &'a dyn Fn() -> Result<[Disk; 2], Error>;

/// A guest that does one job with two disks, from the template when there is one and it is not to be `cold`, and the number of the
/// second disk in it; the first is number 0.
pub(crate) async fn guest_for(
    paths: &Paths,
    host: &dyn Host,
    disks: JobDisks<'_>,
    cold: bool,
    report: &mut dyn FnMut(Report),
) -> Result<(Guest, u8), Error> {
    let kvm = Kvm::open(paths, host).await?;
    let restored = if cold {
        None
    } else {
        restore(paths, host, &kvm, disks, report).await?
    };
    match restored {
        Some(guest) => Ok((guest, USED_DISK)),
        None => Ok((boot(paths, host, &kvm, disks).await?, FRESH_DISK)),
    }
}

/// A guest from the template, awake; `None` when there is no template, or none that can be used.
async fn restore(
    paths: &Paths,
    host: &dyn Host,
    kvm: &Kvm,
    disks: JobDisks<'_>,
    report: &mut dyn FnMut(Report),
) -> Result<Option<Guest>, Error> {
    let ingredients = Ingredients::gather(paths, kvm.kind, Shape::unpack())?;
    let (cache, key) = (Cache::new(paths), ingredients.key());
    let reason = match cache.find(&ingredients) {
        Found::Nothing => return Ok(None),
        Found::Broken(reason) => reason,
        Found::Template(template) => {
            cache.touch(&key);
            let [first, second] = disks()?;
            // The guest has the template's disk mounted, and does nothing with it.
            let mounted = disk::copy_unnamed(&template.disk, &paths.templates())?;
            let mounted = Disk::whole(mounted, true).map_err(Error::Runtime)?;
            let plan = SavedGuest {
                saved: template.saved,
                disks: with_volumes(vec![first.in_slot(), mounted, second.in_slot()], Vec::new()),
                io: IoLimits::default(),
                streams: Vec::new(),
                identity: None,
                origin: Origin::Template,
                kernel: template.kernel,
            };
            match wake(host, kvm, plan).await {
                Ok(guest) => {
                    cache.worked(&key);
                    return Ok(Some(guest));
                }
                Err(Error::Vmm(e)) if e.is_of_host() => return Err(e.into()),
                Err(e) => chain(&e),
            }
        }
    };
    cache.drop_broken(&key);
    report(Report::Notice(dropped_notice(&key, &reason)));
    Ok(None)
}

async fn wake(host: &dyn Host, kvm: &Kvm, plan: SavedGuest) -> Result<Guest, Error> {
    let timing = &mut clock::Timing::default();
    let mut guest = Guest::restore(host, kvm, plan, Console::default(), timing).await?;
    match guest.awake(timing).await {
        Ok(()) => Ok(guest),
        Err(failure) => Err(guest.explain(failure).await),
    }
}

async fn boot(paths: &Paths, host: &dyn Host, kvm: &Kvm, disks: JobDisks<'_>) -> Result<Guest, Error> {
    let plan = Plan {
        vcpus: 1,
        memory: MemoryMib::UNPACK,
        disks: disks()?.into(),
        io: IoLimits::default(),
    };
    Guest::boot(
        paths,
        host,
        kvm,
        plan,
        Console::default(),
        &mut clock::Timing::default(),
    )
    .await
}

/// The blobs, and what the image is written to.
fn disks(job: &UnpackJob) -> Result<[Disk; 2], Error> {
    let output = job.output().try_clone().map_err(Error::Runtime)?;
    Ok([
        Disk {
            files: job.blobs()?,
            writable: false,
            slot: false,
        },
        Disk {
            files: vec![(output, job.spec().max_bytes)],
            writable: true,
            slot: false,
        },
    ])
}

/// An image that the agent has written; untrusted.
struct Written {
    bytes: u64,
    inodes: u64,
    costs: UnpackCosts,
}

/// What the agent has written, or what it said against it.
async fn unpacked(
    guest: &mut Guest,
    total: u64,
    report: &mut dyn FnMut(Report),
) -> Result<Result<Written, (UnpackFailure, String)>, Failure> {
    loop {
        match timeout(SILENCE_TIMEOUT, guest.heard()).await {
            Ok(Ok(FromAgent::Unpacking { bytes })) => report(Report::Progress {
                bytes: bytes.min(total),
                total,
            }),
            Ok(Ok(FromAgent::Unpacked { bytes, inodes, costs })) => {
                return Ok(Ok(Written { bytes, inodes, costs }));
            }
            Ok(Ok(FromAgent::UnpackFailed { kind, message })) => {
                return Ok(Err((kind, one_line(&message, AGENT_TEXT))));
            }
            Ok(Ok(_)) => return Err(Failure::Agent("answered with something else".into())),
            Ok(Err(failure)) => return Err(failure),
            Err(_) => return Err(Failure::Agent("did not go on".into())),
        }
    }
}

/// What the user is told of a failed unpack, and what to do.
fn describe(kind: UnpackFailure, message: String, max_size: MaxImageSize, spec: &UnpackSpec) -> String {
    match kind {
        // The free space was the tighter limit.
        UnpackFailure::NoSpace if spec.max_bytes + 4096 <= max_size.bytes() => {
            format!("no space left: {message}")
        }
        UnpackFailure::NoSpace => {
            format!("it is larger than {max_size} when it is unpacked: --max-image-size allows more")
        }
        UnpackFailure::BadLayer | UnpackFailure::TooLarge | UnpackFailure::Other => message,
    }
}

fn name_of(image: &Image) -> String {
    image
        .names
        .first()
        .map_or_else(|| image.id.short(), ToString::to_string)
}

/// What a VMM says in the middle of an unpack is its end.
pub(crate) fn failure_of(event: Result<Event, VmmError>) -> Failure {
    event.map_or(Failure::Ended, Failure::Event)
}
