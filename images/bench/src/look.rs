//! What a process sees of the machine that it runs on, for who compares machines.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::FileTypeExt,
    path::Path,
};

use crate::report::quote;

/// Most device nodes that are listed.
const NODES_MAX: usize = 1000;

/// Prints one object: the kernel's boot id, the device nodes below /dev, the virtio devices by their kind.
///
/// # Errors
/// Those of writing.
pub fn run(out: &mut impl Write) -> io::Result<()> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let mut nodes = Vec::new();
    find_nodes(Path::new("/dev"), &mut nodes);
    nodes.sort_unstable();
    writeln!(
        out,
        "{{\"boot_id\":{},\"nodes\":[{}],\"virtio\":[{}]}}",
        quote(boot_id.trim()),
        list(&nodes),
        list(&virtio(Path::new("/sys/bus/virtio/devices")))
    )?;
    out.flush()
}

fn list(texts: &[String]) -> String {
    let quoted: Vec<_> = texts.iter().map(|text| quote(text)).collect();
    quoted.join(",")
}

/// Character and block devices. Links are not followed: what they lead to is found where it is.
fn find_nodes(directory: &Path, nodes: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        // Not what the directory says: a node may be mounted over a file.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        let kind = metadata.file_type();
        if nodes.len() >= NODES_MAX {
            return;
        }
        if kind.is_dir() {
            find_nodes(&entry.path(), nodes);
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.push(entry.path().to_string_lossy().into_owned());
        }
    }
}

/// The device ids (Virtual I/O Device specification, 5) of virtio devices, in words where they are known.
fn virtio(devices: &Path) -> Vec<String> {
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let mut kinds: Vec<String> = entries
        .map(|entry| {
            let id = fs::read_to_string(entry.path().join("device")).unwrap_or_default();
            let id = u32::from_str_radix(id.trim().trim_start_matches("0x"), 16).unwrap_or(0);
            match id {
                1 => "network".into(),
                2 => "block".into(),
                3 => "console".into(),
                4 => "entropy".into(),
                5 => "balloon".into(),
                19 => "socket".into(),
                _ => format!("device {id}"),
            }
        })
        .collect();
    kinds.sort_unstable();
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_is_one_object_with_the_nodes_of_this_machine() {
        let mut out = Vec::new();
        run(&mut out).unwrap();
        let seen: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        assert_eq!(seen["boot_id"], own.trim());
        assert!(
            seen["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .any(|node| node == "/dev/null")
        );
    }

    #[test]
    fn virtio_devices_have_names() {
        let directory = tempfile::tempdir().unwrap();
        for (name, id) in [
            ("virtio0", "0x0002\n"),
            ("virtio1", "0x0013\n"),
            ("virtio2", "0x0029\n"),
        ] {
            fs::create_dir(directory.path().join(name)).unwrap();
            fs::write(directory.path().join(name).join("device"), id).unwrap();
        }
        assert_eq!(virtio(directory.path()), ["block", "device 41", "socket"]);
        assert!(virtio(Path::new("/nowhere")).is_empty());
    }
}
