//! An image's layers become one EROFS file, in a guest of its own: the host parses nothing of what is in them.

use std::{fs::File, time::Duration};

use brig_image_store::{Image, Store, Unpack, UnpackJob};
use brig_protocol::{
    agent::{FromAgent, ToAgent, UnpackFailure},
    vmm::Event,
};
use tokio::{task::spawn_blocking, time::timeout};

use crate::{
    Error, Paths,
    clock::Timing,
    console::Console,
    error::{chain, one_line},
    guest::{Disk, Failure, Guest, Plan},
    host::Host,
    resources::MemoryMib,
    vmm::VmmError,
};

/// How long the agent may be silent. It reports often; the largest step between two reports is one file's.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

/// How far an unpack is, in compressed bytes of all layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read so far; untrusted, and at most `total`.
    pub bytes: u64,
    /// All bytes.
    pub total: u64,
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
    progress: &mut dyn FnMut(Progress),
) -> Result<File, Error> {
    let (store, wanted) = (store.clone(), image.clone());
    let found = spawn_blocking(move || store.begin_unpack(&wanted))
        .await
        .map_err(|e| Error::Runtime(std::io::Error::other(e)))??;
    match found {
        Unpack::Done(file) => Ok(file),
        Unpack::Job(job) => run(paths, host, image, *job, progress).await,
    }
}

async fn run(
    paths: &Paths,
    host: &dyn Host,
    image: &Image,
    job: UnpackJob,
    progress: &mut dyn FnMut(Progress),
) -> Result<File, Error> {
    let total = job.spec().layers.iter().map(|layer| layer.length).sum();
    progress(Progress { bytes: 0, total });
    let output = job.output().try_clone().map_err(Error::Runtime)?;
    let plan = Plan {
        vcpus: 1,
        memory: MemoryMib::UNPACK,
        disks: vec![
            Disk {
                files: job.blobs()?,
                writable: false,
            },
            Disk {
                files: vec![(output, job.spec().max_bytes)],
                writable: true,
            },
        ],
    };
    let mut guest = Guest::boot(paths, host, plan, Console::default(), &mut Timing::default()).await?;
    // A guest that has just failed says why below.
    let _ = guest.tell(&ToAgent::Unpack(job.spec().clone())).await;
    let result = unpacked(&mut guest, total, progress).await;
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

/// The length of the image, or what the agent said against it.
async fn unpacked(
    guest: &mut Guest,
    total: u64,
    progress: &mut dyn FnMut(Progress),
) -> Result<Result<u64, String>, Failure> {
    loop {
        let message = tokio::select! {
            message = timeout(SILENCE_TIMEOUT, guest.from_agent.next()) => message,
            event = guest.vmm.channel.event() => match event {
                Ok(Event::Booted { .. }) => continue,
                event => return Err(failure_of(event)),
            },
        };
        match message {
            Ok(Ok(FromAgent::Unpacking { bytes })) => progress(Progress {
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
