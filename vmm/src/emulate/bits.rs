//! Integer arithmetic of the instructions: operands and their width in, result and flags out (Intel SDM, volume 2).

/// Carry.
pub const CF: u64 = 1;
/// Parity.
pub const PF: u64 = 1 << 2;
/// Auxiliary carry.
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// The six arithmetic flags.
pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;

/// A result and the flags that it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The destination's new value.
    pub result: u64,
    /// The flags that are set or cleared; the others stay.
    pub changed: u64,
    /// Those of `changed` that are set.
    pub set: u64,
}

/// All ones in the lowest `bits` bits; `bits` is 16, 32 or 64.
pub fn mask(bits: u32) -> u64 {
    u64::MAX >> (64 - bits)
}

fn flag(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

fn zero_and_sign(result: u64, bits: u32) -> u64 {
    flag(result == 0, ZF) | flag(result >> (bits - 1) & 1 == 1, SF)
}

/// The flags of the bit-field instructions: zero and sign by the result, carry as given, no overflow.
fn logical(result: u64, bits: u32, carry: bool) -> Outcome {
    Outcome {
        result,
        changed: CF | ZF | SF | OF,
        set: zero_and_sign(result, bits) | flag(carry, CF),
    }
}

/// `popcnt`.
pub fn popcnt(source: u64) -> Outcome {
    Outcome {
        result: source.count_ones().into(),
        changed: ARITHMETIC,
        set: flag(source == 0, ZF),
    }
}

fn count(result: u32, source: u64) -> Outcome {
    Outcome {
        result: result.into(),
        changed: CF | ZF,
        set: flag(source == 0, CF) | flag(result == 0, ZF),
    }
}

/// `lzcnt`.
pub fn lzcnt(source: u64, bits: u32) -> Outcome {
    count(source.leading_zeros() - (64 - bits), source)
}

/// `tzcnt`.
pub fn tzcnt(source: u64, bits: u32) -> Outcome {
    count(source.trailing_zeros().min(bits), source)
}

/// `andn`.
pub fn andn(inverted: u64, source: u64, bits: u32) -> Outcome {
    logical(!inverted & source, bits, false)
}

/// `bextr`: start in bits 0 to 7 of `control`, length in bits 8 to 15.
pub fn bextr(source: u64, control: u64, bits: u32) -> Outcome {
    let (start, length) = ((control & 0xff) as u32, (control >> 8 & 0xff) as u32);
    let shifted = source.checked_shr(start).unwrap_or(0);
    let result = if length < bits {
        shifted & !(u64::MAX << length)
    } else {
        shifted
    };
    Outcome {
        result,
        changed: CF | ZF | OF,
        set: flag(result == 0, ZF),
    }
}

/// `blsi`: the lowest set bit.
pub fn blsi(source: u64, bits: u32) -> Outcome {
    logical(source & source.wrapping_neg() & mask(bits), bits, source != 0)
}

/// `blsmsk`: all bits up to the lowest set one.
pub fn blsmsk(source: u64, bits: u32) -> Outcome {
    logical((source ^ source.wrapping_sub(1)) & mask(bits), bits, source == 0)
}

/// `blsr`: without the lowest set bit.
pub fn blsr(source: u64, bits: u32) -> Outcome {
    logical(source & source.wrapping_sub(1), bits, source == 0)
}

/// `bzhi`: without the bits from `index` on.
pub fn bzhi(source: u64, index: u64, bits: u32) -> Outcome {
    let index = (index & 0xff) as u32;
    let result = if index < bits {
        source & !(u64::MAX << index)
    } else {
        source
    };
    logical(result, bits, index >= bits)
}

/// `pdep`: the low bits of `source` to the places that are set in `places`.
pub fn pdep(source: u64, places: u64) -> u64 {
    let (mut result, mut rest, mut next) = (0, places, 0);
    while rest != 0 {
        let place = rest & rest.wrapping_neg();
        if source >> next & 1 == 1 {
            result |= place;
        }
        rest ^= place;
        next += 1;
    }
    result
}

/// `pext`: the bits of `source` at the places that are set in `places`, together at the low end.
pub fn pext(source: u64, places: u64) -> u64 {
    let (mut result, mut rest, mut next) = (0, places, 0);
    while rest != 0 {
        let place = rest & rest.wrapping_neg();
        if source & place != 0 {
            result |= 1 << next;
        }
        rest ^= place;
        next += 1;
    }
    result
}

/// `mulx`: the high and the low half of the product.
pub fn mulx(left: u64, right: u64, bits: u32) -> (u64, u64) {
    let product = u128::from(left) * u128::from(right);
    ((product >> bits) as u64 & mask(bits), product as u64 & mask(bits))
}

/// `rorx`.
pub fn rorx(source: u64, count: u64, bits: u32) -> u64 {
    let count = count as u32 & (bits - 1);
    if count == 0 {
        source
    } else {
        (source >> count | source << (bits - count)) & mask(bits)
    }
}

/// `shlx`.
pub fn shlx(source: u64, count: u64, bits: u32) -> u64 {
    source << (count as u32 & (bits - 1)) & mask(bits)
}

/// `shrx`.
pub fn shrx(source: u64, count: u64, bits: u32) -> u64 {
    source >> (count as u32 & (bits - 1))
}

/// `sarx`.
pub fn sarx(source: u64, count: u64, bits: u32) -> u64 {
    let unused = 64 - bits;
    let signed = (source << unused) as i64 >> unused;
    (signed >> (count as u32 & (bits - 1))) as u64 & mask(bits)
}

/// `adcx` and `adox`: a sum with a carry in, and the carry out.
pub fn add_with_carry(left: u64, right: u64, carry: bool, bits: u32) -> (u64, bool) {
    let sum = u128::from(left) + u128::from(right) + u128::from(carry);
    (sum as u64 & mask(bits), sum >> bits != 0)
}
