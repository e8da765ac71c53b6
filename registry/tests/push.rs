//! Pushes to a registry that is honest, but not always well.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use brig_image_store::{Image as StoredImage, ImageName, digest::Digest};
use brig_registry::{
    Error,
    progress::{BlobState, Event},
    push::push,
};
use common::{Home, Image, Request, Server, answer, home, noise, reset, run};

/// What a registry has been sent.
#[derive(Default)]
struct Received {
    /// Uploads that have begun, by their number.
    uploads: BTreeMap<usize, Vec<u8>>,
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, Vec<u8>>,
}

/// A registry that takes what it is sent.
#[derive(Clone, Default)]
struct Registry(Arc<Mutex<Received>>);

impl Registry {
    /// Answers as an honest registry.
    fn serve(&self, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let mut received = self.0.lock().unwrap();
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let last = path.rsplit('/').next().unwrap_or_default().to_owned();
        match request.method.as_str() {
            "HEAD" if received.blobs.contains_key(&last) => answer(stream, "200 OK", &[], b""),
            "HEAD" => answer(stream, "404 Not Found", &[], b""),
            "POST" => {
                let number = received.uploads.len() + 1;
                received.uploads.insert(number, Vec::new());
                accepted(stream, "202 Accepted", number, 0)
            }
            "GET" => {
                let number: usize = last.parse().unwrap();
                accepted(stream, "204 No Content", number, received.uploads[&number].len())
            }
            "PATCH" => {
                let number: usize = last.parse().unwrap();
                let upload = received.uploads.get_mut(&number).unwrap();
                let from = request
                    .header("content-range")
                    .unwrap()
                    .split_once('-')
                    .unwrap()
                    .0;
                if from.parse() != Ok(upload.len()) {
                    return answer(stream, "416 Range Not Satisfiable", &[], b"");
                }
                upload.extend(&request.body);
                let length = upload.len();
                drop(received);
                accepted(stream, "202 Accepted", number, length)
            }
            "PUT" if path.contains("/manifests/") => {
                received.manifests.insert(last, request.body.clone());
                answer(stream, "201 Created", &[], b"")
            }
            "PUT" => {
                let mut bytes = received.uploads.remove(&last.parse().unwrap()).unwrap();
                bytes.extend(&request.body);
                let digest = query.split('&').find_map(|pair| pair.strip_prefix("digest="));
                let digest = digest.unwrap().replace("%3A", ":");
                if Digest::of(&bytes).to_string() != digest {
                    return answer(stream, "400 Bad Request", &[], b"");
                }
                received.blobs.insert(digest, bytes);
                answer(stream, "201 Created", &[], b"")
            }
            method => panic!("{method}"),
        }
    }

    /// Adds what came of an upload before its connection was cut.
    fn keep_part(&self, request: &Request) {
        let last = request.path.rsplit('/').next().unwrap();
        let mut received = self.0.lock().unwrap();
        let upload = received.uploads.get_mut(&last.parse().unwrap()).unwrap();
        upload.extend(&request.body);
    }

    fn assert_has(&self, image: &Image) {
        let received = self.0.lock().unwrap();
        for (digest, bytes) in &image.blobs {
            assert!(received.blobs[&digest.to_string()] == *bytes, "{digest}");
        }
        assert_eq!(received.manifests["1"], image.manifest);
    }
}

/// An answer about an upload, and how much of it is there.
fn accepted(stream: &mut TcpStream, status: &str, number: usize, length: usize) -> io::Result<()> {
    let location = format!("/v2/app/blobs/uploads/{number}");
    let range = format!("0-{}", length.saturating_sub(1));
    answer(stream, status, &[("Location", &location), ("Range", &range)], b"")
}

/// A store that has `image`.
fn with(image: &Image) -> (Home, StoredImage) {
    let served = image.clone();
    let source = Server::start(move |request, stream| served.serve(request, stream));
    let home = home();
    let pulled = home.pull(&source).unwrap().image;
    (home, pulled)
}

fn push_to(home: &Home, image: &StoredImage, server: &Server) -> Result<(), Error> {
    let name: ImageName = format!("{}/app:1", server.address).parse().unwrap();
    run(push(&home.store, &home.registries(), image, &name, &home.sink())).map(|_| ())
}

fn is_patch(request: &Request) -> bool {
    request.method == "PATCH"
}

fn of_method(server: &Server, method: &str) -> usize {
    server.count(|request| request.method == method)
}

#[test]
fn small_blobs_go_in_one_request_and_large_ones_in_a_patch() {
    let image = Image::new(&[noise(300_000), noise(3_000_000)]);
    let (home, stored) = with(&image);
    let registry = Registry::default();
    let played = registry.clone();
    let server = Server::start(move |request, stream| played.serve(request, stream));
    push_to(&home, &stored, &server).unwrap();
    registry.assert_has(&image);
    assert_eq!((of_method(&server, "POST"), of_method(&server, "PATCH")), (3, 1));
    // Nothing is sent again.
    let before = server.requests().len();
    push_to(&home, &stored, &server).unwrap();
    assert_eq!(server.requests().len(), before + 4);
    assert!(home.events().iter().any(|event| matches!(
        event,
        Event::Blob {
            state: BlobState::LayerExists,
            ..
        }
    )));
}

#[test]
fn an_upload_that_is_cut_goes_on_where_the_registry_is() {
    let image = Image::of_bytes(3_000_000);
    let (home, stored) = with(&image);
    let registry = Registry::default();
    let played = registry.clone();
    let cuts = [1_000_000, 500_000, usize::MAX];
    let seen = Arc::new(AtomicUsize::new(0));
    let of_reader = seen.clone();
    let most = move |request: &Request| {
        let time = if is_patch(request) {
            of_reader.load(Ordering::Relaxed)
        } else {
            2
        };
        cuts[time.min(2)]
    };
    let server = Server::start_reading(most, move |request, stream| {
        if is_patch(request) && seen.fetch_add(1, Ordering::Relaxed) < 2 {
            played.keep_part(request);
            return reset(stream);
        }
        played.serve(request, stream)
    });
    push_to(&home, &stored, &server).unwrap();
    registry.assert_has(&image);
    let ranges: Vec<String> = server
        .requests()
        .iter()
        .filter_map(|request| request.header("content-range").map(str::to_owned))
        .collect();
    assert_eq!(ranges, ["0-2999999", "1000000-2999999", "1500000-2999999"]);
    // One upload of the layer, one of the configuration; the registry was asked twice how far it is.
    assert_eq!((of_method(&server, "POST"), of_method(&server, "GET")), (2, 2));
    assert!(home.events().iter().any(|event| matches!(
        event,
        Event::Blob {
            state: BlobState::Retrying { .. },
            ..
        }
    )));
}

#[test]
fn an_upload_that_the_registry_cannot_go_on_with_begins_anew() {
    for status in ["404 Not Found", "416 Range Not Satisfiable", "400 Bad Request"] {
        let image = Image::of_bytes(3_000_000);
        let (home, stored) = with(&image);
        let registry = Registry::default();
        let played = registry.clone();
        let cut = AtomicUsize::new(0);
        let most = |request: &Request| if is_patch(request) { 3_000_000 } else { usize::MAX };
        let server = Server::start_reading(most, move |request, stream| {
            if is_patch(request) && cut.fetch_add(1, Ordering::Relaxed) == 0 {
                return reset(stream);
            }
            if request.method == "GET" {
                return answer(stream, status, &[], b"");
            }
            played.serve(request, stream)
        });
        push_to(&home, &stored, &server).unwrap();
        registry.assert_has(&image);
        assert_eq!(
            (of_method(&server, "POST"), of_method(&server, "PATCH")),
            (3, 2),
            "{status}"
        );
    }
}

#[test]
fn a_registry_that_takes_a_part_is_sent_the_rest() {
    let image = Image::of_bytes(3_000_000);
    let (home, stored) = with(&image);
    let registry = Registry::default();
    let played = registry.clone();
    let first = AtomicUsize::new(0);
    let server = Server::start(move |request, stream| {
        if is_patch(request) && first.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut part = request.clone();
            part.body.truncate(2_000_000);
            return played.serve(&part, stream);
        }
        played.serve(request, stream)
    });
    push_to(&home, &stored, &server).unwrap();
    registry.assert_has(&image);
    assert_eq!(of_method(&server, "POST"), 2);
}

#[test]
fn a_registry_without_patch_gets_blobs_whole() {
    let image = Image::of_bytes(3_000_000);
    let (home, stored) = with(&image);
    let registry = Registry::default();
    let played = registry.clone();
    let server = Server::start(move |request, stream| {
        if is_patch(request) {
            return answer(stream, "405 Method Not Allowed", &[], b"");
        }
        played.serve(request, stream)
    });
    push_to(&home, &stored, &server).unwrap();
    registry.assert_has(&image);
}

#[test]
fn a_lost_answer_to_the_last_request_is_no_second_upload() {
    for bytes in [300_000, 3_000_000] {
        let image = Image::of_bytes(bytes);
        let (home, stored) = with(&image);
        let registry = Registry::default();
        let played = registry.clone();
        let lost = AtomicUsize::new(0);
        let server = Server::start(move |request, stream| {
            let completes = request.method == "PUT" && request.path.contains("/uploads/1");
            if completes && lost.fetch_add(1, Ordering::Relaxed) == 0 {
                // Nobody reads this answer.
                let unread = TcpListener::bind("127.0.0.1:0")?;
                let mut nowhere = TcpStream::connect(unread.local_addr()?)?;
                played.serve(request, &mut nowhere)?;
                return reset(stream);
            }
            if request.method == "GET" {
                return answer(stream, "404 Not Found", &[], b"");
            }
            played.serve(request, stream)
        });
        push_to(&home, &stored, &server).unwrap();
        registry.assert_has(&image);
        assert_eq!(of_method(&server, "POST"), 2, "{bytes}");
    }
}

#[test]
fn a_busy_registry_is_left_alone_as_long_as_it_asks() {
    let image = Image::of_bytes(2_000_000);
    let (mut home, stored) = with(&image);
    home.config.attempts = 5;
    let registry = Registry::default();
    let played = registry.clone();
    let seen = Mutex::new(BTreeSet::new());
    let server = Server::start(move |request, stream| {
        // The first request of each kind fails: for blobs, for uploads and their ends, for the manifest.
        let kind = (request.method.clone(), request.path.contains("/manifests/"));
        if seen.lock().unwrap().insert(kind) {
            return answer(stream, "503 Service Unavailable", &[("Retry-After", "0")], b"");
        }
        played.serve(request, stream)
    });
    push_to(&home, &stored, &server).unwrap();
    registry.assert_has(&image);

    let asked = AtomicUsize::new(0);
    let busy = Server::start(move |request, stream| {
        if request.method == "HEAD" {
            return answer(stream, "404 Not Found", &[], b"");
        }
        asked.fetch_add(1, Ordering::Relaxed);
        answer(stream, "429 Too Many Requests", &[("Retry-After", "3600")], b"")
    });
    let line = push_to(&home, &stored, &busy).unwrap_err().line();
    assert!(line.contains("429"), "{line}");
    assert_eq!(of_method(&busy, "POST"), 1);
}

#[test]
fn a_blob_of_another_repository_is_mounted_or_sent() {
    for mounts in [true, false] {
        let image = Image::of_bytes(2_000_000);
        let (home, _) = with(&image);
        let registry = Registry::default();
        let (played, served) = (registry.clone(), image.clone());
        let server = Server::start(move |request, stream| {
            if request.path.starts_with("/v2/other/") {
                return served.serve(request, stream);
            }
            if mounts && request.method == "POST" {
                assert!(request.path.contains("from=other"), "{}", request.path);
                let digest = request
                    .path
                    .split_once("mount=")
                    .unwrap()
                    .1
                    .split('&')
                    .next()
                    .unwrap();
                let blob = served.blobs[&digest.parse().unwrap()].clone();
                let mut received = played.0.lock().unwrap();
                received.blobs.insert(digest.to_owned(), blob);
                return answer(stream, "201 Created", &[], b"");
            }
            played.serve(request, stream)
        });
        let stored = home
            .pull_name(&format!("{}/other:1", server.address), None)
            .unwrap()
            .image;
        push_to(&home, &stored, &server).unwrap();
        registry.assert_has(&image);
        assert_eq!(of_method(&server, "PATCH"), usize::from(!mounts));
        let mounted = home.events().iter().any(
            |event| matches!(event, Event::Blob { state: BlobState::Mounted { from }, .. } if from == "other"),
        );
        assert_eq!(mounted, mounts);
    }
}

#[test]
fn a_token_for_a_push_is_for_both_repositories() {
    let image = Image::of_bytes(1000);
    let (home, _) = with(&image);
    let tokens = Server::start(|_, stream| {
        let json = [("Content-Type", "application/json")];
        answer(stream, "200 OK", &json, br#"{"access_token":"abc"}"#)
    });
    let challenge = format!(r#"Bearer realm="http://{}/token",service="s""#, tokens.address);
    let registry = Registry::default();
    let served = image.clone();
    let server = Server::start(move |request, stream| {
        if request.header("authorization").is_none() {
            return answer(
                stream,
                "401 Unauthorized",
                &[("WWW-Authenticate", &challenge)],
                b"",
            );
        }
        if request.path.starts_with("/v2/other/") {
            return served.serve(request, stream);
        }
        registry.serve(request, stream)
    });
    let stored = home
        .pull_name(&format!("{}/other:1", server.address), None)
        .unwrap()
        .image;
    push_to(&home, &stored, &server).unwrap();
    let last = tokens.requests().pop().unwrap().path;
    assert!(
        last.contains("scope=repository%3Aapp%3Apull%2Cpush")
            && last.contains("scope=repository%3Aother%3Apull"),
        "{last}"
    );
}

#[test]
fn a_registry_that_says_nothing_of_where_to_is_named() {
    let image = Image::of_bytes(1000);
    let (home, stored) = with(&image);
    for location in [None, Some("http://"), Some("ftp://127.0.0.1/x")] {
        let server = Server::start(move |request, stream| {
            if request.method == "HEAD" {
                return answer(stream, "404 Not Found", &[], b"");
            }
            let headers: Vec<_> = location.iter().map(|location| ("Location", *location)).collect();
            answer(stream, "202 Accepted", &headers, b"")
        });
        let error = push_to(&home, &stored, &server).unwrap_err();
        assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
    }
}
