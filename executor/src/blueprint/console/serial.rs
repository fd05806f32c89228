//! What a serial line can be told beside its bytes, for all drivers that reach one; and the same in the numbers of RFC 2217. ◆
//!
//! | told | tty | RFC 2217, section 3 |
//! |---|---|---|
//! | speed, bits, parity, stop bits | termios | SET-BAUDRATE, SET-DATASIZE, SET-PARITY, SET-STOPSIZE |
//! | flow control, break, DTR, RTS | termios, ioctls | SET-CONTROL |
//! | drop what is not sent yet | tcflush | PURGE-DATA |

use schemars::JsonSchema;
use serde::Deserialize;

use super::nvt::ComPort;

/// How a line is set, when it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Settings {
    /// Bits per second.
    #[schemars(range(min = 50, max = 12_000_000))]
    pub baud: u32,
    /// Bits of a character.
    #[schemars(range(min = 5, max = 8))]
    pub data_bits: u8,
    /// The bit that is added for a check.
    pub parity: Parity,
    /// Bits after each character: 1 or 2.
    #[schemars(range(min = 1, max = 2))]
    pub stop_bits: u8,
    /// How either side says that it cannot take more.
    pub flow_control: FlowControl,
}

/// The bit that is added for a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Parity {
    /// There is none.
    #[default]
    None,
    /// The ones are odd.
    Odd,
    /// The ones are even.
    Even,
}

/// How either side says that it cannot take more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FlowControl {
    /// It does not.
    #[default]
    None,
    /// XON and XOFF among the bytes.
    Software,
    /// The wires RTS and CTS.
    Hardware,
}

impl Default for Settings {
    /// What nearly every board speaks: 115200 8N1.
    fn default() -> Self {
        Settings { baud: 115_200, data_bits: 8, parity: Parity::None, stop_bits: 1, flow_control: FlowControl::None }
    }
}

/// The state of a wire, or of a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Active.
    On,
    /// Not active.
    Off,
}

/// One thing that a line is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Bits per second.
    Baud(u32),
    /// 5 to 8.
    DataBits(u8),
    /// The parity.
    Parity(Parity),
    /// 1 or 2.
    StopBits(u8),
    /// The flow control.
    FlowControl(FlowControl),
    /// Holds the line in a break, or ends that.
    Break(Level),
    /// The wire DTR.
    DataTerminalReady(Level),
    /// The wire RTS.
    RequestToSend(Level),
    /// What the line has taken and not sent yet is dropped.
    DropUnsent,
}

impl Settings {
    /// All of them, one by one.
    pub fn orders(&self) -> [Order; 5] {
        [
            Order::Baud(self.baud),
            Order::DataBits(self.data_bits),
            Order::Parity(self.parity),
            Order::StopBits(self.stop_bits),
            Order::FlowControl(self.flow_control),
        ]
    }

    /// As they are when this was done.
    pub fn follow(&mut self, order: Order) {
        match order {
            Order::Baud(baud) => self.baud = baud,
            Order::DataBits(bits) => self.data_bits = bits,
            Order::Parity(parity) => self.parity = parity,
            Order::StopBits(bits) => self.stop_bits = bits,
            Order::FlowControl(control) => self.flow_control = control,
            Order::Break(_) | Order::DataTerminalReady(_) | Order::RequestToSend(_) | Order::DropUnsent => {}
        }
    }
}

impl Order {
    /// The command of RFC 2217 that says it.
    pub fn command(self) -> ComPort {
        let either = |level, on, off| ComPort::Control(if level == Level::On { on } else { off });
        match self {
            Order::Baud(rate) => ComPort::BaudRate(rate),
            Order::DataBits(bits) => ComPort::DataSize(bits),
            Order::Parity(Parity::None) => ComPort::Parity(1),
            Order::Parity(Parity::Odd) => ComPort::Parity(2),
            Order::Parity(Parity::Even) => ComPort::Parity(3),
            Order::StopBits(bits) => ComPort::StopSize(bits),
            Order::FlowControl(FlowControl::None) => ComPort::Control(1),
            Order::FlowControl(FlowControl::Software) => ComPort::Control(2),
            Order::FlowControl(FlowControl::Hardware) => ComPort::Control(3),
            Order::Break(level) => either(level, 5, 6),
            Order::DataTerminalReady(level) => either(level, 8, 9),
            Order::RequestToSend(level) => either(level, 11, 12),
            Order::DropUnsent => ComPort::Purge(2),
        }
    }

    /// What a command orders; `None`: a question, or what no line here can do (mark and space parity, one and a half stop bits).
    pub fn of(command: &ComPort) -> Option<Order> {
        Some(match command {
            ComPort::BaudRate(rate @ 1..) => Order::Baud(*rate),
            ComPort::DataSize(bits @ 5..=8) => Order::DataBits(*bits),
            ComPort::Parity(1) => Order::Parity(Parity::None),
            ComPort::Parity(2) => Order::Parity(Parity::Odd),
            ComPort::Parity(3) => Order::Parity(Parity::Even),
            ComPort::StopSize(bits @ 1..=2) => Order::StopBits(*bits),
            ComPort::Control(1) => Order::FlowControl(FlowControl::None),
            ComPort::Control(2) => Order::FlowControl(FlowControl::Software),
            ComPort::Control(3) => Order::FlowControl(FlowControl::Hardware),
            ComPort::Control(5) => Order::Break(Level::On),
            ComPort::Control(6) => Order::Break(Level::Off),
            ComPort::Control(8) => Order::DataTerminalReady(Level::On),
            ComPort::Control(9) => Order::DataTerminalReady(Level::Off),
            ComPort::Control(11) => Order::RequestToSend(Level::On),
            ComPort::Control(12) => Order::RequestToSend(Level::Off),
            ComPort::Purge(2 | 3) => Order::DropUnsent,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_a_command_and_back() {
        let settings = Settings::default();
        let levels = [Level::On, Level::Off];
        let more = levels
            .into_iter()
            .flat_map(|level| [Order::Break(level), Order::DataTerminalReady(level), Order::RequestToSend(level)]);
        for order in settings.orders().into_iter().chain(more).chain([Order::DropUnsent]) {
            assert_eq!(Order::of(&order.command()), Some(order));
        }
    }

    #[test]
    fn a_question_and_what_no_line_can_do_are_no_orders() {
        let commands = [
            ComPort::BaudRate(0),
            ComPort::DataSize(0),
            ComPort::DataSize(9),
            ComPort::Parity(4),
            ComPort::StopSize(3),
            ComPort::Control(0),
            ComPort::Control(7),
            ComPort::Purge(1),
        ];
        for command in commands {
            assert_eq!(Order::of(&command), None, "{command:?}");
        }
    }

    #[test]
    fn settings_follow_what_a_line_was_told() {
        let mut settings = Settings::default();
        for order in [Order::Baud(9600), Order::Parity(Parity::Even), Order::StopBits(2), Order::Break(Level::On)] {
            settings.follow(order);
        }
        let expected = Settings { baud: 9600, parity: Parity::Even, stop_bits: 2, ..Settings::default() };
        assert_eq!(settings, expected);
    }
}
