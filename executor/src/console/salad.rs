//! What a machine says of itself on its console, in CI-tron's words (SALAD): who it is, and whether anybody hears it. ◆
//!
//! | the line | means |
//! |---|---|
//! | `…SALAD.machine_id=<id>…`, the id up to the next white space | this is the console of the machine `<id>` |
//! | `…SALAD.ping` at the line's end | is somebody there? The answer is `SALAD.pong` and a line feed |
//!
//! The words are looked for as the bytes come; whether they are believed is decided elsewhere (`console.rs`).

/// What a machine said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It wants to be heard.
    Ping,
    /// Its name.
    MachineId(String),
}

/// What is typed in answer to a ping.
pub const PONG: &[u8] = b"SALAD.pong\n";

/// What every word begins with.
const PREFIX: &[u8] = b"SALAD.";
const PING: &[u8] = b"ping";
const MACHINE_ID: &[u8] = b"machine_id=";
/// The longest id: a MAC has 17 bytes, a name of a DUT is some dozens. What is longer is no id.
const ID_BYTES_MAX: usize = 128;

/// Looks for words in a console's bytes. Keeps what may be the beginning of one, which is less than 200 bytes.
#[derive(Debug, Default)]
pub struct Listener {
    /// From a word's first byte on.
    begun: Vec<u8>,
}

impl Listener {
    /// The words that `bytes` completes.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Word> {
        let mut words = Vec::new();
        let mut rest = bytes;
        loop {
            if self.begun.is_empty() {
                let Some(start) = rest.iter().position(|byte| *byte == PREFIX[0]) else { return words };
                rest = &rest[start..];
            }
            let Some((byte, after)) = rest.split_first() else { return words };
            rest = after;
            self.begun.push(*byte);
            match read(&self.begun) {
                Read::MayBecome => {}
                Read::Is(word) => {
                    words.push(word);
                    self.begun.clear();
                }
                Read::IsNot => self.begin_again(),
            }
        }
    }

    /// The console is another's from here on: half a word is none.
    pub fn forget(&mut self) {
        self.begun.clear();
    }

    /// A later byte may begin a word: `SALSALAD.ping` has one.
    fn begin_again(&mut self) {
        let next = self.begun.iter().skip(1).position(|byte| *byte == PREFIX[0]);
        let Some(next) = next else { return self.begun.clear() };
        self.begun.drain(..=next);
        if matches!(read(&self.begun), Read::IsNot) {
            self.begin_again();
        }
    }
}

enum Read {
    MayBecome,
    Is(Word),
    IsNot,
}

fn read(begun: &[u8]) -> Read {
    let Some(word) = after(begun, PREFIX) else { return undecided(begun, PREFIX) };
    if let Some(id) = after(word, MACHINE_ID) {
        return match id.split_last() {
            None => Read::MayBecome,
            Some((b' ' | b'\t' | b'\r' | b'\n', [])) => Read::IsNot,
            Some((b' ' | b'\t' | b'\r' | b'\n', id)) => Read::Is(Word::MachineId(String::from_utf8_lossy(id).into())),
            Some((byte, id)) if byte.is_ascii_graphic() && id.len() < ID_BYTES_MAX => Read::MayBecome,
            Some(_) => Read::IsNot,
        };
    }
    match after(word, PING) {
        Some([] | b"\r") => Read::MayBecome,
        Some(b"\n" | b"\r\n") => Read::Is(Word::Ping),
        Some(_) => Read::IsNot,
        None => match (undecided(word, PING), undecided(word, MACHINE_ID)) {
            (Read::IsNot, Read::IsNot) => Read::IsNot,
            _ => Read::MayBecome,
        },
    }
}

fn after<'a>(bytes: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    bytes.strip_prefix(prefix)
}

fn undecided(bytes: &[u8], prefix: &[u8]) -> Read {
    if prefix.starts_with(bytes) { Read::MayBecome } else { Read::IsNot }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> Word {
        Word::MachineId(id.into())
    }

    fn heard(text: &str) -> Vec<Word> {
        Listener::default().feed(text.as_bytes())
    }

    #[test]
    fn a_machine_says_who_it_is_anywhere_in_a_line() {
        assert_eq!(heard("SALAD.machine_id=52:54:00:77:00:01\r\n"), [id("52:54:00:77:00:01")]);
        let cmdline = "[    0.000000] Kernel command line: console=ttyS0 SALAD.machine_id=left quiet\n";
        assert_eq!(heard(cmdline), [id("left")]);
        assert_eq!(heard("SALAD.machine_id=one SALAD.machine_id=two\n"), [id("one"), id("two")]);
    }

    #[test]
    fn a_ping_is_the_end_of_its_line() {
        assert_eq!(heard("\nSALAD.ping\n"), [Word::Ping]);
        assert_eq!(heard("login: SALAD.ping\r\n"), [Word::Ping]);
        assert_eq!(heard("SALAD.pinguin\nSALAD.ping me\nSALAD.pong\n"), []);
    }

    #[test]
    fn words_may_come_in_pieces_and_after_false_beginnings() {
        let mut listener = Listener::default();
        let words: Vec<_> = b"SSALSALAD.SALAD.machine_id=\xffSALAD.machine_id=a\n".iter().collect();
        let words: Vec<_> = words.into_iter().flat_map(|byte| listener.feed(&[*byte])).collect();
        assert_eq!(words, [id("a")]);
        assert_eq!(listener.feed(b"SALAD.pi"), []);
        listener.forget();
        assert_eq!(listener.feed(b"ng\n"), []);
    }

    #[test]
    fn noise_is_no_id_and_costs_no_memory() {
        assert_eq!(heard("SALAD.machine_id=\n SALAD.machine_id= x\n"), []);
        let mut listener = Listener::default();
        let endless = [b"SALAD.machine_id=".as_slice(), &[b'x'; 10_000]].concat();
        for _ in 0..10 {
            assert_eq!(listener.feed(&endless), []);
        }
        assert!(listener.begun.len() < 200, "{} bytes", listener.begun.len());
        assert_eq!(listener.feed(b" SALAD.machine_id=\0\n"), []);
    }
}
