//! How a device's thread is told to look into a queue, by whom else than the driver.

use vmm_sys_util::eventfd::EventFd;

/// The events of a device's queues, in their order.
#[derive(Debug, Default)]
pub struct Wakers(Vec<EventFd>);

impl Wakers {
    /// Those that the device's thread waits for.
    pub fn new(events: Vec<EventFd>) -> Self {
        Self(events)
    }

    /// Has the device's thread look into a queue, after everything else that waits for that thread. The number may be the
    /// driver's: for a queue that does not exist nothing happens.
    pub fn wake(&self, queue: usize) {
        if let Some(event) = self.0.get(queue) {
            // It fails when the counter is at its end: then the thread has enough to do.
            let _ = event.write(1);
        }
    }

    /// As [`Self::wake`], for every queue.
    pub fn wake_all(&self) {
        for queue in 0..self.0.len() {
            self.wake(queue);
        }
    }
}
