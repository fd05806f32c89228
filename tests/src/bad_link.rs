//! A link that loses and delays what it carries, for servers and clients that have to live with one.
//!
//! ```text
//!   Lab ── bad0 (tap) ──► this pump: one frame of each 200 is dropped, ──► bad0 (tap) ── Lab
//!          bad0 (tap) ◄── the others wait for 5 ms, each way           ◄── bad0 (tap)
//! ```
//! The kernel's own netem (`tc qdisc … netem loss 0.5% delay 5ms`) does the same, but many kernels of test machines are built without
//! it (`Specified qdisc kind is unknown`). So this is a wire in user space, everywhere: below IP, so that it carries TCP, UDP, ARP and a
//! virtual machine's firmware alike. What it loses is drawn from a fixed seed, one frame out of each 200 at a random place among
//! them, so that a transfer of 200 frames is sure to meet a loss.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::libc;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::lab::Lab;

/// The link's name in both namespaces.
pub const NAME: &str = "bad0";
/// What each end of it holds at most: as netem's default, ten times what gigabit Ethernet has under way in 5 ms of full frames.
const FRAMES_MAX: usize = 1000;
/// An Ethernet header and 1500 bytes, with room for a VLAN's tag.
const FRAME_BYTES_MAX: usize = 1522;

/// What is wrong with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Faults {
    /// One of so many frames is lost, in each direction; 0 loses none.
    pub one_lost_of: u64,
    /// How long a frame is under way, in each direction.
    pub delay: Duration,
}

impl Faults {
    /// 0.5 % lost and 5 ms late: a bad cable to the next town.
    pub const ISSUED: Faults = Faults { one_lost_of: 200, delay: Duration::from_millis(5) };
}

/// A link between two namespaces, for as long as this lives.
#[derive(Debug)]
pub struct BadLink {
    counts: Arc<Counts>,
    stop: Option<OwnedFd>,
    pump: Option<JoinHandle<()>>,
}

/// Frames of both directions.
#[derive(Debug, Default)]
struct Counts {
    carried: AtomicU64,
    lost: AtomicU64,
}

impl BadLink {
    /// Lays the link [`NAME`] between two namespaces; each end gets its addresses, and none if it is to become a bridge's port.
    pub fn lay(
        near: &Lab,
        near_addresses: &[Ipv4Addr],
        far: &Lab,
        far_addresses: &[Ipv4Addr],
        faults: Faults,
    ) -> anyhow::Result<BadLink> {
        let ends = [end(near, near_addresses)?, end(far, far_addresses)?];
        let (stopped, stop) = nix::unistd::pipe().context("no pipe")?;
        let counts = Arc::new(Counts::default());
        let pump = Pump { ends, lanes: [Lane::new(faults, 1), Lane::new(faults, 2)], counts: Arc::clone(&counts) };
        let pump = std::thread::Builder::new().name("bad link".to_owned()).spawn(move || pump.run(stopped))?;
        Ok(BadLink { counts, stop: Some(stop), pump: Some(pump) })
    }

    /// How many frames it took, in both directions.
    pub fn carried(&self) -> u64 {
        self.counts.carried.load(Ordering::Relaxed)
    }

    /// How many of them it lost.
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }
}

impl Drop for BadLink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
    }
}

/// A tap inside, whose frames come out of the file.
fn end(lab: &Lab, addresses: &[Ipv4Addr]) -> anyhow::Result<File> {
    let tap = lab.inside(open_tap).context("no /dev/net/tun for a bad link")?;
    for address in addresses {
        lab.ip(&format!("address add {address}/24 dev {NAME}"))?;
    }
    lab.ip(&format!("link set {NAME} up"))?;
    Ok(tap)
}

/// Private, for the macro makes a public function without a word about it.
mod request {
    use nix::libc;

    nix::ioctl_write_ptr_bad!(tunsetiff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
}

/// It ends with the file: no TUNSETPERSIST.
fn open_tap() -> io::Result<File> {
    let mut options = OpenOptions::new();
    let tap = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut name = [0; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(NAME.bytes()) {
        *to = from as libc::c_char;
    }
    // Without IFF_VNET_HDR the kernel cuts what it would have left to a card: each frame comes as it would be on a wire.
    let ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    let request = libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } };
    // SAFETY: TUNSETIFF reads an ifreq (linux/if_tun.h), which outlives the call.
    unsafe { request::tunsetiff(tap.as_raw_fd(), &request) }?;
    Ok(tap)
}

/// Both directions; lane 0 goes from end 0 to end 1.
struct Pump {
    ends: [File; 2],
    lanes: [Lane; 2],
    counts: Arc<Counts>,
}

impl Pump {
    /// Until the other end of `stopped` is closed.
    fn run(mut self, stopped: OwnedFd) {
        loop {
            let due = self.lanes.iter().filter_map(Lane::due).min();
            let wait = due.map(|due| TimeSpec::from_duration(due.saturating_duration_since(Instant::now())));
            let mut waiting = [
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ends[0].as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ends[1].as_fd(), PollFlags::POLLIN),
            ];
            let _ = ppoll(&mut waiting, wait, None);
            if waiting[0].any() == Some(true) {
                return;
            }
            self.carry(0, 1);
            self.carry(1, 0);
        }
    }

    fn carry(&mut self, from: usize, to: usize) {
        let (lane, mut frame) = (&mut self.lanes[from], [0; FRAME_BYTES_MAX]);
        while let Ok(length) = (&self.ends[from]).read(&mut frame) {
            self.counts.carried.fetch_add(1, Ordering::Relaxed);
            if lane.take(&frame[..length], Instant::now()) == Fate::Lost {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        while let Some(frame) = lane.arrived(Instant::now()) {
            // What the kernel does not take is lost, as on any wire.
            let _ = (&self.ends[to]).write(&frame);
        }
    }
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Carried,
    Lost,
}

/// One direction.
struct Lane {
    faults: Faults,
    under_way: VecDeque<(Instant, Vec<u8>)>,
    taken: u64,
    unlucky: u64,
    random: u64,
}

impl Lane {
    fn new(faults: Faults, seed: u64) -> Lane {
        Lane { faults, under_way: VecDeque::new(), taken: 0, unlucky: 0, random: seed }
    }

    fn take(&mut self, frame: &[u8], now: Instant) -> Fate {
        let of = self.faults.one_lost_of.max(1);
        if self.taken.is_multiple_of(of) {
            // Knuth's multiplier for 64-bit linear congruential generators (MMIX); its low bits are not random.
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.unlucky = (self.random >> 33) % of;
        }
        let is_unlucky = self.faults.one_lost_of > 0 && self.taken % of == self.unlucky;
        self.taken += 1;
        if is_unlucky || self.under_way.len() >= FRAMES_MAX {
            return Fate::Lost;
        }
        self.under_way.push_back((now + self.faults.delay, frame.to_vec()));
        Fate::Carried
    }

    fn due(&self) -> Option<Instant> {
        self.under_way.front().map(|(due, _)| *due)
    }

    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.due().filter(|due| *due <= now)?;
        self.under_way.pop_front().map(|(_, frame)| frame)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_lane_loses_one_frame_of_each_two_hundred_and_keeps_the_others_in_order_for_five_milliseconds() {
        let (mut lane, start) = (Lane::new(Faults::ISSUED, 1), Instant::now());
        let mut expected = Vec::new();
        for group in 0..5_u16 {
            let fates = (0..200_u16).map(|number| (group * 200 + number).to_be_bytes());
            let carried: Vec<_> = fates.filter(|frame| lane.take(frame, start) == Fate::Carried).collect();
            assert_eq!(carried.len(), 199);
            expected.extend(carried.into_iter().map(Vec::from));
        }
        assert_eq!(lane.arrived(start + Duration::from_micros(4999)), None);
        let arrived: Vec<_> = std::iter::from_fn(|| lane.arrived(start + Duration::from_millis(5))).collect();
        assert_eq!(arrived, expected);
    }

    #[test]
    fn two_namespaces_on_a_bad_link_hear_of_each_other_late_and_not_always() {
        let Ok(near) = Lab::new() else {
            eprintln!("SKIPPED: no network namespace may be made here");
            return;
        };
        let far = Lab::new().unwrap();
        let (server, client) = (Ipv4Addr::new(10, 77, 8, 1), Ipv4Addr::new(10, 77, 8, 2));
        let link = BadLink::lay(&near, &[server], &far, &[client], Faults::ISSUED).unwrap();
        let socket = near.inside(|| UdpSocket::bind((server, 0))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let caller = far.inside(|| UdpSocket::bind((client, 0))).unwrap();
        caller.connect(socket.local_addr().unwrap()).unwrap();
        let start = Instant::now();
        let mut heard = 0;
        for number in 0..400_u16 {
            caller.send(&number.to_be_bytes()).unwrap();
        }
        while socket.recv(&mut [0; 8]).is_ok() {
            heard += 1;
        }
        assert!(start.elapsed() >= Duration::from_millis(5));
        assert!(link.lost() >= 1 && link.carried() > link.lost(), "{link:?}");
        assert!((1..400).contains(&heard), "{heard} of 400 came: {link:?}");
    }
}
