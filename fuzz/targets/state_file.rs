//! The state file of a saved guest, and the list of its pages: whatever is in them, reading it ends with a state or an error. What it reads as is given
//! to the parts that take numbers from it.
#![no_main]

use brig_vmm::{
    devices::virtio::vsock::{Vsock, VsockState},
    event_loop::EventLoop,
    prefetch, snapshot,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let _ = prefetch::parse(body, 512 << 20);
    if let Ok(state) = snapshot::parse(body) {
        restore(state.vsock);
    }
    // The connections alone: few inputs come as far as those in a whole state.
    if let Ok(state) = postcard::from_bytes::<VsockState>(body) {
        restore(state);
    }
});

fn restore(state: VsockState) {
    let Ok(events) = EventLoop::new() else { return };
    let mut vsock = Vsock::new(events.streams_of_next(), Vec::new());
    vsock.restore(state, Vec::new());
    let _ = vsock.save();
}
