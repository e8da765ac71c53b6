//! Amounts of memory and of CPU, as `-m` and `--cpus` write them.

use std::{fmt, str::FromStr};

use brig_image_store::limits::parse_bytes;
use brig_protocol::vmm::{MEMORY_MIB_MAX, MEMORY_MIB_MIN, VCPUS_MAX};
use serde::{Deserialize, Serialize};

use crate::Error;

/// Least memory of a container in MiB: Docker's.
pub(crate) const CONTAINER_MIB_MIN: u32 = 6;

/// A sandbox's memory in MiB. What a guest has is within what a VMM can give, see [`MemoryMib::check_host`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MemoryMib(u32);

impl MemoryMib {
    /// What a sandbox gets when the user says nothing.
    pub const DEFAULT: Self = Self(512);

    /// What an unpack sandbox gets: the unpacker's buffers are a few MiB.
    pub const UNPACK: Self = Self(256);

    /// The number of MiB.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }

    /// As much as several amounts in MiB together, for what is not a guest's.
    pub(crate) fn sum(amounts: [u32; 3]) -> Self {
        Self(amounts.into_iter().fold(0, u32::saturating_add))
    }

    /// Checks that a guest can have it, and that the host has this much at all.
    ///
    /// # Errors
    /// [`Error::MemoryTooSmall`], [`Error::MemoryTooLarge`], [`Error::MemoryOfHost`].
    pub fn check_host(self) -> Result<Self, Error> {
        let asked = || format!("{}m", self.0);
        if self.0 < MEMORY_MIB_MIN {
            return Err(Error::MemoryTooSmall { asked: asked() });
        }
        if self.0 > MEMORY_MIB_MAX {
            return Err(Error::MemoryTooLarge { asked: asked() });
        }
        let info = rustix::system::sysinfo();
        let total = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
        if self.bytes() > total {
            return Err(Error::MemoryOfHost {
                asked_mib: self.0,
                host_mib: total >> 20,
            });
        }
        Ok(self)
    }
}

impl FromStr for MemoryMib {
    type Err = Error;

    /// Takes what [`parse_bytes`] does. A part of a MiB counts as a whole one.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidMemory(text.to_owned());
        let mib = (parse_bytes(text).ok_or_else(invalid)? / 1_048_576.0).ceil();
        if mib < f64::from(CONTAINER_MIB_MIN) {
            return Err(Error::MemoryTooSmall {
                asked: text.to_owned(),
            });
        }
        if mib > f64::from(u32::MAX) {
            return Err(Error::MemoryTooLarge {
                asked: text.to_owned(),
            });
        }
        Ok(Self(mib as u32))
    }
}

impl fmt::Display for MemoryMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Microseconds of a cgroup's `cpu.max` period.
const CPU_PERIOD_US: u64 = 100_000;

/// How much CPU time a sandbox may use, in thousandths of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpus(u32);

impl Cpus {
    /// What a sandbox gets when the user says nothing.
    pub const DEFAULT: Self = Self(1000);

    /// So many whole ones, for what is not a guest's.
    pub(crate) fn whole(number: u32) -> Self {
        Self(number.saturating_mul(1000))
    }

    /// vCPUs: the amount rounded up.
    pub fn vcpus(self) -> u8 {
        self.0.div_ceil(1000) as u8
    }

    /// `cpu.max` in microseconds a period of 100,000, 0 (no limit) for a whole number of CPUs, which the number of
    /// vCPUs limits already.
    pub fn quota_us(self) -> u64 {
        if self.0.is_multiple_of(1000) {
            0
        } else {
            u64::from(self.0) * CPU_PERIOD_US / 1000
        }
    }

    /// Billionths of a CPU, as Docker's API counts (`NanoCpus`).
    pub fn nano(self) -> u64 {
        u64::from(self.0) * 1_000_000
    }
}

impl FromStr for Cpus {
    type Err = Error;

    /// Takes a decimal number from 0.01 to 32.
    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = || Error::InvalidCpus(text.to_owned());
        if !text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
            return Err(invalid());
        }
        let number: f64 = text.parse().map_err(|_| invalid())?;
        if (0.01..=f64::from(VCPUS_MAX)).contains(&number) {
            Ok(Self((number * 1000.0).round() as u32))
        } else {
            Err(invalid())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_understood_with_every_suffix() {
        for (text, mib) in [
            ("536870912", 512),
            ("512m", 512),
            ("512M", 512),
            ("512MiB", 512),
            ("1g", 1024),
            ("1.5g", 1536),
            ("65536k", 64),
            ("6m", 6),
            ("100000001b", 96),
        ] {
            assert_eq!(text.parse::<MemoryMib>().unwrap().get(), mib, "{text}");
        }
    }

    #[test]
    fn memory_out_of_bounds_says_so() {
        assert!(matches!(
            "1m".parse::<MemoryMib>(),
            Err(Error::MemoryTooSmall { .. })
        ));
        assert!(matches!(
            "0".parse::<MemoryMib>(),
            Err(Error::MemoryTooSmall { .. })
        ));
        assert!(matches!(
            "5m".parse::<MemoryMib>(),
            Err(Error::MemoryTooSmall { .. })
        ));
        assert!(matches!(
            "9999999t".parse::<MemoryMib>(),
            Err(Error::MemoryTooLarge { .. })
        ));
        for text in ["", "m", "-1g", "1x", "1.2.3g", "1e9", "nan", "inf"] {
            assert!(
                matches!(text.parse::<MemoryMib>(), Err(Error::InvalidMemory(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn a_guest_has_neither_less_than_its_kernel_needs_nor_more_than_the_host_has() {
        let all = "256g".parse::<MemoryMib>().unwrap();
        let total = rustix::system::sysinfo().totalram as u64;
        assert_eq!(all.check_host().is_err(), all.bytes() > total);
        let check = |text: &str| text.parse::<MemoryMib>().unwrap().check_host();
        assert!(check("64m").is_ok());
        assert!(matches!(check("63m"), Err(Error::MemoryTooSmall { .. })));
        assert!(matches!(check("999t"), Err(Error::MemoryTooLarge { .. })));
    }

    #[test]
    fn a_fraction_of_a_cpu_is_a_quota_on_whole_vcpus() {
        let cpus: Cpus = "1.5".parse().unwrap();
        assert_eq!((cpus.vcpus(), cpus.quota_us()), (2, 150_000));
        let cpus: Cpus = "2".parse().unwrap();
        assert_eq!((cpus.vcpus(), cpus.quota_us()), (2, 0));
        let cpus: Cpus = ".25".parse().unwrap();
        assert_eq!(
            (cpus.vcpus(), cpus.quota_us(), cpus.nano()),
            (1, 25_000, 250_000_000)
        );
    }

    #[test]
    fn cpus_out_of_bounds_are_refused() {
        for text in ["", "0", "33", "-1", "x", "1e1", "nan", "0.001"] {
            assert!(text.parse::<Cpus>().is_err(), "{text}");
        }
    }
}
