//! Extended attributes, as they stand behind their inode.

use super::format::XATTR_HEADER_BYTES;
use crate::unpack::tree::Xattrs;

/// Most bytes of all attributes of a file: what Linux lets a file list (limits.h, `XATTR_LIST_MAX`).
const TOTAL_BYTES_MAX: usize = 64 << 10;

/// Prefixes and their numbers (`EROFS_XATTR_INDEX_*`). The two access control lists are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// What overlayfs keeps for itself. In an image they would hide or redirect what is in it.
const OVERLAY: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// Those attributes that the image keeps: of a namespace that EROFS knows, as a filesystem that a layer is unpacked
/// to refuses others, and none of overlayfs's own. `None` when a file cannot have them.
pub fn storable_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Xattrs> {
    let kept: Xattrs = xattrs
        .iter()
        .filter(|(name, _)| split(name).is_some() && !OVERLAY.iter().any(|own| name.starts_with(own)))
        .cloned()
        .collect();
    let fits = |(name, value): &(Vec<u8>, Vec<u8>)| {
        u8::try_from(name.len()).is_ok() && u16::try_from(value.len()).is_ok()
    };
    (kept.iter().all(fits) && encoded_bytes(&kept) <= TOTAL_BYTES_MAX).then_some(kept)
}

/// Number and rest of a name, or `None` when EROFS has no number for it.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        // After a prefix comes a name, after a whole name nothing.
        (rest.is_empty() != prefix.ends_with(b".")).then_some((*index, rest))
    })
}

/// Bytes behind the inode: `struct erofs_xattr_ibody_header` and the entries.
pub fn encoded_bytes(xattrs: &Xattrs) -> usize {
    let entry = |(name, value): &(Vec<u8>, Vec<u8>)| {
        let name = split(name).map_or(0, |(_, rest)| rest.len());
        (4 + name + value.len()).next_multiple_of(4)
    };
    XATTR_HEADER_BYTES + xattrs.iter().map(entry).sum::<usize>()
}

/// The header, which names no shared attributes, and the entries, each a `struct erofs_xattr_entry`.
pub fn encode(xattrs: &Xattrs) -> Vec<u8> {
    let mut out = vec![0; XATTR_HEADER_BYTES];
    for (name, value) in xattrs {
        let Some((index, rest)) = split(name) else {
            continue;
        };
        out.push(rest.len() as u8);
        out.push(index);
        out.extend_from_slice(&(value.len() as u16).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &[u8]) -> Xattrs {
        vec![(name.into(), value.into())]
    }

    #[test]
    fn only_known_namespaces_are_kept() {
        for kept in [
            "user.a",
            "trusted.b",
            "security.capability",
            "system.posix_acl_access",
        ] {
            assert_eq!(storable_xattrs(&one(kept, b"v")).unwrap().len(), 1, "{kept}");
        }
        for dropped in [
            "user.",
            "com.apple.quarantine",
            "system.other",
            "system.posix_acl_accessory",
            "trusted.overlay.redirect",
            "user.overlay.opaque",
        ] {
            assert!(
                storable_xattrs(&one(dropped, b"v")).unwrap().is_empty(),
                "{dropped}"
            );
        }
    }

    #[test]
    fn the_announced_length_is_the_written_one() {
        let xattrs = vec![
            (b"security.capability".to_vec(), vec![1; 20]),
            (b"user.x".to_vec(), b"abc".to_vec()),
            (b"system.posix_acl_default".to_vec(), vec![]),
        ];
        assert_eq!(encode(&xattrs).len(), encoded_bytes(&xattrs));
        assert_eq!(encoded_bytes(&xattrs), 12 + 36 + 8 + 4);
    }

    #[test]
    fn what_no_file_can_have_is_refused() {
        assert!(storable_xattrs(&one("user.big", &vec![0; 65_536])).is_none());
        let long = format!("user.{}", "n".repeat(251));
        assert!(storable_xattrs(&one(&long, b"")).is_none());
        let many = (0..100).map(|n| (format!("user.{n}").into_bytes(), vec![0; 1000]));
        assert!(storable_xattrs(&many.collect::<Vec<_>>()).is_none());
    }
}
