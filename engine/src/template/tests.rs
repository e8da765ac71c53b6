//! Making and keeping templates, with a VMM and an agent that threads play.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use brig_protocol::{
    agent::{FromAgent, StartFailure},
    vmm::{Event, KvmKind},
};
use tempfile::TempDir;
use tokio::task::LocalSet;

use super::{make::ensure_within, *};
use crate::{
    Error, Paths,
    resources::MemoryMib,
    test_support::{FakeVmm, PlayedGuest, blank_disk, paths},
};

const NO_LIMIT: u64 = u64::MAX;

struct Bench {
    _temporary: TempDir,
    paths: Paths,
    cache: Cache,
}

impl Bench {
    fn new() -> Self {
        let (temporary, paths) = paths();
        blank_disk(&paths);
        Self {
            cache: Cache::new(&paths),
            _temporary: temporary,
            paths,
        }
    }

    fn ingredients(&self, shape: Shape) -> Ingredients {
        Ingredients::gather(&self.paths, KvmKind::Standard, shape).unwrap()
    }

    async fn ensure(&self, host: &FakeVmm, shape: Shape) -> Result<Ensured, Error> {
        ensure_within(&self.paths, host, shape, false, NO_LIMIT, &mut || {}).await
    }

    /// Names in the directory of templates, without locks and the blank disk.
    fn names(&self) -> Vec<String> {
        let mut names = self.hidden();
        names.retain(|name| {
            let helper = [".lock", ".broken"].iter().any(|end| name.ends_with(end));
            !helper && !name.starts_with("blank")
        });
        names
    }

    fn hidden(&self) -> Vec<String> {
        fs::read_dir(self.paths.templates())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// A host whose guests become templates, and how many have booted.
fn host() -> (FakeVmm, Arc<AtomicUsize>) {
    scripted(PlayedGuest::become_template)
}

fn scripted(script: impl Fn(PlayedGuest) + Send + Sync + 'static) -> (FakeVmm, Arc<AtomicUsize>) {
    let booted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&booted);
    let host = FakeVmm::new(move |player| {
        if let Some(guest) = player.begin() {
            count.fetch_add(1, Ordering::SeqCst);
            script(guest);
        }
    });
    (host, booted)
}

fn small() -> Shape {
    Shape::new(None, Some(MemoryMib::UNPACK))
}

fn default() -> Shape {
    Shape::new(None, None)
}

#[tokio::test]
async fn a_template_is_made_once_and_then_found() {
    let bench = Bench::new();
    let (host, booted) = host();
    let run = async {
        let key = bench.ingredients(default()).key();
        let mut told = 0;
        for expected in [Ensured::Made(key.clone()), Ensured::Present(key.clone())] {
            let mut begin = || told += 1;
            let ensured = ensure_within(&bench.paths, &host, default(), false, NO_LIMIT, &mut begin);
            assert_eq!(ensured.await.unwrap(), expected);
        }
        assert_eq!((told, booted.load(Ordering::SeqCst)), (1, 1));
        let directory = bench.paths.templates().join(key.as_str());
        let read = |name| fs::read_to_string(directory.join(name)).unwrap();
        assert_eq!(
            (read("memory"), read("state"), read("disk")),
            ("memory".into(), "state".into(), "mounted".into())
        );
        let listed = bench.cache.list().unwrap();
        let record = listed[0].record.as_ref().unwrap();
        assert_eq!(
            (record.kernel.as_str(), record.made_from.shape),
            ("6.12-test", default())
        );
        // Another shape is another template.
        assert!(matches!(
            bench.ensure(&host, small()).await.unwrap(),
            Ensured::Made(_)
        ));
        assert_eq!(bench.names().len(), 2);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn of_two_makers_one_makes_it_and_the_other_waits() {
    let bench = Bench::new();
    let (host, booted) = host();
    let run = async {
        let (one, other) = tokio::join!(bench.ensure(&host, default()), bench.ensure(&host, default()));
        let made = [one.unwrap(), other.unwrap()]
            .iter()
            .filter(|ensured| matches!(ensured, Ensured::Made(_)))
            .count();
        assert_eq!((made, booted.load(Ordering::SeqCst)), (1, 1));
        assert_eq!(bench.names().len(), 1);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_guest_that_cannot_be_prepared_or_saved_is_an_error_that_leaves_nothing() {
    type Script = fn(PlayedGuest);
    let ways: [(Script, &str); 3] = [
        (
            |mut guest| {
                guest.hello();
                guest.hear();
                guest.say(&FromAgent::StartFailed {
                    process: 0,
                    kind: StartFailure::Other,
                    message: "no namespaces".into(),
                });
                guest.wait_for_end();
            },
            "no namespaces",
        ),
        (
            |mut guest| {
                guest.hello();
                guest.hear();
                guest.say(&FromAgent::Prepared);
                guest.fail_to_save(&Event::SaveFailed {
                    message: "no space left".into(),
                });
            },
            "no space left",
        ),
        (
            |mut guest| {
                guest.hello();
                guest.hear();
            },
            "ended",
        ),
    ];
    for (script, reason) in ways {
        let bench = Bench::new();
        let (host, _) = scripted(script);
        let run = async {
            let error = bench.ensure(&host, default()).await.unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
            assert!(bench.names().is_empty(), "{:?}", bench.names());
        };
        LocalSet::new().run_until(run).await;
    }
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_nothing() {
    let bench = Bench::new();
    let (host, _) = scripted(PlayedGuest::never_ready);
    let run = async {
        let ensure = bench.ensure(&host, default());
        assert!(
            tokio::time::timeout(Duration::from_millis(200), ensure)
                .await
                .is_err()
        );
        assert!(bench.names().is_empty());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn what_killed_makers_left_is_swept_and_what_others_are_making_is_not() {
    let bench = Bench::new();
    let (host, _) = host();
    let run = async {
        let own = bench.ingredients(default()).key();
        let (dead, alive) = ("a".repeat(64), "b".repeat(64));
        let _lock = bench.cache.lock(&alive.parse().unwrap()).unwrap();
        for name in [
            format!(".new-{own}-x"),
            format!(".new-{dead}-x"),
            format!(".new-{alive}-x"),
            format!(".dropped-{dead}-0"),
        ] {
            fs::create_dir(bench.paths.templates().join(&name)).unwrap();
            fs::write(bench.paths.templates().join(name).join("memory"), "x").unwrap();
        }
        bench.ensure(&host, default()).await.unwrap();
        let mut names = bench.names();
        names.sort();
        assert_eq!(names, [format!(".new-{alive}-x"), own.to_string()]);
        // Locks that nobody needs go too.
        bench.cache.sweep(&own, &bench.cache.lock(&own).unwrap());
        assert!(!bench.hidden().contains(&format!("{dead}.lock")));
        assert!(bench.hidden().contains(&format!("{alive}.lock")));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_damaged_template_is_made_anew() {
    let bench = Bench::new();
    let (host, booted) = host();
    let run = async {
        bench.ensure(&host, default()).await.unwrap();
        let ingredients = bench.ingredients(default());
        let record = bench
            .paths
            .templates()
            .join(ingredients.key().as_str())
            .join("template.json");
        let text = fs::read_to_string(&record).unwrap();
        fs::write(&record, &text[..text.len() / 2]).unwrap();
        assert!(matches!(bench.cache.find(&ingredients), Found::Broken(_)));
        assert!(bench.cache.list().unwrap()[0].record.is_none());
        assert!(matches!(
            bench.ensure(&host, default()).await.unwrap(),
            Ensured::Made(_)
        ));
        assert!(matches!(bench.cache.find(&ingredients), Found::Template(_)));
        assert_eq!(booted.load(Ordering::SeqCst), 2);
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn templates_that_never_work_are_not_made_again_and_again() {
    let bench = Bench::new();
    let (host, _) = host();
    let run = async {
        let key = bench.ingredients(default()).key();
        for _ in 0..2 {
            assert_eq!(
                bench.ensure(&host, default()).await.unwrap(),
                Ensured::Made(key.clone())
            );
            bench.cache.drop_broken(&key);
        }
        assert_eq!(bench.ensure(&host, default()).await.unwrap(), Ensured::Hopeless);
        let mut begin = || {};
        let wanted = ensure_within(&bench.paths, &host, default(), true, NO_LIMIT, &mut begin);
        assert_eq!(wanted.await.unwrap(), Ensured::Made(key.clone()));
        bench.cache.worked(&key);
        assert!(!bench.cache.is_hopeless(&key));
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn the_templates_that_were_used_least_recently_are_evicted() {
    let bench = Bench::new();
    let (host, _) = host();
    let run = async {
        let shapes = [1, 2, 3].map(|vcpus| Shape {
            vcpus,
            memory: MemoryMib::DEFAULT,
        });
        for (age, shape) in [30, 20, 10].into_iter().zip(shapes) {
            bench.ensure(&host, shape).await.unwrap();
            let key = bench.ingredients(shape).key();
            let record = bench.paths.templates().join(key.as_str()).join("template.json");
            let time = SystemTime::now() - Duration::from_secs(age);
            fs::File::open(record).unwrap().set_modified(time).unwrap();
        }
        let keys = shapes.map(|shape| bench.ingredients(shape).key());
        // The oldest has just been used.
        bench.cache.touch(&keys[0]);
        let listed = bench.cache.list().unwrap();
        assert_eq!(listed[0].key, keys[0]);
        let two = listed.iter().take(2).map(|template| template.allocated).sum();
        bench.cache.evict(two, &keys[0]);
        let left: Vec<Key> = bench
            .cache
            .list()
            .unwrap()
            .into_iter()
            .map(|template| template.key)
            .collect();
        assert_eq!(left, [keys[0].clone(), keys[2].clone()]);
        // The one that was just made stays, however small the cache is.
        bench.cache.evict(0, &keys[2]);
        assert_eq!(bench.cache.list().unwrap().len(), 1);
        assert_eq!(bench.cache.resolve(&keys[2].as_str()[..6]).unwrap(), keys[2]);
        assert!(matches!(
            bench.cache.resolve(&keys[0].as_str()[..20]),
            Err(Error::NoSuchTemplate(_))
        ));
        assert!(bench.cache.drop_template(&keys[2]) && bench.names().is_empty());
    };
    LocalSet::new().run_until(run).await;
}
