//! The JSON documents of an image. The first byte says which of them the rest is; everything else of the archive around it is
//! as it should be, so that the document is reached.
#![no_main]

use brig_image_store::{Reference, Store, compose::Change, digest::Digest};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

fuzz_target!(|input: &[u8]| {
    let Some((kind, document)) = input.split_first() else {
        return;
    };
    if let Ok(text) = std::str::from_utf8(document) {
        let _ = text.parse::<Change>();
        if let Ok(reference) = text.parse::<Reference>() {
            let name = reference.name();
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }
    let layer = [0; 1024];
    let diff_id = Digest::of(&layer);
    let config = format!(
        r#"{{"os":"linux","architecture":"amd64","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#
    );
    let descriptor = |media_type: &str, blob: &[u8]| {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{media_type}","digest":"{}","size":{}}}"#,
            Digest::of(blob),
            blob.len()
        )
    };
    let manifest = |config: &[u8]| {
        format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor("config.v1+json", config),
            descriptor("layer.v1.tar", &layer)
        )
    };
    let index = |manifest: &[u8]| {
        format!(
            r#"{{"manifests":[{}]}}"#,
            descriptor("manifest.v1+json", manifest)
        )
    };
    let blob = |content: &[u8]| {
        (
            format!("blobs/sha256/{}", Digest::of(content).hex()),
            content.to_vec(),
        )
    };
    let mut files = vec![blob(&layer)];
    match kind % 4 {
        0 => {
            let manifest = manifest(document);
            files.extend([blob(document), blob(manifest.as_bytes())]);
            files.push(("index.json".into(), index(manifest.as_bytes()).into()));
        }
        1 => {
            files.extend([blob(config.as_bytes()), blob(document)]);
            files.push(("index.json".into(), index(document).into()));
        }
        2 => {
            let manifest = manifest(config.as_bytes());
            files.extend([blob(config.as_bytes()), blob(manifest.as_bytes())]);
            files.push(("index.json".into(), document.to_vec()));
        }
        _ => {
            files.extend([
                ("c.json".into(), config.clone().into()),
                ("l.tar".into(), layer.to_vec()),
            ]);
            files.push(("manifest.json".into(), document.to_vec()));
        }
    }
    let directory = TempDir::new_in("/dev/shm")
        .or_else(|_| TempDir::new())
        .expect("a directory");
    let layout = directory.path().join("layout");
    std::fs::create_dir_all(layout.join("blobs/sha256")).expect("a directory");
    for (path, content) in files {
        std::fs::write(layout.join(path), content).expect("a file");
    }
    let store = Store::open(&directory.path().join("store")).expect("a store");
    if let Ok(loaded) = store.load_path(&layout, &mut |_| {}) {
        for image in loaded {
            let _ = store.history(&image.image);
        }
    }
    assert_eq!(store.check().expect("the store can be read"), []);
});
