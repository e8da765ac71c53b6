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

#[cfg(test)]
mod tests {
    use std::{io::Write, num::NonZeroU64, sync::Mutex};

    use brig_protocol::vmm::IoLimits;
    use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::{
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::{
        devices::virtio::{
            Activation, VirtioDevice,
            block::{Block, Disk, throttle::Throttle},
            interrupt::Interrupt,
        },
        memory,
    };

    const REQUESTS: u16 = 8;

    /// A driver's request for a sector, so many times.
    fn requests() -> Vec<RawDescriptor> {
        let (next, write) = (VRING_DESC_F_NEXT as u16, VRING_DESC_F_WRITE as u16);
        let chain = [
            (0x1_0000, 16, next),
            (0x2_0000, 512, write | next),
            (0x3_0000, 1, write),
        ];
        (0..REQUESTS)
            .flat_map(|index| {
                chain
                    .into_iter()
                    .zip(1..)
                    .map(move |((address, bytes, flags), place)| {
                        RawDescriptor::from(Descriptor::new(address, bytes, flags, index * 3 + place))
                    })
            })
            .collect()
    }

    #[test]
    fn a_disk_that_is_put_off_holds_up_no_other_and_goes_on_by_itself() {
        let memory = memory::create(1 << 20).unwrap();
        memory.write_obj([0u64; 2], GuestAddress(0x1_0000)).unwrap();
        let rings = [0, 0x8000].map(|at| MockSplitQueue::create(&*memory, GuestAddress(at), 32));
        let mut events = EventLoop::new().unwrap();
        let limits = IoLimits {
            read_operations: NonZeroU64::new(40),
            ..IoLimits::default()
        };
        for (ring, throttle) in rings.iter().zip([Throttle::new(&limits), None]) {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[1; 4096]).unwrap();
            let mut disk = Block::new(Disk::writable(file, 4096)).throttled(throttle);
            ring.build_multiple_desc_chains(&requests()).unwrap();
            disk.activate(Activation {
                memory: Arc::clone(&memory),
                queues: vec![ring.create_queue().unwrap()],
                interrupt: Arc::new(Interrupt::new().unwrap()),
                wakers: Arc::default(),
            });
            let event = EventFd::new(EFD_NONBLOCK).unwrap();
            event.write(1).unwrap();
            events.add(Arc::new(Mutex::new(disk)), vec![event]).unwrap();
        }
        let gate = Gate::default();
        let done = || rings.each_ref().map(|ring| ring.used().idx().load());
        assert!(events.serve(None, &gate));
        let [slow, fast] = done();
        assert_eq!(fast, REQUESTS);
        assert!((1..REQUESTS).contains(&slow), "{slow}");
        // Nobody notifies it again: it is its own time that it waits for.
        while done()[0] < REQUESTS {
            assert!(events.serve(None, &gate));
        }
    }
}
