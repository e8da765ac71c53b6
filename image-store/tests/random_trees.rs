//! Random layers, unpacked and mounted, against a simple model of what they mean.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

use common::{Header, Tar, mount};
use proptest::prelude::*;

/// An entry of a layer.
#[derive(Clone, Debug)]
enum Entry {
    Directory {
        mode: u32,
    },
    File {
        size: usize,
        fill: u8,
        uid: u32,
        mtime: i64,
    },
    Symlink {
        target: String,
    },
    Whiteout,
}

/// What a path is in the end.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Directory { mode: u32 },
    File { content: Vec<u8>, uid: u32, mtime: i64 },
    Symlink { target: String },
}

/// A layer: distinct paths, as sets of entries have no order then.
type Layer = BTreeMap<Vec<String>, Entry>;

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        3 => (0u32..0o7777).prop_map(|mode| Entry::Directory { mode: mode | 0o700 }),
        6 => (prop_oneof![0usize..10, 1000usize..9000, 4090usize..4100, Just(70_000usize)], any::<u8>(), any::<u32>(), -9i64..1 << 34)
            .prop_map(|(size, fill, uid, mtime)| Entry::File { size, fill, uid, mtime }),
        1 => "[a-z/.]{1,200}".prop_map(|target| Entry::Symlink { target }),
        2 => Just(Entry::Whiteout),
    ]
}

fn layer() -> impl Strategy<Value = Layer> {
    let name = prop_oneof![4 => "[a-e]", 1 => "[a-z!~ ]{1,100}"];
    let path = prop::collection::vec(name, 1..5);
    prop::collection::btree_map(path, entry(), 0..40).prop_map(|mut layer| {
        // What lies below something that is no directory of the same layer has no meaning.
        let leaves: Vec<_> = layer
            .iter()
            .filter(|(_, entry)| !matches!(entry, Entry::Directory { .. }))
            .map(|(path, _)| path.clone())
            .collect();
        layer.retain(|path, _| {
            !leaves
                .iter()
                .any(|leaf| path.len() > leaf.len() && path.starts_with(leaf))
        });
        layer
    })
}

fn archive(layer: &Layer) -> Vec<u8> {
    let mut tar = Tar::new();
    for (path, entry) in layer {
        let text = path.join("/");
        tar = match entry {
            Entry::Directory { mode } => tar.add(&Header {
                mode: *mode,
                ..Header::new(&text, b'5')
            }),
            Entry::File {
                size,
                fill,
                uid,
                mtime,
            } => tar.add(&Header {
                uid: (*uid).into(),
                mtime: *mtime,
                data: &vec![*fill; *size],
                ..Header::new(&text, b'0')
            }),
            Entry::Symlink { target } => tar.symlink(&text, target),
            Entry::Whiteout => {
                let (name, parents) = path.split_last().unwrap();
                let mut parts = parents.to_vec();
                parts.push(format!(".wh.{name}"));
                tar.file(&parts.join("/"), b"")
            }
        };
    }
    tar.finish()
}

/// The model: paths to what they are, layer by layer.
fn model(layers: &[Layer]) -> BTreeMap<Vec<String>, Found> {
    let mut tree: BTreeMap<Vec<String>, Found> = BTreeMap::new();
    let remove = |tree: &mut BTreeMap<Vec<String>, Found>, path: &Vec<String>| {
        tree.retain(|other, _| !other.starts_with(path));
    };
    for layer in layers {
        for (path, entry) in layer {
            if matches!(entry, Entry::Whiteout) {
                remove(&mut tree, path);
            }
        }
        for (path, entry) in layer {
            let found = match entry {
                Entry::Whiteout => continue,
                Entry::Directory { mode } => Found::Directory { mode: *mode },
                Entry::File {
                    size,
                    fill,
                    uid,
                    mtime,
                } => Found::File {
                    content: vec![*fill; *size],
                    uid: *uid,
                    mtime: *mtime,
                },
                Entry::Symlink { target } => Found::Symlink {
                    target: target.clone(),
                },
            };
            for depth in 1..path.len() {
                let parent = path[..depth].to_vec();
                if !matches!(tree.get(&parent), Some(Found::Directory { .. })) {
                    remove(&mut tree, &parent);
                    tree.insert(parent, Found::Directory { mode: 0o755 });
                }
            }
            let both = matches!(tree.get(path), Some(Found::Directory { .. }))
                && matches!(found, Found::Directory { .. });
            if !both {
                remove(&mut tree, path);
            }
            tree.insert(path.clone(), found);
        }
    }
    tree
}

fn read_back(root: &Path, path: &mut Vec<String>, found: &mut BTreeMap<Vec<String>, Found>) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.path().symlink_metadata().unwrap();
        path.push(entry.file_name().into_string().unwrap());
        let what = if metadata.is_dir() {
            read_back(&entry.path(), path, found);
            Found::Directory {
                mode: metadata.mode() & 0o7777,
            }
        } else if metadata.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            Found::Symlink {
                target: target.into_os_string().into_string().unwrap(),
            }
        } else {
            assert_eq!(metadata.nlink(), 1);
            Found::File {
                content: fs::read(entry.path()).unwrap(),
                uid: metadata.uid(),
                mtime: metadata.mtime(),
            }
        };
        found.insert(path.clone(), what);
        path.pop();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn layers_mean_what_the_model_says(layers in prop::collection::vec(layer(), 0..4)) {
        let archives: Vec<_> = layers.iter().map(archive).collect();
        if let Some(mounted) = mount(&archives) {
            let mut found = BTreeMap::new();
            read_back(&mounted.root(), &mut Vec::new(), &mut found);
            prop_assert_eq!(found, model(&layers));
        }
    }
}
