//! What a client says of its bytes, and whether it is so.
//!
//! ```text
//!  Content-MD5, x-amz-checksum-… before the bytes ─┐
//!  x-amz-checksum-… behind them (trailers) ────────┴─► the same, formed of what came ─► equal, or BadDigest
//! ```

use std::collections::BTreeMap;

use s3s::checksum::ChecksumHasher;
use s3s::{S3Result, TrailingHeaders, s3_error};

use super::bucket::Piece;

/// What a client says of its bytes: each in base64, as its header has it.
#[derive(Default)]
pub(super) struct Sums {
    md5: Option<String>,
    said: BTreeMap<&'static str, String>,
}

impl Sums {
    pub(super) fn of<const N: usize>(md5: Option<String>, said: [(&'static str, Option<String>); N]) -> Sums {
        Sums { md5, said: said.into_iter().filter_map(|(name, sum)| Some((name, sum?))).collect() }
    }

    /// Newer clients tell theirs behind the bytes, by a name that they announce: then all are formed.
    pub(super) fn hasher(&self, trailers: Option<&TrailingHeaders>) -> ChecksumHasher {
        let wants = |name| trailers.is_some() || self.said.contains_key(name);
        ChecksumHasher {
            crc32: wants("crc32").then(Default::default),
            crc32c: wants("crc32c").then(Default::default),
            sha1: wants("sha1").then(Default::default),
            sha256: wants("sha256").then(Default::default),
            crc64nvme: wants("crc64nvme").then(Default::default),
        }
    }

    pub(super) fn check(
        mut self,
        piece: &Piece,
        hasher: ChecksumHasher,
        trailers: Option<TrailingHeaders>,
    ) -> S3Result<()> {
        const NAMES: [&str; 5] = ["crc32", "crc32c", "sha1", "sha256", "crc64nvme"];
        if let Some(headers) = trailers.and_then(|trailers| trailers.take()) {
            for name in NAMES {
                let said = headers.get(format!("x-amz-checksum-{name}")).and_then(|said| said.to_str().ok());
                self.said.extend(said.map(|said| (name, said.to_owned())));
            }
        }
        let sums = hasher.finalize();
        let formed = [
            sums.checksum_crc32,
            sums.checksum_crc32c,
            sums.checksum_sha1,
            sums.checksum_sha256,
            sums.checksum_crc64nvme,
        ];
        for (name, formed) in NAMES.into_iter().zip(formed) {
            if let (Some(said), Some(formed)) = (self.said.get(name), formed)
                && *said != formed
            {
                return Err(s3_error!(BadDigest, "the bytes have the {name} {formed}, not {said}"));
            }
        }
        match self.md5.map(|md5| (md5_in_hexadecimal(&md5), md5)) {
            Some((said, md5)) if said.as_deref() != Some(piece.md5.as_str()) => {
                Err(s3_error!(BadDigest, "the bytes have the MD5 {}, not {md5}", piece.md5))
            }
            _ => Ok(()),
        }
    }
}

fn md5_in_hexadecimal(base64: &str) -> Option<String> {
    // 16 bytes are 22 digits and two signs of padding.
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = base64.strip_suffix("==").filter(|digits| digits.len() == 22)?;
    let mut bits: u128 = 0;
    for (index, digit) in digits.bytes().enumerate() {
        let value = DIGITS.iter().position(|other| *other == digit)? as u128;
        bits = if index < 21 { bits << 6 | value } else { bits << 2 | value >> 4 };
    }
    Some(format!("{bits:032x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_md5_of_a_header_is_read_and_what_is_none_is_not() {
        // `printf second! | openssl md5 -binary | base64`
        let md5 = md5_in_hexadecimal("Jt55PQhO/dHEE0ZSxUlK8Q==");
        assert_eq!(md5.as_deref(), Some("26de793d084efdd1c4134652c5494af1"));
        for wrong in ["", "==", "Jt55PQhO/dHEE0ZSxUlK8Q", "Jt55PQhO/dHEE0ZSxUlK8Q=", "Jt55PQhO/dHEE0ZSxUlK*Q=="] {
            assert_eq!(md5_in_hexadecimal(wrong), None, "{wrong}");
        }
    }
}
