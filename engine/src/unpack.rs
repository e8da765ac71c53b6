//! An image's layers become one EROFS file, in a guest of its own: the host parses nothing of what is in them.

use std::{fs::File, time::Duration};

use brig_image_store::{Image, Store, Unpack, UnpackJob};
use brig_protocol::{
    agent::{FromAgent, ToAgent, UnpackFailure, UnpackSpec},
    vmm::Event,
};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    Error, Paths,
    clock::Timing,
    console::Console,
    disk,
    error::{chain, one_line},
    guest::{Disk, Failure, Guest, Kvm, Origin, Plan, SavedGuest, is_idle_talk},
    host::Host,
    resources::MemoryMib,
    spec::{FRESH_DISK, USED_DISK},
    template::{Cache, Found, Ingredients, Shape, dropped_notice},
    vmm::VmmError,
};

/// How long the agent may be silent. It reports often; the largest step between two reports is one file's.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

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

/// Makes sure that `image` is unpacked. Waits when another process unpacks it just now. Dropping the future ends the
/// guest and leaves nothing behind. Needs a [`tokio::task::LocalSet`].
///
/// # Errors
/// [`Error::Unpack`] with what the agent said; those of booting a guest; [`Error::Image`].
pub async fn ensure(
    paths: &Paths,
    host: &dyn Host,
    store: &Store,
    image: &Image,
    cold: bool,
    report: &mut dyn FnMut(Report),
) -> Result<File, Error> {
    let (store, wanted) = (store.clone(), image.clone());
    let found = spawn_blocking(move || store.begin_unpack(&wanted))
        .await
        .map_err(|e| Error::Runtime(std::io::Error::other(e)))??;
    match found {
        Unpack::Done(file) => Ok(file),
        Unpack::Job(job) => run(paths, host, image, *job, cold, report).await,
    }
}

async fn run(
    paths: &Paths,
    host: &dyn Host,
    image: &Image,
    job: UnpackJob,
    cold: bool,
    report: &mut dyn FnMut(Report),
) -> Result<File, Error> {
    let total = job.spec().layers.iter().map(|layer| layer.length).sum();
    report(Report::Progress { bytes: 0, total });
    let kvm = Kvm::open(paths, host).await?;
    let restored = if cold {
        None
    } else {
        restore(paths, host, &kvm, &job, report).await?
    };
    let (mut guest, target) = match restored {
        Some(guest) => (guest, USED_DISK),
        None => (boot(paths, host, &kvm, &job).await?, FRESH_DISK),
    };
    let spec = UnpackSpec {
        target,
        ..job.spec().clone()
    };
    // A guest that has just failed says why below.
    let _ = guest.tell(&ToAgent::Unpack(spec)).await;
    let result = unpacked(&mut guest, total, report).await;
    match result {
        Ok(Ok(bytes)) => {
            // From here on nothing writes to the file.
            guest.vmm.kill().await;
            Ok(job.commit(bytes)?)
        }
        Ok(Err(message)) => Err(Error::Unpack {
            image: name_of(image),
            message,
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

/// A guest from the template, awake; `None` when there is no template, or none that can be used.
async fn restore(
    paths: &Paths,
    host: &dyn Host,
    kvm: &Kvm,
    job: &UnpackJob,
    report: &mut dyn FnMut(Report),
) -> Result<Option<Guest>, Error> {
    let ingredients = Ingredients::gather(paths, kvm.kind, Shape::unpack())?;
    let (cache, key) = (Cache::new(paths), ingredients.key());
    let reason = match cache.find(&ingredients) {
        Found::Nothing => return Ok(None),
        Found::Broken(reason) => reason,
        Found::Template(template) => {
            cache.touch(&key);
            let [blobs, target] = disks(job)?;
            // The guest has the template's disk mounted, and does nothing with it.
            let mounted = disk::copy_unnamed(&template.disk, &paths.templates())?;
            let mounted = Disk::whole(mounted, true).map_err(Error::Runtime)?;
            let plan = SavedGuest {
                saved: template.saved,
                disks: vec![blobs.in_slot(), mounted, target.in_slot()],
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
                Err(e) => chain(&e),
            }
        }
    };
    cache.drop_broken(&key);
    report(Report::Notice(dropped_notice(&key, &reason)));
    Ok(None)
}

async fn wake(host: &dyn Host, kvm: &Kvm, plan: SavedGuest) -> Result<Guest, Error> {
    let timing = &mut Timing::default();
    let mut guest = Guest::restore(host, kvm, plan, Console::default(), timing).await?;
    match guest.awake(timing).await {
        Ok(()) => Ok(guest),
        Err(failure) => Err(guest.explain(failure).await),
    }
}

async fn boot(paths: &Paths, host: &dyn Host, kvm: &Kvm, job: &UnpackJob) -> Result<Guest, Error> {
    let plan = Plan {
        vcpus: 1,
        memory: MemoryMib::UNPACK,
        disks: disks(job)?.into(),
    };
    Guest::boot(paths, host, kvm, plan, Console::default(), &mut Timing::default()).await
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

/// The length of the image, or what the agent said against it.
async fn unpacked(
    guest: &mut Guest,
    total: u64,
    report: &mut dyn FnMut(Report),
) -> Result<Result<u64, String>, Failure> {
    loop {
        let message = tokio::select! {
            message = timeout(SILENCE_TIMEOUT, guest.from_agent.next()) => message,
            event = guest.vmm.channel.event() => match event {
                Ok(event) if is_idle_talk(&event) => continue,
                event => return Err(failure_of(event)),
            },
        };
        match message {
            Ok(Ok(FromAgent::Unpacking { bytes })) => report(Report::Progress {
                bytes: bytes.min(total),
                total,
            }),
            Ok(Ok(FromAgent::Unpacked { bytes, .. })) => return Ok(Ok(bytes)),
            Ok(Ok(FromAgent::UnpackFailed { kind, message })) => {
                return Ok(Err(describe(kind, &one_line(&message, AGENT_TEXT))));
            }
            Ok(Ok(_)) => return Err(Failure::Agent("answered with something else".into())),
            Ok(Err(_)) => return Err(guest.last_event().await),
            Err(_) => return Err(Failure::Agent("did not go on".into())),
        }
    }
}

fn describe(kind: UnpackFailure, message: &str) -> String {
    match kind {
        UnpackFailure::NoSpace => format!("no space left: {message}"),
        UnpackFailure::BadLayer | UnpackFailure::TooLarge | UnpackFailure::Other => message.to_owned(),
    }
}

fn name_of(image: &Image) -> String {
    image
        .names
        .first()
        .map_or_else(|| image.id.short(), ToString::to_string)
}

/// What a VMM says in the middle of an unpack is its end.
fn failure_of(event: Result<Event, VmmError>) -> Failure {
    event.map_or(Failure::Ended, Failure::Event)
}
