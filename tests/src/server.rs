//! One running welcome, shared by the tests that only talk to it: a boot saved for each of them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{brig::Brig, suite::Isolation};

static SHARED: Mutex<[Option<Arc<Server>>; 2]> = Mutex::new([None, None]);

/// A sandbox of the image welcome whose port is published.
pub struct Server {
    /// The brig that runs it.
    pub brig: Brig,
    /// Its name.
    pub name: &'static str,
    /// Where it is reached.
    pub address: SocketAddr,
}

/// The shared server of the isolation of this test, started when there is none yet.
///
/// # Panics
/// When it does not start.
pub fn shared() -> Arc<Server> {
    slots()[Isolation::of_this_test() as usize]
        .get_or_insert_with(|| Arc::new(start()))
        .clone()
}

/// Removes the shared server from the host.
pub fn remove() {
    *slots() = [None, None];
}

fn slots() -> MutexGuard<'static, [Option<Arc<Server>>; 2]> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start() -> Server {
    let brig = Brig::new();
    let name = "server";
    let address = brig.welcome(name, &[]);
    Server { brig, name, address }
}
