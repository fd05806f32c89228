//! `wharf events`: what happened to leases and resources, in order, and why.

use std::process::ExitCode;

use super::client::{Server, in_query};
use super::view::print;
use crate::api::wire::leases::TransitionWire;

/// Arguments of `wharf events`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Number of the first event; the oldest that is kept when absent
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Only those of a lease, a resource or a DUT
    #[arg(long, value_name = "OBJECT")]
    of: Option<String>,
    /// Go on as they happen
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one event per line
    #[arg(long)]
    json: bool,
}

/// Lists, or follows.
pub async fn run(arguments: Arguments, server: Option<String>) -> anyhow::Result<ExitCode> {
    let mut path = format!("/api/v1/events?from={}", arguments.from);
    if let Some(of) = &arguments.of {
        path.push_str(&format!("&of={}", in_query(of)));
    }
    if arguments.follow {
        path.push_str("&follow=1");
    }
    let mut events = Server::find(server)?.lines::<TransitionWire>(&path).await?;
    while let Some(event) = events.next().await? {
        print(&if arguments.json { serde_json::to_string(&event)? } else { in_a_line(&event) })?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `12  2026-11-21 12:03:05  lease job-7  L2 → acquired (on sim-1#3): there was a place for it`
fn in_a_line(event: &TransitionWire) -> String {
    let mut line = format!("{:>6}  {}  {} {}", event.seq, event.at.strftime("%F %T"), event.kind, event.id);
    line.push_str(&format!("  {}", event.step));
    if let Some(state) = &event.state {
        line.push_str(&format!(" → {state}"));
    }
    if let Some(resource) = &event.resource {
        line.push_str(&format!(" (on {resource})"));
    }
    format!("{line}: {}", event.cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_with_its_cause() {
        let json = r#"{"seq": 12, "at": "2026-11-21T12:03:05Z", "kind": "lease", "id": "job-7", "step": "L2", "state": "acquired",
                       "cause": "there was a place for it", "resource": "sim-1#3"}"#;
        let event: TransitionWire = serde_json::from_str(json).unwrap();
        let expected = "    12  2026-11-21 12:03:05  lease job-7  L2 → acquired (on sim-1#3): there was a place for it";
        assert_eq!(in_a_line(&event), expected);
    }
}
