//! From a driver's keys in the farm file to the driver: one table a kind, one line a device family. ◆
//!
//! ```text
//!  snmp: {host: …} ── Driver::schema ─► told at once when a key is wrong
//!                  ── Driver::build ──► Keys::build ─► Arc<dyn Pdu>, Arc<dyn Console>     or what the schema could not say
//! ```
//! Building opens nothing: the farm file is checked by it, on hosts that cannot reach the device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::power::Outlet;

/// Code for one device family under a kind, which `T` is: `dyn Pdu`, `dyn Console`.
pub struct Driver<T: ?Sized> {
    /// What the farm file calls it.
    pub name: &'static str,
    /// Its keys.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    build: Build<T>,
}

type Build<T> = fn(&Value, &Context<'_>) -> Result<Arc<T>, Vec<Mistake>>;

/// The keys of a driver, as they are written. Their documentation is the schema's, and so is what is required.
pub trait Keys<T: ?Sized>: DeserializeOwned + JsonSchema {
    /// The driver; or what is wrong that takes more than one key to see.
    fn build(self, context: &Context<'_>) -> Result<Arc<T>, Vec<Mistake>>;
}

/// Where a driver stands in the farm file.
#[allow(dead_code, reason = "for drivers that read files")]
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The farm file's folder: other files are named relative to it.
    pub directory: &'a Path,
    /// The outlet of the one machine that it belongs to, where it is written there; a unit of `pdus` has any number.
    pub outlet: Option<&'a Outlet>,
}

/// Something wrong in a driver's keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Which key: its path below the driver's name.
    pub key: Vec<String>,
    /// What is wrong.
    pub what: String,
    /// The next step.
    pub hint: String,
}

impl Mistake {
    /// `key` is a path with dots, such as `state.url`; empty for the whole.
    pub fn new(key: &str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        let key = key.split('.').filter(|step| !step.is_empty()).map(str::to_owned).collect();
        Mistake { key, what: what.into(), hint: hint.into() }
    }
}

/// A driver as a farm file chose it, with its keys: what a driver is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// Its name in the table.
    pub driver: &'static str,
    /// Its keys. Their shape was checked.
    pub keys: Value,
    /// The farm file's folder.
    pub directory: PathBuf,
}

impl<T: ?Sized> Driver<T> {
    /// The line of a table.
    pub const fn of<K: Keys<T>>(name: &'static str) -> Self {
        Driver { name, schema: schema_of::<K>, build: build::<T, K> }
    }

    /// The driver with these keys.
    pub fn build(&self, keys: &Value, context: &Context<'_>) -> Result<Arc<T>, Vec<Mistake>> {
        (self.build)(keys, context)
    }
}

impl Chosen {
    /// Makes the driver, of the table that it was chosen from. The keys were checked when the farm file was read.
    pub fn make<T: ?Sized>(&self, table: &[Driver<T>], outlet: Option<&Outlet>) -> Result<Arc<T>, Vec<Mistake>> {
        let driver = table.iter().find(|driver| driver.name == self.driver).expect("it was chosen from this table");
        driver.build(&self.keys, &Context { directory: &self.directory, outlet })
    }
}

fn schema_of<K: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<K>()
}

fn build<T: ?Sized, K: Keys<T>>(keys: &Value, context: &Context<'_>) -> Result<Arc<T>, Vec<Mistake>> {
    let keys: K = serde_json::from_value(keys.clone())
        .map_err(|error| vec![Mistake::new("", error.to_string(), "see `wharf schema farm`")])?;
    keys.build(context)
}
