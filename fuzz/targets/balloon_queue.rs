//! A driver of the balloon that does what it likes with registers, queues and memory.
#![no_main]

mod common;

use brig_vmm::devices::virtio::balloon::Balloon;
use common::{Guest, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut guest = Guest::new(|_| Balloon::default());
    let mut input = Input(bytes);
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.serve();
});
