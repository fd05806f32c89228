//! What a serial line says of itself beside its bytes: its wires as they are, and the errors that its receiver has counted; and when RFC 2217
//! tells a client of that. ◆
//!
//! ```text
//!  wires now ─► Watch ─┬─ a wire is otherwise than told, and wanted (SET-MODEMSTATE-MASK; all, unless said otherwise) ─► NOTIFY-MODEMSTATE
//!                      └─ errors since, and wanted (SET-LINESTATE-MASK; none, unless said otherwise) ──────────────────► NOTIFY-LINESTATE
//! ```

use super::nvt::ComPort;

/// The wires in NOTIFY-MODEMSTATE (RFC 2217, section 3); below them are the same four, as what has changed.
pub const CLEAR_TO_SEND: u8 = 0x10;
pub const DATA_SET_READY: u8 = 0x20;
pub const RING: u8 = 0x40;
pub const CARRIER: u8 = 0x80;
/// What a line's errors are in NOTIFY-LINESTATE.
const OVERRUN: u8 = 2;
const PARITY: u8 = 4;
const FRAMING: u8 = 8;
const BREAK: u8 = 16;
/// All that a line can be asked to tell of its errors.
pub const ERRORS: u8 = OVERRUN | PARITY | FRAMING | BREAK;

/// A line's own state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wires {
    /// The wires that are on.
    pub modem: u8,
    /// What was received wrong, since the line is there.
    pub errors: Errors,
}

/// How often something was received wrong; the counters begin again after their end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Bytes came faster than they were taken.
    pub overruns: u32,
    /// The check bit was wrong.
    pub parity: u32,
    /// A byte without its end: another speed, as a rule.
    pub framing: u32,
    /// The line was held.
    pub breaks: u32,
}

impl Default for Wires {
    /// Of a line that has none, or does not tell: DSR, CTS and DCD are on, so that nobody waits for a wire that is not there.
    fn default() -> Self {
        Wires { modem: CARRIER | DATA_SET_READY | CLEAR_TO_SEND, errors: Errors::default() }
    }
}

impl Wires {
    /// As they are after a server of RFC 2217 told of them.
    pub fn follow(&mut self, command: &ComPort) {
        match command {
            ComPort::ModemState(state) => self.modem = state & 0xf0,
            ComPort::LineState(state) => {
                let Errors { overruns, parity, framing, breaks } = &mut self.errors;
                for (bit, count) in [(OVERRUN, overruns), (PARITY, parity), (FRAMING, framing), (BREAK, breaks)] {
                    *count = count.wrapping_add(u32::from(state & bit != 0));
                }
            }
            _ => {}
        }
    }
}

/// What one client was told, and wants to be told.
#[derive(Clone, Debug)]
pub struct Watch {
    told: Option<Wires>,
    line_mask: u8,
    modem_mask: u8,
}

impl Default for Watch {
    /// As RFC 2217 has it before a client says otherwise.
    fn default() -> Self {
        Watch { told: None, line_mask: 0, modem_mask: 0xff }
    }
}

impl Watch {
    /// The client says what it wants to be told.
    pub fn wants(&mut self, command: &ComPort) {
        match command {
            ComPort::LineStateMask(mask) => self.line_mask = *mask,
            ComPort::ModemStateMask(mask) => self.modem_mask = *mask,
            _ => {}
        }
    }

    /// Whether it was told anything.
    pub fn has_begun(&self) -> bool {
        self.told.is_some()
    }

    /// What it is told now; the first time how the wires are, whatever it wants.
    pub fn news(&mut self, wires: Wires) -> Vec<ComPort> {
        let Some(before) = self.told.replace(wires) else { return vec![ComPort::ModemState(wires.modem)] };
        let turned = before.modem ^ wires.modem;
        // A ring is told of when it ends; a wire's change is four bits below the wire.
        let ended = turned & before.modem & RING;
        let changes = (turned & !RING | ended) >> 4;
        let state = (wires.modem | changes) & self.modem_mask;
        let errors = seen(before.errors, wires.errors) & self.line_mask;
        let modem = ((turned | changes) & self.modem_mask != 0).then_some(ComPort::ModemState(state));
        let line = (errors != 0).then_some(ComPort::LineState(errors));
        modem.into_iter().chain(line).collect()
    }
}

fn seen(before: Errors, now: Errors) -> u8 {
    let counted = [
        (OVERRUN, before.overruns, now.overruns),
        (PARITY, before.parity, now.parity),
        (FRAMING, before.framing, now.framing),
        (BREAK, before.breaks, now.breaks),
    ];
    counted.into_iter().filter(|(_, before, now)| before != now).map(|(bit, ..)| bit).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wires(modem: u8) -> Wires {
        Wires { modem, errors: Errors::default() }
    }

    #[test]
    fn a_client_is_told_of_each_wire_that_changes_and_of_a_ring_when_it_ends() {
        let mut watch = Watch::default();
        assert_eq!(watch.news(wires(0xb0)), [ComPort::ModemState(0xb0)]);
        assert_eq!(watch.news(wires(0xb0)), []);
        assert_eq!(watch.news(wires(0xa0)), [ComPort::ModemState(0xa1)], "CTS is off");
        assert_eq!(watch.news(wires(0x40)), [ComPort::ModemState(0x4a)], "DCD and DSR are off, RI is on");
        assert_eq!(watch.news(wires(0x00)), [ComPort::ModemState(0x04)], "RI is off");
    }

    #[test]
    fn a_client_is_told_only_of_what_it_wants() {
        let mut watch = Watch::default();
        watch.wants(&ComPort::ModemStateMask(0x11));
        assert_eq!(watch.news(wires(0xb0)), [ComPort::ModemState(0xb0)]);
        assert_eq!(watch.news(wires(0x30)), []);
        assert_eq!(watch.news(wires(0x20)), [ComPort::ModemState(0x01)]);
        let wrong = |breaks, framing| Wires { modem: 0x20, errors: Errors { breaks, framing, ..Errors::default() } };
        assert_eq!(watch.news(wrong(1, 1)), []);
        watch.wants(&ComPort::LineStateMask(BREAK | PARITY));
        assert_eq!(watch.news(wrong(1, 2)), []);
        assert_eq!(watch.news(wrong(2, 3)), [ComPort::LineState(BREAK)]);
    }

    #[test]
    fn what_a_server_tells_is_told_on() {
        let (mut line, mut watch) = (Wires::default(), Watch::default());
        watch.wants(&ComPort::LineStateMask(ERRORS));
        watch.news(line);
        for command in [ComPort::ModemState(0x91), ComPort::LineState(OVERRUN | FRAMING)] {
            line.follow(&command);
        }
        assert_eq!(watch.news(line), [ComPort::ModemState(0x92), ComPort::LineState(OVERRUN | FRAMING)]);
    }
}
