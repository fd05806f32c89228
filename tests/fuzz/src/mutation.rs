//! Seeds changed a little, by a number: the same number makes the same bytes.
//!
//! ```text
//!  seed ─► 1 to 8 times: flip a bit │ set a byte │ set a number of 2 or 4 bytes │ cut │ repeat │ insert │ splice another seed in
//! ```

use rand::rngs::SmallRng;
use rand::{Rng, RngExt, SeedableRng};

/// 16 KiB: as much as a target is given; an option of NBD and a sector of an ISO fit.
const BYTES_MAX: usize = 16 * 1024;

/// Numbers at the edges of what fields hold.
const EDGES: [u32; 12] = [0, 1, 2, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff];

/// The input of run `number`: the seeds as they are first, then changed ones.
pub fn input(seeds: &[Vec<u8>], number: u32) -> Vec<u8> {
    if let Some(seed) = seeds.get(number as usize) {
        return seed.clone();
    }
    let mut random = SmallRng::seed_from_u64(u64::from(number));
    let mut bytes = pick(seeds, &mut random);
    for _ in 0..random.random_range(1..=8) {
        change(&mut bytes, seeds, &mut random);
        bytes.truncate(BYTES_MAX);
    }
    bytes
}

fn pick(seeds: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    match seeds.len() {
        0 => Vec::new(),
        count => seeds[random.random_range(0..count)].clone(),
    }
}

fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut SmallRng) {
    let at = random.random_range(0..=bytes.len());
    let length = random.random_range(0..=32).min(bytes.len() - at);
    match random.random_range(0..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = random.random(),
        2 => set_number(&mut bytes[at..], random),
        3 => drop(bytes.drain(at..at + length)),
        4 => bytes.truncate(at),
        5 => {
            let again = bytes[at..at + length].to_vec();
            bytes.splice(at..at, again);
        }
        6 => {
            let other = pick(seeds, random);
            let from = random.random_range(0..=other.len());
            bytes.splice(at..at + length, other[from..].iter().copied());
        }
        _ => {
            let mut fresh = vec![0; random.random_range(1..=16)];
            random.fill_bytes(&mut fresh);
            bytes.splice(at..at, fresh);
        }
    }
}

/// One of [`EDGES`], in 2 or 4 bytes of either order, as far as there is room.
fn set_number(bytes: &mut [u8], random: &mut SmallRng) {
    let edge = EDGES[random.random_range(0..EDGES.len())];
    let number = match random.random_range(0..4) {
        0 => edge.to_be_bytes().to_vec(),
        1 => edge.to_le_bytes().to_vec(),
        2 => (edge as u16).to_be_bytes().to_vec(),
        _ => (edge as u16).to_le_bytes().to_vec(),
    };
    bytes.iter_mut().zip(number).for_each(|(byte, new)| *byte = new);
}
