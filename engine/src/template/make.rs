//! Making a template: a guest boots, its agent makes ready what each start needs, and the guest is saved.

use std::{io, time::Duration};

use brig_protocol::{
    agent::{FromAgent, ToAgent},
    vmm::{IoLimits, KvmKind},
};
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};

use super::{
    Cache, Found, Ingredients, Key, Shape,
    cache::{new_disk, new_files},
    with_volumes,
};
use crate::{
    Error, Paths,
    clock::Timing,
    console::Console,
    disk,
    error::{chain, one_line},
    guest::{Disk, Failure, Guest, Kvm, Plan},
    host::Host,
    sandbox::lock::Lock,
    spec::{FRESH_DISK, model_spec},
};

/// How long the agent may take to make things ready. An emulated KVM needs seconds, and more when guests share a CPU.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(300);

/// When a guest's kernel has reported what it has freed: two seconds later (mm/page_reporting.c), and a little.
const REPORT_DELAY: Duration = Duration::from_millis(2500);

/// Most characters of an agent's message that a user sees.
const AGENT_TEXT: usize = 1000;

/// Bytes that all templates together may take when `$BRIG_TEMPLATE_BYTES` does not say.
const CACHE_BYTES: u64 = 4 << 30;

/// What [`ensure`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ensured {
    /// There is one.
    Present(Key),
    /// It was made now.
    Made(Key),
    /// The last ones could not be made or not be used, and guests boot for a while.
    Hopeless,
}

/// Makes sure that there is a template of `shape`. Waits when another process makes it just now. `begin` is called when
/// there is something to wait for. `again` also makes one when the last ones could not be used. Dropping the future ends
/// the guest and leaves nothing behind. Needs a [`tokio::task::LocalSet`].
///
/// # Errors
/// Those of opening KVM and the installation's files, of booting a guest and of writing files; [`Error::Template`].
pub async fn ensure(
    paths: &Paths,
    host: &dyn Host,
    shape: Shape,
    again: bool,
    begin: &mut dyn FnMut(),
) -> Result<Ensured, Error> {
    let limit = limit_from_environment()?;
    ensure_within(paths, host, shape, again, limit, begin).await
}

pub(super) async fn ensure_within(
    paths: &Paths,
    host: &dyn Host,
    shape: Shape,
    again: bool,
    limit: u64,
    begin: &mut dyn FnMut(),
) -> Result<Ensured, Error> {
    let kvm = Kvm::open(paths, host).await?;
    let ingredients = Ingredients::gather(paths, kvm.kind, shape)?;
    let (cache, key) = (Cache::new(paths), ingredients.key());
    if matches!(cache.find(&ingredients), Found::Template(_)) {
        return Ok(Ensured::Present(key));
    }
    if !again && cache.is_hopeless(&key) {
        return Ok(Ensured::Hopeless);
    }
    begin();
    let (waiting, wanted) = (cache.clone(), key.clone());
    let lock = spawn_blocking(move || waiting.lock(&wanted))
        .await
        .map_err(|e| Error::Runtime(io::Error::other(e)))??;
    cache.sweep(&key, &lock);
    // Another process may have been faster.
    if matches!(cache.find(&ingredients), Found::Template(_)) {
        return Ok(Ensured::Present(key));
    }
    if let Err(e) = make(paths, host, &kvm, &cache, ingredients, &lock).await {
        // A host that has too little now may have enough the next time.
        if !matches!(&e, Error::Vmm(e) if e.is_of_host()) {
            cache.failed(&key);
        }
        return Err(e);
    }
    cache.evict(limit, &key);
    Ok(Ensured::Made(key))
}

async fn make(
    paths: &Paths,
    host: &dyn Host,
    kvm: &Kvm,
    cache: &Cache,
    ingredients: Ingredients,
    lock: &Lock,
) -> Result<(), Error> {
    let workspace = cache.workspace(&ingredients.key(), lock)?;
    let disk_path = new_disk(workspace.path());
    disk::copy_sparse(&disk::blank(&paths.templates())?, &disk_path)?;
    let disk = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&disk_path)
        .and_then(|file| Disk::whole(file, true))
        .map_err(Error::file("open", &disk_path))?;
    let plan = Plan {
        vcpus: ingredients.shape.vcpus,
        memory: ingredients.shape.memory,
        disks: with_volumes(
            vec![Disk::empty_slot(false), disk, Disk::empty_slot(true)],
            Vec::new(),
        ),
        io: IoLimits::default(),
    };
    let mut guest = Guest::boot(paths, host, kvm, plan, Console::default(), &mut Timing::default()).await?;
    // A guest that has just failed says why below.
    let _ = guest
        .tell(&ToAgent::Prepare(Box::new(model_spec(FRESH_DISK))))
        .await;
    let [memory, state] = new_files(workspace.path())?;
    let done = match prepared(&mut guest).await {
        Ok(()) => {
            // Its clock is the processor's: the report would be due as soon as a copy goes on, and make each start longer.
            if kvm.kind == KvmKind::Emulated {
                sleep(REPORT_DELAY).await;
            }
            guest.settle().await;
            guest.save(&memory, &state).await
        }
        Err(failure) => Err(failure),
    };
    let kernel = match done {
        Ok(Ok(())) => guest.kernel.clone(),
        Ok(Err(message)) => {
            guest.vmm.kill().await;
            return Err(Error::Template(message));
        }
        Err(failure) => return Err(Error::Template(chain(&guest.explain(failure).await))),
    };
    // From here on nothing writes to the files.
    guest.vmm.kill().await;
    drop(guest);
    cache.publish(ingredients, kernel, workspace, lock)
}

/// Waits until nothing moves in the guest any more.
async fn prepared(guest: &mut Guest) -> Result<(), Failure> {
    match timeout(PREPARE_TIMEOUT, guest.heard()).await {
        Ok(Ok(FromAgent::Prepared)) => Ok(()),
        Ok(Ok(FromAgent::StartFailed { message, .. })) => Err(Failure::Agent(format!(
            "cannot prepare a start: {}",
            one_line(&message, AGENT_TEXT)
        ))),
        Ok(Ok(_)) => Err(Failure::Agent("answered with something else".into())),
        Ok(Err(failure)) => Err(failure),
        Err(_) => Err(Failure::Agent("did not get ready in time".into())),
    }
}

fn limit_from_environment() -> Result<u64, Error> {
    match std::env::var_os("BRIG_TEMPLATE_BYTES").filter(|value| !value.is_empty()) {
        None => Ok(CACHE_BYTES),
        Some(value) => {
            let text = value.to_string_lossy();
            text.trim()
                .parse()
                .map_err(|_| Error::TemplateBytes(text.into_owned()))
        }
    }
}
