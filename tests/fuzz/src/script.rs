//! Bytes read as a script: numbers and pieces, in order. Past the end everything is zero or empty, so that any bytes are a script.

/// What is left of the bytes.
pub(crate) struct Script<'a>(pub(crate) &'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below 65536, big-endian.
    pub(crate) fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// A number whose size is chosen as well: small ones, and those at the edges of 64 bits.
    pub(crate) fn large_number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        let length = usize::from(self.byte() % 9);
        bytes[8 - length..].iter_mut().for_each(|byte| *byte = self.byte());
        u64::from_be_bytes(bytes)
    }

    pub(crate) fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    /// A piece behind its length of two bytes.
    pub(crate) fn piece(&mut self) -> &'a [u8] {
        let length = usize::from(self.number());
        self.take(length)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A piece of a script, as [`Script::piece`] reads it.
pub(crate) fn piece(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a seed's pieces are short");
    [&length.to_be_bytes()[..], bytes].concat()
}
