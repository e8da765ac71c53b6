//! What the server knows about the sandbox that it runs in.

use std::{fmt::Write, fs, time::SystemTime};

/// Facts that do not change while the server runs.
#[derive(Clone, Debug)]
pub struct Facts {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -v`.
    pub kernel_build: String,
    /// `vm` or `container`: `BRIG_ISOLATION`, otherwise told by [`isolation_of`] the kernel.
    pub isolation: String,
    /// The sandbox's id: `BRIG_SANDBOX_ID`, otherwise the hostname, which is its first 12 digits.
    pub sandbox: String,
    /// The image's name from `BRIG_IMAGE`.
    pub image: String,
    /// When the server started, in seconds since 1970.
    pub started: u64,
    /// CPUs that the kernel sees.
    pub cpus: u64,
}

/// Facts of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the kernel's start.
    pub uptime: u64,
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// Memory that is free, in bytes.
    pub memory_free: u64,
}

impl Facts {
    /// Gathers the facts. What is not known reads `unknown`.
    pub fn gather() -> Self {
        let kernel = |name: &str| read_line(&format!("/proc/sys/kernel/{name}"));
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            kernel: kernel("osrelease"),
            kernel_build: kernel("version"),
            isolation: variable("BRIG_ISOLATION")
                .unwrap_or_else(|| isolation_of(&read_line("/proc/version")).into()),
            sandbox: variable("BRIG_SANDBOX_ID").unwrap_or_else(|| kernel("hostname")),
            image: variable("BRIG_IMAGE").unwrap_or_else(|| "welcome:latest".into()),
            started: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            cpus: cpus(),
        }
    }

    /// The facts as a JSON object.
    pub fn to_json(&self, now: Moment) -> String {
        format!(
            concat!(
                r#"{{"kernel":{},"kernel_build":{},"isolation":{},"sandbox":{},"image":{},"started":{},"#,
                r#""uptime_seconds":{},"memory_bytes":{},"memory_free_bytes":{},"cpus":{}}}"#,
                "\n"
            ),
            json_string(&self.kernel),
            json_string(&self.kernel_build),
            json_string(&self.isolation),
            json_string(&self.sandbox),
            json_string(&self.image),
            json_string(&utc(self.started)),
            now.uptime,
            now.memory,
            now.memory_free,
            self.cpus,
        )
    }

    /// The facts as the HTML page.
    pub fn to_page(&self, now: Moment) -> String {
        let wall = match self.isolation.as_str() {
            "vm" => "a microVM with a kernel of its own",
            "container" => "namespaces on the host's kernel",
            _ => "unknown",
        };
        let sandbox = self.sandbox.get(..12).unwrap_or(&self.sandbox);
        let mut page = include_str!("page.html").to_string();
        for (mark, value) in [
            ("{kernel}", self.kernel.as_str()),
            ("{kernel_build}", &self.kernel_build),
            ("{isolation}", &self.isolation),
            ("{wall}", wall),
            ("{sandbox}", sandbox),
            ("{image}", &self.image),
            ("{started}", &utc(self.started)),
            ("{uptime}", &format!("{} s", now.uptime)),
            ("{memory}", &mebibytes(now.memory)),
            ("{memory_free}", &mebibytes(now.memory_free)),
            ("{cpus}", &self.cpus.to_string()),
        ] {
            page = page.replace(mark, &html_text(value));
        }
        page
    }
}

impl Moment {
    /// The facts of now, from sysinfo(2).
    pub fn now() -> Self {
        // SAFETY: sysinfo is a C struct of integers, for which all zeros is a value, and the kernel writes at most
        // its size to the address given.
        let info = unsafe {
            let mut info: libc::sysinfo = std::mem::zeroed();
            libc::sysinfo(&raw mut info);
            info
        };
        let unit = u64::from(info.mem_unit);
        Self {
            uptime: info.uptime.max(0) as u64,
            memory: info.totalram.saturating_mul(unit),
            memory_free: info.freeram.saturating_mul(unit),
        }
    }
}

/// Which isolation the kernel with this `/proc/version` stands for: the one that boots in brig's microVMs names its
/// builder `brig@brig` (`kernel-config/build`).
pub fn isolation_of(version: &str) -> &'static str {
    if version.contains("(brig@brig)") {
        "vm"
    } else {
        "container"
    }
}

fn cpus() -> u64 {
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let count = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    count.max(1) as u64
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| "unknown".into(), |text| text.trim_end().into())
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// `2026-11-21 10:54:46 UTC` for seconds since 1970; the calendar part is Howard Hinnant's `civil_from_days`.
pub fn utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that the leap day is a year's last; day 0 is 0000-03-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        time / 3600,
        time / 60 % 60,
        time % 60
    )
}

fn json_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c < ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn html_text(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('{', "&#123;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            kernel: "6.12.1<x>".into(),
            kernel_build: "#1 \"quoted\"".into(),
            isolation: "vm".into(),
            sandbox: "0123456789abcdef".into(),
            image: "{cpus}".into(),
            started: 1_795_258_486,
            cpus: 2,
        }
    }

    const NOW: Moment = Moment {
        uptime: 9,
        memory: 128 << 20,
        memory_free: 100 << 20,
    };

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_798_761_599), "2026-12-31 23:59:59 UTC");
    }

    #[test]
    fn a_kernel_of_brigs_own_means_a_microvm() {
        assert_eq!(
            isolation_of("Linux version 6.12.9 (brig@brig) (gcc 12) #1 SMP"),
            "vm"
        );
        assert_eq!(
            isolation_of("Linux version 6.1.0 (debian-kernel@lists.debian.org)"),
            "container"
        );
    }

    #[test]
    fn json_escapes_what_needs_it() {
        assert_eq!(json_string("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
        let json = facts().to_json(NOW);
        assert!(json.contains(r##""kernel_build":"#1 \"quoted\"""##));
        assert!(json.contains(r#""uptime_seconds":9"#));
    }

    #[test]
    fn the_page_is_filled_and_escaped() {
        let page = facts().to_page(NOW);
        assert!(page.contains("6.12.1&lt;x&gt;"));
        assert!(page.contains("0123456789ab<"));
        assert!(page.contains("128 MiB"));
        for mark in ["{kernel}", "{isolation}", "{started}", "{uptime}", "{memory}"] {
            assert!(!page.contains(mark), "{mark} was left");
        }
        assert!(page.contains("&#123;cpus}"), "a value is not taken for a mark");
    }
}
