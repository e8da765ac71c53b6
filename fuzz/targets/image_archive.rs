//! An archive of images, plain or compressed: whatever is in it, loading it ends with images or an error, and a store that is
//! whole. What is imported is a layer, whatever is in it.
#![no_main]

use std::{path::Path, sync::LazyLock};

use brig_image_store::{Store, store::ImportOptions};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Where files cost nothing.
static SCRATCH: LazyLock<TempDir> = LazyLock::new(|| {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() {
        TempDir::new_in(memory)
    } else {
        TempDir::new()
    };
    made.expect("a temporary directory")
});

fuzz_target!(|archive: &[u8]| {
    let directory = TempDir::new_in(SCRATCH.path()).expect("a directory");
    let store = Store::open(directory.path()).expect("a store");
    let loaded = store.load(&mut &archive[..], &mut |_| {});
    let _ = store.import(&mut &archive[..], &ImportOptions::default(), &mut |_| {});
    if let Ok(loaded) = loaded {
        for image in loaded {
            let _ = store.config_document(&image.image);
            let _ = store.history(&image.image);
            let text = image.image.id.hex();
            store
                .save(&[text], &mut std::io::sink(), &mut |_| {})
                .expect("what was loaded can be saved");
        }
    }
    assert_eq!(store.check().expect("the store can be read"), []);
});
