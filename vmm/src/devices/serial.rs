//! A 16550 serial port that only prints (registers by vm-superio): the kernel's log, line by line into a pipe.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    time::Instant,
};

use serde::{Deserialize, Serialize};
use vm_superio::{
    Serial, SerialState, Trigger,
    serial::{Error as SerialError, NoEvents},
};
use vmm_sys_util::eventfd::EventFd;

/// A longer line is written in pieces.
const LINE_BYTES: usize = 512;

/// Bytes that a guest may print at once: several times what a kernel says in a boot.
const BURST_BYTES: u64 = 256 << 10;

/// Bytes that it may print in a second on average.
const BYTES_A_SECOND: u64 = 64 << 10;

/// The interrupt line of the port.
#[derive(Debug)]
struct SerialInterrupt(EventFd);

impl Trigger for SerialInterrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// What may still be printed.
#[derive(Debug)]
struct Allowance {
    bytes: u64,
    since: Instant,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            bytes: BURST_BYTES,
            since: now,
        }
    }

    /// Whether so many bytes may be printed; they count then.
    fn takes(&mut self, bytes: u64, now: Instant) -> bool {
        let milliseconds = now.saturating_duration_since(self.since).as_millis() as u64;
        let earned = milliseconds.saturating_mul(BYTES_A_SECOND) / 1000;
        if earned > 0 {
            self.bytes = self.bytes.saturating_add(earned).min(BURST_BYTES);
            self.since = now;
        }
        let enough = self.bytes >= bytes;
        if enough {
            self.bytes -= bytes;
        }
        enough
    }
}

/// Collects a line, then writes it. What the pipe does not take is lost: the log must never hold up the guest. So is what goes beyond
/// the allowance: whoever reads and keeps the log is not to be kept busy.
#[derive(Debug)]
struct Console {
    pipe: File,
    line: Vec<u8>,
    allowance: Allowance,
    /// Bytes that went beyond it, and of which the log does not tell yet.
    left_out: u64,
}

impl Console {
    fn new(pipe: OwnedFd) -> Self {
        Self {
            pipe: File::from(pipe),
            line: Vec::with_capacity(LINE_BYTES),
            allowance: Allowance::new(Instant::now()),
            left_out: 0,
        }
    }

    fn write_line(&mut self) {
        if self.line.is_empty() {
            return;
        }
        let bytes = self.line.len() as u64;
        if self.allowance.takes(bytes, Instant::now()) {
            if self.left_out > 0 {
                let _ = writeln!(
                    self.pipe,
                    "[brig: {} bytes of this log are left out]",
                    self.left_out
                );
                self.left_out = 0;
            }
            // Full, or nobody reads any more: both lose the line.
            let _ = self.pipe.write(&self.line);
        } else {
            self.left_out = self.left_out.saturating_add(bytes);
        }
        self.line.clear();
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
        let console = Console::new(pipe);
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
        let console = Console::new(pipe);
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
    use std::{io::Read, time::Duration};

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

    #[test]
    fn a_guest_prints_a_burst_and_then_so_much_a_second() {
        let began = Instant::now();
        let after = |milliseconds| began + Duration::from_millis(milliseconds);
        let mut allowance = Allowance::new(began);
        assert!(allowance.takes(BURST_BYTES, after(0)));
        assert!(!allowance.takes(1, after(0)));
        // Asked every millisecond, it gets no less than when it asks once.
        let printed = (1..=1000).filter(|&at| allowance.takes(64, after(at))).count();
        assert!((900..=1000).contains(&printed), "{printed}");
        // What is not used is not kept beyond a burst.
        assert!(allowance.takes(BURST_BYTES, after(1_000_000)));
        assert!(!allowance.takes(BURST_BYTES / 2, after(1_000_001)));
    }

    #[test]
    fn what_is_left_out_is_told() {
        let (mut port, mut reader) = port();
        let line = [&[b'x'; 99][..], b"\n"].concat();
        let mut said = Vec::new();
        let mut chunk = [0; 4096];
        while port.0.writer_mut().left_out == 0 {
            print(&mut port, &line);
            while let Ok(count @ 1..) = reader.read(&mut chunk) {
                said.extend_from_slice(&chunk[..count]);
            }
        }
        assert!(said.len() as u64 >= BURST_BYTES - 100);
        port.0.writer_mut().allowance = Allowance::new(Instant::now());
        print(&mut port, b"again\n");
        let count = reader.read(&mut chunk).unwrap();
        let text = String::from_utf8_lossy(&chunk[..count]).into_owned();
        assert!(
            text.starts_with("[brig: ") && text.ends_with("left out]\nagain\n"),
            "{text}"
        );
    }
}
