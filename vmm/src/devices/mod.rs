//! The devices of the machine.
//!
//! A vCPU's exit goes through [`bus`] to a device's registers, on the vCPU's thread. Queues and streams are served by
//! the threads of [`crate::event_loop`].
//!
//! | room | device |
//! |---|---|
//! | [`bus`] | which register belongs to which device |
//! | [`serial`] | a 16550 that only prints: the kernel's log |
//! | [`i8042`] | the keyboard controller's reset line |
//! | [`virtio`] | block devices, vsock, entropy, and what they share |

pub mod bus;
pub mod i8042;
pub mod serial;
pub mod virtio;
