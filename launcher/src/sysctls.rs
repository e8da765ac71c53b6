//! Settings of the sandbox's own network namespace that Docker changes for every container
//! (moby, `daemon/oci_linux.go`, `withCommonOptions`).

use std::{fs, io};

use crate::error::{Context, LaunchError};

/// File and value.
const SETTINGS: [(&str, &str); 2] = [
    // A server that does not run as root may listen on port 80.
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    // ping(8) works without CAP_NET_RAW.
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Writes them. `/proc` must be mounted, and its `sys` still be writable.
pub(crate) fn apply() -> Result<(), LaunchError> {
    for (file, value) in SETTINGS {
        match fs::OpenOptions::new().write(true).open(file) {
            Ok(mut opened) => io::Write::write_all(&mut opened, value.as_bytes()).step_on("write", file)?,
            // A kernel that was built without it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).step_on("open", file),
        }
    }
    Ok(())
}
