//! Block devices (virtio 1.2, section 5.2): files of the host, read and written straight from and to guest memory.
//!
//! | room | does |
//! |---|---|
//! | [`disk`] | the host's side: one file, or several one after the other |
//! | [`request`] | one request: its header, its data, its status |
//! | [`throttle`] | how fast requests are carried out |
//! | [`device`] | the queue |

mod device;
pub mod disk;
pub mod request;
pub mod throttle;

pub use device::Block;
pub use disk::Disk;
