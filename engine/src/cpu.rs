//! What the host says about its processor: what decides whether a saved guest can go on here.

use std::{fs::File, io::Read, sync::LazyLock};

use serde::{Deserialize, Serialize};

/// Bytes of `/proc/cpuinfo` that are read: the first processor's record and more. Reading all of it takes milliseconds
/// on a host with many.
const CPUINFO_BYTES: u64 = 8 << 10;

/// The first processor, in the words of `/proc/cpuinfo`. What it does not say is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `vendor_id`.
    pub vendor: String,
    /// `cpu family`.
    pub family: String,
    /// `model`.
    pub model: String,
    /// `stepping`.
    pub stepping: String,
    /// `model name`.
    pub name: String,
    /// `microcode`.
    pub microcode: String,
    /// `flags`.
    pub flags: String,
}

impl Cpu {
    /// This host's.
    pub fn this() -> &'static Self {
        // Asked for more than once in a start, and the kernel takes its time to write this file.
        static THIS: LazyLock<Cpu> = LazyLock::new(Cpu::read);
        &THIS
    }

    fn read() -> Self {
        let mut text = Vec::with_capacity(CPUINFO_BYTES as usize);
        let _ = File::open("/proc/cpuinfo").and_then(|file| file.take(CPUINFO_BYTES).read_to_end(&mut text));
        Self::parse(&String::from_utf8_lossy(&text))
    }

    fn parse(cpuinfo: &str) -> Self {
        let field = |name: &str| {
            cpuinfo
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        Self {
            vendor: field("vendor_id"),
            family: field("cpu family"),
            model: field("model"),
            stepping: field("stepping"),
            name: field("model name"),
            microcode: field("microcode"),
            flags: field("flags"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processors_fields_are_taken() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: EPYC\n\
                    stepping\t: 1\nmicrocode\t: 0xa0011d1\nflags\t\t: fpu vme\n\nprocessor\t: 1\nmodel\t\t: 9\n";
        let cpu = Cpu::parse(text);
        assert_eq!((cpu.vendor.as_str(), cpu.model.as_str()), ("AuthenticAMD", "1"));
        assert_eq!((cpu.name.as_str(), cpu.flags.as_str()), ("EPYC", "fpu vme"));
    }

    #[test]
    fn this_host_has_a_processor() {
        assert!(!Cpu::this().flags.is_empty());
    }
}
