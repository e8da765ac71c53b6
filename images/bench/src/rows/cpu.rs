//! Work that needs no kernel.

use std::{hint::black_box, io};

use super::{Measured, measure};
use crate::{options::Options, sampler::repeat};

const STEPS: u32 = 1000;

/// xorshift64*, with the constants of Vigna, "An experimental exploration of Marsaglia's xorshift generators, scrambled".
fn xorshift(mut state: u64) -> u64 {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    state.wrapping_mul(0x2545_F491_4F6C_DD1D)
}

pub(super) fn integer(options: &Options) -> io::Result<Measured> {
    let mut state = 1;
    measure(options, |count| {
        repeat(count, || {
            for _ in 0..STEPS {
                state = xorshift(state);
            }
            black_box(state);
            Ok(())
        })
    })
}

pub(super) fn float(options: &Options) -> io::Result<Measured> {
    let mut value = 0.3_f64;
    measure(options, |count| {
        repeat(count, || {
            for _ in 0..STEPS {
                value = 3.9 * value * (1.0 - value);
            }
            black_box(value);
            Ok(())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::tests::quick;

    #[test]
    fn the_generator_does_not_get_stuck() {
        let mut state = 1;
        for _ in 0..1000 {
            let next = xorshift(state);
            assert!(next != 0 && next != state);
            state = next;
        }
    }

    #[test]
    fn work_takes_some_time() {
        let options = quick(std::path::Path::new("."));
        for row in [integer, float] {
            // A thousand dependent multiplications take longer than a hundred cycles on anything.
            assert!(
                row(&options)
                    .unwrap()
                    .times
                    .samples
                    .iter()
                    .all(|time| *time > 10.0)
            );
        }
    }
}
