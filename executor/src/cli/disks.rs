//! `wharf disks`: the disks that are kept, or shared by machines.

use std::process::ExitCode;

use super::client::Server;
use super::jobs::{plain_table, time};
use super::view::print;
use crate::api::wire::disks::{DiskWire, DisksWire};

/// Arguments of `wharf disks`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists the disks.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let disks: DisksWire = Server::find(server)?.get("/api/v1/disks").await?;
    if arguments.json {
        print(&serde_json::to_string_pretty(&disks)?)?;
    } else {
        print(&drawn(&disks.disks))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn drawn(disks: &[DiskWire]) -> String {
    let mut table = plain_table();
    table.set_header(["Disk", "Name", "DUT", "Of", "Size", "Stored", "Until", "Source"]);
    for disk in disks {
        table.add_row([
            disk.id.clone(),
            disk.name.clone(),
            disk.dut.clone().unwrap_or_else(|| "shared".to_owned()),
            disk.subject.clone(),
            in_units(disk.size_bytes),
            in_units(disk.stored_bytes),
            until(disk),
            disk.source.clone(),
        ]);
    }
    table.trim_fmt()
}

/// Whose use keeps it, or the time that does.
fn until(disk: &DiskWire) -> String {
    match (disk.users.as_slice(), disk.expires) {
        ([], None) => "removed".to_owned(),
        ([], Some(at)) => time(at),
        (users, _) => users.join(", "),
    }
}

pub(super) fn in_units(bytes: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(shift, _)| bytes >= 1 << shift);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(shift, name)| format!("{:.1} {name}", bytes as f64 / (1_u64 << shift) as f64),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_disk_is_one_line_with_what_keeps_it() {
        let disk = |users: &[&str], expires: Option<&str>| -> DiskWire {
            let disk = json!({
                "id": "3f9a2c10aa55", "name": "cache", "source": "1073741824 bytes", "subject": "anna", "dut": null,
                "size_bytes": 1_u64 << 30, "stored_bytes": 6_000, "made": "2026-11-21T06:00:00Z", "users": users, "expires": expires
            });
            serde_json::from_value(disk).unwrap()
        };
        let drawn = drawn(&[disk(&[], None)]);
        let row: Vec<_> = drawn.lines().nth(1).unwrap().split_whitespace().collect();
        let expected =
            ["3f9a2c10aa55", "cache", "shared", "anna", "1.0", "GiB", "5.9", "KiB", "removed", "1073741824", "bytes"];
        assert_eq!(row, expected);
        assert_eq!(until(&disk(&["job 3", "lease a"], None)), "job 3, lease a");
        assert_eq!(until(&disk(&[], Some("2026-11-28T06:00:00Z"))), "2026-11-28 06:00:00");
    }
}
