//! One blob from a registry into the store: resumed after breaks, verified while it streams.

use std::sync::Arc;

use brig_image_store::{
    StoreError,
    archive::ArchiveError,
    digest::Digest,
    store::{ImageReceiver, Reception, Wanted},
};
use bytes::Bytes;
use reqwest::{
    Method, StatusCode,
    header::{HeaderValue, RANGE},
};
use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use crate::{
    Error,
    document::Repository,
    error::is_transient,
    http::Response,
    progress::{BlobState, Event, Sink, short},
    session::rest_after,
};

/// Pieces that are on their way from the network to the disk: at most so many of some 16 to 400 KB each.
const PIECES: usize = 32;

/// Bytes that an attempt has to bring to count as one that went well.
const PROGRESS_BYTES: u64 = 64 << 10;

/// Bytes between two reports.
const REPORT_BYTES: u64 = 256 << 10;

/// A blob that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// How one attempt ended.
struct Attempt {
    reception: Box<Reception>,
    result: Result<(), Error>,
}

/// Gets a blob for an image, from the first of `sources` that gives it.
///
/// # Errors
/// Those of the last source: [`Error::Status`], [`Error::Digest`], those of the network; [`Error::Store`].
pub async fn download(
    receiver: &Arc<ImageReceiver>,
    sources: &[Repository<'_>],
    blob: Blob,
    sink: &Sink,
) -> Result<(), Error> {
    let id = short(&blob.digest);
    let tell = |state| {
        sink(Event::Blob {
            id: id.clone(),
            state,
        });
    };
    let mut reception = match wanted(receiver, blob, sink).await? {
        Wanted::Stored => {
            tell(BlobState::Exists);
            return Ok(());
        }
        Wanted::Whole => {
            tell(BlobState::Complete);
            return Ok(());
        }
        Wanted::Missing(reception) => reception,
    };
    // What lay there from before may be wrong; what is downloaded now and is wrong was sent so.
    let mut resumed = reception.written() > 0;
    let mut last = None;
    for source in sources {
        loop {
            match transfer(source, blob, reception, &tell).await {
                Attempt {
                    reception: whole,
                    result: Ok(()),
                } => match finish(receiver, whole).await {
                    Ok(()) => {
                        tell(BlobState::Complete);
                        return Ok(());
                    }
                    Err(StoreError::Archive(ArchiveError::Digest { expected, found })) => {
                        last = Some(Error::Digest {
                            host: source.session.name().to_owned(),
                            what: "a blob".to_owned(),
                            expected: expected.to_string(),
                            found: found.to_string(),
                        });
                        reception = match wanted(receiver, blob, sink).await? {
                            Wanted::Stored | Wanted::Whole => return Ok(()),
                            Wanted::Missing(reception) => reception,
                        };
                        if std::mem::take(&mut resumed) {
                            continue;
                        }
                    }
                    Err(e) => return Err(e.into()),
                },
                Attempt {
                    result: Err(e @ Error::Store(_)),
                    ..
                } => return Err(e),
                Attempt {
                    reception: part,
                    result: Err(e),
                } => {
                    reception = part;
                    last = Some(e);
                }
            }
            break;
        }
    }
    Err(last.unwrap_or_else(|| Error::Usage("there is no registry to download from".to_owned())))
}

/// Takes the right to write the blob, or waits until another process has it.
async fn wanted(receiver: &Arc<ImageReceiver>, blob: Blob, sink: &Sink) -> Result<Wanted, Error> {
    let (receiver, sink) = (receiver.clone(), sink.clone());
    let waiting = move || {
        let mut waiting = || {
            sink(Event::Blob {
                id: short(&blob.digest),
                state: BlobState::Waiting,
            });
        };
        receiver.receive(blob.digest, blob.size, &mut waiting)
    };
    Ok(joined(spawn_blocking(waiting).await)?)
}

async fn finish(receiver: &Arc<ImageReceiver>, reception: Box<Reception>) -> Result<(), StoreError> {
    let receiver = receiver.clone();
    joined(spawn_blocking(move || receiver.finish(*reception)).await)
}

/// The result of a thread's work, which does not panic.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    result.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))
}

/// Gets the rest of a blob from one registry, in as many attempts as bring it forward.
async fn transfer(
    source: &Repository<'_>,
    blob: Blob,
    mut reception: Box<Reception>,
    tell: &(dyn Fn(BlobState) + Sync),
) -> Attempt {
    let mut tries = 0;
    loop {
        let before = reception.written();
        if before == blob.size {
            return Attempt {
                reception,
                result: Ok(()),
            };
        }
        let attempt = attempt(source, blob, reception, tell).await;
        reception = attempt.reception;
        tries = if reception.written() >= before + PROGRESS_BYTES {
            1
        } else {
            tries + 1
        };
        let rest = match &attempt.result {
            Err(e) if tries < source.session.attempts() => rest_after(e, tries),
            _ => None,
        };
        match (attempt.result, rest) {
            (Err(e), Some(rest)) => {
                tell(BlobState::Retrying { why: e.line(), tries });
                sleep(rest).await;
            }
            (result, _) => return Attempt { reception, result },
        }
    }
}

/// One request, and its body into the file.
async fn attempt(
    source: &Repository<'_>,
    blob: Blob,
    mut reception: Box<Reception>,
    tell: &(dyn Fn(BlobState) + Sync),
) -> Attempt {
    let what = format!("blob {}", short(&blob.digest));
    let mut response = match request(source, blob, &mut reception, &what).await {
        Ok(response) => response,
        Err(e) => {
            return Attempt {
                reception,
                result: Err(e),
            };
        }
    };
    // The disk has a thread of its own, which hashes as well.
    let mut done = reception.written();
    let (sender, receiver) = mpsc::channel(PIECES);
    let writer = spawn_blocking(move || write(reception, receiver));
    let mut reported = done;
    let mut result = Ok(());
    tell(BlobState::Downloading {
        current: done,
        total: blob.size,
    });
    loop {
        match response.chunk(&what).await {
            Ok(Some(bytes)) => {
                done += bytes.len() as u64;
                // A closed channel means that the writer has failed, and says why.
                if sender.send(bytes).await.is_err() {
                    break;
                }
                if done - reported >= REPORT_BYTES {
                    reported = done;
                    tell(BlobState::Downloading {
                        current: done.min(blob.size),
                        total: blob.size,
                    });
                }
            }
            Ok(None) => break,
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    drop(sender);
    let (reception, written) = joined(writer.await);
    let result = match written {
        Err(StoreError::Archive(ArchiveError::Size { .. })) => Err(Error::TooLong {
            host: response.host().to_owned(),
            what,
            limit: blob.size,
        }),
        Err(e) => Err(e.into()),
        Ok(()) if result.is_ok() && reception.written() < blob.size => Err(Error::Network {
            host: response.host().to_owned(),
            why: format!("{what} ends after {} of {} bytes", reception.written(), blob.size),
        }),
        Ok(()) => result,
    };
    Attempt { reception, result }
}

fn write(
    mut reception: Box<Reception>,
    mut pieces: mpsc::Receiver<Bytes>,
) -> (Box<Reception>, Result<(), StoreError>) {
    while let Some(bytes) = pieces.blocking_recv() {
        if let Err(e) = reception.write(&bytes) {
            return (reception, Err(e));
        }
    }
    (reception, Ok(()))
}

/// Asks for what is missing of a blob, and prepares the file for what is answered.
async fn request(
    source: &Repository<'_>,
    blob: Blob,
    reception: &mut Reception,
    what: &str,
) -> Result<Response, Error> {
    let from = reception.written();
    let mut ask = source.ask(Method::GET, &format!("blobs/{}", blob.digest), what);
    if from > 0 {
        let range = HeaderValue::try_from(format!("bytes={from}-"));
        ask.headers.extend(range.map(|range| (RANGE, range)));
    }
    let response = source.session.once(&ask, None).await?;
    let length = response.content_length();
    let begins = match response.status() {
        StatusCode::PARTIAL_CONTENT if from > 0 && begins_at(&response) == Some(from) => from,
        StatusCode::OK => 0,
        // What is there cannot be gone on from.
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if from > 0 => {
            reception.restart()?;
            return Err(Error::Network {
                host: response.host().to_owned(),
                why: format!("{what} cannot be resumed, and begins anew"),
            });
        }
        StatusCode::NOT_FOUND => {
            return Err(Error::Malformed {
                host: response.host().to_owned(),
                what: source.shown.to_owned(),
                why: format!("{what} is in the manifest, but not there"),
            });
        }
        status if is_transient(status) => {
            return Err(response.into_error(what).await);
        }
        _ => return Err(response.into_error(what).await),
    };
    if begins < from {
        reception.restart()?;
    }
    match length {
        Some(length) if begins + length != blob.size => Err(Error::Malformed {
            host: response.host().to_owned(),
            what: what.to_owned(),
            why: format!("{} bytes are announced instead of {}", begins + length, blob.size),
        }),
        _ => Ok(response),
    }
}

/// The first byte of a partial answer: `Content-Range: bytes 100-199/200` (RFC 9110, section 14.4).
fn begins_at(response: &Response) -> Option<u64> {
    let value = response.header("content-range")?.strip_prefix("bytes ")?;
    value.split('-').next()?.trim().parse().ok()
}
