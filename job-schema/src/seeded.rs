//! Numbers for tests that throw anything at a parser: the same seed gives the same run.

/// A xorshift generator (Marsaglia 2003); good enough to stir words with.
pub(crate) struct Random(u64);

impl Random {
    /// A generator that starts from `seed`, which is not zero.
    pub(crate) fn new(seed: u64) -> Random {
        assert_ne!(seed, 0, "zero stays zero");
        Random(seed)
    }

    /// A number below `limit`, which is not zero.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}
