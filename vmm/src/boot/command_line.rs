//! The kernel's parameters: those that every guest gets, those that announce its devices, the caller's.

use vm_memory::{Bytes, GuestAddress};

use super::BootError;
use crate::{
    layout::{COMMAND_LINE, COMMAND_LINE_BYTES, VIRTIO_IRQ_FIRST, VIRTIO_MMIO, VIRTIO_MMIO_BYTES},
    memory::Memory,
};

/// For every guest (kernel-config/README.md): errors and panics go to the serial port and nothing less important is even
/// formatted, a panic ends the machine at once through the i8042, nothing is probed or patched that need not be, the clock
/// is the one that KVM vouches for, and no page is charged to a cgroup: a sandbox's memory limit is the guest's size. Blocks of
/// 128 KiB that are free are reported to the balloon: of the kernel's own 2 MiB, it reports only while 32, thus 64 MiB, are free.
const COMMON: &str = "console=ttyS0 loglevel=4 panic=-1 reboot=k tsc=reliable no_timer_check noreplace-smp \
    swiotlb=noforce printk_drop=5 cgroup_disable=memory page_reporting.page_reporting_order=5";

/// Ticks a second of the guest's kernel (`CONFIG_HZ`).
const HZ: u64 = 100;

/// Builds a command line: the common part, `lpj` for a time stamp counter of `tsc_khz` (so that no delay loop is
/// calibrated), `kvm_parameters` (what this kind of KVM needs), the guest's `devices` virtio-mmio devices in order, then
/// `extra`.
///
/// # Errors
/// [`BootError::CommandLine`] when it is longer than a kernel takes.
pub fn build(tsc_khz: u32, kvm_parameters: &str, devices: usize, extra: &str) -> Result<String, BootError> {
    let mut line = String::from(COMMON);
    push(&mut line, &format!("lpj={}", u64::from(tsc_khz) * 1000 / HZ));
    push(&mut line, kvm_parameters);
    for device in 0..devices as u64 {
        let base = VIRTIO_MMIO + device * VIRTIO_MMIO_BYTES;
        let irq = u64::from(VIRTIO_IRQ_FIRST) + device;
        push(&mut line, &format!("virtio_mmio.device=4K@{base:#x}:{irq}"));
    }
    // Last, because `--` in it ends the kernel's own parameters.
    push(&mut line, extra);
    if line.len() >= COMMAND_LINE_BYTES {
        return Err(BootError::CommandLine(line.len()));
    }
    Ok(line)
}

fn push(line: &mut String, parameters: &str) {
    if !parameters.is_empty() {
        line.push(' ');
        line.push_str(parameters);
    }
}

/// Writes `line`, which has passed [`build`], and its NUL.
///
/// # Errors
/// [`BootError::Table`] when the memory is too small.
pub fn write(memory: &Memory, line: &str) -> Result<(), BootError> {
    memory.write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE + line.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_announced_in_order() {
        let line = build(2_000_000, "", 2, "quiet").unwrap();
        assert!(line.contains(" lpj=20000000 "));
        assert!(
            line.ends_with(" virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 quiet")
        );
    }

    #[test]
    fn a_line_that_a_kernel_would_cut_is_refused() {
        assert!(matches!(
            build(1, "", 19, &"x".repeat(2000)),
            Err(BootError::CommandLine(_))
        ));
    }
}
