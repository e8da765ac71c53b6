//! Standing still: what brings the vCPUs and the threads of the devices to a halt, so that a guest can be saved between
//! two of its instructions, and what lets them go on.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::{
    kvm::{KvmError, vcpu_state::VcpuState},
    lock::lock,
};

/// How long a vCPU may take to leave the guest. What its exit asks of a device is done before; the longest is a disk's
/// `fdatasync`, which a device thread does.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(30);

/// A signal that arrives just before a vCPU enters the guest is not seen there, so it is sent again.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(1);

/// Why a guest does not stand still.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU has not come out of the guest.
    #[error("A vCPU did not stop within {} seconds", PAUSE_TIMEOUT.as_secs())]
    Timeout,
    /// A vCPU has ended meanwhile: the guest has stopped.
    #[error("The guest has stopped")]
    Ended,
    /// The state of a vCPU cannot be read.
    #[error("Cannot read the state of a vCPU")]
    State(#[from] KvmError),
}

/// What the device threads pass to do work. Closing it waits until none is inside.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    inside: usize,
}

/// A thread that has passed the gate; it may work on devices until this is dropped.
#[derive(Debug)]
pub struct Passage<'a>(&'a Gate);

impl Gate {
    /// Waits until the gate is open and passes it.
    pub fn pass(&self) -> Passage<'_> {
        let mut state = lock(&self.state);
        while state.closed {
            state = self.wait(state);
        }
        state.inside += 1;
        Passage(self)
    }

    /// Closes the gate and waits until nobody is inside.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        while state.inside > 0 {
            state = self.wait(state);
        }
    }

    /// Opens it.
    pub fn open(&self) {
        lock(&self.state).closed = false;
        self.changed.notify_all();
    }

    fn wait<'a>(&self, state: MutexGuard<'a, GateState>) -> MutexGuard<'a, GateState> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).inside -= 1;
        self.0.changed.notify_all();
    }
}

/// What a vCPU says when it stands still.
#[derive(Debug)]
struct Standing {
    index: u8,
    /// Of the halt that it stands in.
    round: u64,
    state: Result<VcpuState, KvmError>,
}

/// The vCPUs' side: looked at before each entry into the guest.
#[derive(Clone, Debug)]
pub struct Brake {
    shared: Arc<BrakeShared>,
    standing: Sender<Standing>,
}

#[derive(Debug, Default)]
struct BrakeShared {
    wanted: AtomicBool,
    held: Mutex<Held>,
    released: Condvar,
}

/// Whether vCPUs that stand still are to go on standing.
#[derive(Debug, Default)]
struct Held {
    held: bool,
    /// Counts the halts: a vCPU that wakes late must not take the next one for its own.
    round: u64,
}

/// The main thread's side.
#[derive(Debug)]
pub struct Brakes {
    shared: Arc<BrakeShared>,
    standing: Receiver<Standing>,
}

/// A pair of sides; each vCPU gets a clone of the first.
pub fn brakes() -> (Brake, Brakes) {
    let shared = Arc::new(BrakeShared::default());
    let (sender, receiver) = mpsc::channel();
    let brake = Brake {
        shared: Arc::clone(&shared),
        standing: sender,
    };
    let brakes = Brakes {
        shared,
        standing: receiver,
    };
    (brake, brakes)
}

impl Brake {
    /// Whether the vCPU is to leave the guest.
    pub fn is_wanted(&self) -> bool {
        self.shared.wanted.load(Ordering::Acquire)
    }

    /// Says that vCPU `index` stands still, in which state, and waits until it may go on.
    pub fn stand(&self, index: u8, state: impl FnOnce() -> Result<VcpuState, KvmError>) {
        let round = lock(&self.shared.held).round;
        // Read after the round began, in which all may have stood still before.
        let state = state();
        let mut held = lock(&self.shared.held);
        // The main thread is there as long as the process is.
        let _ = self.standing.send(Standing { index, round, state });
        while held.held && held.round == round {
            held = self
                .shared
                .released
                .wait(held)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Brakes {
    /// Brings all vCPUs, whose threads are `threads`, to a halt. They stand still then, also after an error, until
    /// [`Brakes::release`].
    ///
    /// # Errors
    /// [`PauseError`].
    pub fn apply(&self, threads: &[JoinHandle<()>]) -> Result<(), PauseError> {
        self.states(threads).map(drop)
    }

    /// As [`Brakes::apply`], and returns their states in order, read after this call began: all are of one moment when they
    /// stood still before.
    ///
    /// # Errors
    /// [`PauseError`].
    pub fn states(&self, threads: &[JoinHandle<()>]) -> Result<Vec<VcpuState>, PauseError> {
        let round = {
            let mut held = lock(&self.shared.held);
            held.held = true;
            held.round += 1;
            held.round
        };
        // Those that stand still from the last time tell their states again.
        self.shared.released.notify_all();
        self.shared.wanted.store(true, Ordering::Release);
        let deadline = Instant::now() + PAUSE_TIMEOUT;
        let mut states: Vec<Option<VcpuState>> = threads.iter().map(|_| None).collect();
        let mut missing = threads.len();
        while missing > 0 {
            for (thread, state) in threads.iter().zip(&states) {
                if thread.is_finished() {
                    return Err(PauseError::Ended);
                }
                if state.is_none() {
                    // It fails for a thread that has just ended, which the next round sees.
                    let _ = thread.kill(SIGRTMIN());
                }
            }
            match self.standing.recv_timeout(SIGNAL_INTERVAL) {
                // What is left of an earlier halt that failed says nothing of this one.
                Ok(standing) if standing.round != round => {}
                Ok(standing) => {
                    if let Some(slot @ None) = states.get_mut(usize::from(standing.index)) {
                        *slot = Some(standing.state?);
                        missing -= 1;
                    }
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                Err(_) => return Err(PauseError::Timeout),
            }
        }
        Ok(states.into_iter().flatten().collect())
    }

    /// Lets them go on.
    pub fn release(&self) {
        self.shared.wanted.store(false, Ordering::Release);
        lock(&self.shared.held).held = false;
        self.shared.released.notify_all();
    }
}

extern "C" fn nothing(_signal: libc::c_int, _info: *mut libc::siginfo_t, _context: *mut libc::c_void) {}

/// Makes the signal that takes a vCPU out of the guest one that does nothing else. Called once, before there are vCPUs.
///
/// # Errors
/// Those of sigaction(2).
pub fn prepare_signal() -> std::io::Result<()> {
    register_signal_handler(SIGRTMIN(), nothing).map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, thread};

    use super::*;

    #[test]
    fn a_closed_gate_lets_nobody_work() {
        let gate = Arc::new(Gate::default());
        let done = Arc::new(AtomicUsize::new(0));
        let inside = gate.pass();
        let worker = {
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            thread::spawn(move || {
                for _ in 0..1000 {
                    let _inside = gate.pass();
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        };
        drop(inside);
        gate.close();
        let seen = done.load(Ordering::SeqCst);
        for _ in 0..100 {
            thread::yield_now();
            assert_eq!(done.load(Ordering::SeqCst), seen);
        }
        gate.open();
        worker.join().unwrap();
        assert_eq!(done.load(Ordering::SeqCst), 1000);
    }

    #[test]
    fn vcpus_stand_until_they_are_released_and_can_be_stopped_again() {
        prepare_signal().unwrap();
        let (brake, brakes) = brakes();
        let end = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..3)
            .map(|index| {
                let (brake, end) = (brake.clone(), Arc::clone(&end));
                thread::spawn(move || {
                    while !end.load(Ordering::SeqCst) {
                        if brake.is_wanted() {
                            brake.stand(index, || Ok(VcpuState::default()));
                        }
                        thread::sleep(Duration::from_micros(50));
                    }
                })
            })
            .collect();
        for _ in 0..20 {
            brakes.apply(&threads).unwrap();
            assert_eq!(brakes.states(&threads).unwrap().len(), 3);
            brakes.release();
        }
        end.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn the_states_of_all_are_of_one_moment() {
        prepare_signal().unwrap();
        let (brake, brakes) = brakes();
        let end = Arc::new(AtomicBool::new(false));
        // Each sends the other something for as long as it runs.
        let inboxes: Arc<[AtomicUsize; 2]> = Arc::default();
        let threads: Vec<_> = (0..2)
            .map(|index: u8| {
                let (brake, end, inboxes) = (brake.clone(), Arc::clone(&end), Arc::clone(&inboxes));
                thread::spawn(move || {
                    let own = &inboxes[usize::from(index)];
                    let other = &inboxes[1 - usize::from(index)];
                    while !end.load(Ordering::SeqCst) {
                        if brake.is_wanted() {
                            brake.stand(index, || {
                                Ok(VcpuState::numbered(own.load(Ordering::SeqCst) as u32))
                            });
                            continue;
                        }
                        // The two come to a halt at different moments.
                        thread::sleep(Duration::from_micros(20 + 200 * u64::from(index)));
                        other.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            brakes.apply(&threads).unwrap();
            let states = brakes.states(&threads).unwrap();
            for (state, inbox) in states.iter().zip(inboxes.iter()) {
                assert_eq!(state.tsc_khz(), inbox.load(Ordering::SeqCst) as u32);
            }
            brakes.release();
            thread::sleep(Duration::from_millis(1));
        }
        end.store(true, Ordering::SeqCst);
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_vcpu_that_has_ended_is_told_from_one_that_is_late() {
        prepare_signal().unwrap();
        let (_brake, brakes) = brakes();
        let thread = thread::spawn(|| {});
        while !thread.is_finished() {
            thread::yield_now();
        }
        assert!(matches!(brakes.apply(&[thread]), Err(PauseError::Ended)));
    }
}
