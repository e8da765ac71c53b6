//! What of several layers a sandbox sees.

use std::path::Path;

use brig_tests::{
    archive::{Image, sha256},
    brig::Brig,
    machine::Need,
    tests,
};
use serde_json::json;
use tempfile::NamedTempFile;

tests! {
    Need::Kvm => a_sandbox_sees_what_the_layers_make_together;
}

/// `CAP_CHOWN`, permitted and effective (`struct vfs_cap_data` of revision 2, linux/capability.h).
const MAY_CHOWN: &[u8; 20] = &[1, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A hole before the data of a sparse file.
const HOLE: usize = 1 << 20;

/// A layer that is written from front to back.
struct Layer(tar::Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn add(mut self, kind: tar::EntryType, mode: u32, path: &str, content: &[u8]) -> Self {
        let mut header = header(kind, mode, content.len());
        self.0.append_data(&mut header, path, content).unwrap();
        self
    }

    fn file(self, path: &str, content: &[u8]) -> Self {
        self.add(tar::EntryType::Regular, 0o644, path, content)
    }

    fn hard_link(mut self, path: &str, target: &str) -> Self {
        let mut header = header(tar::EntryType::Link, 0o644, 0);
        self.0.append_link(&mut header, path, target).unwrap();
        self
    }

    /// What the next entry has beside its header.
    fn pax(mut self, records: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(records.iter().copied()).unwrap();
        self
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header
}

/// The program of busybox's layer.
fn busybox(layer: &[u8]) -> Vec<u8> {
    let mut archive = tar::Archive::new(layer);
    let mut largest = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut content = Vec::new();
        std::io::copy(&mut entry.unwrap(), &mut content).unwrap();
        if content.len() > largest.len() {
            largest = content;
        }
    }
    largest
}

pub(crate) fn a_sandbox_sees_what_the_layers_make_together() {
    let image = Image::of_busybox("layered", json!({"User": "33", "WorkingDir": "/app"}));
    let program = busybox(&image.layer);
    let long = "n".repeat(255);
    let deep = ["a-directory-in-a-directory"; 30].join("/");
    let lower = Layer::new()
        .file("app/gone", b"1")
        .file("app/data", b"of the lower layer\n")
        .file("app/opaque/below", b"2")
        .file("app/merged/below", b"3")
        .file("app/was-a-directory/x", b"4")
        .file("app/was-a-file", b"5");
    let size = (HOLE + 6).to_string();
    let map = format!("{HOLE},6");
    let upper = Layer::new()
        .file("app/.wh.gone", b"")
        .file("app/opaque/.wh..wh..opq", b"")
        .file("app/opaque/above", b"")
        .file("app/merged/above", b"")
        .file("app/was-a-directory", b"now a file\n")
        .file("app/was-a-file/x", b"now a directory\n")
        .hard_link("app/hard", "app/data")
        .pax(&[("SCHILY.xattr.security.capability", MAY_CHOWN)])
        .add(tar::EntryType::Regular, 0o755, "app/busybox", &program)
        .pax(&[
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.map", map.as_bytes()),
        ])
        .file("app/sparse", b"behind")
        .file(&format!("app/{long}"), b"long name\n")
        .file(&format!("app/{deep}/x"), b"long path\n");
    let image = image.with_layer(lower.finish()).with_layer(upper.finish());

    let brig = Brig::new();
    let archive = NamedTempFile::new().unwrap();
    std::fs::write(archive.path(), image.to_oci()).unwrap();
    brig.ok(&[
        Path::new("load"),
        Path::new("-q"),
        Path::new("-i"),
        archive.path(),
    ]);
    let script = format!(
        "ls | grep -v nnn; ls opaque merged; cat hard was-a-directory was-a-file/x {long} {deep}/x; \
         stat -c %h hard data; [ hard -ef data ] && echo one file; \
         stat -c %s sparse; sha256sum <sparse; sha256sum <busybox; \
         touch /tmp/mine; chown 44 /tmp/mine 2>/dev/null || echo not allowed; \
         ./busybox chown 44 /tmp/mine && stat -c %u /tmp/mine"
    );
    let sparse = [&vec![0; HOLE][..], b"behind"].concat();
    let expected = format!(
        "a-directory-in-a-directory\nbusybox\ndata\nhard\nmerged\nopaque\nsparse\nwas-a-directory\nwas-a-file\n\
         merged:\nabove\nbelow\n\nopaque:\nabove\n\
         of the lower layer\nnow a file\nnow a directory\nlong name\nlong path\n\
         2\n2\none file\n\
         {}\n{}  -\n{}  -\n\
         not allowed\n44\n",
        HOLE + 6,
        sha256(&sparse),
        sha256(&program),
    );
    assert_eq!(
        brig.ok(&["run", "--rm", "layered", "sh", "-c", &script]),
        expected
    );
    brig.assert_nothing_left();
}
