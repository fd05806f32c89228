//! Where a job may expose its artifacts, checked when it is submitted: not at a port that means something else already, nor over TLS
//! where there is none.
//!
//! | entry | `port` | `tls` |
//! |---|---|---|
//! | `storage.http` | any but NBD's; the farm's own HTTP port adds nothing | at `port`, or at 443; not at the farm's own HTTP port, which is in clear |
//! | `storage.tftp` | any but DHCP's | there is no TFTP over TLS |
//! | `storage.nbd` | (the schema has none) | at NBD's own port, by STARTTLS |

use std::collections::BTreeSet;

use gateway::door::Transport;
use job_schema::job::{Deployment, Expose, Job, StorageArtifact};

/// HTTP over TLS where an entry names no port (RFC 9110 section 4.2.2).
const HTTPS: u16 = 443;
/// DHCP's (RFC 2131 section 4.1), and that of the boot servers of PXE.
const DHCP: [u16; 2] = [67, 4011];

/// The farm's own ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Own {
    /// HTTP, in clear.
    pub http: u16,
    /// NBD.
    pub nbd: u16,
}

/// The port that an entry is served at besides, and what it is read over at least.
pub(crate) fn of(expose: Option<&Expose>) -> (Option<u16>, Transport) {
    match expose {
        Some(Expose { port, tls: true }) => (Some(port.unwrap_or(HTTPS)), Transport::Tls),
        Some(Expose { port, tls: false }) => (*port, Transport::Clear),
        None => (None, Transport::Clear),
    }
}

/// What is wrong with where a job exposes things, as sentences.
pub(crate) fn refused(job: &Job, own: Own) -> BTreeSet<String> {
    let of = |deployment: &Deployment| {
        let http = deployment.storage.http.iter().filter_map(move |entry| refused_http(entry, own));
        http.chain(deployment.storage.tftp.iter().filter_map(refused_tftp)).collect::<Vec<_>>()
    };
    of(&job.start).into_iter().chain(of(&job.continue_)).collect()
}

fn refused_http(entry: &StorageArtifact, own: Own) -> Option<String> {
    let path = entry.path.as_str();
    match of(entry.expose.as_ref()) {
        (Some(port), Transport::Tls) if port == own.http => Some(format!(
            "`{path}` asks for TLS at port {port}, the farm's own HTTP, which is in clear; name another, as 8443"
        )),
        (Some(port), _) if port == own.nbd => {
            Some(format!("`{path}` asks for HTTP at port {port}, the farm's own NBD; name another, as 8080"))
        }
        _ => None,
    }
}

fn refused_tftp(entry: &StorageArtifact) -> Option<String> {
    let path = entry.path.as_str();
    match of(entry.expose.as_ref()) {
        (_, Transport::Tls) => Some(format!("`{path}` asks for TLS, and TFTP has none; put it into `storage.http`")),
        (Some(port), Transport::Clear) if DHCP.contains(&port) => {
            Some(format!("`{path}` asks for TFTP at port {port}, the farm's own DHCP; name another, as 6969"))
        }
        (_, Transport::Clear) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job_schema::template::Rendered;

    fn refused_in(storage: &str) -> Vec<String> {
        let text = format!(
            "version: 1\ntarget: {{tags: []}}\nconsole_patterns: {{}}\ndeployment: {{start: {{kernel: {{data: k}}, storage: {storage}}}}}\n"
        );
        let job = Job::parse_as(&Rendered::plain("job.yml", &text), None).unwrap();
        refused(&job, Own { http: 80, nbd: 10809 }).into_iter().collect()
    }

    #[test]
    fn a_port_that_means_something_else_and_tls_where_there_is_none_are_refused_by_the_entry_s_name() {
        let fine = "{http: [{path: /a, data: a, expose: {port: 80}}, {path: /b, data: b, expose: {tls: true}}], tftp: [{path: /c, data: c, expose: {port: 6969}}]}";
        assert_eq!(refused_in(fine), [""; 0]);
        let wrong = "{http: [{path: /a, data: a, expose: {port: 80, tls: true}}, {path: /b, data: b, expose: {port: 10809}}], \
                     tftp: [{path: /c, data: c, expose: {tls: true}}, {path: /d, data: d, expose: {port: 67}}]}";
        assert_eq!(
            refused_in(wrong),
            [
                "`/a` asks for TLS at port 80, the farm's own HTTP, which is in clear; name another, as 8443",
                "`/b` asks for HTTP at port 10809, the farm's own NBD; name another, as 8080",
                "`/c` asks for TLS, and TFTP has none; put it into `storage.http`",
                "`/d` asks for TFTP at port 67, the farm's own DHCP; name another, as 6969",
            ]
        );
    }

    #[test]
    fn tls_without_a_port_is_at_443() {
        assert_eq!(of(Some(&Expose { port: None, tls: true })), (Some(443), Transport::Tls));
        assert_eq!(of(Some(&Expose { port: Some(8443), tls: true })), (Some(8443), Transport::Tls));
        assert_eq!(of(Some(&Expose { port: Some(8080), tls: false })), (Some(8080), Transport::Clear));
        assert_eq!(of(None), (None, Transport::Clear));
    }
}
