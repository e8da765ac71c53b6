//! Pulls from registries that mean harm: one clear error each, in bounded time and memory, and a store as it was before.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use brig_image_store::{StoreError, archive::ArchiveError, digest::Digest};
use brig_registry::Error;
use common::{
    INDEX, Image, LAYER, Request, Server, answer, descriptor, head, home, manifest, noise, reset, stall,
};
use serde_json::json;

/// An honest registry of `image`, but for requests that `wrong` answers itself.
fn server(
    image: &Image,
    wrong: impl Fn(&Request, &mut TcpStream) -> Option<io::Result<()>> + Send + Sync + 'static,
) -> Server {
    let image = image.clone();
    Server::start(move |request, stream| match wrong(request, stream) {
        Some(done) => done,
        None => image.serve(request, stream),
    })
}

/// One whose manifest is `document`.
fn with_manifest(kind: &'static str, document: Vec<u8>) -> Server {
    let image = Image::of_bytes(100);
    server(&image, move |request, stream| {
        let asked = request.path.ends_with("/manifests/1");
        asked.then(|| answer(stream, "200 OK", &[("Content-Type", kind)], &document))
    })
}

fn is_manifest(request: &Request) -> bool {
    request.path.contains("/manifests/")
}

/// Sends `bytes` again and again, in chunks (RFC 9112, section 7.1), until the client has gone.
fn endless(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    head(
        stream,
        "200 OK",
        &[
            ("Transfer-Encoding", "chunked"),
            ("Content-Type", common::MANIFEST),
        ],
        None,
    )?;
    loop {
        write!(stream, "{:x}\r\n", bytes.len())?;
        stream.write_all(bytes)?;
        stream.write_all(b"\r\n")?;
    }
}

#[test]
fn a_registry_that_stalls_is_given_up() {
    let image = Image::of_bytes(100_000);
    let silent = server(&image, |request, stream| {
        is_manifest(request).then(|| stall(stream))
    });
    assert!(matches!(home().refused(&silent), Error::Stalled { .. }));
    let half = server(&image, |request, stream| {
        request.path.contains("/blobs/").then(|| {
            head(stream, "200 OK", &[], None)?;
            stream.write_all(b"a")?;
            stall(stream)
        })
    });
    assert!(matches!(home().refused(&half), Error::Stalled { .. }));
}

#[test]
fn a_layer_that_comes_drop_by_drop_is_given_up() {
    let image = Image::of_bytes(100_000);
    let layer = image.layers[0];
    let server = server(&image, move |request, stream| {
        request.is_blob(&layer).then(|| {
            head(stream, "200 OK", &[], Some(100_000))?;
            loop {
                stream.write_all(b"x")?;
                thread::sleep(Duration::from_millis(50));
            }
        })
    });
    assert!(matches!(home().refused(&server), Error::Stalled { .. }));
}

#[test]
fn a_registry_that_resets_every_connection_is_named() {
    let image = Image::of_bytes(100_000);
    let at_once = server(&image, |_, stream| Some(reset(stream)));
    let line = home().refused(&at_once).line();
    assert!(line.contains(&at_once.address.to_string()), "{line}");
    let layer = image.layers[0];
    let later = server(&image, move |request, stream| {
        request.is_blob(&layer).then(|| {
            head(stream, "200 OK", &[], Some(100_000))?;
            stream.write_all(&[0; 1000])?;
            reset(stream)
        })
    });
    assert!(matches!(home().refused(&later), Error::Network { .. }));
}

#[test]
fn redirects_for_ever_end() {
    let image = Image::of_bytes(100);
    let server = server(&image, |request, stream| {
        let target = format!("{}x", request.path);
        Some(answer(
            stream,
            "307 Temporary Redirect",
            &[("Location", &target)],
            b"",
        ))
    });
    assert!(matches!(home().refused(&server), Error::Redirects(_)));
    assert_eq!(server.requests().len(), 11);
}

#[test]
fn redirects_to_where_brig_does_not_go_are_refused() {
    for target in [
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "data:text/plain,x",
        "http://user:password@127.0.0.1/",
        "http://",
    ] {
        let image = Image::of_bytes(100);
        let layer = image.layers[0];
        let server = server(&image, move |request, stream| {
            request
                .is_blob(&layer)
                .then(|| answer(stream, "302 Found", &[("Location", target)], b""))
        });
        let error = home().refused(&server);
        assert!(matches!(error, Error::Redirect { .. }), "{target}: {error:?}");
    }
    let image = Image::of_bytes(100);
    let nowhere = server(&image, |_, stream| Some(answer(stream, "302 Found", &[], b"")));
    assert!(matches!(home().refused(&nowhere), Error::Redirect { .. }));
}

#[test]
fn wrong_content_types_are_refused() {
    for kind in [
        "text/html",
        "application/vnd.oci.image.config.v1+json",
        "image/png",
    ] {
        let error = home().refused(&with_manifest(kind, Image::of_bytes(100).manifest));
        assert!(matches!(error, Error::Malformed { .. }), "{kind}: {error:?}");
    }
    // It says that it is an index, the server that it is a manifest: a client must not choose.
    let confused = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []}).to_string();
    let error = home().refused(&with_manifest(common::MANIFEST, confused.into_bytes()));
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[test]
fn documents_that_are_none_are_refused() {
    for document in [
        "",
        "{",
        "[]",
        "{}",
        "null",
        r#"{"config":{},"layers":3}"#,
        "\u{1b}[2J",
    ] {
        let error = home().refused(&with_manifest(common::MANIFEST, document.into()));
        assert!(matches!(error, Error::Malformed { .. }), "{document}: {error:?}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let error = home().refused(&with_manifest(common::MANIFEST, deep.into_bytes()));
    assert!(matches!(error, Error::Malformed { .. }), "{error:?}");
}

#[test]
fn a_manifest_of_schema_1_and_a_foreign_layer_are_told_apart() {
    let old = json!({"schemaVersion": 1, "name": "app", "tag": "1", "fsLayers": []}).to_string();
    for kind in [
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        "application/json",
    ] {
        let error = home().refused(&with_manifest(kind, old.clone().into_bytes()));
        assert!(matches!(error, Error::SchemaOne(_)), "{kind}: {error:?}");
    }
    let image = Image::of_bytes(100);
    let mut layer = descriptor(
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        image.layer(),
    );
    layer["urls"] = json!(["https://elsewhere.example/layer"]);
    let document = manifest(&image.blobs[&image.config], &[layer]);
    let error = home().refused(&with_manifest(common::MANIFEST, document));
    assert!(matches!(error, Error::Foreign { .. }), "{error:?}");
}

#[test]
fn digests_that_lie_are_noticed() {
    let image = Image::of_bytes(100_000);
    let other = Digest::of(b"other").to_string();
    let served = image.clone();
    let of_manifest = server(&image, move |request, stream| {
        let headers = [
            ("Content-Type", common::MANIFEST),
            ("Docker-Content-Digest", other.as_str()),
        ];
        is_manifest(request).then(|| answer(stream, "200 OK", &headers, &served.manifest))
    });
    assert!(matches!(home().refused(&of_manifest), Error::Digest { .. }));

    let layer = image.layers[0];
    let forged = noise(100_000).into_iter().rev().collect::<Vec<u8>>();
    let of_layer = server(&image, move |request, stream| {
        request
            .is_blob(&layer)
            .then(|| answer(stream, "200 OK", &[], &forged))
    });
    let home_of_layer = home();
    assert!(matches!(home_of_layer.refused(&of_layer), Error::Digest { .. }));
    assert_eq!(of_layer.count(|request| request.is_blob(&layer)), 1);
    // Nothing of it is gone on with.
    let downloads = std::fs::read_dir(home_of_layer.directory.path().join("images/downloads"));
    let kept: u64 = downloads
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(kept, 0);

    let config = image.config;
    let length = image.blobs[&config].len();
    let of_config = server(&image, move |request, stream| {
        request
            .is_blob(&config)
            .then(|| answer(stream, "200 OK", &[], &vec![b' '; length]))
    });
    assert!(matches!(home().refused(&of_config), Error::Digest { .. }));

    // Another manifest than the one that was asked for by its digest.
    let by_digest = server(&image, |_, _| None);
    let name = format!("{}/app@{}", by_digest.address, Digest::of(b"x"));
    assert!(home().pull_name(&name, None).is_err());
    let forged = image.manifest.clone();
    let lying = server(&image, move |request, stream| {
        is_manifest(request).then(|| answer(stream, "200 OK", &[("Content-Type", common::MANIFEST)], &forged))
    });
    let name = format!("{}/app@{}", lying.address, Digest::of(b"x"));
    assert!(matches!(home().pull_name(&name, None), Err(Error::Digest { .. })));
}

#[test]
fn documents_that_are_too_long_are_not_read_to_their_end() {
    let image = Image::of_bytes(100);
    let announced = server(&image, |request, stream| {
        is_manifest(request).then(|| {
            head(
                stream,
                "200 OK",
                &[("Content-Type", common::MANIFEST)],
                Some(100 << 20),
            )?;
            stall(stream)
        })
    });
    assert!(matches!(home().refused(&announced), Error::TooLong { .. }));
    let endless_manifest = server(&image, |request, stream| {
        is_manifest(request).then(|| endless(stream, &[b' '; 10_000]))
    });
    assert!(matches!(home().refused(&endless_manifest), Error::TooLong { .. }));

    // A configuration of 100 MB, admitted and denied.
    let config = image.config;
    let mut document: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    document["config"]["size"] = json!(100 << 20);
    let admitted = with_manifest(common::MANIFEST, document.to_string().into_bytes());
    assert!(matches!(home().refused(&admitted), Error::TooLong { .. }));
    assert_eq!(admitted.count(|request| request.path.contains("/blobs/")), 0);
    let denied = server(&image, move |request, stream| {
        request.is_blob(&config).then(|| endless(stream, &[b' '; 10_000]))
    });
    assert!(matches!(home().refused(&denied), Error::TooLong { .. }));
}

#[test]
fn lengths_that_lie_are_noticed() {
    let image = Image::of_bytes(100_000);
    let layer = image.layers[0];
    for length in [99_999, 100_001, u64::MAX, 0] {
        let server = server(&image, move |request, stream| {
            request.is_blob(&layer).then(|| {
                head(stream, "200 OK", &[], Some(length))?;
                stream.write_all(&[0; 1000])
            })
        });
        let error = home().refused(&server);
        assert!(
            matches!(error, Error::Malformed { .. } | Error::Network { .. }),
            "{length}: {error:?}"
        );
    }
    let endless_layer = server(&image, move |request, stream| {
        request.is_blob(&layer).then(|| endless(stream, &[0; 10_000]))
    });
    assert!(matches!(home().refused(&endless_layer), Error::TooLong { .. }));
}

#[test]
fn images_of_thousands_of_layers_are_refused() {
    let image = Image::of_bytes(100);
    let layers: Vec<_> = (0..5000_u32)
        .map(|number| descriptor(LAYER, &number.to_le_bytes()))
        .collect();
    let document = manifest(&image.blobs[&image.config], &layers);
    let server = with_manifest(common::MANIFEST, document);
    let error = home().refused(&server);
    assert!(
        matches!(error, Error::Image(ArchiveError::TooManyLayers(5000))),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), 1);
    // A configuration that has others than the manifest.
    let two = manifest(
        &image.blobs[&image.config],
        &[descriptor(LAYER, b"a"), descriptor(LAYER, b"b")],
    );
    let error = home().refused(&with_manifest(common::MANIFEST, two));
    assert!(
        matches!(error, Error::Image(ArchiveError::LayerCount { .. })),
        "{error:?}"
    );
    // One blob with two lengths.
    let config = json!({"architecture": "amd64", "os": "linux",
        "rootfs": {"diff_ids": [Digest::of(b"a").to_string(), Digest::of(b"a").to_string()]}});
    let config = config.to_string().into_bytes();
    let mut layers = [descriptor(LAYER, b"a"), descriptor(LAYER, b"a")];
    layers[1]["size"] = json!(2);
    let document = manifest(&config, &layers);
    let server = server_of_config(config, document);
    let error = home().refused(&server);
    assert!(
        matches!(error, Error::Image(ArchiveError::Size { .. })),
        "{error:?}"
    );
}

fn server_of_config(config: Vec<u8>, document: Vec<u8>) -> Server {
    Server::start(move |request, stream| {
        let kind = [("Content-Type", common::MANIFEST)];
        let body = if is_manifest(request) { &document } else { &config };
        answer(stream, "200 OK", &kind, body)
    })
}

#[test]
fn a_layer_of_more_bytes_than_allowed_or_than_there_is_space_for_is_refused_at_once() {
    let image = Image::of_bytes(100);
    let of_bytes = |bytes: u64| {
        let mut document: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
        document["layers"][0]["size"] = json!(bytes);
        with_manifest(common::MANIFEST, document.to_string().into_bytes())
    };
    for bytes in [u64::MAX >> 1, u64::MAX, (16 << 30) + 1] {
        let server = of_bytes(bytes);
        let line = home().refused(&server).line();
        assert_eq!(
            line,
            "the layers of the image have more than 16 GiB: --max-image-size allows more"
        );
        assert_eq!(server.count(|request| request.is_blob(&image.layers[0])), 0);
    }
    // More is allowed, but no disk has it.
    let server = of_bytes(16_000_000_000_000);
    let mut home = home();
    home.store = home.store.limited("16t".parse().unwrap());
    let error = home.refused(&server);
    assert!(
        matches!(error, Error::Store(StoreError::NoSpace { .. })),
        "{error:?}"
    );
    assert_eq!(server.count(|request| request.is_blob(&image.layers[0])), 0);
}

#[test]
fn indexes_in_indexes_end() {
    let image = Image::of_bytes(100);
    let chain: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let mut inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": []})
        .to_string()
        .into_bytes();
    for _ in 0..10 {
        chain.lock().unwrap().push(inner.clone());
        let entry = descriptor(INDEX, &inner);
        inner = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]})
            .to_string()
            .into_bytes();
    }
    let top = inner;
    let server = server(&image, move |request, stream| {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        let chain = chain.lock().unwrap();
        let found = chain
            .iter()
            .find(|index| Digest::of(index).to_string() == last)
            .unwrap_or(&top);
        is_manifest(request).then(|| answer(stream, "200 OK", &[("Content-Type", INDEX)], found))
    });
    let error = home().refused(&server);
    assert!(
        matches!(error, Error::Image(ArchiveError::TooManyIndexes)),
        "{error:?}"
    );
    assert!(server.requests().len() < 6);
}

/// A registry that wants a token of `realm` (or, of none, the name and the password) for everything.
fn guarded(image: &Image, challenge: String) -> Server {
    server(image, move |request, stream| {
        let known = request.header("authorization").is_some();
        let headers = [("WWW-Authenticate", challenge.as_str())];
        (!known).then(|| answer(stream, "401 Unauthorized", &headers, b""))
    })
}

fn token_server(body: &'static [u8], status: &'static str) -> Server {
    Server::start(move |_, stream| answer(stream, status, &[("Content-Type", "application/json")], body))
}

fn bearer(address: SocketAddr) -> String {
    format!(r#"Bearer realm="http://{address}/token",service="registry""#)
}

#[test]
fn a_token_is_asked_for_once_and_only_for_what_is_pulled() {
    let tokens = token_server(br#"{"token":"abc"}"#, "200 OK");
    let image = Image::of_bytes(1000);
    let server = guarded(&image, bearer(tokens.address));
    home()
        .with_password(&server, "me", "secret")
        .pull(&server)
        .unwrap();
    let [request] = &tokens.requests()[..] else {
        panic!("{:?}", tokens.requests())
    };
    assert!(
        request.path.contains("scope=repository%3Aapp%3Apull"),
        "{}",
        request.path
    );
    assert!(
        request.path.contains("service=registry") && request.path.contains("account=me"),
        "{}",
        request.path
    );
    // me:secret
    assert_eq!(request.header("authorization"), Some("Basic bWU6c2VjcmV0"));
    let used: Vec<_> = server
        .requests()
        .iter()
        .filter_map(|r| r.header("authorization").map(str::to_owned))
        .collect();
    assert_eq!(used, ["Bearer abc", "Bearer abc", "Bearer abc"]);
}

#[test]
fn token_servers_that_are_bad_are_named() {
    let image = Image::of_bytes(100);
    for (body, status) in [
        (&b"<html>"[..], "200 OK"),
        (b"{}", "200 OK"),
        (br#"{"token":""}"#, "200 OK"),
        (br#"{"token":"a\nb"}"#, "200 OK"),
        (br#"{"token":3}"#, "200 OK"),
        (b"", "404 Not Found"),
        (b"", "500 Internal Server Error"),
        (b"", "401 Unauthorized"),
    ] {
        let tokens = token_server(body, status);
        home().refused(&guarded(&image, bearer(tokens.address)));
    }
    let long = Server::start(|_, stream| endless(stream, &[b' '; 10_000]));
    let error = home().refused(&guarded(&image, bearer(long.address)));
    assert!(matches!(error, Error::TooLong { .. }), "{error:?}");
    let round = Server::start(|request, stream| {
        answer(stream, "302 Found", &[("Location", request.path.as_str())], b"")
    });
    let error = home().refused(&guarded(&image, bearer(round.address)));
    assert!(matches!(error, Error::Redirects(_)), "{error:?}");
    for realm in ["file:///etc/passwd", "", "nonsense", "ftp://x/", "http://"] {
        let error = home().refused(&guarded(&image, format!(r#"Bearer realm="{realm}""#)));
        assert!(matches!(error, Error::Challenge { .. }), "{realm}: {error:?}");
    }
    let error = home().refused(&guarded(&image, "Negotiate".to_owned()));
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
}

#[test]
fn a_registry_that_is_never_content_is_given_up() {
    let image = Image::of_bytes(100);
    let tokens = token_server(br#"{"token":"abc"}"#, "200 OK");
    let challenge = bearer(tokens.address);
    let never = server(&image, move |_, stream| {
        Some(answer(
            stream,
            "401 Unauthorized",
            &[("WWW-Authenticate", &challenge)],
            b"",
        ))
    });
    assert!(matches!(home().refused(&never), Error::Denied { .. }));
    let basic = server(&image, |_, stream| {
        Some(answer(
            stream,
            "401 Unauthorized",
            &[("WWW-Authenticate", "Basic realm=x")],
            b"",
        ))
    });
    let error = home().with_password(&basic, "me", "wrong").refused(&basic);
    assert!(matches!(error, Error::Unauthorized(_)), "{error:?}");
    assert!(basic.requests().len() <= 3);
}

#[test]
fn names_and_passwords_are_told_to_no_other_host() {
    let image = Image::of_bytes(1000);
    let served = image.clone();
    // It asks for a password as well, and must not get one.
    let elsewhere = Server::start(move |request, stream| served.serve(request, stream));
    let target = elsewhere.address;
    let layer = image.layers[0];
    let server = server(&image, move |request, stream| {
        if request.header("authorization") != Some("Basic bWU6c2VjcmV0") {
            let headers = [("WWW-Authenticate", "Basic realm=x")];
            return Some(answer(stream, "401 Unauthorized", &headers, b""));
        }
        let location = format!("http://{target}/v2/app/blobs/{layer}");
        request
            .is_blob(&layer)
            .then(|| answer(stream, "307 Temporary Redirect", &[("Location", &location)], b""))
    });
    home()
        .with_password(&server, "me", "secret")
        .pull(&server)
        .unwrap();
    let [request] = &elsewhere.requests()[..] else {
        panic!("{:?}", elsewhere.requests())
    };
    assert_eq!(request.header("authorization"), None);

    let thief = Server::start(|_, stream| {
        answer(
            stream,
            "401 Unauthorized",
            &[("WWW-Authenticate", "Basic realm=x")],
            b"",
        )
    });
    let target = thief.address;
    let server = common::Server::start(move |request, stream| {
        if request.header("authorization").is_none() {
            return answer(
                stream,
                "401 Unauthorized",
                &[("WWW-Authenticate", "Basic realm=x")],
                b"",
            );
        }
        let location = format!("http://{target}{}", request.path);
        answer(stream, "307 Temporary Redirect", &[("Location", &location)], b"")
    });
    home().with_password(&server, "me", "secret").refused(&server);
    assert!(
        thief
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[test]
fn what_a_registry_says_steers_no_terminal() {
    let server = Server::start(|_, stream| {
        let body = br#"{"errors":[{"code":"X","message":"\u001b[2J\r\nbrig: all is well"}]}"#;
        answer(stream, "400 Bad Request", &[], body)
    });
    let line = home().refused(&server).line();
    assert!(!line.contains(char::is_control), "{line:?}");
}
