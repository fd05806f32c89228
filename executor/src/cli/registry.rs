//! `wharf registry`: the container images that the farm keeps.

use std::process::ExitCode;

use bytes::Bytes;
use hyper::Method;

use super::client::{Server, in_query};
use super::disks::in_units;
use super::jobs::{plain_table, time};
use super::view::print;
use crate::api::wire::registry::{ForgottenWire, RegistryWire};

/// Arguments of `wharf registry`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Forget an image, or all whose names go on with a `/`: they are loaded again when somebody wants them
    #[arg(long, value_name = "NAME")]
    forget: Option<String>,
}

/// Lists the images, or forgets some.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let server = Server::find(server)?;
    let text = match (arguments.forget, arguments.json) {
        (Some(name), json) => {
            let steps: Vec<String> = name.split('/').map(in_query).collect();
            let path = format!("/api/v1/registry/{}", steps.join("/"));
            let answer = server.text(Method::DELETE, &path, Bytes::new()).await?;
            if json { answer } else { told(&serde_json::from_str(&answer)?) }
        }
        (None, json) => {
            let registry: RegistryWire = server.get("/api/v1/registry").await?;
            if json { serde_json::to_string_pretty(&registry)? } else { drawn(&registry) }
        }
    };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn told(answer: &ForgottenWire) -> String {
    let lines = answer.forgotten.iter().map(|name| format!("{name} is forgotten\n"));
    lines.collect::<String>() + &format!("{} are free for it", in_units(answer.bytes))
}

fn drawn(registry: &RegistryWire) -> String {
    let mut table = plain_table();
    table.set_header(["Image", "Tags", "Size", "Used", "In the name of"]);
    for image in &registry.images {
        let readers: Vec<&str> = image.readers.keys().map(String::as_str).collect();
        table.add_row([
            image.name.clone(),
            image.tags.join(" "),
            in_units(image.bytes),
            time(image.used),
            readers.join(", "),
        ]);
    }
    let (bytes, bytes_max) = (in_units(registry.bytes), in_units(registry.bytes_max));
    format!("{}\n{bytes} of {bytes_max}", table.trim_fmt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_image_is_one_line_with_its_last_use_and_in_whose_name_it_was_had() {
        let registry = json!({
            "images": [{
                "name": "quay.io/a/b", "tags": ["1", "2"], "bytes": 3_u64 << 20, "used": "2026-11-21T06:00:00Z",
                "readers": {"farm": "2026-11-21T05:00:00Z", "job": "2026-11-21T05:00:00Z"}
            }],
            "bytes": 3_u64 << 20, "bytes_max": 50_u64 << 30
        });
        let drawn = drawn(&serde_json::from_value(registry).unwrap());
        let rows: Vec<Vec<&str>> = drawn.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1].join(" "), "quay.io/a/b 1 2 3.0 MiB 2026-11-21 06:00:00 farm, job");
        assert_eq!(rows[2].join(" "), "3.0 MiB of 50.0 GiB");
    }
}
