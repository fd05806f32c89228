//! Bytes to lines, as CI-tron cuts them: at `\n` only, each line with its `\n`; what is not ended is no line yet.

/// Cuts a stream of chunks into lines.
#[derive(Default)]
pub struct Lines {
    partial: Vec<u8>,
}

/// Bytes kept of a line that does not end: a DUT that sends binary noise must not fill our memory. The rest of such a line is
/// dropped; patterns search its first part.
const LINE_BYTES_MAX: usize = 64 * 1024;

impl Lines {
    /// Takes a chunk and gives the lines it completes.
    pub fn feed(&mut self, chunk: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let room = LINE_BYTES_MAX.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&piece[..piece.len().min(room)]);
            if piece.ends_with(b"\n") {
                if self.partial.last() != Some(&b'\n') {
                    self.partial.push(b'\n');
                }
                lines.push(std::mem::take(&mut self.partial));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_newline_and_may_come_in_pieces() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"one\r\ntw"), [b"one\r\n".to_vec()]);
        assert_eq!(lines.feed(b"o\n\nthr"), [b"two\n".to_vec(), b"\n".to_vec()]);
        assert_eq!(lines.feed(b""), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn an_endless_line_is_cut_and_the_next_one_is_whole() {
        let mut lines = Lines::default();
        for _ in 0..100 {
            assert!(lines.feed(&[b'x'; 1024]).is_empty());
        }
        let cut = lines.feed(b"end\nnext\n");
        assert_eq!(cut[0].len(), LINE_BYTES_MAX + 1);
        assert_eq!(cut[1], b"next\n");
    }
}
