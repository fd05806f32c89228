//! The lines of a console's index: when what was said, and when nobody could hear it. ◆
//!
//! ```text
//!  OFFSET TIME NUMBER WORD [TEXT]
//!  8192 2026-11-21T12:00:00.250000Z 4 said                              what follows byte 8192 was said from this moment on
//!  9001 2026-11-21T12:00:07.000000Z 5 away 10.0.0.7:4001 closed the connection
//!  9001 2026-11-21T12:00:09.500000Z 6 back                              nothing of what was said in between is here
//! ```
//! The number counts the gaps (`away`, `back`) over the whole log: a reader that goes from the file to the memory knows by it which of them it has seen.

use jiff::Timestamp;

/// The longest text of a mark: a sentence with an address in it. What is longer is cut.
const TEXT_BYTES_MAX: usize = 500;

/// One line of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Of the console's next byte.
    pub offset: u64,
    /// When.
    pub at: Timestamp,
    /// Gaps so far, this one included.
    pub number: u64,
    /// What.
    pub what: What,
}

/// What an index knows of a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Bytes came.
    Said,
    /// From here on nothing is heard.
    Away {
        /// Why not.
        reason: String,
    },
    /// The console is heard again.
    Back,
}

impl Mark {
    /// The line, with its end.
    pub fn line(&self) -> String {
        let Mark { offset, at, number, what } = self;
        match what {
            What::Said => format!("{offset} {at:.6} {number} said\n"),
            What::Away { reason } => format!("{offset} {at:.6} {number} away {}\n", in_one_line(reason)),
            What::Back => format!("{offset} {at:.6} {number} back\n"),
        }
    }

    /// What a line says; `None`: it is no line of an index, or was cut short.
    pub fn parse(line: &[u8]) -> Option<Mark> {
        let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
        let mut words = line.splitn(5, ' ');
        let offset = words.next()?.parse().ok()?;
        let at = words.next()?.parse().ok()?;
        let number = words.next()?.parse().ok()?;
        let what = match words.next()? {
            "said" => What::Said,
            "away" => What::Away { reason: words.next().unwrap_or_default().to_owned() },
            "back" => What::Back,
            _ => return None,
        };
        Some(Mark { offset, at, number, what })
    }
}

/// Reasons come from devices and from the system: whatever they hold, the index has a line each.
fn in_one_line(text: &str) -> String {
    let mut line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    if line.len() > TEXT_BYTES_MAX {
        line.truncate(line.floor_char_boundary(TEXT_BYTES_MAX));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(what: What) -> Mark {
        Mark { offset: 8192, at: "2026-11-21T12:00:00.25Z".parse().unwrap(), number: 5, what }
    }

    #[test]
    fn a_mark_is_a_line_that_a_person_can_read_and_reads_back_the_same() {
        let marks = [
            (mark(What::Said), "8192 2026-11-21T12:00:00.250000Z 5 said\n"),
            (mark(What::Away { reason: "it closed".into() }), "8192 2026-11-21T12:00:00.250000Z 5 away it closed\n"),
            (mark(What::Back), "8192 2026-11-21T12:00:00.250000Z 5 back\n"),
        ];
        for (mark, line) in marks {
            assert_eq!(mark.line(), line);
            assert_eq!(Mark::parse(line.as_bytes()), Some(mark));
        }
    }

    #[test]
    fn a_reason_stays_in_its_line_and_within_its_length() {
        let line = mark(What::Away { reason: format!("one\ntwo\r{}", "ü".repeat(400)) }).line();
        assert!(line.contains(" away one two ü"), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.len() < 600, "{} bytes", line.len());
        assert!(Mark::parse(line.as_bytes()).is_some());
    }

    #[test]
    fn what_is_cut_short_or_no_mark_is_none() {
        let wrong = ["8192 2026-11-21T12:00:00Z 5 said", "", "\n", "x y z said\n", "1 2026-11-21T12:00:00Z 5 sung\n"];
        for wrong in wrong {
            assert_eq!(Mark::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
