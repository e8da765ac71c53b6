//! One blob from the store to a registry (distribution-spec, "Pushing blobs" and "Mounting a blob from another repository").
//!
//! A small one goes in one request with the word that it is whole, which saves a request. A large one goes in a `PATCH`, since
//! what broke off of that can be gone on with: the registry is asked how far it is, and gets the rest. One that has forgotten
//! the upload, or cannot go on with it (docker-registry before 3), gets the blob anew.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use brig_image_store::Store;
use bytes::Bytes;
use futures_util::stream;
use reqwest::{
    Body, Method, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION},
};
use tokio::{sync::mpsc, task::spawn_blocking, time::sleep};

use crate::{
    Error,
    document::Repository,
    download::Blob,
    error::is_transient,
    http::Response,
    progress::{BlobState, Event, Sink, short},
    session::{Ask, Target, rest_after},
};

/// Bytes that are read from a file at a time.
const READ_BYTES: usize = 128 << 10;

/// Pieces that are on their way from the disk to the network.
const PIECES: usize = 8;

/// Bytes between two reports.
const REPORT_BYTES: u64 = 256 << 10;

/// Bytes of a blob up to which it is sent whole: what would be lost is sooner sent again than asked for.
const WHOLE_BYTES_MAX: u64 = 1 << 20;

/// Bytes that an attempt has to bring across to count as one that went well.
const PROGRESS_BYTES: u64 = 64 << 10;

/// How many stall timeouts a registry may take to answer once it has all bytes.
const PATIENCE: u32 = 10;

/// Puts a blob into a repository, if it is not there. `mount_from` is a repository of the same registry that may have it.
/// What breaks off is gone on with from the last byte that the registry has, where it can tell.
///
/// # Errors
/// [`Error::Denied`], [`Error::Status`], those of the network and of the store.
pub async fn upload(
    store: &Store,
    target: &Repository<'_>,
    blob: Blob,
    mount_from: Option<&str>,
    sink: &Sink,
) -> Result<(), Error> {
    let id = short(&blob.digest);
    let tell = |state| {
        sink(Event::Blob {
            id: id.clone(),
            state,
        });
    };
    let what = format!("blob {id}");
    if has(target, blob, &what).await? {
        tell(BlobState::LayerExists);
        return Ok(());
    }
    let transfer = Transfer {
        store,
        target,
        blob,
        mount_from,
        sink,
        what: &what,
    };
    let mut begun = None;
    let mut tries = 0;
    let mut before = 0;
    loop {
        let error = match transfer.attempt(&mut begun).await {
            Ok(state) => {
                tell(state);
                return Ok(());
            }
            Err(e) => e,
        };
        // Whatever brought it forward counts as an attempt that went well.
        let offset = begun.as_ref().map_or(0, |begun: &Begun| begun.offset);
        tries = if offset >= before + PROGRESS_BYTES {
            1
        } else {
            tries + 1
        };
        before = offset;
        let rest = match rest_after(&error, tries) {
            Some(rest) if tries < target.session.attempts() => rest,
            _ => return Err(error),
        };
        let why = error.line();
        tell(BlobState::Retrying { why, tries });
        sleep(rest).await;
    }
}

/// Whether the repository has a blob.
async fn has(target: &Repository<'_>, blob: Blob, what: &str) -> Result<bool, Error> {
    let ask = target.ask(Method::HEAD, &format!("blobs/{}", blob.digest), what);
    let response = target.session.ask(&ask).await?;
    match response.status() {
        StatusCode::OK => Ok(true),
        StatusCode::NOT_FOUND => Ok(false),
        _ => Err(refusal(target, response, what).await),
    }
}

/// The error that a registry's answer to a push is.
pub async fn refusal(target: &Repository<'_>, response: Response, what: &str) -> Error {
    let status = response.status();
    match (status, response.into_error(what).await) {
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, Error::Status { words, .. }) => {
            target.session.denied(target.shown, words)
        }
        (_, error) => error,
    }
}

/// An upload that a registry knows of.
struct Begun {
    /// Where it goes on.
    url: Url,
    /// Bytes that the registry has.
    offset: u64,
    /// Whether that is what it said when it was asked last; otherwise it has to be asked.
    certain: bool,
}

/// What it takes to get a blob across.
struct Transfer<'a> {
    store: &'a Store,
    target: &'a Repository<'a>,
    blob: Blob,
    mount_from: Option<&'a str>,
    sink: &'a Sink,
    what: &'a str,
}

impl Transfer<'_> {
    /// Uploads the blob, or the rest of it, and tells how it came there. `begun` is the upload that broke off, before and
    /// afterwards.
    async fn attempt(&self, begun: &mut Option<Begun>) -> Result<BlobState, Error> {
        if let Some(unknown) = begun.as_ref().filter(|begun| !begun.certain) {
            let found = if self.in_pieces() {
                self.where_it_is(unknown).await?
            } else {
                None
            };
            *begun = found;
            // The answer to the last request may have been all that was lost.
            if begun.is_none() && has(self.target, self.blob, self.what).await? {
                return Ok(BlobState::Pushed);
            }
        }
        if begun.is_none() {
            match self.begin().await? {
                Ok(url) => {
                    *begun = Some(Begun {
                        url,
                        offset: 0,
                        certain: true,
                    });
                }
                Err(mounted) => return Ok(mounted),
            }
        }
        let Some(current) = begun else {
            return Err(self.malformed("there is no upload"));
        };
        // Whatever happens from here on, only the registry knows how far it is.
        current.certain = false;
        if self.in_pieces() && current.offset < self.blob.size && !self.send_rest(current).await? {
            current.offset = 0;
        }
        self.complete(current).await?;
        *begun = None;
        Ok(BlobState::Pushed)
    }

    /// Whether the blob is so large that an upload is worth being gone on with.
    fn in_pieces(&self) -> bool {
        self.blob.size > WHOLE_BYTES_MAX
    }

    /// Asks for an upload: where it goes, or that another repository's blob will do.
    async fn begin(&self) -> Result<Result<Url, BlobState>, Error> {
        let mut path = "blobs/uploads/".to_owned();
        if let Some(from) = self.mount_from {
            path = format!("{path}?mount={}&from={from}", self.blob.digest);
        }
        let mut ask = self.target.ask(Method::POST, &path, self.what);
        ask.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        let response = self.target.session.once(&ask, None).await?;
        match (response.status(), self.mount_from) {
            (StatusCode::CREATED, Some(from)) => Ok(Err(BlobState::Mounted {
                from: from.to_owned(),
            })),
            (StatusCode::ACCEPTED, _) => Ok(Ok(self.location(&response)?)),
            _ => Err(refusal(self.target, response, self.what).await),
        }
    }

    /// How far an upload is that broke off; nothing when the registry does not know any more, or cannot go on with it.
    async fn where_it_is(&self, begun: &Begun) -> Result<Option<Begun>, Error> {
        let ask = self.of_upload(Method::GET, begun.url.clone());
        let response = self.target.session.once(&ask, None).await?;
        if is_transient(response.status()) {
            return Err(response.into_error(self.what).await);
        }
        let offset = match response.status() {
            StatusCode::NO_CONTENT | StatusCode::ACCEPTED | StatusCode::OK => received(&response),
            _ => None,
        };
        let Some(offset) = offset.filter(|&offset| offset <= self.blob.size) else {
            return Ok(None);
        };
        // A registry that says nothing new goes on where it was.
        let url = self.location(&response).unwrap_or_else(|_| begun.url.clone());
        Ok(Some(Begun {
            url,
            offset,
            certain: true,
        }))
    }

    /// Sends what the registry lacks, in one piece. False when it knows no pieces: it wants the blob whole.
    async fn send_rest(&self, current: &mut Begun) -> Result<bool, Error> {
        let (offset, size) = (current.offset, self.blob.size);
        let mut ask = self.of_upload(Method::PATCH, current.url.clone());
        ask.headers.insert(CONTENT_TYPE, octets());
        ask.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(size - offset));
        let range = HeaderValue::try_from(format!("{offset}-{}", size - 1));
        ask.headers.extend(range.map(|range| (CONTENT_RANGE, range)));
        let response = self.put(&ask, offset).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {}
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED if offset == 0 => return Ok(false),
            // It has other bytes than it said: it is asked again.
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(self.incomplete("it does not go on from there")),
            status if is_transient(status) => return Err(response.into_error(self.what).await),
            _ => return Err(refusal(self.target, response, self.what).await),
        }
        current.url = self.location(&response)?;
        match received(&response) {
            Some(got) if got < size => {
                current.offset = got;
                Err(self.incomplete(&format!("it has taken {got} of {size} bytes")))
            }
            _ => {
                current.offset = size;
                Ok(true)
            }
        }
    }

    /// Ends an upload: with the blob, if nothing of it has been sent.
    async fn complete(&self, current: &Begun) -> Result<(), Error> {
        let mut url = current.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &self.blob.digest.to_string());
        let mut ask = self.of_upload(Method::PUT, url);
        ask.headers.insert(CONTENT_TYPE, octets());
        let rest = self.blob.size - current.offset;
        ask.headers.insert(CONTENT_LENGTH, HeaderValue::from(rest));
        let response = match rest {
            0 => self.target.session.once(&ask, None).await?,
            _ => self.put(&ask, current.offset).await?,
        };
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            status if is_transient(status) => Err(response.into_error(self.what).await),
            _ => Err(refusal(self.target, response, self.what).await),
        }
    }

    fn of_upload(&self, method: Method, url: Url) -> Ask<'_> {
        Ask {
            target: Target::Url(url),
            ..self.target.ask(method, "", self.what)
        }
    }

    /// Sends the blob's bytes from `offset` on, and gives up when the registry takes none for too long.
    async fn put(&self, ask: &Ask<'_>, offset: u64) -> Result<Response, Error> {
        let (session, size) = (self.target.session, self.blob.size);
        let file = self.store.blob(&self.blob.digest, size)?;
        let sent = Arc::new(AtomicU64::new(offset));
        let body = || body(&file, self.blob, offset, sent.clone(), self.sink.clone());
        let stall = session.http().config().stall_timeout;
        let watched = async {
            let mut last = u64::MAX;
            loop {
                let now = sent.load(Ordering::Relaxed);
                if now == last {
                    return;
                }
                last = now;
                sleep(if now == size { stall * PATIENCE } else { stall }).await;
            }
        };
        tokio::select! {
            response = session.once(ask, Some(&body)) => response,
            () = watched => Err(Error::Stalled {
                host: session.name().to_owned(),
                what: ask.what.to_owned(),
                bytes: 1,
                seconds: stall.as_secs(),
            }),
        }
    }

    /// Where an upload goes on. Another host may be named; it is told no password.
    fn location(&self, response: &Response) -> Result<Url, Error> {
        let value = response.headers().get(LOCATION).map(HeaderValue::to_str);
        let Some(Ok(value)) = value else {
            return Err(self.malformed("it does not say where to upload to"));
        };
        let url = response
            .url()
            .join(value)
            .map_err(|_| self.malformed("where to upload to is no address"))?;
        match (response.url().scheme(), url.scheme()) {
            (_, "https") | ("http", "http") => Ok(url),
            _ => Err(self.malformed("the upload would not be encrypted")),
        }
    }

    fn malformed(&self, why: &str) -> Error {
        Error::Malformed {
            host: self.target.session.name().to_owned(),
            what: self.what.to_owned(),
            why: why.to_owned(),
        }
    }

    /// The registry has not got what it was sent.
    fn incomplete(&self, why: &str) -> Error {
        Error::Network {
            host: self.target.session.name().to_owned(),
            why: format!("the upload of {} broke off: {why}", self.what),
        }
    }
}

fn octets() -> HeaderValue {
    HeaderValue::from_static("application/octet-stream")
}

/// Bytes that a registry says it has of an upload: `Range: 0-1023` (distribution-spec, "Pushing a blob in chunks"). None of
/// them is `0-0` with some and `0--1` with others; a single byte is sent again then.
fn received(response: &Response) -> Option<u64> {
    bytes_of(response.header("range")?)
}

fn bytes_of(range: &str) -> Option<u64> {
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last = range.strip_prefix("0-")?;
    match last.parse::<u64>() {
        Ok(0) => Some(0),
        Ok(last) => last.checked_add(1),
        Err(_) if last == "-1" => Some(0),
        Err(_) => None,
    }
}

/// A blob's bytes as they are read, from `offset` on.
fn body(file: &File, blob: Blob, offset: u64, sent: Arc<AtomicU64>, sink: Sink) -> Body {
    let (sender, receiver) = mpsc::channel::<std::io::Result<Bytes>>(PIECES);
    let file = file
        .try_clone()
        .and_then(|mut file| file.seek(SeekFrom::Start(offset)).map(|_| file));
    sent.store(offset, Ordering::Relaxed);
    spawn_blocking(move || {
        let mut file = match file {
            Ok(file) => file,
            // A closed channel is a connection that is gone.
            Err(e) => return drop(sender.blocking_send(Err(e))),
        };
        loop {
            let mut piece = vec![0; READ_BYTES];
            let piece = match file.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Bytes::from(piece))
                }
                Err(e) => Err(e),
            };
            let failed = piece.is_err();
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    let id = short(&blob.digest);
    let mut reported = offset;
    let pieces = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let counted = futures_util::StreamExt::inspect(pieces, move |piece| {
        let count = piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let current = sent.fetch_add(count, Ordering::Relaxed) + count;
        if current - reported >= REPORT_BYTES || current == blob.size {
            reported = current;
            sink(Event::Blob {
                id: id.clone(),
                state: BlobState::Pushing {
                    current,
                    total: blob.size,
                },
            });
        }
    });
    Body::wrap_stream(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_has_is_one_more_than_the_last_byte() {
        for (range, bytes) in [
            ("0-1023", Some(1024)),
            ("bytes=0-99", Some(100)),
            ("0-0", Some(0)),
            ("0--1", Some(0)),
            ("5-9", None),
            ("", None),
            ("0-x", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(bytes_of(range), bytes, "{range}");
        }
    }
}
