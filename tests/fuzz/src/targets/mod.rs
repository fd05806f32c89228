//! The list of targets. A new one is a file, a line here, and where it needs them, seeds in `corpus/`.

mod archive;
mod boot_image;
mod dhcp;
mod http;
mod job;
mod nbd_export;
mod nbd_handshake;
mod pattern;
mod qcow2;
mod telnet;
mod tftp_packet;
mod tftp_transfer;

use crate::Target;

/// In alphabetical order.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "archive", run: archive::run, seeds: archive::seeds, runs: 400 },
    Target { name: "boot_image", run: boot_image::run, seeds: boot_image::seeds, runs: 3_000 },
    Target { name: "dhcp", run: dhcp::run, seeds: dhcp::seeds, runs: 3_000 },
    Target { name: "http", run: http::run, seeds: http::seeds, runs: 20_000 },
    Target { name: "job", run: job::run, seeds: job::seeds, runs: 500 },
    Target { name: "nbd_export", run: nbd_export::run, seeds: nbd_export::seeds, runs: 3_000 },
    Target { name: "nbd_handshake", run: nbd_handshake::run, seeds: nbd_handshake::seeds, runs: 10_000 },
    Target { name: "pattern", run: pattern::run, seeds: pattern::seeds, runs: 1_000 },
    Target { name: "qcow2", run: qcow2::run, seeds: qcow2::seeds, runs: 500 },
    Target { name: "telnet", run: telnet::run, seeds: telnet::seeds, runs: 5_000 },
    Target { name: "tftp_packet", run: tftp_packet::run, seeds: tftp_packet::seeds, runs: 20_000 },
    Target { name: "tftp_transfer", run: tftp_transfer::run, seeds: tftp_transfer::seeds, runs: 2_000 },
];
