//! Machines under test that need no hardware: what they are made of, and the network they live on.
//!
//! ```text
//!   network     a bridge in a network namespace of our own: the gateway at one port, a DUT at each other
//!   cable       a machine's link to that network where no tap may be made
//!   install     which programs and files virtual machines need, and how they get onto this host
//!   images      the kernel and initramfs that a farm of such machines offers to its jobs
//!   qemu        one virtual machine: command line, process, control socket, serial line
//!   initramfs   the Linux userland that a virtual machine boots for the demo
//!   simulated   a DUT that only exists as a client of our servers
//!   tiny        a boot payload of some hundred bytes for machines that need no Linux
//! ```

pub mod cable;
pub mod images;
pub mod initramfs;
pub mod install;
pub mod network;
pub mod qemu;
pub mod simulated;
pub mod tiny;
