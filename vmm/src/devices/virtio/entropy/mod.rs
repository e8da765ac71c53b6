//! The entropy device (virtio 1.2, section 5.4): fills the driver's buffers with bytes of the host's random number
//! generator.

mod device;

pub use device::Entropy;
