//! Saving a running sandbox, and going on from what was saved.

use brig_protocol::vmm::{Command, KvmKind, SLOT_BYTES, SavedStream};
use jiff::Timestamp;
use tokio::sync::Notify;

use super::*;
use crate::{
    control::SavedSandbox,
    guest::Origin,
    snapshot::{self, FileRecord, Layout, Part, Record, Snapshots, Workspace, sparse, store},
    template::{VOLUME_SLOTS, key::Platform},
    test_support::{AtRestore, blank_disk, failed},
    volume::{Source, VolumeMount, Volumes},
};

/// A finished snapshot of `config` in a workspace, its disk as long as real ones are not.
pub(in crate::supervisor) fn saved(paths: &Paths, config: Config, layout: Layout) -> Workspace {
    let workspace = Snapshots::new(paths).workspace().unwrap();
    let file = |name: &str, content: &str| {
        std::fs::write(workspace.path().join(name), content).unwrap();
        let file = std::fs::File::open(workspace.path().join(name)).unwrap();
        FileRecord {
            bytes: content.len() as u64,
            digest: Some(sparse::digest(&file).unwrap()),
        }
    };
    let volumes = (0..).zip(&config.mounts);
    let volumes = volumes.map(|(index, _)| file(&Part::Volume(index).name(), "saved volume"));
    let record = Record {
        version: snapshot::VERSION,
        created: Timestamp::UNIX_EPOCH,
        imported: false,
        config: config.clone(),
        layout,
        kernel: "6.12-saved".into(),
        image_bytes: 0,
        platform: Platform::this(paths, KvmKind::Standard).unwrap(),
        memory: file(store::MEMORY, "memory"),
        state: file(store::STATE, "state"),
        disk: file(store::DISK, "saved disk"),
        volumes: volumes.collect(),
    };
    workspace.finish(&record).unwrap();
    workspace
}

impl Bench {
    /// A sandbox that goes on from a snapshot named `warm` at its first start.
    fn with_snapshot(layout: Layout, change: impl FnOnce(&mut Config)) -> Self {
        let bench = Self::new(|config| {
            config.snapshot = Some("warm".into());
            change(config);
        });
        std::fs::remove_file(bench.registry.directory(&bench.id).disk()).unwrap();
        blank_disk(&bench.paths);
        let config = bench.registry.directory(&bench.id).read_config().unwrap();
        let workspace = saved(&bench.paths, config, layout);
        Snapshots::new(&bench.paths).publish(workspace, "warm").unwrap();
        bench
    }
}

async fn start_and_fail(mut client: Client) -> String {
    client.ask_to_start(true).await;
    match client.hear().await {
        Reply::Failed { code: 125, message } => message,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_sandbox_is_saved_and_goes_on() {
    let bench = Bench::new(|_| {});
    let workspace = Snapshots::new(&bench.paths).workspace().unwrap();
    bench.run(
        |mut guest| {
            let streams = guest.start();
            guest.disk(1).write_all(b"on the disk").unwrap();
            guest.save(b"memory", b"state");
            assert!(guest.resumed());
            drop(streams);
            guest.say(&exited(3));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let mut other = bench.connect().await;
            let workspace = workspace.name();
            other.ask(Request::Save { workspace }).await;
            let saved = SavedSandbox {
                layout: Layout::Booted,
                kernel: "6.12-test".into(),
                image_bytes: 0,
            };
            assert_eq!(other.hear().await, Reply::Saved(saved));
            assert_eq!(client.exit().await.code, 3);
        },
    );
    let content = |name| std::fs::read_to_string(workspace.path().join(name)).unwrap();
    assert_eq!(
        (
            content(store::MEMORY),
            content(store::STATE),
            content(store::DISK)
        ),
        ("memory".into(), "state".into(), "on the disk".into())
    );
    bench.assert_clean();
}

#[test]
fn a_workspace_that_does_not_exist_is_refused_and_the_sandbox_goes_on() {
    let bench = Bench::new(|_| {});
    bench.run(
        |mut guest| {
            drop(guest.start());
            assert!(matches!(guest.hear(), Some(ToAgent::Signal { .. })));
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let mut other = bench.connect().await;
            for workspace in [".new-gone", "..", "../sandboxes", "warm", ""] {
                let workspace = workspace.to_owned();
                other.ask(Request::Save { workspace }).await;
                assert!(matches!(other.hear().await, Reply::Failed { .. }));
            }
            other.ask(Request::Signal(15)).await;
            assert_eq!(client.exit().await.code, 0);
        },
    );
}

#[test]
fn a_sandbox_that_could_not_be_saved_goes_on() {
    let bench = Bench::new(|_| {});
    let workspace = Snapshots::new(&bench.paths).workspace().unwrap();
    bench.run(
        |mut guest| {
            let streams = guest.start();
            guest.fail_to_save(&Event::SaveFailed {
                message: "no space left on device".into(),
            });
            assert!(guest.resumed());
            drop(streams);
            guest.say(&exited(3));
            shut_down(guest);
        },
        async |mut client| {
            client.start(true).await;
            let mut other = bench.connect().await;
            let workspace = workspace.name();
            other.ask(Request::Save { workspace }).await;
            let Reply::Failed { message, .. } = other.hear().await else {
                panic!("it was saved");
            };
            assert!(message.contains("no space left"), "{message}");
            assert_eq!(client.exit().await.code, 3);
        },
    );
    bench.assert_clean();
}

#[test]
fn a_guest_that_fails_at_being_saved_ends_its_sandbox_and_says_why() {
    let bench = Bench::new(|_| {});
    let workspace = Snapshots::new(&bench.paths).workspace().unwrap();
    bench.run(
        |mut guest| {
            let _streams = guest.start();
            guest.fail_to_save(&Event::Failed {
                message: "no space left on device".into(),
            });
        },
        async |mut client| {
            client.start(true).await;
            let mut other = bench.connect().await;
            let workspace = workspace.name();
            other.ask(Request::Save { workspace }).await;
            assert!(matches!(other.hear().await, Reply::Failed { .. }));
            let exit = client.exit().await;
            assert_eq!(exit.code, 255);
            assert!(exit.error.unwrap().contains("no space left"));
        },
    );
    bench.assert_clean();
}

#[test]
fn a_sandbox_goes_on_from_a_snapshot_with_its_own_name_and_streams() {
    for layout in [Layout::Booted, Layout::Fresh, Layout::Used] {
        let bench = Bench::with_snapshot(layout, |config| {
            config.hostname = "copy".into();
            config.stdin = true;
            config.mounts = vec![VolumeMount {
                source: Source::Volume("data".into()),
                target: "/data".into(),
                read_only: false,
                copy: false,
            }];
        });
        let volumes = Volumes::new(&bench.paths.root);
        volumes
            .create(Some("data"), std::collections::BTreeMap::new())
            .unwrap();
        bench.run(
            move |mut guest| {
                let Command::Restore(config) = guest.began.clone() else {
                    panic!("{:?}", guest.began)
                };
                assert_eq!(guest.content(config.memory), b"memory");
                let shown: Vec<_> = config.disks.iter().map(|disk| disk.shown_bytes).collect();
                let slot = Some(SLOT_BYTES);
                let mut slots = vec![slot, None, slot];
                slots.resize(slots.len() + VOLUME_SLOTS, slot);
                let (expected, own, volume) = match layout {
                    Layout::Booted => (vec![None, None, None], 1, 2),
                    Layout::Fresh => (slots, 1, 3),
                    Layout::Used => (slots, 2, 3),
                };
                assert_eq!(shown, expected);
                let mut content = |number| {
                    let mut content = String::new();
                    guest.disk(number).read_to_string(&mut content).unwrap();
                    content
                };
                assert_eq!(content(own), "saved disk");
                assert_eq!(content(volume), "saved volume");
                let names: Vec<_> = config.streams[1..].iter().map(|s| s.stream).collect();
                let process = 0;
                let wanted = [
                    StreamHeader::Stdin { process },
                    StreamHeader::Stdout { process },
                    StreamHeader::Stderr { process },
                ];
                let wanted = wanted.map(|header| SavedStream::ToGuest {
                    header: header.encode(),
                });
                assert_eq!(names, wanted);
                let wake = guest.wake();
                let identity = wake.identity.unwrap();
                assert_eq!(identity.hostname, "copy");
                assert!(identity.files.iter().any(|file| file.content == b"copy\n"));
                let stdout = guest.files[usize::from(config.streams[2].socket)].take();
                stdout.unwrap().write_all(b"went on\n").unwrap();
                // The other ends close with the guest's files.
                guest.files.clear();
                guest.say(&exited(4));
                shut_down(guest);
            },
            async |mut client| {
                client.start(true).await;
                assert_eq!(client.hear().await, Reply::Stdout(b"went on\n".to_vec()));
                let exit = client.exit().await;
                assert_eq!((exit.code, exit.timing.origin), (4, Some(Origin::Snapshot)));
            },
        );
        bench.assert_clean();
        // Started again it is a sandbox as any other: its command begins anew.
        let begun = Arc::new(Notify::new());
        let begin = Arc::clone(&begun);
        bench.run(
            move |mut guest| {
                begin.notify_one();
                assert!(!guest.is_restored());
                guest.hello();
                let _streams = [guest.connection(), guest.connection(), guest.connection()];
                assert!(matches!(guest.hear(), Some(ToAgent::Start(_))));
                guest.wait_for_end();
            },
            async |mut client| {
                client.ask_to_start(false).await;
                // There is a control socket by then.
                begun.notified().await;
                bench.connect().await.ask(Request::Kill).await;
                client.exit().await;
            },
        );
    }
}

#[test]
fn a_snapshot_that_the_vmm_refuses_is_one_line_and_stays_and_can_be_tried_again() {
    let bench = Bench::with_snapshot(Layout::Fresh, |_| {});
    for _ in 0..2 {
        bench.run_refusing(
            Some(failed("the state file is for another kernel")),
            |_| panic!("no guest goes on or boots"),
            async |client| {
                let message = start_and_fail(client).await;
                assert!(
                    message.starts_with("the snapshot warm cannot go on here: ")
                        && message.contains("another kernel")
                        && !message.contains('\n'),
                    "{message}"
                );
            },
        );
    }
    assert!(Snapshots::new(&bench.paths).open("warm").is_ok());
    bench.assert_clean();
}

/// What may happen between the VMM's start and the agent's word that it is awake.
fn fail_half_way() -> Vec<(FakeVmm, &'static str)> {
    type Script = fn(PlayedGuest);
    let restored: [(Script, &str); 5] = [
        (drop, "brig-vmm ended"),
        (
            |mut guest| {
                assert!(matches!(guest.hear(), Some(ToAgent::Wake(_))));
                guest.event(&Event::Failed {
                    message: "the disk is full".into(),
                });
            },
            "the disk is full",
        ),
        (
            |mut guest| {
                guest.hear();
                guest.event(&Event::Stopped(StopReason::Reset));
            },
            "the guest stopped",
        ),
        (
            |mut guest| {
                guest.hear();
                guest.say(&FromAgent::Prepared);
                guest.wait_for_end();
            },
            "did not say that it is awake",
        ),
        (PlayedGuest::never_ready, "did not wake up in time"),
    ];
    let mut hosts: Vec<_> = restored
        .into_iter()
        .map(|(script, expected)| {
            let host = FakeVmm::new(move |player| {
                if let Some(guest) = player.begin() {
                    script(guest);
                }
            });
            let is_silent = expected == "did not wake up in time";
            (if is_silent { host.impatient() } else { host }, expected)
        })
        .collect();
    for (end, expected) in [
        (AtRestore::Dies, "brig-vmm ended"),
        (AtRestore::Hangs, "did not answer within"),
    ] {
        let host = FakeVmm::new(move |player| player.fail_at_restore(end));
        hosts.push((host.impatient(), expected));
    }
    hosts
}

#[test]
fn a_restore_that_fails_half_way_leaves_nothing_and_can_be_tried_again() {
    for (host, expected) in fail_half_way() {
        let bench = Bench::with_snapshot(Layout::Used, |_| {});
        let before = bench.files();
        bench.run_on(host, async |client| {
            let message = start_and_fail(client).await;
            assert!(
                message.starts_with("the snapshot warm cannot go on here: ")
                    && message.contains(expected)
                    && !message.contains('\n'),
                "{expected}: {message}"
            );
        });
        assert_eq!(bench.files(), before, "{expected}");
        bench.assert_clean();
        // The same snapshot goes on in a guest that does better.
        bench.run(
            |mut guest| {
                guest.wake();
                guest.files.clear();
                guest.say(&exited(0));
                shut_down(guest);
            },
            async |mut client| {
                client.start(true).await;
                assert_eq!(client.exit().await.code, 0);
            },
        );
    }
}

#[test]
fn a_disk_that_cannot_be_copied_is_one_line_and_leaves_nothing() {
    let bench = Bench::with_snapshot(Layout::Fresh, |_| {});
    let directory = bench.registry.directory(&bench.id);
    // Something that is no file is in the place of the copy.
    let blocked = directory.disk().with_extension("new");
    std::fs::create_dir(&blocked).unwrap();
    let before = bench.files();
    bench.run(
        |_| panic!("no guest is needed"),
        async |client| {
            let message = start_and_fail(client).await;
            assert!(message.contains("disk") && !message.contains('\n'), "{message}");
        },
    );
    assert_eq!(bench.files(), before);
    bench.assert_clean();
}

#[test]
fn a_snapshot_that_is_gone_or_damaged_is_one_line() {
    type Damage = fn(&std::path::Path);
    let damages: [(Damage, &str); 4] = [
        (|path| std::fs::remove_dir_all(path).unwrap(), "no such snapshot"),
        (
            |path| std::fs::write(path.join(store::RECORD), "{}").unwrap(),
            "damaged",
        ),
        (
            |path| std::fs::remove_file(path.join(store::STATE)).unwrap(),
            "cannot open its state",
        ),
        (
            |path| {
                std::fs::remove_file(path.join(store::MEMORY)).unwrap();
                std::fs::write(path.join(store::MEMORY), "short").unwrap();
            },
            "its memory has 5 bytes",
        ),
    ];
    for (damage, expected) in damages {
        let bench = Bench::with_snapshot(Layout::Booted, |_| {});
        damage(&bench.paths.snapshots().join("warm"));
        bench.run(
            |_| panic!("no guest is needed"),
            async |client| {
                let message = start_and_fail(client).await;
                assert!(message.contains(expected), "{message}");
            },
        );
    }
}
