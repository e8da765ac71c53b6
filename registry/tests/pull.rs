//! Pulls from a registry that is honest, but not always well.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    fs,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use brig_image_store::digest::Digest;
use brig_registry::{
    Error,
    progress::{BlobState, Event},
};
use common::{INDEX, Image, Request, Server, answer, descriptor, head, home, manifest, noise, reset};
use serde_json::json;

#[test]
fn an_image_comes_in_whole_and_a_second_pull_costs_one_request() {
    let image = Image::new(&[noise(300_000), noise(10), noise(300_000), noise(50_000)]);
    let served = image.clone();
    let server = Server::start(move |request, stream| served.serve(request, stream));
    let home = home();
    let pulled = home.pull(&server).unwrap();
    assert!(pulled.newer);
    assert_eq!(pulled.digest, image.digest());
    assert_eq!(pulled.image.layers.len(), 4);
    assert_eq!(home.store.check().unwrap(), []);
    // The manifest, the configuration and three layers: one is there twice.
    assert_eq!(server.requests().len(), 5);
    let again = home.pull(&server).unwrap();
    assert!(!again.newer && again.image == pulled.image);
    assert_eq!(server.requests().len(), 6);
    // Its digest is enough to know that nothing has changed.
    let name = format!("{}/app@{}", server.address, image.digest());
    assert!(!home.pull_name(&name, None).unwrap().newer);
    assert_eq!(server.requests().len(), 6);
    let downloads = fs::read_dir(home.directory.path().join("images/downloads")).unwrap();
    assert_eq!(downloads.count(), 0);
}

#[test]
fn a_layer_that_the_store_has_is_not_downloaded_again() {
    let shared = noise(100_000);
    let (one, two) = (
        Image::new(std::slice::from_ref(&shared)),
        Image::new(&[shared.clone(), noise(70)]),
    );
    let home = home();
    let first = Server::start(move |request, stream| one.serve(request, stream));
    home.pull(&first).unwrap();
    let second = Server::start(move |request, stream| two.serve(request, stream));
    home.pull(&second).unwrap();
    assert_eq!(second.count(|request| request.is_blob(&Digest::of(&shared))), 0);
    assert!(home.events().iter().any(|event| matches!(
        event,
        Event::Blob {
            state: BlobState::Exists,
            ..
        }
    )));
}

#[test]
fn a_broken_download_goes_on_where_it_broke_off() {
    let image = Image::of_bytes(400_000);
    let served = image.clone();
    let broken = AtomicUsize::new(0);
    let server = Server::start(move |request, stream| {
        if request.is_blob(&served.layers[0]) && broken.fetch_add(1, Ordering::Relaxed) == 0 {
            head(stream, "200 OK", &[], Some(served.layer().len() as u64))?;
            return stream.write_all(&served.layer()[..150_000]);
        }
        served.serve(request, stream)
    });
    let home = home();
    home.pull(&server).unwrap();
    assert_eq!(ranges(&server, &image), [None, Some("bytes=150000-".to_owned())]);
    assert!(home.events().iter().any(|event| matches!(
        event,
        Event::Blob {
            state: BlobState::Retrying { .. },
            ..
        }
    )));
}

#[test]
fn the_next_process_goes_on_with_what_a_failed_one_got() {
    let image = Image::of_bytes(400_000);
    let served = image.clone();
    let broken = AtomicUsize::new(0);
    let server = Server::start(move |request, stream| {
        if request.is_blob(&served.layers[0]) && broken.fetch_add(1, Ordering::Relaxed) < 1 {
            head(stream, "200 OK", &[], Some(served.layer().len() as u64))?;
            return stream.write_all(&served.layer()[..150_000]);
        }
        served.serve(request, stream)
    });
    let mut home = home();
    home.config.attempts = 1;
    let error = home.refused(&server);
    assert!(matches!(error, Error::Network { .. }), "{error:?}");
    home.pull(&server).unwrap();
    assert_eq!(ranges(&server, &image), [None, Some("bytes=150000-".to_owned())]);
}

#[test]
fn a_registry_that_cannot_resume_is_asked_for_all_of_it() {
    for status in ["200 OK", "416 Range Not Satisfiable", "206 Partial Content"] {
        let image = Image::of_bytes(400_000);
        let served = image.clone();
        let asked = AtomicUsize::new(0);
        let server = Server::start(move |request, stream| {
            if request.is_blob(&served.layers[0]) {
                let time = asked.fetch_add(1, Ordering::Relaxed);
                let layer = served.layer();
                if time == 0 {
                    head(stream, "200 OK", &[], Some(layer.len() as u64))?;
                    return stream.write_all(&layer[..150_000]);
                }
                if time == 1 {
                    // The partial answer does not say that it is the part that was asked for.
                    let body: &[u8] = if status.starts_with("200") { layer } else { b"" };
                    return answer(stream, status, &[], body);
                }
            }
            served.serve(request, stream)
        });
        let mut home = home();
        home.config.attempts = 4;
        let pulled = home.pull(&server);
        assert!(pulled.is_ok(), "{status}: {pulled:?}");
    }
}

#[test]
fn what_an_old_download_left_is_verified() {
    let image = Image::of_bytes(100_000);
    let served = image.clone();
    let server = Server::start(move |request, stream| served.serve(request, stream));
    let home = home();
    let downloads = home.directory.path().join("images/downloads");
    fs::create_dir(&downloads).unwrap();
    let part = downloads.join(format!("{}-100000", image.layers[0].hex()));
    fs::write(&part, b"these are not its first bytes").unwrap();
    home.pull(&server).unwrap();
    assert_eq!(ranges(&server, &image), [Some("bytes=29-".to_owned()), None]);
    // A whole one is taken, a longer one is not.
    let home = common::home();
    let downloads = home.directory.path().join("images/downloads");
    fs::create_dir(&downloads).unwrap();
    let part = downloads.join(format!("{}-100000", image.layers[0].hex()));
    fs::write(&part, image.layer()).unwrap();
    home.pull(&server).unwrap();
    assert_eq!(ranges(&server, &image).len(), 2);
    let home = common::home();
    let downloads = home.directory.path().join("images/downloads");
    fs::create_dir(&downloads).unwrap();
    let part = downloads.join(format!("{}-100000", image.layers[0].hex()));
    fs::write(&part, noise(100_001)).unwrap();
    home.pull(&server).unwrap();
    assert_eq!(home.store.check().unwrap(), []);
}

#[test]
fn a_busy_registry_is_asked_again() {
    for (status, header) in [
        ("503 Service Unavailable", ("X", "")),
        ("429 Too Many Requests", ("Retry-After", "0")),
        ("500 Internal Server Error", ("X", "")),
    ] {
        let image = Image::of_bytes(1000);
        let seen = Arc::new(AtomicUsize::new(0));
        let server = Server::start(move |request, stream| {
            // Every other request fails: of manifests, configurations and layers.
            if seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return answer(stream, status, &[header], b"");
            }
            image.serve(request, stream)
        });
        home().pull(&server).unwrap();
        assert_eq!(server.requests().len(), 6, "{status}");
    }
}

#[test]
fn a_registry_that_wants_to_be_left_alone_for_hours_is() {
    let server = Server::start(|_, stream| {
        let body =
            br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}"#;
        answer(stream, "429 Too Many Requests", &[("Retry-After", "7200")], body)
    });
    let line = home().refused(&server).line();
    assert!(line.contains("429") && line.contains("pull rate limit"), "{line}");
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn connections_that_are_reset_are_made_anew() {
    let image = Image::of_bytes(1000);
    let seen = AtomicUsize::new(0);
    let server = Server::start(move |request, stream| {
        if !seen.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
            return reset(stream);
        }
        image.serve(request, stream)
    });
    home().pull(&server).unwrap();
}

#[test]
fn the_image_of_a_platform_is_chosen_from_an_index() {
    let (amd, arm) = (
        Image::of_bytes(100),
        Image::for_architecture("arm64", &[noise(200)]),
    );
    let mut index_image = amd.clone();
    index_image.blobs.extend(arm.blobs.clone());
    let mut entries = [
        descriptor(common::MANIFEST, &arm.manifest),
        descriptor(common::MANIFEST, &amd.manifest),
    ];
    entries[0]["platform"] = json!({"os": "linux", "architecture": "arm64", "variant": "v8"});
    entries[1]["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    let top = Digest::of(index.as_bytes());
    let images = [amd.clone(), arm.clone()];
    let server = Server::start(move |request, stream| {
        let last = request.path.rsplit('/').next().unwrap_or_default().to_owned();
        if request.path.contains("/manifests/") && (last == "1" || last == top.to_string()) {
            let digest = top.to_string();
            let headers = [("Content-Type", INDEX), ("Docker-Content-Digest", &digest)];
            head(stream, "200 OK", &headers, Some(index.len() as u64))?;
            return if request.method == "GET" {
                stream.write_all(index.as_bytes())
            } else {
                Ok(())
            };
        }
        let of = images.iter().find(|image| image.digest().to_string() == last);
        match of {
            Some(image) => image.serve(request, stream),
            None => index_image.serve(request, stream),
        }
    });
    let home = home();
    let pulled = home.pull(&server).unwrap();
    assert_eq!((pulled.digest, pulled.image.id.0), (top, amd.config));
    assert_eq!(pulled.image.architecture, "amd64");
    // The index's digest is a name of the image from now on.
    let by_index = home
        .store
        .resolve(&format!("{}/app@{top}", server.address))
        .unwrap();
    assert_eq!(by_index.unwrap().id, pulled.image.id);
    let before = server.requests().len();
    assert!(!home.pull(&server).unwrap().newer);
    assert_eq!(server.requests().len(), before + 1);

    let name = format!("{}/app:1", server.address);
    let other = home.pull_name(&name, Some("linux/arm64")).unwrap();
    assert_eq!(
        (other.image.id.0, other.image.architecture.as_str()),
        (arm.config, "arm64")
    );
    let error = home.pull_name(&name, Some("linux/s390x")).unwrap_err().line();
    assert!(
        error.contains("linux/s390x") && error.contains("linux/arm64/v8, linux/amd64"),
        "{error}"
    );
}

#[test]
fn an_image_of_another_platform_is_named() {
    let arm = Image::for_architecture("arm64", &[noise(100)]);
    let server = Server::start(move |request, stream| arm.serve(request, stream));
    let line = home().refused(&server).line();
    assert!(
        line.contains("linux/arm64") && line.contains("linux/amd64") && line.contains("--platform"),
        "{line}"
    );
    assert_eq!(server.count(|request| request.path.contains("/blobs/")), 1);
}

#[test]
fn mirrors_are_asked_in_order_and_the_registry_last() {
    let image = Image::of_bytes(5000);
    let served = image.clone();
    let empty = Server::start(|_, stream| answer(stream, "404 Not Found", &[], b""));
    // It knows the manifest, but has lost the layer.
    let partial = Server::start(move |request, stream| {
        if request.is_blob(&served.layers[0]) {
            return answer(stream, "404 Not Found", &[], b"");
        }
        served.serve(request, stream)
    });
    let whole = Server::start(move |request, stream| image.serve(request, stream));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("registries.toml");
    let mirrors = format!(
        r#""http://127.0.0.1:1", "http://{}", "http://{}""#,
        empty.address, partial.address
    );
    fs::write(
        &path,
        format!("[registry.\"{}\"]\nmirrors = [{mirrors}]\n", whole.address),
    )
    .unwrap();
    let mut home = home();
    home.config = brig_registry::Config::load(&[path]).unwrap();
    home.config.attempts = 1;
    let pulled = home.pull(&whole).unwrap();
    assert_eq!(
        pulled.image.names[0].to_string(),
        format!("{}/app:1", whole.address)
    );
    assert_eq!((empty.requests().len(), whole.requests().len()), (1, 1));
}

#[test]
fn zstd_and_plain_layers_are_taken() {
    let layers = [b"\x28\xb5\x2f\xfd zstd".to_vec(), b"plain".to_vec()];
    let mut image = Image::new(&layers);
    let config = image.blobs[&image.config].clone();
    let descriptors = [
        descriptor("application/vnd.oci.image.layer.v1.tar+zstd", &layers[0]),
        descriptor("application/vnd.docker.image.rootfs.diff.tar", &layers[1]),
    ];
    image.manifest = manifest(&config, &descriptors);
    let server = Server::start(move |request, stream| image.serve(request, stream));
    let pulled = home().pull(&server).unwrap();
    let compression: Vec<_> = pulled
        .image
        .layers
        .iter()
        .map(|layer| format!("{:?}", layer.compression))
        .collect();
    assert_eq!(compression, ["Zstd", "None"]);
}

fn ranges(server: &Server, image: &Image) -> Vec<Option<String>> {
    let requests = server.requests();
    let blob = requests
        .iter()
        .filter(|request| request.is_blob(&image.layers[0]));
    blob.map(|request: &Request| request.header("range").map(str::to_owned))
        .collect()
}
