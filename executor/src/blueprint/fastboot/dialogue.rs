//! The host's side of the fastboot protocol: what to say to a loader next, and what its answers mean. ◆
//!
//! ```text
//!  getvar:NAME ─ OKAY value ─► … ─► getvar:max-download-size ─► download:SIZE ─ DATA SIZE ─► the image ─ OKAY ─► boot ─ OKAY ─► Booted
//!     │                                │
//!     └ FAIL, another value: Fault     └ FAIL: the loader does not say, and is tried
//!
//!  everywhere: INFO, TEXT ─► Told, and the answer is still to come │ FAIL, no fastboot answer, too much talk ─► Fault
//! ```
//! From AOSP's description of the protocol (system/core/fastboot/README.md): a command is one packet of at most 64 bytes (4096 since
//! Android 9), an answer one packet that begins with four letters. Values of variables are text. Nothing is flashed here.

use std::collections::VecDeque;

use job_schema::job::TextMatch;

/// The longest answer: what AOSP's own host reads (FB_RESPONSE_SZ; 64 before Android 9).
pub const ANSWER_BYTES_MAX: usize = 256;
/// Lines that a loader may say before its answer: the chattiest print some dozens. One that says more never ends.
const SAID_MAX: u32 = 200;
/// Letters of a loader that are repeated in a sentence: enough to recognise it, not enough to fill a screen.
const QUOTED_CHARS_MAX: usize = 80;

/// What has to be told by the loader, and what it is to boot.
#[derive(Clone, Debug)]
pub struct Order {
    /// Variables, and what each must say; their names leave room for `getvar:` in 64 bytes.
    pub variables: Vec<(String, TextMatch)>,
    /// The boot image's size.
    pub image_bytes: u64,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// The loader said this; its answer is still to come.
    Told(String),
    /// Send this command.
    Send(String),
    /// Send the image.
    SendImage,
    /// The loader boots it.
    Booted,
}

/// Why it does not boot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It says no.
    #[error("it refused `{command}`: {reason}")]
    Refused { command: String, reason: String },
    /// It is another machine than the farm file means.
    #[error("its variable `{name}` is `{value}`, and the farm file wants `{wanted}`")]
    Another { name: String, value: String, wanted: String },
    /// The image does not fit.
    #[error("the boot image has {image_bytes} bytes, and it takes {bytes_max}; make the image smaller")]
    TooLarge { image_bytes: u64, bytes_max: u64 },
    /// It would take another number of bytes than there are.
    #[error("it wants {granted} bytes of a boot image of {image_bytes}")]
    OtherSize { image_bytes: u64, granted: u64 },
    /// That is no fastboot.
    #[error("it answered `{command}` with `{answer}`, which is no answer of fastboot's")]
    Senseless { command: String, answer: String },
    /// It talks, and does not answer.
    #[error("it said {SAID_MAX} lines and never answered `{command}`")]
    Chatters { command: String },
}

#[derive(Clone, Debug)]
enum Ask {
    Variable(String, TextMatch),
    Room,
    Download,
    Image,
    Boot,
}

/// A dialogue with one loader.
#[derive(Debug)]
pub struct Dialogue {
    image_bytes: u64,
    /// What waits for its answer, and what comes after it.
    asks: VecDeque<Ask>,
    said: u32,
}

impl Dialogue {
    /// A dialogue, and the first thing to say.
    pub fn begin(order: Order) -> Result<(Dialogue, String), Fault> {
        let Order { variables, image_bytes } = order;
        // `download:` has eight hexadecimal digits.
        let bytes_max = u64::from(u32::MAX);
        if image_bytes > bytes_max {
            return Err(Fault::TooLarge { image_bytes, bytes_max });
        }
        let variables = variables.into_iter().map(|(name, wanted)| Ask::Variable(name, wanted));
        let asks = variables.chain([Ask::Room, Ask::Download, Ask::Image, Ask::Boot]).collect();
        let dialogue = Dialogue { image_bytes, asks, said: 0 };
        let first = dialogue.command();
        Ok((dialogue, first))
    }

    /// What waits for its answer, as it was sent.
    pub fn command(&self) -> String {
        match self.asks.front() {
            Some(Ask::Variable(name, _)) => format!("getvar:{name}"),
            Some(Ask::Room) => "getvar:max-download-size".to_owned(),
            Some(Ask::Download | Ask::Image) => format!("download:{:08x}", self.image_bytes),
            Some(Ask::Boot) | None => "boot".to_owned(),
        }
    }

    /// The loader has answered.
    pub fn handle(&mut self, answer: &[u8]) -> Result<Next, Fault> {
        let (kind, text) = read(answer);
        match (kind, self.asks.front()) {
            (b"INFO" | b"TEXT", _) => self.told(text),
            (b"FAIL", Some(Ask::Room)) => Ok(self.next()),
            (b"FAIL", _) => Err(Fault::Refused { command: self.command(), reason: or_nothing(text) }),
            (b"OKAY", Some(Ask::Variable(name, wanted))) if !wanted.matches(&text) => {
                Err(Fault::Another { name: name.clone(), value: quotable(&text), wanted: wanted.as_str().to_owned() })
            }
            (b"OKAY", Some(Ask::Room)) => match number(&text).filter(|bytes_max| *bytes_max < self.image_bytes) {
                Some(bytes_max) => Err(Fault::TooLarge { image_bytes: self.image_bytes, bytes_max }),
                None => Ok(self.next()),
            },
            (b"OKAY", Some(Ask::Variable(..) | Ask::Image | Ask::Boot)) => Ok(self.next()),
            (b"DATA", Some(Ask::Download)) => match u64::from_str_radix(&text, 16) {
                Ok(granted) if granted == self.image_bytes => Ok(self.next()),
                Ok(granted) => Err(Fault::OtherSize { image_bytes: self.image_bytes, granted }),
                Err(_) => Err(self.senseless(answer)),
            },
            _ => Err(self.senseless(answer)),
        }
    }

    fn told(&mut self, text: String) -> Result<Next, Fault> {
        self.said += 1;
        if self.said > SAID_MAX { Err(Fault::Chatters { command: self.command() }) } else { Ok(Next::Told(text)) }
    }

    fn next(&mut self) -> Next {
        self.asks.pop_front();
        match self.asks.front() {
            None => Next::Booted,
            Some(Ask::Image) => Next::SendImage,
            Some(Ask::Variable(..) | Ask::Room | Ask::Download | Ask::Boot) => Next::Send(self.command()),
        }
    }

    fn senseless(&self, answer: &[u8]) -> Fault {
        Fault::Senseless { command: self.command(), answer: quotable(&String::from_utf8_lossy(answer)) }
    }
}

/// The four letters, and the text behind them: some loaders end it by a zero, some fill the packet with them.
fn read(answer: &[u8]) -> (&[u8], String) {
    let (kind, text) = answer.split_at(answer.len().min(4));
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let text: String = String::from_utf8_lossy(text).chars().filter(|letter| !letter.is_control()).collect();
    (kind, text.trim().to_owned())
}

/// A size as loaders write it: `0x10000000`, or decimal. `None` for anything else: then it is not known.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn or_nothing(text: String) -> String {
    if text.is_empty() { "no reason given".to_owned() } else { quotable(&text) }
}

/// Fit for a sentence, whatever a stranger sent.
fn quotable(text: &str) -> String {
    let is_odd = |letter: char| letter.is_control() || letter == char::REPLACEMENT_CHARACTER;
    text.chars().take(QUOTED_CHARS_MAX).map(|letter| if is_odd(letter) { '.' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(variables: &[(&str, &str)], image_bytes: u64) -> Order {
        let variable = |(name, wanted): &(&str, &str)| (name.to_string(), TextMatch::from(wanted.to_string()));
        Order { variables: variables.iter().map(variable).collect(), image_bytes }
    }

    /// Plays a loader's answers; gives what the host did, and how it ended.
    fn play(order: Order, answers: &[&[u8]]) -> (Vec<Next>, Option<Fault>) {
        let (mut dialogue, first) = match Dialogue::begin(order) {
            Ok(begun) => begun,
            Err(fault) => return (Vec::new(), Some(fault)),
        };
        let mut done = vec![Next::Send(first)];
        for answer in answers {
            match dialogue.handle(answer) {
                Ok(next) => done.push(next),
                Err(fault) => return (done, Some(fault)),
            }
        }
        (done, None)
    }

    fn send(command: &str) -> Next {
        Next::Send(command.to_owned())
    }

    /// To the DATA of a boot image of 0x1a2b bytes, without variables.
    const UNTIL_DATA: [&[u8]; 2] = [b"OKAY0x10000000", b"DATA00001a2b"];

    #[test]
    fn a_loader_that_is_the_right_one_gets_the_image_and_boots_it() {
        let answers: [&[u8]; 8] = [
            b"OKAYredfin\0\0\0\0",
            b"OKAY0123456789ABCDEF",
            b"INFOlooking",
            b"OKAY268435456",
            b"DATA00001a2b",
            b"TEXT 100 %\n",
            b"OKAY",
            b"OKAY",
        ];
        let order = order(&[("product", "bramble|redfin"), ("serialno", "0123456789ABCDEF")], 0x1a2b);
        let expected = vec![
            send("getvar:product"),
            send("getvar:serialno"),
            send("getvar:max-download-size"),
            Next::Told("looking".into()),
            send("download:00001a2b"),
            Next::SendImage,
            Next::Told("100 %".into()),
            send("boot"),
            Next::Booted,
        ];
        assert_eq!(play(order, &answers), (expected, None));
    }

    #[test]
    fn a_loader_that_does_not_say_how_much_it_takes_is_tried() {
        for answer in [&b"FAILunknown variable"[..], b"OKAY", b"OKAYplenty"] {
            let (done, fault) = play(order(&[], 0x1a2b), &[answer]);
            assert_eq!((done.last(), fault), (Some(&send("download:00001a2b")), None));
        }
    }

    #[test]
    fn another_machine_than_the_farm_file_means_gets_nothing() {
        let (done, fault) = play(order(&[("serialno", "0123")], 9), &[b"OKAY4567\x1b[31m\xff"]);
        assert_eq!(done, [send("getvar:serialno")]);
        assert_eq!(
            fault.unwrap().to_string(),
            "its variable `serialno` is `4567[31m.`, and the farm file wants `0123`"
        );
        let (_, fault) = play(order(&[("color", "red")], 9), &[b"FAILNo such variable"]);
        assert_eq!(fault.unwrap().to_string(), "it refused `getvar:color`: No such variable");
    }

    #[test]
    fn an_image_that_does_not_fit_is_not_sent() {
        let (done, fault) = play(order(&[], 0x2001), &[b"OKAY0x2000"]);
        assert_eq!(done, [send("getvar:max-download-size")]);
        assert_eq!(
            fault.unwrap().to_string(),
            "the boot image has 8193 bytes, and it takes 8192; make the image smaller"
        );
        let (done, fault) = play(order(&[], 1 << 32), &[]);
        assert_eq!((done, fault.is_some()), (Vec::new(), true));
        let (_, fault) = play(order(&[], 0x1a2b), &[UNTIL_DATA[0], b"DATA00000004"]);
        assert_eq!(fault.unwrap().to_string(), "it wants 4 bytes of a boot image of 6699");
    }

    #[test]
    fn what_is_no_answer_of_fastboot_s_is_told_with_what_was_asked() {
        let told = |answers: &[&[u8]]| play(order(&[], 0x1a2b), answers).1.unwrap().to_string();
        assert_eq!(
            told(&[b"HTTP/1.1 400 Bad Request\r\n"]),
            "it answered `getvar:max-download-size` with `HTTP/1.1 400 Bad Request..`, which is no answer of fastboot's"
        );
        assert_eq!(told(&[b""]), "it answered `getvar:max-download-size` with ``, which is no answer of fastboot's");
        // DATA where none was asked for, a size that is none, and OKAY before the data.
        assert!(told(&[b"DATA00001a2b"]).starts_with("it answered `getvar:max-download-size` with `DATA00001a2b`"));
        assert!(told(&[UNTIL_DATA[0], b"DATA"]).starts_with("it answered `download:00001a2b` with `DATA`"));
        assert!(told(&[UNTIL_DATA[0], b"OKAY"]).starts_with("it answered `download:00001a2b` with `OKAY`"));
    }

    #[test]
    fn a_refusal_is_told_with_its_reason_or_without_one() {
        let refused = |answers: &[&[u8]]| {
            let all: Vec<&[u8]> = UNTIL_DATA.iter().copied().chain(answers.iter().copied()).collect();
            play(order(&[], 0x1a2b), &all).1.unwrap().to_string()
        };
        assert_eq!(refused(&[b"FAILdata too large"]), "it refused `download:00001a2b`: data too large");
        assert_eq!(refused(&[b"OKAY", b"FAIL"]), "it refused `boot`: no reason given");
        assert_eq!(
            refused(&[b"OKAY", b"FAILnot allowed in locked state"]),
            "it refused `boot`: not allowed in locked state"
        );
    }

    #[test]
    fn a_loader_that_only_talks_is_heard_two_hundred_times() {
        let answers = vec![&b"INFOalmost there"[..]; 201];
        let (done, fault) = play(order(&[], 9), &answers);
        assert_eq!(done.len(), 1 + 200);
        assert_eq!(fault.unwrap().to_string(), "it said 200 lines and never answered `getvar:max-download-size`");
    }

    #[test]
    fn no_bytes_of_a_loader_make_us_fall() {
        use rand::rngs::SmallRng;
        use rand::{Rng, RngExt, SeedableRng};
        let mut random = SmallRng::seed_from_u64(4);
        let kinds: [&[u8]; 6] = [b"OKAY", b"INFO", b"FAIL", b"DATA", b"TEXT", b"\xff\0"];
        for _ in 0..5000 {
            let (mut dialogue, _) = Dialogue::begin(order(&[("product", "x.*")], 0x1a2b)).unwrap();
            for _ in 0..12 {
                let mut answer = kinds[random.random_range(0..kinds.len())].to_vec();
                let mut rest = vec![0; random.random_range(0..ANSWER_BYTES_MAX - 4)];
                random.fill_bytes(&mut rest);
                if random.random_bool(0.3) {
                    rest = b"00001a2b".to_vec();
                }
                answer.extend(rest);
                match dialogue.handle(&answer) {
                    Ok(Next::Booted) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
    }
}
