//! `wharf buckets`: the buckets of a job or a lease, the key that any client of S3 reaches them by, and one of them as an archive.

use std::process::ExitCode;

use super::client::{Server, in_query};
use super::disks::in_units;
use super::job;
use super::jobs::{plain_table, time};
use super::lease;
use super::view::print;
use crate::api::wire::buckets::{BucketWire, BucketsWire};

/// Arguments of `wharf buckets`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The job's id, or with --lease the lease's
    id: String,
    /// Those of what a person's lease has booted
    #[arg(long)]
    lease: bool,
    /// Write this one to standard output, as a tar archive; `own` is the one that `run --share` fills
    #[arg(long, value_name = "NAME", conflicts_with = "json")]
    get: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Lists them, or fetches one.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let Arguments { id, lease, get, json } = arguments;
    let server = Server::find(server)?;
    let path = format!("{}/buckets", if lease { lease::path(&id) } else { job::path(&id) });
    if let Some(name) = get {
        job::raw(&server, &format!("{path}/{}", in_query(&name))).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let told: BucketsWire = server.get(&path).await?;
    print(&if json { serde_json::to_string_pretty(&told)? } else { drawn(&told) })?;
    Ok(ExitCode::SUCCESS)
}

/// A table, and the key as awscli and its kin take it from the environment.
fn drawn(told: &BucketsWire) -> String {
    let mut table = plain_table();
    table.set_header(["Bucket", "Objects", "Stored", "At most", "Until", ""]);
    for BucketWire { name, own, objects, bytes, bytes_max, expires } in &told.buckets {
        table.add_row([
            name.clone(),
            objects.to_string(),
            in_units(*bytes),
            in_units(*bytes_max),
            expires.map_or_else(|| "in use".to_owned(), time),
            if *own { "own" } else { "" }.to_owned(),
        ]);
    }
    let keys = told.access_key.iter().zip(&told.secret_key);
    let keys = keys.map(|(key, secret)| format!("\n\nAWS_ACCESS_KEY_ID={key}\nAWS_SECRET_ACCESS_KEY={secret}"));
    table.trim_fmt() + &keys.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_a_table_with_the_key_below_it() {
        let bucket = |name: &str, own, expires: Option<&str>| BucketWire {
            name: name.into(),
            own,
            objects: 3,
            bytes: 2048,
            bytes_max: 8 << 30,
            expires: expires.map(|at| at.parse().unwrap()),
        };
        let told = BucketsWire {
            buckets: vec![bucket("job-1", true, None), bucket("results", false, None)],
            access_key: Some("A1".into()),
            secret_key: Some("5e".into()),
        };
        let drawn = drawn(&told);
        let rows: Vec<Vec<&str>> = drawn.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["job-1", "3", "2.0", "KiB", "8.0", "GiB", "in", "use", "own"]);
        assert_eq!(rows[2], ["results", "3", "2.0", "KiB", "8.0", "GiB", "in", "use"]);
        assert!(drawn.ends_with("\n\nAWS_ACCESS_KEY_ID=A1\nAWS_SECRET_ACCESS_KEY=5e"), "{drawn}");
    }
}
