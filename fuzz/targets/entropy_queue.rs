//! A driver of the entropy device that does what it likes with registers, queues and memory.
#![no_main]

mod common;

use brig_vmm::devices::virtio::entropy::Entropy;
use common::{Guest, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut guest = Guest::new(|_| Entropy::default());
    let mut input = Input(bytes);
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.serve();
});
