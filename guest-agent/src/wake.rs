//! After a restore: what two guests restored from the same snapshot must not share, and what has passed them by. And the clock,
//! later on.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

use brig_protocol::agent::WakeSpec;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::{
    disks,
    error::{AgentError, Context},
    process::Places,
};

/// Nanoseconds of a second.
const NS: i128 = 1_000_000_000;

/// What a restore changes in the machine: the kernel of a guest, or a test's stand-in.
pub trait Machine: std::fmt::Debug {
    /// Opens what [`Machine::reseed`] needs; called in advance where there is time.
    ///
    /// # Errors
    /// [`AgentError::System`].
    fn open(&mut self, places: &Places) -> Result<(), AgentError>;

    /// Sets `CLOCK_REALTIME`.
    ///
    /// # Errors
    /// Those of clock_settime(2).
    fn set_clock(&mut self, now: Timespec) -> io::Result<()>;

    /// Moves `CLOCK_REALTIME` by so many nanoseconds.
    ///
    /// # Errors
    /// Those of clock_adjtime(2); a kernel that is shared has its own time.
    fn shift_clock(&mut self, _ns: i64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Mixes `seed` into the random number generator and has it make every later byte from that.
    ///
    /// # Errors
    /// Those of ioctl(2).
    fn reseed(&mut self, seed: &[u8; 32]) -> io::Result<()>;

    /// What the kernel has logged of the last process that it killed for want of memory. On a kernel that is shared the sandbox's
    /// cgroup counts them, which the supervisor looks at.
    fn last_oom_kill(&mut self) -> Option<String> {
        None
    }
}

/// Sets the clock, then the random numbers.
///
/// # Errors
/// [`AgentError::System`]. A guest that cannot do this must not go on: its random numbers may be another one's.
pub fn wake(machine: &mut dyn Machine, spec: &WakeSpec, places: &Places) -> Result<(), AgentError> {
    set_clock(machine, spec, time_stamp_counter)?;
    machine.open(places)?;
    machine
        .reseed(&spec.seed)
        .step("reseed the random number generator")
}

/// How long setting the clock may take for the time to be right, in milliseconds: where KVM interprets the guest's kernel, the call
/// alone takes one or two.
const SET_MS: u64 = 4;

/// How often it is tried to be faster. A vCPU that waits for a processor in the middle sets its clock late by as much.
const SET_TRIES: usize = 8;

fn set_clock(
    machine: &mut dyn Machine,
    spec: &WakeSpec,
    mut counter: impl FnMut() -> u64,
) -> Result<(), AgentError> {
    let most = u64::from(spec.tsc_khz).saturating_mul(SET_MS);
    for _ in 0..SET_TRIES {
        let before = counter();
        machine.set_clock(realtime(spec, before)).step("set the clock")?;
        if counter().saturating_sub(before) <= most {
            break;
        }
    }
    Ok(())
}

/// `CLOCK_REALTIME` in nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(i128::from(now.tv_sec) * NS + i128::from(now.tv_nsec)).unwrap_or(0)
}

/// The time stamp counter.
pub fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets user mode use it unless a process gave it up
    // (PR_SET_TSC), which this one has not.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// What the time is when the counter stands at `tsc`, which may be before the instant that `spec` speaks of: a guest's
/// counter can be set back.
fn realtime(spec: &WakeSpec, tsc: u64) -> Timespec {
    let ticks = i128::from(tsc) - i128::from(spec.tsc);
    // A frequency of zero is a mistake that is worth a wrong clock and no panic.
    let khz = i128::from(spec.tsc_khz.max(1));
    let now = (i128::from(spec.realtime_ns) + ticks * 1_000_000 / khz).max(0);
    Timespec {
        tv_sec: (now / NS) as i64,
        tv_nsec: (now % NS) as i64,
    }
}

/// The guest's kernel.
#[derive(Debug, Default)]
pub struct Kernel {
    random: Option<File>,
}

/// `RNDADDENTROPY` and `RNDRESEEDCRNG` (include/uapi/linux/random.h).
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;
const RESEED: libc::Ioctl = 0x5207;

/// `struct rand_pool_info` with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    seed: [u8; 32],
}

/// `SYSLOG_ACTION_READ_ALL` (syslog(2)).
const READ_ALL: libc::c_int = 3;

/// Most bytes of the kernel's log that are looked at, from its end.
const LOG_BYTES: usize = 64 << 10;

/// What the kernel's log says of such a process (mm/oom_kill.c, `__oom_kill_process`).
const OOM_KILLED: &str = "Out of memory: Killed process ";

/// The end of the kernel's log.
fn kernel_log() -> String {
    let mut bytes = vec![0; LOG_BYTES];
    // SAFETY: the kernel writes as many bytes as it is told that there are, and says how many.
    let read = unsafe { libc::klogctl(READ_ALL, bytes.as_mut_ptr().cast(), LOG_BYTES as libc::c_int) };
    // A kernel without a log has nothing to say.
    bytes.truncate(usize::try_from(read).unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_oom_kill_in(log: &str) -> Option<String> {
    let found = log.lines().rfind(|line| line.contains(OOM_KILLED));
    found.map(str::to_owned)
}

impl Machine for Kernel {
    fn open(&mut self, places: &Places) -> Result<(), AgentError> {
        if self.random.is_none() {
            disks::ensure_devices(&places.devices())?;
            let opened = OpenOptions::new()
                .write(true)
                .open(places.devices().join("urandom"));
            self.random = Some(opened.step("open /dev/urandom")?);
        }
        Ok(())
    }

    fn last_oom_kill(&mut self) -> Option<String> {
        last_oom_kill_in(&kernel_log())
    }

    fn set_clock(&mut self, now: Timespec) -> io::Result<()> {
        Ok(clock_settime(ClockId::Realtime, now)?)
    }

    /// At one stroke (`ADJ_SETOFFSET`): what is read and set in two takes longer the busier the host is.
    fn shift_clock(&mut self, ns: i64) -> io::Result<()> {
        // SAFETY: of these numbers and padding any bytes are valid, zeros among them.
        let mut change: libc::timex = unsafe { std::mem::zeroed() };
        change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
        change.time.tv_sec = ns.div_euclid(NS as i64);
        // Nanoseconds, as ADJ_NANO says; never negative.
        change.time.tv_usec = ns.rem_euclid(NS as i64);
        // SAFETY: the call reads and writes one timex, which outlives it.
        match unsafe { libc::clock_adjtime(libc::CLOCK_REALTIME, &raw mut change) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// The seed goes into the input pool, credited; the reseed makes the base key from that pool and starts a new generation,
    /// which each CPU's own key, the batches of `get_random_u32` and the vDSO's state compare with theirs before every
    /// use (drivers/char/random.c, `crng_reseed`, `crng_make_state`).
    fn reseed(&mut self, seed: &[u8; 32]) -> io::Result<()> {
        let random = self.random.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let info = PoolInfo {
            entropy_bits: seed.len() as i32 * 8,
            bytes: seed.len() as i32,
            seed: *seed,
        };
        // SAFETY: the request reads a rand_pool_info with as many bytes as it says, and `info` is one that outlives the call.
        if unsafe { libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, &raw const info) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the request takes no argument.
        match unsafe { libc::ioctl(random.as_raw_fd(), RESEED, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> WakeSpec {
        WakeSpec {
            tsc: 5_000_000_000,
            realtime_ns: 1_700_000_000_999_999_999,
            tsc_khz: 2_500_000,
            seed: [0; 32],
            identity: None,
        }
    }

    fn at(tsc: u64) -> (i64, i64) {
        let time = realtime(&spec(), tsc);
        (time.tv_sec, time.tv_nsec)
    }

    #[test]
    fn the_last_kill_for_want_of_memory_is_found_in_the_kernels_log() {
        let log = "<6>[    1.0] x\n<3>[    2.0] Out of memory: Killed process 7 (tail) total-vm:1kB\n\
                   <3>[    3.0] Out of memory: Killed process 9 (tail) total-vm:1kB\n<6>[    4.0] y\n";
        let found = last_oom_kill_in(log).unwrap();
        assert!(
            found.starts_with("<3>[    3.0]") && found.contains(" 9 (tail)"),
            "{found}"
        );
        assert_eq!(last_oom_kill_in("<6>[    1.0] x\n"), None);
    }

    #[test]
    fn the_time_goes_on_from_the_instant_that_was_told() {
        assert_eq!(at(5_000_000_000), (1_700_000_000, 999_999_999));
        // 2.5 ticks a nanosecond.
        assert_eq!(at(5_000_000_025), (1_700_000_001, 9));
        assert_eq!(at(7_500_000_000), (1_700_000_001, 999_999_999));
    }

    #[test]
    fn a_counter_before_that_instant_gives_an_earlier_time() {
        assert_eq!(at(2_500_000_000), (1_699_999_999, 999_999_999));
        assert_eq!(at(0), (1_699_999_998, 999_999_999));
    }

    /// Notes how often its clock is set, and to what last.
    #[derive(Debug, Default)]
    struct Clock(usize, Option<Timespec>);

    impl Machine for Clock {
        fn open(&mut self, _places: &Places) -> Result<(), AgentError> {
            Ok(())
        }

        fn set_clock(&mut self, now: Timespec) -> io::Result<()> {
            *self = Self(self.0 + 1, Some(now));
            Ok(())
        }

        fn reseed(&mut self, _seed: &[u8; 32]) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_clock_that_was_set_slowly_is_set_again() {
        // 2.5 million ticks a millisecond: the first call takes 20 ms, the second 1.
        let mut clock = Clock::default();
        let mut ticks = [5_000_000_000, 5_050_000_000, 5_050_000_025, 5_052_500_025].into_iter();
        set_clock(&mut clock, &spec(), || ticks.next().unwrap()).unwrap();
        let set = clock.1.unwrap();
        assert_eq!((clock.0, set.tv_sec, set.tv_nsec), (2, 1_700_000_001, 20_000_009));
    }

    #[test]
    fn a_clock_that_is_always_set_slowly_is_given_up_some_time() {
        let (mut clock, mut tick) = (Clock::default(), 5_000_000_000);
        let slow = || {
            tick += 1_000_000_000;
            tick
        };
        set_clock(&mut clock, &spec(), slow).unwrap();
        assert_eq!(clock.0, SET_TRIES);
    }

    #[test]
    fn no_number_that_can_be_told_makes_it_panic() {
        for (realtime_ns, told, tsc_khz) in [(0, u64::MAX, 0), (u64::MAX, 0, 0), (u64::MAX, 0, u32::MAX)] {
            let spec = WakeSpec {
                tsc: told,
                realtime_ns,
                tsc_khz,
                ..spec()
            };
            for tsc in [0, u64::MAX] {
                assert!(realtime(&spec, tsc).tv_sec >= 0);
            }
        }
    }
}
