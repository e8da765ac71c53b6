//! One running welcome, shared by the tests that only talk to it: a boot saved for each of them.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::brig::Brig;

static SHARED: Mutex<Option<Arc<Server>>> = Mutex::new(None);

/// A sandbox of the image welcome whose port is published.
pub struct Server {
    /// The brig that runs it.
    pub brig: Brig,
    /// Its name.
    pub name: &'static str,
    /// Where it is reached.
    pub address: SocketAddr,
}

/// The shared server, started when there is none yet.
///
/// # Panics
/// When it does not start.
pub fn shared() -> Arc<Server> {
    slot().get_or_insert_with(|| Arc::new(start())).clone()
}

/// Removes the shared server from the host.
pub fn remove() {
    drop(slot().take());
}

fn slot() -> MutexGuard<'static, Option<Arc<Server>>> {
    SHARED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start() -> Server {
    let brig = Brig::new();
    let name = "server";
    let address = brig.welcome(name, &[]);
    Server { brig, name, address }
}
