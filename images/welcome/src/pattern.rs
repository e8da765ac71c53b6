//! An endless stream of bytes in which a lost, doubled or misplaced piece shows: each aligned group of eight bytes is
//! a hash of its own position.

/// Fills `bytes` with the stream from `offset` on.
pub fn fill(offset: u64, bytes: &mut [u8]) {
    let mut position = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let word = splitmix64(position / 8).to_le_bytes();
        let from = (position % 8) as usize;
        let count = rest.len().min(8 - from);
        let (head, tail) = rest.split_at_mut(count);
        head.copy_from_slice(&word[from..from + count]);
        position += count as u64;
        rest = tail;
    }
}

/// The output function of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014),
/// taken as a hash of `index`.
fn splitmix64(index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_splitmix64_seeded_with_zero() {
        assert_eq!(splitmix64(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(splitmix64(1), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn a_piece_from_any_offset_equals_that_part_of_the_whole() {
        let mut whole = [0; 100];
        fill(0, &mut whole);
        for from in 0..50 {
            let mut piece = [0; 37];
            fill(from, &mut piece);
            assert_eq!(piece, whole[from as usize..][..37]);
        }
    }
}
