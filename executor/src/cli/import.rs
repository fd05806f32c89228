//! `wharf import`: the farm of another program as one of ours, in a folder of its own.
//!
//! ```text
//!  read ─► import ─► every mistake at once ─► nothing is written
//!                └─► farm.yml, boots.yml, state/inventory.yml ─► one is there and differs, without --overwrite ─► nothing is written
//!                                                            └─► each written whole, then what was left over
//! ```
//! The same files again write the same again.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;

use super::view::print;
use crate::import::ci_tron::{self, Imported, Left, Source, Wish};

/// Arguments of `wharf import`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    from: From,
}

#[derive(Subcommand)]
enum From {
    /// A CI-tron farm: its MaRS database, its boots database, its environment
    CiTron(CiTron),
}

#[derive(clap::Args)]
struct CiTron {
    /// CI-tron's `mars_db.yaml`
    mars_db: PathBuf,
    /// CI-tron's own boots database (`BOOTS_DB_USER_FILE`)
    #[arg(long, value_name = "FILE")]
    boots_db: Option<PathBuf>,
    /// The environment of CI-tron's server, a line `NAME=VALUE` each: job variables, the farm's name, its interface
    #[arg(long, value_name = "FILE")]
    environment: Option<PathBuf>,
    /// The folder for the farm file and what is beside it
    #[arg(long, value_name = "FOLDER")]
    into: PathBuf,
    /// The farm's name; `FARM_NAME` of the environment when absent
    #[arg(long)]
    name: Option<String>,
    /// The link that leads to the machines; `PRIVATE_INTERFACE` of the environment when absent
    #[arg(long)]
    interface: Option<String>,
    /// The gateway's address on it and the prefix
    #[arg(long, default_value = "10.42.0.1/16")]
    address: String,
    /// The first and the last address for machines that are not known yet
    #[arg(long, value_name = "FIRST-LAST")]
    range: Option<String>,
    /// A serial device of this host that machines may be on; for each one
    #[arg(long = "tty", value_name = "PATH")]
    terminals: Vec<String>,
    /// Where the farm's state is; the folder `state` beside the farm file when absent
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Replace files that are there and say something else
    #[arg(long)]
    overwrite: bool,
}

/// Writes the farm; status 0, or 1 when a file has mistakes.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let From::CiTron(asked) = arguments.from;
    let mars = super::read_text(&asked.mars_db)?;
    let boots = asked.boots_db.as_ref().map(super::read_text).transpose()?;
    let wish = wish_of(&asked)?;
    let (mars_name, boots_name) = (shown(&asked.mars_db), asked.boots_db.as_deref().map(shown).unwrap_or_default());
    let boots = boots.as_deref().map(|text| Source { name: &boots_name, text });
    let imported = match ci_tron::import(Source { name: &mars_name, text: &mars }, boots, &wish) {
        Ok(imported) => imported,
        Err(all) => {
            all.iter().for_each(super::check::draw);
            return Ok(ExitCode::FAILURE);
        }
    };
    // Without the boots database, which is not there yet and was checked.
    let farm: String =
        imported.farm.lines().filter(|line| !line.starts_with("boots:")).map(|l| format!("{l}\n")).collect();
    if let Err(problems) = crate::config::parse("farm.yml (as it would be written)", &farm, &asked.into) {
        super::check::draw(&problems);
        return Ok(ExitCode::FAILURE);
    }
    write(&asked, &wish, &imported)?;
    print(&told(&imported))?;
    Ok(ExitCode::SUCCESS)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn wish_of(asked: &CiTron) -> anyhow::Result<Wish> {
    let environment = match &asked.environment {
        Some(path) => environment_of(&super::read_text(path)?),
        None => BTreeMap::new(),
    };
    let named = |said: &Option<String>, variable: &str| said.clone().or_else(|| environment.get(variable).cloned());
    let name = named(&asked.name, "FARM_NAME").context("the farm has no name; say it with `--name`")?;
    let interface = named(&asked.interface, "PRIVATE_INTERFACE");
    let interface = interface.context("the link to the machines is not known; say it with `--interface`")?;
    let range = match asked.range.as_deref().map(|range| range.split_once('-')) {
        None => Vec::new(),
        Some(Some((first, last))) => vec![first.trim().to_owned(), last.trim().to_owned()],
        Some(None) => bail!("`--range` is two addresses: `10.42.1.100-10.42.1.199`"),
    };
    let state = asked.state.clone().unwrap_or_else(|| asked.into.join("state"));
    let state = shown(&std::path::absolute(&state).with_context(|| format!("cannot find `{}`", state.display()))?);
    Ok(Wish {
        name,
        interface,
        address: asked.address.clone(),
        range,
        terminals: asked.terminals.clone(),
        environment,
        state,
    })
}

/// Lines `NAME=VALUE`, as systemd and `podman --env-file` read them.
fn environment_of(text: &str) -> BTreeMap<String, String> {
    let assignment = |line: &str| {
        let line = line.trim();
        let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        let value = value.trim();
        let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        (!name.starts_with('#')).then(|| (name.trim().to_owned(), unquoted.unwrap_or(value).to_owned()))
    };
    text.lines().filter_map(assignment).collect()
}

/// All of them or none.
fn write(asked: &CiTron, wish: &Wish, imported: &Imported) -> anyhow::Result<()> {
    let (inventory, text) = crate::inventory::file_of(imported.duts.clone());
    let mut files = vec![(asked.into.join("farm.yml"), imported.farm.clone())];
    files.extend(imported.boots.clone().map(|text| (asked.into.join("boots.yml"), text)));
    files.push((Path::new(&wish.state).join(inventory), text));
    let mut written = Vec::new();
    for (path, text) in &files {
        match std::fs::read_to_string(path) {
            Ok(there) if there == *text => print(&format!("{}: as it was", path.display()))?,
            Ok(_) => written.push((path, text, Was::Different)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => written.push((path, text, Was::Absent)),
            Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
        }
    }
    let different: Vec<String> =
        written.iter().filter(|(_, _, was)| *was == Was::Different).map(|(path, ..)| shown(path)).collect();
    if !different.is_empty() && !asked.overwrite {
        bail!(
            "{} is there and says something else; nothing is written. `--overwrite` replaces it",
            different.join(", ")
        );
    }
    for (path, text, _) in written {
        write_whole(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
        print(&format!("{}: written", path.display()))?;
    }
    Ok(())
}

#[derive(PartialEq)]
enum Was {
    Absent,
    Different,
}

fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Only its user reads it: units' passwords stand in it.
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(text.as_bytes())?;
    temporary.as_file().sync_all()?;
    temporary.persist(path).map(drop).map_err(|error| error.error)
}

fn told(imported: &Imported) -> String {
    let duts = imported.duts.values();
    let retired = duts.clone().filter(|dut| dut.arrives == Some(crate::inventory::Arrives::Retired)).count();
    let mut lines = vec![format!("{} machines, {retired} of them retired", duts.clone().count())];
    let without = |is_missing: fn(&crate::inventory::Entry) -> bool| {
        duts.clone().filter(|dut| is_missing(dut)).map(|dut| dut.full_name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (console, outlet) = (without(|dut| dut.console.is_none()), without(|dut| dut.power.is_none()));
    if !console.is_empty() {
        lines.push(format!("no console yet (`wharf dut add MAC --console LINE`): {console}"));
    }
    if !outlet.is_empty() {
        lines.push(format!("no outlet yet (`wharf dut add MAC --pdu PDU --outlet OUTLET`): {outlet}"));
    }
    if !imported.left.is_empty() {
        lines.push("not carried over:".to_owned());
    }
    lines.extend(imported.left.iter().map(|left| format!("  {}", line_of(left))));
    lines.join("\n")
}

fn line_of(left: &Left) -> String {
    match &left.at {
        Some((file, place)) => format!("{file}:{}:{}: {}: {}", place.line, place.column, left.field, left.why),
        None => format!("{}: {}", left.field, left.why),
    }
}
