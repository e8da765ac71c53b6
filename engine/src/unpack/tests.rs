//! Unpacking, with a VMM and an agent that a thread plays.

use std::{
    fs,
    io::Write,
    sync::{Arc, Mutex},
};

use brig_image_store::{Layer, digest::Digest};
use brig_protocol::{
    agent::Compression,
    vmm::{Command, Event},
};
use tempfile::TempDir;
use tokio::task::LocalSet;

use super::*;
use crate::{
    template,
    test_support::{FakeVmm, PlayedGuest, blank_disk, failed, image, paths},
};

/// What the image's layer is, and what it becomes.
const BLOB: &[u8] = b"a layer";
const EROFS: [u8; 4096] = [7; 4096];

/// More than any disk has: what is free is the limit.
fn huge() -> Options {
    Options {
        cold: false,
        max_size: "16t".parse().unwrap(),
    }
}

const COLD: Options = Options {
    cold: true,
    max_size: MaxImageSize::DEFAULT,
};

/// A store with an image that is not unpacked.
struct Bench {
    paths: Paths,
    store: Store,
    image: Image,
    _temporary: TempDir,
}

impl Bench {
    fn new() -> Self {
        let (temporary, paths) = paths();
        blank_disk(&paths);
        let store = Store::open(&paths.images()).unwrap();
        let digest = Digest::of(BLOB);
        fs::write(paths.images().join("blobs/sha256").join(digest.hex()), BLOB).unwrap();
        let layer = Layer {
            digest,
            size: BLOB.len() as u64,
            compression: Compression::None,
            diff_id: digest,
        };
        let image = Image {
            layers: vec![layer],
            ..image(&[], &[])
        };
        // What no image of the store needs is not kept.
        let record = paths.images().join(format!("images/{}.json", image.id.hex()));
        fs::write(record, serde_json::to_vec(&image).unwrap()).unwrap();
        Self {
            image,
            paths,
            store,
            _temporary: temporary,
        }
    }

    /// Unpacks in a guest that follows `script`; what the user was told comes with the result.
    async fn unpack(
        &self,
        script: impl Fn(PlayedGuest) + Send + Sync + 'static,
    ) -> (Result<Vec<u8>, Error>, Vec<Report>) {
        self.unpack_unless(None, script).await
    }

    /// The same, with a VMM that refuses to restore with this message.
    async fn unpack_unless(
        &self,
        refusal: Option<&'static str>,
        script: impl Fn(PlayedGuest) + Send + Sync + 'static,
    ) -> (Result<Vec<u8>, Error>, Vec<Report>) {
        let refusal = refusal.map(failed);
        let host = FakeVmm::new(move |player| {
            if let Some(guest) = player.begin_unless(refusal.as_ref()) {
                script(guest);
            }
        });
        let mut reports = Vec::new();
        let mut report = |report| reports.push(report);
        let unpacked = ensure(&self.paths, &host, &self.store, &self.image, huge(), &mut report);
        let result = LocalSet::new().run_until(unpacked).await;
        let content = result.map(|(mut file, _)| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
            bytes
        });
        (content, reports)
    }

    async fn make_template(&self) {
        let host = FakeVmm::new(|player| {
            if let Some(guest) = player.begin() {
                guest.become_template();
            }
        });
        let begin = &mut || {};
        let made = template::ensure(&self.paths, &host, Shape::unpack(), false, begin);
        LocalSet::new().run_until(made).await.unwrap();
    }

    fn templates(&self) -> usize {
        Cache::new(&self.paths).list().unwrap().len()
    }

    /// Neither an image nor anything half-way, and the next may begin.
    fn assert_nothing_left(&self) {
        assert!(self.store.unpacked(&self.image).unwrap().is_none());
        assert_eq!(fs::read_dir(self.paths.images().join("tmp")).unwrap().count(), 0);
        assert!(matches!(
            self.store
                .begin_unpack(&self.image, MaxImageSize::DEFAULT)
                .unwrap(),
            Unpack::Job(_)
        ));
    }
}

/// The order that a guest gets, once it is up.
fn order(guest: &mut PlayedGuest) -> UnpackSpec {
    if guest.is_restored() {
        guest.wake();
    } else {
        guest.hello();
    }
    match guest.hear() {
        Some(ToAgent::Unpack(spec)) => spec,
        other => panic!("{other:?}"),
    }
}

/// Unpacks as an agent does.
fn obey(mut guest: PlayedGuest) {
    let spec = order(&mut guest);
    assert_eq!((spec.layers.len(), spec.layers[0].length), (1, BLOB.len() as u64));
    let blob = guest.disks[0].segments[0].file;
    assert_eq!(guest.content(blob), BLOB);
    assert_eq!(
        (
            guest.disks[0].writable,
            guest.disks[usize::from(spec.target)].writable
        ),
        (false, true)
    );
    guest.disk(spec.target.into()).write_all(&EROFS).unwrap();
    // More than there is, as a hostile one may say.
    for bytes in [3, u64::MAX] {
        guest.say(&FromAgent::Unpacking { bytes });
    }
    guest.say(&FromAgent::Unpacked {
        bytes: EROFS.len() as u64,
        inodes: 2,
        costs: UnpackCosts::default(),
    });
    guest.wait_for_end();
}

fn progress(bytes: u64) -> Report {
    let total = BLOB.len() as u64;
    Report::Progress { bytes, total }
}

#[tokio::test]
async fn an_image_is_unpacked_once_in_a_guest_that_boots() {
    let bench = Bench::new();
    let (unpacked, reports) = bench
        .unpack(|guest| {
            assert!(!guest.is_restored());
            assert_eq!(guest.disks.len(), 2);
            obey(guest);
        })
        .await;
    assert_eq!(unpacked.unwrap(), EROFS);
    assert_eq!(reports, [progress(0), progress(3), progress(7)]);
    let (again, reports) = bench.unpack(|_| panic!("it is unpacked")).await;
    assert_eq!((again.unwrap(), reports), (EROFS.to_vec(), vec![]));
}

#[tokio::test]
async fn an_image_is_unpacked_in_a_guest_from_the_template_where_there_is_one() {
    let bench = Bench::new();
    bench.make_template().await;
    let (unpacked, reports) = bench
        .unpack(|mut guest| {
            let Command::Restore(config) = guest.began.clone() else {
                panic!("{:?}", guest.began)
            };
            assert_eq!(guest.content(config.memory), b"memory");
            // The disk that the guest has mounted is a copy of the template's.
            let mounted = guest.disks[1].segments[0].file;
            assert_eq!(guest.content(mounted), b"mounted");
            assert_eq!(guest.disks.len(), 3 + template::VOLUME_SLOTS);
            obey(guest);
        })
        .await;
    assert_eq!(unpacked.unwrap(), EROFS);
    assert_eq!(reports.last(), Some(&progress(7)));
    assert_eq!(bench.templates(), 1);
}

#[tokio::test]
async fn a_template_that_cannot_be_used_is_dropped_and_the_guest_boots() {
    type Script = fn(PlayedGuest);
    let silent: [Script; 2] = [drop, |mut guest| {
        guest.hear();
        guest.event(&Event::Failed {
            message: "the memory is gone".into(),
        });
    }];
    let refusals = [Some("the state file is of another version"), None, None];
    let scripts: [Script; 3] = [|_| panic!("it was refused"), silent[0], silent[1]];
    for (refusal, script) in refusals.into_iter().zip(scripts) {
        let bench = Bench::new();
        bench.make_template().await;
        let (unpacked, reports) = bench
            .unpack_unless(refusal, move |guest| {
                if guest.is_restored() {
                    script(guest);
                } else {
                    obey(guest);
                }
            })
            .await;
        assert_eq!(unpacked.unwrap(), EROFS);
        let told =
            |report: &Report| matches!(report, Report::Notice(line) if line.contains("cannot be used"));
        assert_eq!(
            reports.iter().filter(|report| told(report)).count(),
            1,
            "{reports:?}"
        );
        assert_eq!(bench.templates(), 0);
    }
}

#[tokio::test]
async fn what_fails_in_the_middle_is_one_line_and_leaves_nothing() {
    type Script = fn(&mut PlayedGuest);
    let ways: [(Script, &str); 6] = [
        (
            |guest| {
                guest.say(&FromAgent::UnpackFailed {
                    kind: UnpackFailure::NoSpace,
                    message: "the disk is full\nreally".into(),
                });
            },
            "no space left: the disk is full",
        ),
        (
            |guest| {
                guest.say(&FromAgent::UnpackFailed {
                    kind: UnpackFailure::BadLayer,
                    message: "layer 1: digest differs".into(),
                });
            },
            "layer 1: digest differs",
        ),
        (
            |guest| guest.say(&FromAgent::Awake),
            "answered with something else",
        ),
        (|guest| guest.say_bytes(b"\xff\xff\xff\xff"), "broke the protocol"),
        (
            |guest| {
                guest.event(&Event::Failed {
                    message: "KVM is gone".into(),
                });
            },
            "KVM is gone",
        ),
        (|_| {}, "brig-vmm ended"),
    ];
    for (way, expected) in ways {
        let bench = Bench::new();
        let (unpacked, _) = bench
            .unpack(move |mut guest| {
                order(&mut guest);
                guest.disk(1).write_all(b"half").unwrap();
                way(&mut guest);
                if expected != "brig-vmm ended" {
                    guest.wait_for_end();
                }
            })
            .await;
        let Err(Error::Unpack { message, .. }) = unpacked else {
            panic!("{expected}: {unpacked:?}")
        };
        assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_length_that_no_image_can_have_is_refused() {
    for bytes in [0, 100, u64::MAX / 4096 * 4096] {
        let bench = Bench::new();
        let (unpacked, _) = bench
            .unpack(move |mut guest| {
                order(&mut guest);
                guest.say(&FromAgent::Unpacked {
                    bytes,
                    inodes: 1,
                    costs: UnpackCosts::default(),
                });
                guest.wait_for_end();
            })
            .await;
        assert!(matches!(unpacked, Err(Error::Image(_))), "{unpacked:?}");
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn who_gives_up_ends_the_guest_and_leaves_nothing() {
    let bench = Bench::new();
    let ended = Arc::new(Mutex::new(false));
    let (begun, mut has_begun) = tokio::sync::mpsc::unbounded_channel();
    let host = {
        let ended = Arc::clone(&ended);
        FakeVmm::new(move |player| {
            if let Some(mut guest) = player.begin() {
                order(&mut guest);
                // Held until the guest has seen its end.
                let mut ended = ended.lock().unwrap();
                begun.send(()).unwrap();
                guest.wait_for_end();
                *ended = true;
            }
        })
    };
    let mut report = |_| {};
    let run = async {
        tokio::select! {
            _ = ensure(&bench.paths, &host, &bench.store, &bench.image, COLD, &mut report) => panic!("it ended"),
            _ = has_begun.recv() => {}
        }
    };
    LocalSet::new().run_until(run).await;
    assert!(*ended.lock().unwrap());
    bench.assert_nothing_left();
}
