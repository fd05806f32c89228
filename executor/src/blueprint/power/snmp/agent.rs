//! Questions to an SNMP agent: one object read, one set, one column walked.
//!
//! ```text
//!  ask ─► a socket of its own ─► v3: who is there, what time is it ─► request ─► response with this number          TRY_TIME, TRIES
//! ```
//! Every question has its own socket: an answer that comes late cannot be taken for another's, and a unit that restarted meanwhile (new engine
//! boots, RFC 3414 section 2.2) is met afresh. What the crate knows is the encoding and the user-based security; numbers and text come out of here.

use std::fmt;
use std::time::Duration;

use snmp2::v3::Security;
use snmp2::{AsyncSession, Error, Oid, Value, Version};
use tokio::time::timeout;

/// One exchange: management cards answer in milliseconds, busy ones within a second.
const TRY_TIME: Duration = Duration::from_secs(2);
/// Datagrams get lost; setting an outlet twice to the same is harmless.
const TRIES: u32 = 3;
/// A v3 question is first met with the engine's identity, then with its time (RFC 3414 section 4), then answered; once more for a restart.
const EXCHANGES_MAX: u32 = 4;
/// Rows of one GETBULK: with labels of 32 characters its answer fits a datagram of 1472 bytes.
const ROWS_A_QUESTION: u32 = 16;

/// Who may ask, and how.
pub(super) enum Access {
    V1(String),
    V2c(String),
    V3(Box<Security>),
}

/// A management card at its address.
pub(super) struct Agent {
    address: String,
    access: Access,
}

/// The identifier of a table's column, or of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column(Vec<u64>);

/// One row of a column that was walked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// What follows the column's identifier: `7`.
    pub number: String,
    pub text: String,
}

enum Request<'a> {
    Get(&'a Column),
    Set(&'a Column, i64),
    /// What follows an identifier: one row, or several where the version can.
    Next(&'a Column),
}

/// What an object is.
#[derive(Clone, Debug, PartialEq)]
enum Found {
    Number(i64),
    Text(String),
    Absent,
    Other,
}

/// Why there was no answer to a request.
enum Failure {
    /// No such object: version 1 says it of the whole message.
    Absent,
    Refused(String),
}

impl Column {
    /// Reads numbers with dots, with or without one before them.
    pub(super) fn parse(text: &str) -> Result<Column, String> {
        let numbers = text.strip_prefix('.').unwrap_or(text).split('.').map(str::parse::<u32>);
        match numbers.collect::<Result<Vec<_>, _>>() {
            // X.690 section 8.19.4: the first two share a byte.
            Ok(numbers) if numbers.len() > 2 && numbers[0] <= 2 && numbers[1] < 40 => {
                Ok(Column(numbers.into_iter().map(u64::from).collect()))
            }
            _ => Err(format!("`{text}` is not an object identifier")),
        }
    }

    /// Whether this can be what follows a column.
    pub(super) fn is_number(text: &str) -> bool {
        !text.is_empty()
            && text.split('.').all(|part| part.parse::<u32>().is_ok_and(|number| number.to_string() == part))
    }

    /// The object of this row; `number` is one.
    pub(super) fn row(&self, number: &str) -> Column {
        Column(self.0.iter().copied().chain(number.split('.').filter_map(|part| part.parse().ok())).collect())
    }

    fn oid(&self) -> Result<Oid<'static>, String> {
        Oid::from(&self.0).map_err(|_| format!("{self} is not an object identifier"))
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u64::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.address)
    }
}

impl Agent {
    pub(super) fn new(address: String, access: Access) -> Self {
        Agent { address, access }
    }

    /// The number at an object; `None` when there is no such object.
    pub(super) async fn get(&self, object: &Column) -> Result<Option<i64>, String> {
        self.number(object, &Request::Get(object)).await
    }

    /// Sets an object to a number, which it then is; `None` when there is no such object.
    pub(super) async fn set(&self, object: &Column, value: i64) -> Result<Option<i64>, String> {
        self.number(object, &Request::Set(object, value)).await
    }

    /// All rows of a column, `rows_max` at most.
    pub(super) async fn walk(&self, column: &Column, rows_max: usize) -> Result<Vec<Row>, String> {
        let (mut rows, mut last) = (Vec::new(), column.clone());
        while rows.len() < rows_max {
            let found = self.ask(&Request::Next(&last)).await?;
            let before = rows.len();
            for (Column(object), value) in found {
                let below = object.strip_prefix(column.0.as_slice()).filter(|below| !below.is_empty());
                // An agent that does not go forward would be asked for ever (RFC 3416 section 4.2.2).
                let (Some(below), true) = (below, object > last.0) else { return Ok(rows) };
                let number: Vec<String> = below.iter().map(u64::to_string).collect();
                let text = match value {
                    Found::Text(text) => text,
                    Found::Number(value) => value.to_string(),
                    Found::Absent => return Ok(rows),
                    Found::Other => String::new(),
                };
                rows.push(Row { number: number.join("."), text });
                last = Column(object);
            }
            if rows.len() == before {
                break;
            }
        }
        rows.truncate(rows_max);
        Ok(rows)
    }

    async fn number(&self, object: &Column, request: &Request<'_>) -> Result<Option<i64>, String> {
        match self.ask(request).await?.into_iter().find(|(found, _)| found == object) {
            Some((_, Found::Number(value))) => Ok(Some(value)),
            // Some cards have their numbers as text.
            Some((_, Found::Text(text))) => match text.trim().parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("{self} has no number at {object}, but `{}`", text.escape_default())),
            },
            Some((_, Found::Absent)) | None => Ok(None),
            Some((_, Found::Other)) => Err(format!("{self} has no number at {object}")),
        }
    }

    /// An absent object is an empty answer.
    async fn ask(&self, request: &Request<'_>) -> Result<Vec<(Column, Found)>, String> {
        for _ in 0..TRIES {
            match timeout(TRY_TIME, self.exchange(request)).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(Failure::Absent)) => return Ok(Vec::new()),
                Ok(Err(Failure::Refused(what))) => return Err(what),
                Err(_) => {}
            }
        }
        let waited = TRIES * u32::try_from(TRY_TIME.as_secs()).unwrap_or(u32::MAX);
        let hint = match &self.access {
            Access::V1(_) => "a wrong `community` is not answered, nor is version 1 where it is switched off",
            Access::V2c(_) => "a wrong `community` is not answered, nor is version 2 where it is switched off",
            Access::V3(_) => "a wrong `privacy_password` is not answered, nor is version 3 where it is switched off",
        };
        Err(format!("{self} gave no answer to SNMP in {waited} s; {hint}"))
    }

    async fn exchange(&self, request: &Request<'_>) -> Result<Vec<(Column, Found)>, Failure> {
        let mut session = self.session().await.map_err(|error| Failure::Refused(format!("{self}: {error}")))?;
        if let Access::V3(security) = &self.access
            && security.engine_id().is_empty()
        {
            session.init().await.map_err(|error| self.failure(&error))?;
        }
        for _ in 0..EXCHANGES_MAX {
            match send(&mut session, request).await {
                Err(Error::AuthUpdated) => {}
                Err(error) => return Err(self.failure(&error)),
                Ok(answer) => {
                    return answer.map_err(|failure| match failure {
                        Failure::Refused(what) => Failure::Refused(format!("{self} {what}")),
                        Failure::Absent => Failure::Absent,
                    });
                }
            }
        }
        Err(Failure::Refused(format!("{self} goes on asking for the time of its clock; restart its management card")))
    }

    async fn session(&self) -> std::io::Result<AsyncSession> {
        let (address, first) = (&self.address, rand::random::<i32>() & i32::MAX);
        match &self.access {
            Access::V1(community) => AsyncSession::new_v1(address, community.as_bytes(), first).await,
            Access::V2c(community) => AsyncSession::new_v2c(address, community.as_bytes(), first).await,
            Access::V3(security) => AsyncSession::new_v3(address, first, (**security).clone()).await,
        }
    }

    fn failure(&self, error: &Error) -> Failure {
        let what = match error {
            Error::Send | Error::Receive => {
                ": nobody answers SNMP there; check `host` and that SNMP is switched on".to_owned()
            }
            // What is refused by the user-based security is told in a report that nobody signed (RFC 3414 section 3.2).
            Error::AuthFailure(_) | Error::AsnWrongType if matches!(self.access, Access::V3(_)) => {
                " refuses the user: check `security_username`, protocols and passwords, and what the user may do"
                    .to_owned()
            }
            other => format!(" answers what is not understood: {other}"),
        };
        Failure::Refused(format!("{self}{what}"))
    }
}

/// The answer, or what the agent says is wrong with the request.
async fn send(
    session: &mut AsyncSession,
    request: &Request<'_>,
) -> Result<Result<Vec<(Column, Found)>, Failure>, Error> {
    let no_identifier = |_| Error::ValueOutOfRange;
    let can_many = session.version() != Version::V1;
    let answer = match request {
        Request::Get(object) => session.get(&object.oid().map_err(no_identifier)?).await?,
        Request::Set(object, value) => {
            session.set(&[(&object.oid().map_err(no_identifier)?, Value::Integer(*value))]).await?
        }
        Request::Next(object) if can_many => {
            session.getbulk(&[&object.oid().map_err(no_identifier)?], 0, ROWS_A_QUESTION).await?
        }
        Request::Next(object) => session.getnext(&object.oid().map_err(no_identifier)?).await?,
    };
    let found = answer.varbinds.clone().filter_map(|(oid, value)| Some((Column(oid.iter()?.collect()), found(&value))));
    Ok(match answer.error_status {
        0 => Ok(found.collect()),
        // RFC 3416 section 3, noSuchName and noCreation.
        2 | 11 => Err(Failure::Absent),
        // badValue, wrongType, wrongLength, wrongEncoding, wrongValue, inconsistentValue
        3 | 7..=10 | 12 => Err(Failure::Refused("does not take this number; look at `state_mapping`".to_owned())),
        // readOnly, noAccess, authorizationError, notWritable
        4 | 6 | 16 | 17 => {
            Err(Failure::Refused("does not let us write: check what the community or user may do".to_owned()))
        }
        other => Err(Failure::Refused(format!("answers with error {other} of RFC 3416 section 3"))),
    })
}

fn found(value: &Value<'_>) -> Found {
    match value {
        Value::Integer(value) => Found::Number(*value),
        Value::Counter32(value) | Value::Unsigned32(value) | Value::Timeticks(value) => {
            Found::Number(i64::from(*value))
        }
        Value::Counter64(value) => i64::try_from(*value).map_or(Found::Other, Found::Number),
        Value::OctetString(text) => Found::Text(String::from_utf8_lossy(text).into_owned()),
        Value::NoSuchObject | Value::NoSuchInstance | Value::EndOfMibView | Value::Null => Found::Absent,
        _ => Found::Other,
    }
}
