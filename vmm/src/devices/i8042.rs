//! As much of an i8042 keyboard controller as a kernel needs to reset the machine (`reboot=k`,
//! arch/x86/kernel/reboot.c): a status that says "ready", and the command that pulses the processor's reset line.

use std::ops::ControlFlow;

/// Pulses output line 0, which is wired to the processor's reset.
const COMMAND_RESET: u8 = 0xfe;

/// Both buffers are empty: a command may be written.
const STATUS_READY: u8 = 0;

/// The controller. It has no state.
#[derive(Clone, Copy, Debug)]
pub struct KeyboardController;

impl KeyboardController {
    /// Reads the status or the data port.
    #[allow(clippy::unused_self)]
    pub fn read(self) -> u8 {
        STATUS_READY
    }

    /// Carries out a command: `Break` when it is the reset.
    #[allow(clippy::unused_self)]
    pub fn command(self, command: u8) -> ControlFlow<()> {
        if command == COMMAND_RESET {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
