//! Starts from templates.

use std::fs::File;

use brig_protocol::{
    spec::RootSpec,
    vmm::{Command, KvmKind, SLOT_BYTES},
};

use super::*;
use crate::{
    guest::Origin,
    template::{Cache, Ingredients, Key, Shape, VOLUME_SLOTS, cache},
    test_support::{blank_disk, failed},
};

impl Bench {
    /// A sandbox that has not been started yet, with a template for it.
    fn with_template(change: impl FnOnce(&mut Config)) -> (Self, Key) {
        let bench = Self::new(change);
        std::fs::remove_file(bench.directory().disk()).unwrap();
        blank_disk(&bench.paths);
        let config = bench.directory().read_config().unwrap();
        let ingredients = Ingredients::gather(&bench.paths, KvmKind::Standard, Shape::of(&config)).unwrap();
        let (cache, key) = (Cache::new(&bench.paths), ingredients.key());
        let lock = cache.lock(&key).unwrap();
        let workspace = cache.workspace(&key, &lock).unwrap();
        let [mut memory, mut state] = cache::new_files(workspace.path()).unwrap();
        memory.write_all(b"memory").unwrap();
        state.write_all(b"state").unwrap();
        std::fs::write(cache::new_disk(workspace.path()), "mounted").unwrap();
        cache
            .publish(ingredients, "6.12-saved".into(), workspace, &lock)
            .unwrap();
        (bench, key)
    }

    fn directory(&self) -> Directory {
        self.registry.directory(&self.id)
    }

    fn templates(&self) -> usize {
        Cache::new(&self.paths).list().unwrap().len()
    }

    fn disk(&self) -> String {
        std::fs::read_to_string(self.directory().disk()).unwrap()
    }
}

impl Client {
    /// Starts the sandbox and gives the line for the user, if there is one, and then the end.
    async fn whole_run(&mut self, cold: bool) -> (Option<String>, Exit) {
        self.ask(Request::Start {
            attach: true,
            discard: false,
            cold,
            count: false,
            size: None,
        })
        .await;
        let mut notice = None;
        loop {
            match self.hear().await {
                Reply::Notice(line) => notice = Some(line),
                Reply::Started => return (notice, self.exit().await),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Plays a process that ends at once, in a sandbox that is kept.
fn short_life(mut guest: PlayedGuest) {
    drop(guest.start());
    guest.say(&exited(0));
    shut_down(guest);
}

#[test]
fn the_first_start_has_a_copy_of_the_templates_disk_and_the_next_its_own_in_the_other_slot() {
    let (bench, _) = Bench::with_template(|_| {});
    let restored = |guest: &mut PlayedGuest| {
        let Command::Restore(config) = guest.began.clone() else {
            panic!("{:?}", guest.began)
        };
        assert_eq!(
            (guest.content(config.memory), guest.content(config.state)),
            (b"memory".to_vec(), b"state".to_vec())
        );
        assert_eq!(config.disks.len(), 3 + VOLUME_SLOTS);
        let shown: Vec<_> = config.disks.iter().map(|disk| disk.shown_bytes).collect();
        assert_eq!(shown[..3], [Some(SLOT_BYTES), None, Some(SLOT_BYTES)]);
        assert!(shown[3..].iter().all(|&bytes| bytes == Some(SLOT_BYTES)));
        let writable: Vec<_> = config.disks.iter().map(|disk| disk.writable).collect();
        assert_eq!(writable[..3], [false, true, true]);
        assert!(writable[3..].iter().all(|&writable| writable));
    };
    bench.run(
        move |mut guest| {
            restored(&mut guest);
            assert!(guest.disks[2].segments.is_empty());
            guest.disk(1).write_all(b"written").unwrap();
            drop(guest.start());
            let root = guest.spec.as_ref().unwrap().root.clone();
            assert_eq!(
                root,
                RootSpec::Disks {
                    image: 0,
                    writable: 1
                }
            );
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            let (notice, exit) = client.whole_run(false).await;
            assert_eq!((notice, exit.code), (None, 0));
            assert_eq!(exit.timing.origin, Some(Origin::Template));
            assert!(exit.timing.ready_ns <= exit.timing.exec_ns && exit.timing.init_ns.is_none());
        },
    );
    assert_eq!(bench.disk(), "written");
    bench.run(
        move |mut guest| {
            restored(&mut guest);
            let mut mounted = String::new();
            guest.disk(1).read_to_string(&mut mounted).unwrap();
            assert_eq!(mounted, "mounted");
            guest.disk(2).write_all(b"again").unwrap();
            drop(guest.start());
            let root = guest.spec.as_ref().unwrap().root.clone();
            assert_eq!(
                root,
                RootSpec::Disks {
                    image: 0,
                    writable: 2
                }
            );
            guest.say(&exited(0));
            shut_down(guest);
        },
        async |mut client| {
            assert_eq!(client.whole_run(false).await.0, None);
        },
    );
    assert_eq!(bench.disk(), "againen");
    assert_eq!(bench.templates(), 1);
    bench.assert_clean();
}

#[test]
fn a_restored_guest_is_woken_with_a_clock_and_a_seed_of_its_own() {
    let seeds = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2 {
        let (bench, _) = Bench::with_template(|_| {});
        let seeds = Arc::clone(&seeds);
        bench.run(
            move |mut guest| {
                drop(guest.start());
                let wake = guest.woken.clone().unwrap();
                assert_eq!((wake.tsc, wake.realtime_ns, wake.tsc_khz), (77, 88, 99));
                assert_eq!(wake.identity, None);
                seeds.lock().unwrap().push(wake.seed);
                guest.say(&exited(0));
                shut_down(guest);
            },
            async |mut client| {
                client.whole_run(false).await;
            },
        );
    }
    let seeds = seeds.lock().unwrap();
    assert_ne!(seeds[0], seeds[1]);
    assert_ne!(seeds[0], [0; 32]);
}

#[test]
fn while_it_runs_the_sandbox_tells_that_it_was_restored() {
    let (bench, _) = Bench::with_template(|_| {});
    bench.run(short_life_after_a_signal, async |mut client| {
        client.start(true).await;
        let state = bench.sandbox().state;
        assert_eq!(
            (state.origin, state.workarounds),
            (Some(Origin::Template), Some(false))
        );
        assert_eq!(state.kernel.as_deref(), Some("6.12-saved"));
        let mut other = bench.connect().await;
        other.ask(Request::Signal(15)).await;
        client.exit().await;
    });
}

fn short_life_after_a_signal(mut guest: PlayedGuest) {
    drop(guest.start());
    assert!(matches!(guest.hear(), Some(ToAgent::Signal { .. })));
    guest.say(&exited(0));
    shut_down(guest);
}

#[test]
fn a_host_that_has_too_little_is_not_the_templates_fault() {
    let (bench, _key) = Bench::with_template(|_| {});
    bench.run_refusing(
        Some(Event::Refused {
            message: "cannot map the guest's memory: Cannot allocate memory".to_owned(),
        }),
        |_| panic!("the guest boots"),
        async |mut client| {
            client.ask_to_start(true).await;
            match client.hear().await {
                Reply::Failed { code: 125, message } => assert!(message.contains("allocate"), "{message}"),
                other => panic!("{other:?}"),
            }
        },
    );
    assert_eq!(bench.templates(), 1);
}

#[test]
fn a_template_that_the_vmm_refuses_is_dropped_and_the_guest_boots() {
    let (bench, key) = Bench::with_template(|_| {});
    bench.run_refusing(
        Some(failed("the state file is of another version")),
        |mut guest| {
            let mut disk = String::new();
            guest.disk(1).read_to_string(&mut disk).unwrap();
            assert_eq!(disk, "blank");
            short_life(guest);
        },
        async |mut client| {
            let (notice, exit) = client.whole_run(false).await;
            let notice = notice.unwrap();
            assert!(
                notice.contains(key.short()) && notice.contains("another version"),
                "{notice}"
            );
            assert_eq!((exit.code, exit.timing.origin), (0, Some(Origin::Boot)));
        },
    );
    assert_eq!(bench.templates(), 0);
    bench.assert_clean();
}

#[test]
fn a_template_whose_guest_does_not_wake_up_is_dropped_and_the_guest_boots() {
    type Script = fn(PlayedGuest);
    let ways: [Script; 3] = [
        drop,
        |mut guest| {
            guest.hear();
            guest.say_bytes(b"\xff\xff\xff\xff");
            guest.wait_for_end();
        },
        |mut guest| {
            guest.hear();
            guest.event(&Event::Stopped(StopReason::Reset));
        },
    ];
    for way in ways {
        let (bench, _) = Bench::with_template(|_| {});
        bench.run(
            move |guest| {
                if guest.is_restored() {
                    way(guest);
                } else {
                    short_life(guest);
                }
            },
            async |mut client| {
                let (notice, exit) = client.whole_run(false).await;
                assert!(notice.unwrap().contains("cannot be used"));
                assert_eq!(exit.timing.origin, Some(Origin::Boot));
            },
        );
        assert_eq!((bench.templates(), bench.disk().as_str()), (0, "blank"));
    }
}

#[test]
fn a_damaged_template_is_dropped_and_the_guest_boots() {
    type Damage = fn(&std::path::Path);
    let damages: [Damage; 4] = [
        |path| {
            File::options()
                .write(true)
                .open(path.join("template.json"))
                .unwrap()
                .set_len(20)
                .unwrap();
        },
        |path| std::fs::remove_file(path.join("memory")).unwrap(),
        |path| {
            std::fs::remove_file(path.join("state")).unwrap();
            std::fs::write(path.join("state"), "stat").unwrap();
        },
        |path| std::fs::remove_file(path.join("template.json")).unwrap(),
    ];
    for damage in damages {
        let (bench, key) = Bench::with_template(|_| {});
        damage(&bench.paths.templates().join(key.as_str()));
        bench.run(
            |guest| {
                assert!(!guest.is_restored());
                short_life(guest);
            },
            async |mut client| {
                assert!(client.whole_run(false).await.0.unwrap().contains("its "));
            },
        );
        assert_eq!(bench.templates(), 0);
    }
}

#[test]
fn a_process_that_cannot_be_started_is_not_the_templates_fault() {
    let (bench, _) = Bench::with_template(|_| {});
    bench.run(
        |mut guest| {
            let _streams = guest.almost_start();
            guest.say(&FromAgent::StartFailed {
                process: 0,
                kind: StartFailure::NotFound,
                message: "exec /nope: no such file or directory".into(),
            });
            guest.wait_for_end();
        },
        async |mut client| {
            client
                .ask(Request::Start {
                    attach: true,
                    discard: false,
                    cold: false,
                    count: false,
                    size: None,
                })
                .await;
            assert!(matches!(client.hear().await, Reply::Failed { code: 127, .. }));
        },
    );
    assert_eq!(bench.templates(), 1);
}

#[test]
fn who_wants_no_template_gets_none() {
    for (no_template, cold) in [(true, false), (false, true)] {
        let (bench, _) = Bench::with_template(|config| config.no_template = no_template);
        bench.run(
            |guest| {
                assert!(!guest.is_restored());
                assert_eq!(guest.disks.len(), 2);
                short_life(guest);
            },
            async |mut client| {
                let (notice, exit) = client.whole_run(cold).await;
                assert_eq!((notice, exit.timing.origin), (None, Some(Origin::Boot)));
            },
        );
        assert_eq!(bench.templates(), 1);
    }
}

#[test]
fn the_template_that_is_likely_to_be_used_is_mapped_ahead_once_it_knows_its_pages() {
    let (bench, key) = Bench::with_template(|_| {});
    let shape = Shape::of(&bench.directory().read_config().unwrap());
    let (sender, mapped) = std::sync::mpsc::channel();
    in_runtime(async {
        let probed = FakeVmm::new(|player| player.answer_probe(KvmKind::Standard));
        let device = File::open("/dev/null").unwrap();
        crate::kvm::kind(&bench.paths, &device, &probed).await.unwrap();
        let idle = FakeVmm::new(|player| assert!(player.begin().is_none()));
        Ahead::new(&idle).map(&bench.paths, shape).await;
        let pages = Cache::new(&bench.paths).path(&key).join(crate::guest::PAGES);
        std::fs::write(pages, "pages").unwrap();
        let host = FakeVmm::new(move |player| sender.send(player.mapped_ahead()).unwrap());
        Ahead::new(&host).map(&bench.paths, shape).await;
    });
    assert_eq!(mapped.recv().unwrap(), ["memory", "pages"]);
}
