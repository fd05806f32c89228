//! The consoles of a farm, as our own clients read them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::console::{Consoles, Extent, Hub, Piece, State};

/// A console, and what of it is kept.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConsoleWire {
    /// Its name: the farm file's, or `<id of the DUT>.console`.
    pub name: String,
    /// The full name of the DUT whose it is; null: it is known of none.
    pub dut: Option<String>,
    /// Whether it is heard now.
    pub open: bool,
    /// Since when that is so, RFC 3339.
    #[schema(value_type = String, format = DateTime)]
    pub since: jiff::Timestamp,
    /// Why it is not heard.
    pub reason: Option<String>,
    /// The offset of the oldest byte that is kept.
    pub first: u64,
    /// The offset of the next byte that it says.
    pub end: u64,
    /// When it said something last that was kept, RFC 3339.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub said: Option<jiff::Timestamp>,
    /// Why what it says cannot be kept now.
    pub refused: Option<String>,
    /// Who the machine on it said that it is, and was believed.
    pub machine_id: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ConsolesWire {
    /// By name.
    pub consoles: Vec<ConsoleWire>,
}

/// One thing of a console's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum PieceWire {
    /// Bytes came.
    Said {
        /// Of the first one.
        offset: u64,
        /// When, RFC 3339; within 50 ms.
        #[schema(value_type = String, format = DateTime)]
        at: jiff::Timestamp,
        /// In base64.
        data: String,
    },
    /// From here on nothing was heard.
    Away {
        /// Of the next byte.
        offset: u64,
        /// Since when, RFC 3339.
        #[schema(value_type = String, format = DateTime)]
        at: jiff::Timestamp,
        /// Why not.
        reason: String,
    },
    /// It was heard again.
    Back {
        /// Of the next byte.
        offset: u64,
        /// Since when, RFC 3339.
        #[schema(value_type = String, format = DateTime)]
        at: jiff::Timestamp,
    },
    /// Bytes that are not in the log.
    Lost {
        /// Of the first one.
        offset: u64,
        /// How many.
        bytes: u64,
        /// Why.
        reason: String,
    },
}

impl ConsoleWire {
    pub(in crate::api) fn of(hub: &Hub, consoles: &Consoles) -> ConsoleWire {
        let Extent { first, end, written, refused } = hub.extent();
        let (open, since, reason) = match hub.state() {
            State::Open(since) => (true, since, None),
            State::Away(since, reason) => (false, since, Some(reason)),
        };
        let (dut, name) = (consoles.owner(hub.name()).map(|owner| owner.full_name), hub.name().to_owned());
        let machine_id = consoles.machine_id(hub.name());
        ConsoleWire { name, dut, open, since, reason, first, end, said: written, refused, machine_id }
    }
}

impl From<Piece> for PieceWire {
    fn from(piece: Piece) -> PieceWire {
        match piece {
            Piece::Said { offset, at, bytes } => PieceWire::Said { offset, at, data: STANDARD.encode(bytes) },
            Piece::Away { offset, at, reason } => PieceWire::Away { offset, at, reason },
            Piece::Back { offset, at } => PieceWire::Back { offset, at },
            Piece::Lost { offset, bytes, why } => PieceWire::Lost { offset, bytes, reason: why },
        }
    }
}
