//! Unpacks an image on this machine, without a guest: where the time goes in user code.
//!
//! ```text
//! images/build node node/ && cargo run --release -p brig-image-store --example unpack node/
//! ```
//! The image is of the caller's own making: what brig itself never does is to take layers of others apart on the host.

use std::{
    error::Error,
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    path::Path,
    time::Instant,
};

use brig_image_store::unpack::{BLOCK_BYTES, unpack};
use brig_protocol::agent::{Compression, LayerSpec, UnpackSpec};
use serde_json::Value;

/// How often it is unpacked; the fastest is shown.
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let layout = std::env::args_os().nth(1).ok_or("usage: unpack LAYOUT/")?;
    let layout = Path::new(&layout);
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let manifest: Value = serde_json::from_slice(&fs::read(blob(layout, &index["manifests"][0])?)?)?;
    let config: Value = serde_json::from_slice(&fs::read(blob(layout, &manifest["config"])?)?)?;
    let diff_ids = config["rootfs"]["diff_ids"].as_array().ok_or("no diff ids")?;

    let mut blobs = tempfile::tempfile()?;
    let mut layers = Vec::new();
    for (layer, diff_id) in manifest["layers"]
        .as_array()
        .ok_or("no layers")?
        .iter()
        .zip(diff_ids)
    {
        let offset = blobs.stream_position()?.next_multiple_of(BLOCK_BYTES as u64);
        blobs.seek(SeekFrom::Start(offset))?;
        let length = io::copy(&mut File::open(blob(layout, layer)?)?, &mut blobs)?;
        layers.push(LayerSpec {
            offset,
            length,
            compression: match layer["mediaType"].as_str() {
                Some(kind) if kind.ends_with("gzip") => Compression::Gzip,
                Some(kind) if kind.ends_with("zstd") => Compression::Zstd,
                _ => Compression::None,
            },
            diff_id: hex(diff_id.as_str().ok_or("a diff id is no text")?)?,
        });
    }
    let length = blobs.stream_position()?.next_multiple_of(BLOCK_BYTES as u64);
    blobs.set_len(length)?;
    let spec = UnpackSpec {
        layers,
        target: 1,
        max_bytes: 16 << 30,
        max_inodes: 1 << 19,
    };
    let mut best = None;
    for _ in 0..ROUNDS {
        let output = tempfile::tempfile()?;
        output.set_len(spec.max_bytes)?;
        let began = Instant::now();
        let unpacked = unpack(&spec, blobs.try_clone()?, output, &mut |_| {})?;
        let took = began.elapsed();
        if best.is_none_or(|(least, _)| took < least) {
            best = Some((took, unpacked));
        }
    }
    println!("{best:?}");
    Ok(())
}

/// The file of what a descriptor names.
fn blob(layout: &Path, descriptor: &Value) -> Result<std::path::PathBuf, Box<dyn Error>> {
    let digest = descriptor["digest"]
        .as_str()
        .ok_or("a descriptor without a digest")?;
    Ok(layout.join("blobs").join(digest.replace(':', "/")))
}

fn hex(digest: &str) -> Result<[u8; 32], Box<dyn Error>> {
    let text = digest.strip_prefix("sha256:").ok_or("not SHA-256")?;
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2).ok_or("a short digest")?, 16)?;
    }
    Ok(bytes)
}
