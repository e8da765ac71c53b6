//! Taking turns at starting: only so many guests of one root come up at the same time, however many are asked for. More would
//! finish later, all of them: where KVM interprets the guest's kernel, a guest with a hundredth of a CPU spends all of it in
//! its timer interrupt.

use std::{num::NonZero, path::PathBuf, time::Duration};

use tokio::time::sleep;

use crate::{Paths, sandbox::lock::Lock};

/// Starts at a time for each of the host's CPUs: while one waits for its files, another runs.
const STARTS_A_CPU: usize = 2;

/// How often one that waits looks for a free place.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A place among those that start; dropping it, or the end of the process, makes room for the next.
#[derive(Debug)]
pub struct Turn {
    _lock: Option<Lock>,
}

/// How many come up at the same time.
pub fn places() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get) * STARTS_A_CPU
}

/// The files of the places, which are there then. All at once, by the first: a root looks the same however many have started in it at a
/// time.
pub(crate) fn lay_out(paths: &Paths) -> Vec<PathBuf> {
    let places: Vec<PathBuf> = (0..places()).map(|place| paths.start_lock(place)).collect();
    if places.last().is_some_and(|last| !last.exists()) {
        for place in &places {
            let _ = Lock::try_take(place);
        }
    }
    places
}

/// Waits for a place. Where places cannot be kept, on a full disk say, nobody waits. Cancel safe.
pub async fn take(paths: &Paths) -> Turn {
    let places = lay_out(paths);
    loop {
        for place in &places {
            match Lock::try_take(place) {
                Ok(None) => {}
                Ok(lock) => return Turn { _lock: lock },
                Err(_) => return Turn { _lock: None },
            }
        }
        sleep(LOOK_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn who_comes_when_all_places_are_taken_waits_for_one() {
        let root = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: root.path().into(),
            runtime: root.path().into(),
            lib: root.path().into(),
        };
        let mut turns = Vec::new();
        for _ in 0..places() {
            turns.push(take(&paths).await);
        }
        assert!(timeout(LOOK_INTERVAL * 3, take(&paths)).await.is_err());
        turns.pop();
        take(&paths).await;
    }
}
