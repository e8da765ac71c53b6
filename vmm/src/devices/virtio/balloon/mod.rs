//! The balloon device (virtio 1.2, section 5.5), for one thing: what the guest's kernel has freed goes back to the host (free page
//! reporting). It never asks the guest for memory.

mod device;

pub use device::Balloon;
