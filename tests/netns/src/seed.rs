//! Chance that can be repeated: a small generator and the seed to give it.

use crate::settings::Settings;

/// A splitmix64 generator (Steele, Lea, Flood 2014): eight bytes of state, good enough to choose moments.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// The generator that `seed` starts.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The generator of this run: `WEAVE_TEST_SEED` where given, else `default`.
    #[must_use]
    pub fn of_run(settings: &Settings, default: u64) -> Self {
        Self(settings.seed.unwrap_or(default))
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number below `bound` (zero if `bound` is zero); the bias is below one in 2^32 for small bounds.
    pub const fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// Bytes without meaning.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}
