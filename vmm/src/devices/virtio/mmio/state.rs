//! The registers and queues of a device, saved and restored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{DEVICE_NEEDS_RESET, DRIVER_OK, MmioTransport};
use crate::{
    devices::virtio::{Activation, interrupt::InterruptState},
    lock::lock,
};

/// Why saved registers do not fit a device.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another kind of device was there.
    #[error("Device type {device} stands where type {saved} was saved")]
    Device {
        /// Type of the device.
        device: u32,
        /// Type that was saved.
        saved: u32,
    },
    /// The driver relies on features that the device does not have.
    #[error("The saved guest uses features {0:#x}, which the device does not have")]
    Features(u64),
    /// The queues cannot be those of the device.
    #[error("The saved queues are not those of the device")]
    Queues,
}

/// A queue: its addresses and how far both sides are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl SavedQueue {
    fn save(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }

    fn restore(self) -> Result<Queue, RestoreError> {
        let state = QueueState {
            max_size: self.max_size,
            next_avail: self.next_avail,
            next_used: self.next_used,
            event_idx_enabled: self.event_idx,
            size: self.size,
            ready: self.ready,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        };
        Queue::try_from(state).map_err(|_| RestoreError::Queues)
    }
}

/// What the driver has set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    device_type: u32,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    accepted: u64,
    queue_select: u32,
    interrupt: InterruptState,
    queues: Vec<SavedQueue>,
    /// The queues as the device has them, while it is active.
    active: Option<Vec<SavedQueue>>,
}

impl MmioTransport {
    /// The registers of a device that nobody works on meanwhile.
    pub fn save(&self) -> TransportState {
        let mut device = lock(&*self.device);
        let active = device
            .queues()
            .map(|queues| queues.iter().map(SavedQueue::save).collect());
        TransportState {
            device_type: self.device_type,
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            accepted: self.accepted,
            queue_select: self.queue_select,
            interrupt: self.interrupt.save(),
            queues: self.queues.iter().map(SavedQueue::save).collect(),
            active,
        }
    }

    /// Gives a new device the registers of a saved one; it is active afterwards when that was. It begins with what waits in
    /// its queues, as a notification may have been lost, and an interrupt that was not acknowledged is raised again. So the
    /// interrupt controllers must have their states, and whatever the device itself has to restore must be restored.
    ///
    /// # Errors
    /// [`RestoreError`]; everything that a driver could not have set up is refused.
    pub fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        if state.device_type != self.device_type {
            return Err(RestoreError::Device {
                device: self.device_type,
                saved: state.device_type,
            });
        }
        let missing = state.accepted & !self.offered;
        if missing != 0 {
            return Err(RestoreError::Features(missing));
        }
        self.queues = self.restore_queues(&state.queues)?;
        self.status = state.status;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.accepted = state.accepted;
        self.queue_select = state.queue_select;
        self.interrupt.restore(state.interrupt);
        if let Some(active) = &state.active {
            if self.status & (DRIVER_OK | DEVICE_NEEDS_RESET) != DRIVER_OK {
                return Err(RestoreError::Queues);
            }
            let queues = self.restore_queues(active)?;
            if !queues.iter().all(|queue| queue.is_valid(&*self.memory)) {
                return Err(RestoreError::Queues);
            }
            lock(&*self.device).activate(Activation {
                memory: Arc::clone(&self.memory),
                queues,
                interrupt: Arc::clone(&self.interrupt),
                wakers: Arc::clone(&self.wakers),
            });
            self.wakers.wake_all();
        }
        Ok(())
    }

    /// Queues as the device has them, with the saved settings.
    fn restore_queues(&self, saved: &[SavedQueue]) -> Result<Vec<Queue>, RestoreError> {
        let sizes = self.queues.iter().map(QueueT::max_size);
        if !sizes.eq(saved.iter().map(|queue| queue.max_size)) {
            return Err(RestoreError::Queues);
        }
        saved.iter().map(|queue| queue.restore()).collect()
    }
}
