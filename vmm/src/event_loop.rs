//! The threads on which devices do their work: each waits on one epoll descriptor for notified queues and ready
//! streams, and calls the device that they belong to.
//!
//! Disks have a thread of their own, so that a slow fdatasync(2) holds up no stream.

use std::{
    cell::Cell,
    fmt, io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{
        Timespec,
        epoll::{self, CreateFlags, Event, EventData, EventFlags},
    },
    io::Errno,
};
use vmm_sys_util::eventfd::EventFd;

use crate::{devices::virtio::SharedDevice, jail::filters::Kind, lock::lock, pause::Gate, threads::Crew};

/// Events that are taken from the kernel at once.
const BATCH: usize = 64;

/// In an event's data: whether it is a queue's or a stream's; the device in the bits above, the number below.
const STREAM: u64 = 1 << 32;
const DEVICE_SHIFT: u32 = 33;

/// Registers the streams of one device with its thread. Streams are watched edge-triggered: an event says that something
/// has changed, and the device remembers what it may still read or write.
#[derive(Clone, Debug)]
pub struct StreamRegistry {
    epoll: Arc<OwnedFd>,
    device: u64,
}

impl StreamRegistry {
    /// Watches `stream` for everything; the device is called with `token`. The kernel forgets a stream by itself when its
    /// last descriptor is closed.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn add(&self, stream: impl AsFd, token: u32) -> io::Result<()> {
        let data = self.device << DEVICE_SHIFT | STREAM | u64::from(token);
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&*self.epoll, stream, EventData::new_u64(data), flags)?)
    }

    /// Stops watching `stream`. Needed before it is closed when another process has a descriptor of it too.
    pub fn remove(&self, stream: impl AsFd) {
        // It fails when the stream is not watched, which is what is wanted.
        let _ = epoll::delete(&*self.epoll, stream);
    }
}

struct Served {
    device: SharedDevice,
    notifications: Vec<EventFd>,
    /// Until when it has put something off.
    put_off: Cell<Option<Instant>>,
}

impl Served {
    fn notify(&self, queue: usize) {
        let mut device = lock(&*self.device);
        device.queue_notified(queue);
        self.put_off.set(device.put_off());
    }
}

/// A thread's devices, before it is started.
pub struct EventLoop {
    epoll: Arc<OwnedFd>,
    served: Vec<Served>,
}

impl fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLoop")
            .field("devices", &self.served.len())
            .finish_non_exhaustive()
    }
}

impl EventLoop {
    /// A loop without devices.
    ///
    /// # Errors
    /// Those of epoll_create1(2).
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Arc::new(epoll::create(CreateFlags::CLOEXEC)?),
            served: Vec::new(),
        })
    }

    /// The registry for the streams of the device that is added next.
    pub fn streams_of_next(&self) -> StreamRegistry {
        StreamRegistry {
            epoll: Arc::clone(&self.epoll),
            device: self.served.len() as u64,
        }
    }

    /// Adds a device, with the event of each of its queues.
    ///
    /// # Errors
    /// Those of epoll_ctl(2).
    pub fn add(&mut self, device: SharedDevice, notifications: Vec<EventFd>) -> io::Result<()> {
        let index = self.served.len() as u64;
        for (queue, event) in (0u64..).zip(&notifications) {
            let data = EventData::new_u64(index << DEVICE_SHIFT | queue);
            // SAFETY: the descriptor is open for as long as `event`, which outlives this call.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(event)) };
            epoll::add(&*self.epoll, fd, data, EventFlags::IN)?;
        }
        self.served.push(Served {
            device,
            notifications,
            put_off: Cell::new(None),
        });
        Ok(())
    }

    /// Has a thread of `crew` serve it. That runs until the process ends, and works only while `gate` is open.
    ///
    /// # Errors
    /// Those of creating a thread.
    pub fn spawn(self, crew: &mut Crew, name: &str, kind: Kind, gate: Arc<Gate>) -> io::Result<()> {
        crew.spawn(name, kind, move || {
            loop {
                self.serve(None, &gate);
            }
        })?;
        Ok(())
    }

    /// Waits for events, at most for `timeout`, and serves them, and what was put off until now. False when there was neither.
    pub fn serve(&self, timeout: Option<&Timespec>, gate: &Gate) -> bool {
        let mut events = [Event {
            flags: EventFlags::empty(),
            data: EventData::new_u64(0),
        }; BATCH];
        let next = self.served.iter().filter_map(|served| served.put_off.get()).min();
        let left = next.map(|next| wait_until(next, timeout));
        let count = match epoll::wait(&*self.epoll, &mut events[..], left.as_ref().or(timeout)) {
            Ok(count) => count,
            Err(Errno::INTR) => return true,
            // The descriptor is valid and the buffer is ours: nothing else is left to fail.
            Err(e) => panic!("epoll_wait: {e}"),
        };
        // What is not served before the guest is saved is looked for when it is restored, see `MmioTransport::restore`.
        let _inside = gate.pass();
        for event in &events[..count] {
            let (flags, data) = (event.flags, event.data.u64());
            // A device that has been registered stays.
            let served = &self.served[(data >> DEVICE_SHIFT) as usize];
            if data & STREAM != 0 {
                lock(&*served.device).stream_ready(data as u32, flags);
            } else {
                let queue = data as u32 as usize;
                // Read before the queue, so that a later notification is not lost.
                let _ = served.notifications[queue].read();
                served.notify(queue);
            }
        }
        let mut resumed = false;
        if next.is_some() {
            let now = Instant::now();
            for served in &self.served {
                if served.put_off.get().is_some_and(|until| until <= now) {
                    served.notify(0);
                    resumed = true;
                }
            }
        }
        count > 0 || resumed
    }
}

/// The time from now to `next`, at most `timeout`; whole milliseconds, rounded up, as epoll_wait(2) counts them.
fn wait_until(next: Instant, timeout: Option<&Timespec>) -> Timespec {
    let left = next.saturating_duration_since(Instant::now());
    let left = Duration::from_millis(left.as_micros().div_ceil(1000) as u64);
    let left = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match timeout {
        Some(timeout) if (timeout.tv_sec, timeout.tv_nsec) < (left.tv_sec, left.tv_nsec) => *timeout,
        _ => left,
    }
}
