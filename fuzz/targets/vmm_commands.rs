//! What a supervisor, or what plays one, may say to brig-vmm: configurations are checked without descriptors, so that each
//! is refused, and none by a panic.
#![no_main]

use brig_protocol::vmm::Command;
use brig_vmm::config::{MachineConfig, RestoredMachineConfig};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match postcard::from_bytes::<Command>(bytes) {
        Ok(Command::Boot(config)) => assert!(MachineConfig::new(config, Vec::new()).is_err()),
        Ok(Command::Restore(config)) => assert!(RestoredMachineConfig::new(config, Vec::new()).is_err()),
        _ => {}
    }
});
