//! The tokens of a farm, and the id_tokens that were used, in `<state>/callers.sqlite`. The server and `wharf token --farm` may have it
//! open at the same time: what one of them writes, the next request of the other sees.
//!
//! ```text
//!  wharf-1a2b3c4d-<64 hexadecimal digits>       shown once, when it is made
//!        │        └─ 256 random bits; kept is their SHA-256: nobody can guess what to hash, so that it needs no salt and no slow hash
//!        └─ its id, by which it is looked up, listed and revoked
//! ```

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

use super::{Caller, Role};

/// How it is told from anything else; scanners for secrets find it by that.
const PREFIX: &str = "wharf-";
/// Nobody asks any more why a token no longer works.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30 * 86_400);
/// 100,000 id_tokens within the time that they are valid are some per second for a day: more are not the jobs of one farm.
const USED_MAX: i64 = 100_000;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS token (
        id TEXT PRIMARY KEY, digest BLOB NOT NULL, name TEXT NOT NULL, project TEXT NOT NULL, role TEXT NOT NULL,
        made INTEGER NOT NULL, expires INTEGER NOT NULL, revoked INTEGER) STRICT;
    CREATE TABLE IF NOT EXISTS used (digest BLOB PRIMARY KEY, until INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS used_until ON used (until);";

/// Why tokens cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("cannot keep tokens in {path}: {source}")]
    Database {
        /// Its file.
        path: String,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// The file system.
    #[error("cannot keep tokens in {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// More id_tokens than any farm gets.
    #[error("100000 id_tokens are in use; the oldest has to expire first")]
    Full,
}

/// A token that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    /// What logs call who shows it.
    pub name: String,
    /// In whose name he acts.
    pub project: String,
    /// What he may do.
    pub role: Role,
    /// When it ends.
    pub expires: Timestamp,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// By which it is revoked.
    pub id: String,
    /// What logs call who shows it.
    pub name: String,
    /// In whose name he acts.
    pub project: String,
    /// What he may do.
    pub role: Role,
    /// When it was made.
    pub made: Timestamp,
    /// When it ends.
    pub expires: Timestamp,
    /// When somebody ended it before.
    pub revoked: Option<Timestamp>,
}

impl Token {
    /// Who shows it.
    pub(super) fn caller(&self) -> Caller {
        Caller { name: self.name.clone(), project: Some(self.project.clone()), role: self.role }
    }
}

/// What became of a token that somebody shows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It holds.
    Token(Token),
    /// It held once.
    Over(Token),
    /// There is none, or it is another one's id with a wrong secret: who guesses does not learn which.
    Nothing,
}

/// The database.
pub(super) struct Store {
    connection: Connection,
    path: String,
}

impl Store {
    /// That of a state folder, made when it is absent.
    pub(super) fn open(state: &Path) -> Result<Store, StoreError> {
        let path = state.join("callers.sqlite");
        make_private(&path).map_err(|source| StoreError::File { path: path.display().to_string(), source })?;
        let name = path.display().to_string();
        let opened = Connection::open(&path).and_then(|connection| {
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // Full: an id_token that was used is used, and a token that was revoked is over, also after the power was cut.
            connection.pragma_update(None, "synchronous", "FULL")?;
            // `wharf token --farm` writes for milliseconds.
            connection.busy_timeout(Duration::from_secs(5))?;
            connection.execute_batch(SCHEMA)?;
            Ok(connection)
        });
        let connection = opened.map_err(|source| StoreError::Database { path: name.clone(), source })?;
        Ok(Store { connection, path: name })
    }

    /// Makes a token; the second value is what nobody sees again.
    pub(super) fn add(&self, new: NewToken, now: Timestamp) -> Result<(Token, String), StoreError> {
        let id = hexadecimal(&rand::random::<[u8; 4]>());
        let secret = format!("{PREFIX}{id}-{}", hexadecimal(&rand::random::<[u8; 32]>()));
        let NewToken { name, project, role, expires } = new;
        let token = Token { id, name, project, role, made: now, expires, revoked: None };
        let old = now.as_second() - FORGOTTEN_AFTER.as_secs() as i64;
        self.run("DELETE FROM token WHERE expires < ?1 OR revoked < ?1", params![old])?;
        let values = params![
            token.id,
            digest(&secret),
            token.name,
            token.project,
            token.role.to_string(),
            now.as_second(),
            expires.as_second()
        ];
        self.run(
            "INSERT INTO token (id, digest, name, project, role, made, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            values,
        )?;
        Ok((token, secret))
    }

    /// Whose this is. Compared are digests: how much of one is right says nothing of the secret.
    pub(super) fn find(&self, secret: &str, now: Timestamp) -> Result<Found, StoreError> {
        let Some(id) = secret.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).map(|(id, _)| id) else {
            return Ok(Found::Nothing);
        };
        let query = "SELECT id, name, project, role, made, expires, revoked FROM token WHERE id = ?1 AND digest = ?2";
        let found = self
            .connection
            .prepare_cached(query)
            .and_then(|mut statement| statement.query_row(params![id, digest(secret)], token_of).optional());
        Ok(match found.map_err(|source| self.failed(source))? {
            Some(token) if token.revoked.is_none() && now < token.expires => Found::Token(token),
            Some(token) => Found::Over(token),
            None => Found::Nothing,
        })
    }

    /// All of them, the newest first.
    pub(super) fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        let query = "SELECT id, name, project, role, made, expires, revoked FROM token ORDER BY made DESC, id";
        let rows = self.connection.prepare(query).and_then(|mut statement| {
            let rows = statement.query_map([], token_of)?;
            rows.collect()
        });
        rows.map_err(|source| self.failed(source))
    }

    /// Ends the token of this id, or those of this name.
    pub(super) fn revoke(&self, name: &str, now: Timestamp) -> Result<usize, StoreError> {
        let query = "UPDATE token SET revoked = ?2 WHERE (id = ?1 OR name = ?1) AND revoked IS NULL";
        self.run(query, params![name, now.as_second()])
    }

    /// Whether any token holds.
    pub(super) fn has_valid(&self, now: Timestamp) -> Result<bool, StoreError> {
        let query = "SELECT EXISTS (SELECT 1 FROM token WHERE revoked IS NULL AND expires > ?1)";
        let found = self.connection.query_row(query, params![now.as_second()], |row| row.get(0));
        found.map_err(|source| self.failed(source))
    }

    /// Writes down that an id_token was used; `false` when it was used before.
    pub(super) fn use_up(&self, issuer: &str, id: &str, until: Timestamp, now: Timestamp) -> Result<bool, StoreError> {
        // A minute more than it is valid: clocks differ, and ours may be set back a little.
        self.run("DELETE FROM used WHERE until < ?1", params![now.as_second() - 60])?;
        let count: i64 = self
            .connection
            .query_row("SELECT count(*) FROM used", [], |row| row.get(0))
            .map_err(|source| self.failed(source))?;
        if count >= USED_MAX {
            return Err(StoreError::Full);
        }
        let mark = digest(&format!("{issuer}\n{id}"));
        let written = self.run("INSERT OR IGNORE INTO used VALUES (?1, ?2)", params![mark, until.as_second()])?;
        Ok(written == 1)
    }

    fn run(&self, query: &str, values: &[&dyn rusqlite::ToSql]) -> Result<usize, StoreError> {
        self.connection.execute(query, values).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), source }
    }
}

/// Nobody else's to read: digests are no secrets, but who may do what is nobody's business. SQLite gives its other files the same mode.
fn make_private(path: &PathBuf) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        // What is in it, jobs' logs and buckets besides, is not for every user of the host.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = std::fs::File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    file.set_permissions(PermissionsExt::from_mode(0o600))
}

fn token_of(row: &Row) -> rusqlite::Result<Token> {
    let time = |index| -> rusqlite::Result<Timestamp> { Ok(moment(row.get(index)?)) };
    let role: String = row.get(3)?;
    Ok(Token {
        id: row.get(0)?,
        name: row.get(1)?,
        project: row.get(2)?,
        role: match role.as_str() {
            "administer" => Role::Administer,
            "operate" => Role::Operate,
            _ => Role::Submit,
        },
        made: time(4)?,
        expires: time(5)?,
        revoked: row.get::<_, Option<i64>>(6)?.map(moment),
    })
}

/// What we wrote ourselves is in range.
fn moment(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn digest(text: &str) -> Vec<u8> {
    Sha256::digest(text).to_vec()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn mesa(expires: i64) -> NewToken {
        NewToken { name: "ci".into(), project: "mesa".into(), role: Role::Submit, expires: at(expires) }
    }

    #[test]
    fn a_token_holds_until_it_expires_or_is_revoked_and_its_secret_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let (token, secret) = store.add(mesa(100), at(10)).unwrap();
        assert_eq!((secret.len(), &secret[..6], &secret[6..14]), (79, "wharf-", token.id.as_str()));
        assert_eq!(store.find(&secret, at(99)).unwrap(), Found::Token(token.clone()));
        assert_eq!(store.find(&secret, at(100)).unwrap(), Found::Over(token.clone()));
        assert_eq!(store.find(&format!("{secret}0"), at(99)).unwrap(), Found::Nothing);
        assert_eq!(store.find(&token.id, at(99)).unwrap(), Found::Nothing);
        // Another process, as `wharf token --farm` is one.
        let other = Store::open(folder.path()).unwrap();
        assert_eq!(other.revoke("ci", at(50)).unwrap(), 1);
        assert_eq!(other.revoke(&token.id, at(51)).unwrap(), 0);
        assert_eq!(store.find(&secret, at(52)).unwrap(), Found::Over(Token { revoked: Some(at(50)), ..token }));
        drop((store, other));
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let bytes = std::fs::read(&path).unwrap();
            assert!(!bytes.windows(64).any(|window| window == &secret.as_bytes()[15..]), "{}", path.display());
            assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
        }
    }

    #[test]
    fn an_id_token_is_used_once_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.use_up("https://a", "1", at(100), at(10)).unwrap());
        assert!(!store.use_up("https://a", "1", at(100), at(11)).unwrap());
        assert!(store.use_up("https://b", "1", at(100), at(11)).unwrap());
        drop(store);
        let store = Store::open(folder.path()).unwrap();
        assert!(!store.use_up("https://a", "1", at(100), at(12)).unwrap());
        assert!(store.use_up("https://a", "2", at(1000), at(200)).unwrap());
        let left: i64 = store.connection.query_row("SELECT count(*) FROM used", [], |row| row.get(0)).unwrap();
        assert_eq!(left, 1, "what has expired is forgotten");
    }
}
