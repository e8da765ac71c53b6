//! A sandbox's files become an archive, in a guest of its own: the host mounts no disk that a guest has written to.

use std::{fs::File, time::Duration};

use brig_protocol::{
    agent::{FromAgent, Pack, PackSpec, ToAgent},
    spec::RootSpec,
    stream::StreamHeader,
};
use tokio::{io::AsyncReadExt, time::timeout};

use crate::{
    Error, Paths,
    error::{chain, one_line},
    guest::{Disk, Failure, Guest, is_idle_talk},
    host::Host,
    unpack::{Report, failure_of, guest_for},
};

/// How long the agent may be silent.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(600);

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

/// Bytes that are taken from the guest at a time.
const READ_BYTES: usize = 256 << 10;

/// A sandbox's files: the image's EROFS file and a copy of its disk, which nobody else writes to.
#[derive(Debug)]
pub struct Files {
    /// As the user named the sandbox.
    pub name: String,
    /// The image.
    pub image: File,
    /// The disk.
    pub disk: File,
    /// Paths that the engine puts over the image's.
    pub hidden: Vec<String>,
}

/// Takes what `sink` gets. Everything in it is untrusted: a guest chose it.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

/// Gives `what` of `files` to `sink`, in pieces. Dropping the future ends the guest. Needs a [`tokio::task::LocalSet`].
///
/// # Errors
/// [`Error::Pack`] with what the agent said; those of starting a guest; those of `sink`.
pub async fn pack(
    paths: &Paths,
    host: &dyn Host,
    files: &Files,
    what: Pack,
    cold: bool,
    report: &mut dyn FnMut(Report),
    sink: Sink<'_>,
) -> Result<(), Error> {
    let (guest, writable) = guest_for(paths, host, &|| disks(files), cold, report).await?;
    let root = RootSpec::Disks { image: 0, writable };
    pack_in(guest, root, files.name.clone(), files.hidden.clone(), what, sink).await
}

/// The same in a guest or a cell that is there for that alone, with the files at `root`; `name` is what the user calls the sandbox.
///
/// # Errors
/// As [`pack`].
pub(crate) async fn pack_in(
    mut guest: Guest,
    root: RootSpec,
    name: String,
    hidden: Vec<String>,
    what: Pack,
    sink: Sink<'_>,
) -> Result<(), Error> {
    let failed = |reason: String| Error::Pack {
        name: name.clone(),
        reason,
    };
    let mut stream = guest.connect(StreamHeader::Stdout { process: 0 }).await?;
    let spec = PackSpec { root, what, hidden };
    // A guest that has just failed says why below.
    let _ = guest.tell(&ToAgent::Pack(spec)).await;
    let mut buffer = vec![0; READ_BYTES];
    let mut received = 0;
    let packed = loop {
        tokio::select! {
            read = timeout(SILENCE_TIMEOUT, stream.read(&mut buffer)) => match read {
                Ok(Ok(0)) => break answer(&mut guest).await,
                Ok(Ok(count)) => {
                    received += count as u64;
                    sink(&buffer[..count])?;
                }
                Ok(Err(_)) => break Err(guest.last_event().await),
                Err(_) => break Err(Failure::Agent("did not go on".into())),
            },
            event = guest.vmm.channel.event() => match event {
                Ok(event) if is_idle_talk(&event) => {}
                event => break Err(failure_of(event)),
            },
        }
    };
    let packed = match packed {
        Ok(packed) => packed,
        Err(failure) => {
            let error = guest.explain(failure).await;
            return Err(failed(chain(&error)));
        }
    };
    guest.vmm.kill().await;
    match packed {
        Ok(bytes) if bytes == received => Ok(()),
        Ok(_) => Err(failed("some of it was lost on the way".to_owned())),
        Err(message) => Err(failed(message)),
    }
}

/// What the agent says after the end of its stream: the bytes that it wrote, or one line against it.
async fn answer(guest: &mut Guest) -> Result<Result<u64, String>, Failure> {
    match timeout(SILENCE_TIMEOUT, guest.from_agent.next()).await {
        Ok(Ok(FromAgent::Packed { bytes })) => Ok(Ok(bytes)),
        Ok(Ok(FromAgent::PackFailed { message })) => Ok(Err(one_line(&message, AGENT_TEXT))),
        Ok(Ok(_)) => Err(Failure::Agent("answered with something else".into())),
        Ok(Err(_)) => Err(guest.last_event().await),
        Err(_) => Err(Failure::Agent("did not answer".into())),
    }
}

fn disks(files: &Files) -> Result<[Disk; 2], Error> {
    let whole = |file: &File, writable| {
        file.try_clone()
            .and_then(|file| Disk::whole(file, writable))
            .map_err(Error::Runtime)
    };
    Ok([whole(&files.image, false)?, whole(&files.disk, true)?])
}
