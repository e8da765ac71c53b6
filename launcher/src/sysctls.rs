//! Settings of the sandbox's own network namespace that Docker changes for every container
//! (moby, `daemon/oci_linux.go`, `withCommonOptions`).

use std::{fs, io};

use crate::error::{Context, LaunchError};

/// File and values, of which the first that the kernel takes is set: a user namespace may not have all groups.
const SETTINGS: [(&str, &[&str]); 2] = [
    // A server that does not run as root may listen on port 80.
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", &["0"]),
    // ping(8) works without CAP_NET_RAW.
    (
        "/proc/sys/net/ipv4/ping_group_range",
        &["0 2147483647", "0 65535", "0 0"],
    ),
];

/// Writes them. `/proc` must be mounted, and its `sys` still be writable.
pub(crate) fn apply() -> Result<(), LaunchError> {
    for (file, values) in SETTINGS {
        match fs::OpenOptions::new().write(true).open(file) {
            Ok(mut opened) => write_first(&mut opened, values).step_on("write", file)?,
            // A kernel that was built without it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).step_on("open", file),
        }
    }
    Ok(())
}

fn write_first(file: &mut fs::File, values: &[&str]) -> io::Result<()> {
    let mut result = Ok(());
    for value in values {
        result = io::Write::write_all(file, value.as_bytes());
        match &result {
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            _ => break,
        }
    }
    result
}
