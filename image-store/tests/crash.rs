//! Processes that load, save, name, unpack, remove and prune at the same time, and are killed at any moment: nothing that is
//! visible is ever broken, and nothing is left over in the end.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::{
    env, fs,
    io::{self, Read, Write},
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
};

use brig_image_store::{ImageName, MaxImageSize, Prune, Store, StoreError, Unpack, User, store::Problem};
use common::archives::{docker_archive, layer};

/// Says to [`worker`] which store is its own, and with which numbers it begins.
const ROOT: &str = "BRIG_TEST_CRASH_ROOT";
const SEED: &str = "BRIG_TEST_CRASH_SEED";

/// Workers at a time, and how many of them are killed in all.
const WORKERS: usize = 3;
const KILLS: usize = 60;

/// Archives with a layer that all of them share, so that each removal has something to spare.
const ARCHIVES: u64 = 4;

/// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

fn archive(n: u64) -> Vec<u8> {
    let own = format!("app{n}");
    docker_archive(&[&own, "shared"], &[layer("base"), layer(&own.repeat(3000))]).finish()
}

/// What one process does, for ever. A byte is written before each step.
#[test]
fn worker() {
    let Ok(root) = env::var(ROOT) else { return };
    let mut random = Random(env::var(SEED).unwrap().parse().unwrap());
    let mut stdout = io::stdout().lock();
    loop {
        if stdout.write_all(b".").and_then(|()| stdout.flush()).is_err() {
            return;
        }
        match step(Path::new(&root), &mut random) {
            // Another one was faster.
            Ok(())
            | Err(
                StoreError::NoSuchImage(_) | StoreError::MissingBlob(_) | StoreError::SeveralNames { .. },
            ) => {}
            Err(e) => {
                eprintln!("worker: {e}: {e:?}");
                std::process::exit(3);
            }
        }
    }
}

fn step(root: &Path, random: &mut Random) -> Result<(), StoreError> {
    let store = Store::open(root)?;
    let n = random.below(ARCHIVES);
    let text =
        vec!["shared".to_owned(), format!("app{n}"), format!("tag{n}")].swap_remove(random.below(3) as usize);
    let users = || Ok::<Vec<User>, StoreError>(Vec::new());
    match random.below(9) {
        0..=2 => drop(store.load(&mut &archive(n)[..], &mut |_| {})?),
        3 => store.tag(&text, format!("tag{n}").parse::<ImageName>().unwrap())?,
        4 | 5 => drop(store.remove(&text, random.below(2) == 0, users)?),
        6 => {
            let which = if random.below(3) == 0 {
                Prune::Unused
            } else {
                Prune::Dangling
            };
            store.prune(which, |_| true, users)?;
        }
        7 => store.save(&[text], &mut io::sink(), &mut |_| {})?,
        _ => {
            if let Some(image) = store.resolve(&text)?
                && let Unpack::Job(job) = store.begin_unpack(&image, MaxImageSize::DEFAULT)?
            {
                job.blobs()?;
                job.commit(4096)?;
            }
        }
    }
    Ok(())
}

struct Worker {
    child: Child,
    steps: ChildStdout,
}

impl Worker {
    fn start(root: &Path, seed: u64) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "worker", "--nocapture", "--quiet"])
            .env(ROOT, root)
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let steps = child.stdout.take().unwrap();
        Self { child, steps }
    }

    /// Waits until it begins so many steps more.
    fn wait_for(&mut self, steps: u64) {
        let mut read = vec![0; usize::try_from(steps).unwrap()];
        self.steps
            .read_exact(&mut read)
            .expect("a worker goes on until it is killed");
    }

    fn kill(mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "a worker ended by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn assert_whole(store: &Store) {
    let problems = store.check().unwrap();
    assert!(!problems.iter().any(Problem::is_damage), "{problems:?}");
}

#[test]
fn processes_killed_at_any_moment_leave_a_store_that_works() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = Store::open(root).unwrap();
    let mut random = Random(0x5eed);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|n| Worker::start(root, n as u64 + 1)).collect();
    for kill in 0..KILLS {
        let mut worker = workers.remove(random.below(WORKERS as u64) as usize);
        worker.wait_for(1 + random.below(12));
        // So that it is killed within a step, and not at its beginning.
        for n in 0..random.below(2_000_000) {
            std::hint::black_box(n);
        }
        worker.kill();
        if kill % 5 == 0 {
            assert_whole(&store);
        }
        workers.push(Worker::start(root, 1000 + kill as u64));
    }
    workers.into_iter().for_each(Worker::kill);

    // As the next command finds it.
    let store = Store::open(root).unwrap();
    assert_whole(&store);
    assert_eq!(fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    for n in 0..ARCHIVES {
        store.load(&mut &archive(n)[..], &mut |_| {}).unwrap();
    }
    store
        .prune(Prune::Dangling, |_| true, || Ok::<_, StoreError>(Vec::new()))
        .unwrap();
    assert_eq!(store.check().unwrap(), []);
    for image in store.list().unwrap() {
        store
            .save(&[image.id.hex()], &mut io::sink(), &mut |_| {})
            .unwrap();
    }
}
