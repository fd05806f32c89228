//! Who calls the API, and what he may do.
//!
//! ```text
//!  a token of ours ──────► store.rs: its digest, its end ──────────────────────────────────────┐
//!  a forge's id_token ───► issuers.rs (keys) ─► id_token.rs ◆ (claims) ─► used before? ─► rules ├─► Caller: name, project, role
//!  loopback, unix socket ─► local ─────────────────────────────────────────────────────────────┘
//!  what he changed, and what he was refused ─► audit.rs
//! ```
//! Roles: who may `submit` hands in jobs and takes leases of his project; who may `operate` also looks after machines, jobs and leases of
//! others; who may `administer` changes the farm. Each includes the one before it.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gateway::content::reach::Reach;
use serde::{Deserialize, Serialize};

use crate::config::{IssuerConfig, ProjectConfig};
use audit::Audit;
use issuers::Issuers;
use store::{Found, Store};
pub use store::{NewToken, StoreError, Token};

pub mod audit;
mod id_token;
mod issuers;
mod store;

/// The project of whoever names none.
pub const ANYBODY: &str = "anybody";

/// The longest credential that is looked at: an id_token with many claims has 2 KiB.
const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// Between two looks at whether a token that is in use was revoked: `wharf token revoke --farm` writes the file from another process.
const REVOKED_LOOK: Duration = Duration::from_secs(2);

/// What a caller may do; a later one may do all that an earlier one may.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Hand in jobs and take leases of his project.
    Submit,
    /// Look after machines, jobs and leases, also those of other projects.
    Operate,
    /// Change the farm, and say who may do what.
    Administer,
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Role::Submit => "submit",
            Role::Operate => "operate",
            Role::Administer => "administer",
        })
    }
}

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What logs call him.
    pub name: String,
    /// In whose name he acts; a caller on the host itself acts in any.
    pub project: Option<String>,
    /// What he may do.
    pub role: Role,
}

impl Caller {
    /// Somebody on the host itself, who needs no token.
    pub fn local() -> Caller {
        Caller { name: "the host".to_owned(), project: None, role: Role::Administer }
    }

    /// Whether he is known by his place alone.
    pub fn is_local(&self) -> bool {
        self.project.is_none()
    }

    /// With whose view of the network is fetched what he names by URL: the server's own is for who may do everything here.
    pub fn reach(&self) -> Reach {
        if self.role == Role::Administer { Reach::Everywhere } else { Reach::Judged }
    }

    /// The project that he acts for when he asks for this one; `Err` says which one he may.
    pub fn acts_for(&self, wanted: Option<&str>) -> Result<String, String> {
        match (&self.project, wanted) {
            (None, wanted) => Ok(wanted.unwrap_or(ANYBODY).to_owned()),
            (Some(own), None) => Ok(own.clone()),
            (Some(_), Some(wanted)) if self.role == Role::Administer => Ok(wanted.to_owned()),
            (Some(own), Some(wanted)) if own == wanted => Ok(own.clone()),
            (Some(own), Some(wanted)) => {
                Err(format!("{} acts for the project `{own}`, not for `{wanted}`; leave `subject` out", self.name))
            }
        }
    }
}

/// Why somebody is not let in; the sentence is for him, the log and the audit log.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// What he showed does not hold.
    #[error("{0}")]
    Credential(String),
    /// It holds, and nothing says that he may do anything here.
    #[error("{0}")]
    NoRule(String),
    /// We cannot tell, through no fault of his.
    #[error("{0}")]
    Unable(String),
}

/// What an id_token is shown for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// For one request.
    Once,
    /// For a token that lasts longer.
    ForAToken,
}

/// What a caller gets for an id_token.
#[derive(Clone, Debug)]
pub struct Session {
    /// Who he is.
    pub caller: Caller,
    /// The token; nobody gets to see it again.
    pub secret: String,
    /// When it ends.
    pub expires: jiff::Timestamp,
}

/// Everybody who may call, and the log of what they did.
pub struct Callers {
    store: Mutex<Store>,
    issuers: Issuers,
    /// What was changed and what was refused.
    pub audit: Arc<Audit>,
}

impl Callers {
    /// Those of the farm whose state folder this is.
    pub fn open(state: &Path) -> Result<Callers, StoreError> {
        Ok(Callers {
            store: Mutex::new(Store::open(state)?),
            issuers: Issuers::default(),
            audit: Arc::new(Audit::of(state)),
        })
    }

    /// Finds out who shows this credential.
    pub async fn identify(&self, credential: &str, issuers: &[IssuerConfig]) -> Result<Caller, Refused> {
        if credential.len() > CREDENTIAL_BYTES_MAX {
            return Err(Refused::Credential(format!("a token has at most {CREDENTIAL_BYTES_MAX} bytes")));
        }
        if id_token::is_one(credential) {
            return self.by_id_token(credential, issuers, Shown::Once).await.map(|(caller, _)| caller);
        }
        match self.store().find(credential, jiff::Timestamp::now()).map_err(unable)? {
            Found::Token(token) => Ok(token.caller()),
            Found::Nothing => Err(Refused::Credential(
                "this token is not known here; `wharf token list` shows those that are".to_owned(),
            )),
            Found::Over(token) => {
                let how = if token.revoked.is_some() { "was revoked" } else { "has expired" };
                Err(Refused::Credential(format!("the token `{}` {how}; ask for another one", token.name)))
            }
        }
    }

    /// Returns once a token that was let in is revoked. Not when it expires: a job may be followed to its end by the token that began it.
    pub async fn until_revoked(&self, credential: &str) {
        if id_token::is_one(credential) {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(REVOKED_LOOK).await;
            match self.store().find(credential, jiff::Timestamp::now()) {
                Ok(Found::Over(token)) if token.revoked.is_none() => {}
                Ok(Found::Over(_) | Found::Nothing) => return,
                Ok(Found::Token(_)) => {}
                Err(error) => tracing::warn!(%error, "whether a token was revoked cannot be read"),
            }
        }
    }

    /// Gives a token for an id_token, which is used up by that.
    pub async fn sign_in(&self, credential: &str, issuers: &[IssuerConfig]) -> Result<Session, Refused> {
        if credential.len() > CREDENTIAL_BYTES_MAX || !id_token::is_one(credential) {
            return Err(Refused::Credential("only an id_token of a forge is exchanged for a token".to_owned()));
        }
        let (caller, expires) = self.by_id_token(credential, issuers, Shown::ForAToken).await?;
        let project = caller.project.clone().unwrap_or_else(|| ANYBODY.to_owned());
        let new = NewToken { name: caller.name.clone(), project, role: caller.role, expires };
        let (_, secret) = self.store().add(new, jiff::Timestamp::now()).map_err(unable)?;
        Ok(Session { caller, secret, expires })
    }

    async fn by_id_token(
        &self,
        credential: &str,
        issuers: &[IssuerConfig],
        shown: Shown,
    ) -> Result<(Caller, jiff::Timestamp), Refused> {
        let now = jiff::Timestamp::now();
        let (claims, issuer) = self.issuers.verified(credential, issuers, now).await?;
        let caller = id_token::caller_of(&claims, issuer).map_err(Refused::NoRule)?;
        // Last, so that one that is refused for another reason is not used up.
        if !self.store().use_up(&claims.issuer, &claims.id, claims.expires, now).map_err(unable)? {
            let hint = "an id_token is good for one request; exchange it for a token with `wharf token exchange`";
            return Err(Refused::Credential(format!("this id_token of {} was used before; {hint}", caller.name)));
        }
        let ends = match (shown, issuer.session) {
            (Shown::ForAToken, Some(session)) => now.checked_add(session).unwrap_or(claims.expires),
            (Shown::ForAToken | Shown::Once, _) => claims.expires,
        };
        Ok((caller, ends))
    }

    /// Makes a token; its secret is nowhere else.
    pub fn add(&self, new: NewToken) -> Result<(Token, String), StoreError> {
        self.store().add(new, jiff::Timestamp::now())
    }

    /// All tokens that are not long over, the newest first.
    pub fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        self.store().tokens()
    }

    /// Ends the token of this id, or those of this name; the number of them.
    pub fn revoke(&self, name: &str) -> Result<usize, StoreError> {
        self.store().revoke(name, jiff::Timestamp::now())
    }

    /// Whether there is a way to tell who calls.
    pub fn can_tell(&self, issuers: &[IssuerConfig]) -> Result<bool, StoreError> {
        Ok(!issuers.is_empty() || self.store().has_valid(jiff::Timestamp::now())?)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a project may use what this blueprint makes.
pub fn may_use(project: Option<&ProjectConfig>, names: [&str; 2]) -> bool {
    let allowed = project.and_then(|project| project.blueprints.as_ref());
    allowed.is_none_or(|allowed| allowed.iter().any(|name| names.contains(&name.as_str())))
}

fn unable(error: StoreError) -> Refused {
    Refused::Unable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_acts_for_his_own_project_and_an_administrator_for_any() {
        let caller = |role| Caller { name: "ci".into(), project: Some("mesa".into()), role };
        assert_eq!(caller(Role::Submit).acts_for(None), Ok("mesa".into()));
        assert_eq!(caller(Role::Submit).acts_for(Some("mesa")), Ok("mesa".into()));
        let refused = caller(Role::Operate).acts_for(Some("linux")).unwrap_err();
        assert_eq!(refused, "ci acts for the project `mesa`, not for `linux`; leave `subject` out");
        assert_eq!(caller(Role::Administer).acts_for(Some("linux")), Ok("linux".into()));
        assert_eq!(Caller::local().acts_for(None), Ok("anybody".into()));
        assert_eq!(Caller::local().acts_for(Some("anna")), Ok("anna".into()));
    }
}
