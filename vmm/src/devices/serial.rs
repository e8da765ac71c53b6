//! A 16550 serial port that only prints (registers by vm-superio): the kernel's log, line by line into a pipe.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
};

use serde::{Deserialize, Serialize};
use vm_superio::{
    Serial, SerialState, Trigger,
    serial::{Error as SerialError, NoEvents},
};
use vmm_sys_util::eventfd::EventFd;

/// A longer line is written in pieces.
const LINE_BYTES: usize = 512;

/// The interrupt line of the port.
#[derive(Debug)]
struct SerialInterrupt(EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Collects a line, then writes it. What the pipe does not take is lost: the log must never hold up the guest.
#[derive(Debug)]
struct Console {
    pipe: File,
    line: Vec<u8>,
}

impl Console {
    fn write_line(&mut self) {
        if !self.line.is_empty() {
            // Full, or nobody reads any more: both lose the line.
            let _ = self.pipe.write(&self.line);
            self.line.clear();
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.line.push(byte);
            if byte == b'\n' || self.line.len() >= LINE_BYTES {
                self.write_line();
            }
        }
        Ok(bytes.len())
    }

    // vm-superio flushes after each byte; a line is whole at its end only.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The registers of a port, by the names of the 16550's data sheet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialPortState {
    baud_divisor_low: u8,
    baud_divisor_high: u8,
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    in_buffer: Vec<u8>,
}

/// The serial port.
#[derive(Debug)]
pub struct SerialPort(Serial<SerialInterrupt, NoEvents, Console>);

impl SerialPort {
    /// A port that raises `interrupt` and prints to `pipe`, a non-blocking descriptor.
    pub fn new(interrupt: EventFd, pipe: OwnedFd) -> Self {
        let console = Console {
            pipe: File::from(pipe),
            line: Vec::with_capacity(LINE_BYTES),
        };
        Self(Serial::new(SerialInterrupt(interrupt), console))
    }

    /// A port as it was saved.
    ///
    /// # Errors
    /// When the saved input is longer than any port holds.
    pub fn restore(
        state: &SerialPortState,
        interrupt: EventFd,
        pipe: OwnedFd,
    ) -> Result<Self, SerialError<io::Error>> {
        let console = Console {
            pipe: File::from(pipe),
            line: Vec::with_capacity(LINE_BYTES),
        };
        let state = SerialState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer.clone(),
        };
        Serial::from_state(&state, SerialInterrupt(interrupt), NoEvents, console).map(Self)
    }

    /// The registers. What the guest has printed of its last line is not among them: [`SerialPort::flush`] it before.
    pub fn save(&self) -> SerialPortState {
        let state = self.0.state();
        SerialPortState {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }

    /// Reads register `offset`, 0 to 7.
    pub fn read(&mut self, offset: u8) -> u8 {
        self.0.read(offset)
    }

    /// Writes register `offset`, 0 to 7.
    pub fn write(&mut self, offset: u8, value: u8) {
        // It fails when the loopback buffer is full or an interrupt cannot be raised: a lost byte or a lost interrupt of
        // a port that the guest itself has misused.
        let _ = self.0.write(offset, value);
    }

    /// Writes out an unfinished line.
    pub fn flush(&mut self) {
        self.0.writer_mut().write_line();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{OFlags, fcntl_setfl};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn port() -> (SerialPort, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
        fcntl_setfl(&reader, OFlags::NONBLOCK).unwrap();
        (
            SerialPort::new(EventFd::new(EFD_NONBLOCK).unwrap(), writer.into()),
            reader,
        )
    }

    fn print(port: &mut SerialPort, text: &[u8]) {
        for byte in text {
            port.write(0, *byte);
        }
    }

    #[test]
    fn a_line_is_written_at_its_end() {
        let (mut port, mut reader) = port();
        print(&mut port, b"Linux");
        let mut buffer = [0; 64];
        assert_eq!(
            reader.read(&mut buffer).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        print(&mut port, b" 6.12\nnext");
        let read = reader.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..read], b"Linux 6.12\n");
    }

    #[test]
    fn a_full_pipe_loses_lines_and_holds_up_nobody() {
        let (mut port, _reader) = port();
        for _ in 0..400 {
            print(&mut port, &[b'x'; LINE_BYTES]);
        }
    }
}
