//! Tokens and callers on the wire.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::callers::{Role, Token};

/// Who asks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct CallerWire {
    /// What logs call him.
    pub name: String,
    /// In whose name he acts; null on the host itself: in any.
    pub project: Option<String>,
    /// `submit`, `operate` or `administer`.
    pub role: Role,
}

/// A token for an id_token.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct SessionWire {
    /// What to send from now on.
    pub token: String,
    /// Until when.
    #[schema(value_type = String, format = DateTime)]
    pub expires: jiff::Timestamp,
    /// Whose it is.
    pub caller: CallerWire,
}

/// A wish for a token.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AddTokenWire {
    /// What logs call who shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// In whose name he acts; `anybody` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// What he may do; `submit` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// How long it lasts; 90 days when absent.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub lasts: Option<String>,
}

/// A token that was just made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeTokenWire {
    /// Shown this once.
    pub secret: String,
    /// The rest of it.
    pub token: TokenWire,
}

/// A token.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokenWire {
    /// By which it is revoked.
    pub id: String,
    /// What logs call who shows it.
    pub name: String,
    /// In whose name he acts.
    pub project: String,
    /// What he may do.
    pub role: Role,
    /// `valid`, `expired` or `revoked`.
    pub state: String,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub made: jiff::Timestamp,
    /// When it ends.
    #[schema(value_type = String, format = DateTime)]
    pub expires: jiff::Timestamp,
}

/// All tokens.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TokensWire {
    /// The newest first.
    pub tokens: Vec<TokenWire>,
}

impl TokenWire {
    /// A token as it is at `now`.
    pub fn of(token: Token, now: jiff::Timestamp) -> TokenWire {
        let state = match token.revoked {
            Some(_) => "revoked",
            None if now >= token.expires => "expired",
            None => "valid",
        };
        let Token { id, name, project, role, made, expires, revoked: _ } = token;
        TokenWire { id, name, project, role, state: state.to_owned(), made, expires }
    }
}
