//! Bytes to DUTs: the servers a machine under test boots from.
//!
//! ```text
//!  Gateway   starts all of it from one Config                             (gateway.rs)
//!            Namespaces            who may read what, how often, until when   (namespace.rs, sans-io)
//!          ▲     ▲     ▲
//!    http   tftp   nbd   s3   dhcp   a ring of sockets each, around a core without sockets; http brings registry/
//!          ╲     │     ╱
//!           content               where the bytes come from: inline, file, cached URL, copy-on-write disk
//! ```
//! The gateway knows no power, no console and no DUT life cycle: the executor publishes a job's artifacts, and takes
//! them back by dropping the [`Publication`](namespace::Publication).

pub mod content;
pub mod dhcp;
pub mod door;
pub mod egress;
pub mod gateway;
pub mod http;
pub mod live;
pub mod namespace;
pub mod nbd;
pub mod net;
pub mod outside;
pub mod registry;
pub mod s3;
pub mod tftp;
pub mod tls;

pub use gateway::{Addresses, Config, Gateway, GatewayError, OpenPort, Ports};
