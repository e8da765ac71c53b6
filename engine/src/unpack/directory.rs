//! An image's layers become a directory, for sandboxes on the host's kernel, in a process that can do nothing but that: brig-cell.

use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::chown,
    },
    path::PathBuf,
};

use brig_image_store::{DirectoryJob, Image, Store, UnpackDirectory};
use brig_protocol::{
    agent::{FROM_AGENT_BYTES, FromAgent, UnpackFailure, UnpackSpec},
    cell::{Begin, Job, UnpackJob},
    vmm::{Event, FdIndex},
};
use tokio::{net::UnixStream, task::spawn_blocking, time::timeout};

use super::{AGENT_TEXT, Options, Report, SILENCE_TIMEOUT, Timing, Written, describe, name_of};
use crate::{
    Error,
    cell::HostIds,
    clock::monotonic_ns,
    error::{chain, one_line},
    frames::FrameReader,
    guest::{is_idle_talk, stream_pair},
    host::Host,
    vmm::{Vmm, describe_end},
};

/// Makes sure that `image` is unpacked to a directory. Returns where, and how the unpack went if one was needed. Waits when
/// another process unpacks it just now. Dropping the future ends the unpack and leaves nothing behind. Needs a
/// [`tokio::task::LocalSet`].
///
/// # Errors
/// [`Error::Unpack`] with what brig-cell said; [`Error::Image`].
pub async fn ensure_directory(
    host: &dyn Host,
    store: &Store,
    image: &Image,
    options: Options,
    report: &mut dyn FnMut(Report),
) -> Result<(PathBuf, Option<Timing>), Error> {
    let ids = HostIds::look_up();
    ids.check()?;
    let (store, wanted, key) = (store.clone(), image.clone(), ids.key());
    let found = spawn_blocking(move || store.begin_unpack_directory(&wanted, &key, options.max_size))
        .await
        .map_err(|e| Error::Runtime(std::io::Error::other(e)))??;
    match found {
        UnpackDirectory::Done(path) => Ok((path, None)),
        UnpackDirectory::Job(job) => {
            let (path, timing) = run(host, image, &ids, *job, options, report).await?;
            Ok((path, Some(timing)))
        }
    }
}

async fn run(
    host: &dyn Host,
    image: &Image,
    ids: &HostIds,
    job: DirectoryJob,
    options: Options,
    report: &mut dyn FnMut(Report),
) -> Result<(PathBuf, Timing), Error> {
    let began_ns = monotonic_ns();
    let total = job.spec().layers.iter().map(|layer| layer.length).sum();
    report(Report::Progress { bytes: 0, total });
    if let Some(root) = ids.root() {
        let directory = job.directory();
        chown(directory, Some(root), Some(root)).map_err(Error::file("give away", directory))?;
    }
    let mut vmm = host.spawn_cell()?;
    let answers = begin(&vmm, ids, &job).await?;
    let ready_ns = monotonic_ns();
    let failed = |message| Error::Unpack {
        image: name_of(image),
        message,
    };
    let written = match answer(&mut vmm, answers, total, report).await {
        Ok(Ok(written)) => written,
        Ok(Err((kind, message))) => {
            vmm.kill().await;
            return Err(failed(describe(kind, message, options.max_size, job.spec())));
        }
        Err(message) => {
            vmm.kill().await;
            return Err(failed(message));
        }
    };
    let unpacked_ns = monotonic_ns();
    // From here on nothing writes there.
    vmm.kill().await;
    let path = spawn_blocking(move || job.commit())
        .await
        .map_err(|e| Error::Runtime(std::io::Error::other(e)))??;
    let timing = Timing {
        began_ns,
        ready_ns,
        unpacked_ns,
        done_ns: monotonic_ns(),
        costs: written.costs,
        compressed_bytes: total,
        bytes: written.bytes,
        inodes: written.inodes,
    };
    Ok((path, timing))
}

async fn begin(vmm: &Vmm, ids: &HostIds, job: &DirectoryJob) -> Result<UnixStream, Error> {
    let (near, control) = stream_pair()?;
    let blobs: Vec<File> = job.blobs()?;
    let begin = Begin {
        ids: ids.map().clone(),
        job: Job::Unpack(UnpackJob {
            control: 0,
            spec: UnpackSpec {
                target: 0,
                ..job.spec().clone()
            },
            blobs: (1..).take(blobs.len()).collect::<Vec<FdIndex>>(),
            directory: job.directory().to_string_lossy().into_owned(),
        }),
    };
    let mut files: Vec<BorrowedFd<'_>> = vec![control.as_fd()];
    files.extend(blobs.iter().map(AsFd::as_fd));
    vmm.channel.begin(&begin, &files).await?;
    Ok(near)
}

/// What was written, or what was said against it; a process that fails otherwise is the outer error.
async fn answer(
    vmm: &mut Vmm,
    answers: UnixStream,
    total: u64,
    report: &mut dyn FnMut(Report),
) -> Result<Result<Written, (UnpackFailure, String)>, String> {
    let mut answers = FrameReader::new(answers, FROM_AGENT_BYTES);
    loop {
        let answered = tokio::select! {
            biased;
            answered = timeout(SILENCE_TIMEOUT, answers.next()) => answered,
            event = vmm.channel.event() => match event {
                Ok(event) if is_idle_talk(&event) => continue,
                Ok(Event::Failed { message }) => return Err(one_line(&message, AGENT_TEXT)),
                // What it said before comes first.
                _ => timeout(SILENCE_TIMEOUT, answers.next()).await,
            },
        };
        match answered {
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
            Ok(Ok(_)) => return Err("brig-cell answered with something else".to_owned()),
            Ok(Err(brig_protocol::frame::FrameError::Closed | brig_protocol::frame::FrameError::Io(_))) => {
                if let Ok(Ok(Event::Failed { message })) =
                    timeout(std::time::Duration::from_secs(1), vmm.channel.event()).await
                {
                    return Err(one_line(&message, AGENT_TEXT));
                }
                return Err(format!("brig-cell {}", describe_end(vmm.ended().await)));
            }
            Ok(Err(e)) => return Err(chain(&e)),
            Err(_) => return Err("brig-cell did not go on".to_owned()),
        }
    }
}
