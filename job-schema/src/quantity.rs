//! Durations and sizes as people write them.
//!
//! ```text
//!  5 minutes   1h 30m   90 s   7 days   250ms     → Duration
//!  20G = 20GiB = 20 × 2^30     20GB = 20 × 10^9    4096 = 4096 bytes
//! ```

use std::time::Duration;

/// The longest duration taken, in seconds: a hundred years, so that sums of a few never overflow a timer.
pub const DURATION_SECONDS_AT_MOST: f64 = 100.0 * 365.25 * 86_400.0;

/// Unit names and their length in seconds.
const DURATION_UNITS: &[(&[&str], f64)] = &[
    (&["ms", "millisecond", "milliseconds"], 0.001),
    (&["s", "sec", "secs", "second", "seconds"], 1.0),
    (&["m", "min", "mins", "minute", "minutes"], 60.0),
    (&["h", "hr", "hrs", "hour", "hours"], 3600.0),
    (&["d", "day", "days"], 86_400.0),
    (&["w", "week", "weeks"], 604_800.0),
];

/// A duration in words: numbers with units, largest or smallest first, spaces and commas free.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("a duration is missing its number and unit".to_owned());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (number, after) = take_number(rest)?;
        let unit_end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let unit = &after[..unit_end];
        seconds += number * unit_seconds(unit)?;
        rest = after[unit_end..].trim_start_matches([' ', ',', '\t']);
    }
    duration_from_seconds(seconds)
}

/// Seconds as a duration; what is below zero is zero (a timer set in the past fires at once).
pub fn duration_from_seconds(seconds: f64) -> Result<Duration, String> {
    if !seconds.is_finite() || seconds > DURATION_SECONDS_AT_MOST {
        return Err("a duration is at most a hundred years".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds.max(0.0)))
}

/// A size in bytes: `B` at the end means powers of 1000 unless an `i` stands before it.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let number: u64 = digits.parse().map_err(|_| "a size begins with a whole number".to_owned())?;
    let unit = unit.trim_start();
    let factor = size_factor(unit).ok_or_else(|| format!("`{unit}` is not a unit of size"))?;
    number.checked_mul(factor).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or("a size is at most 8 EiB".to_owned())
}

fn take_number(text: &str) -> Result<(f64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| "each part of a duration begins with a number".to_owned())?;
    Ok((number, text[end..].trim_start()))
}

fn unit_seconds(unit: &str) -> Result<f64, String> {
    if unit.is_empty() {
        return Err("a duration needs a unit".to_owned());
    }
    DURATION_UNITS
        .iter()
        .find(|(names, _)| names.contains(&unit.to_ascii_lowercase().as_str()))
        .map(|(_, seconds)| *seconds)
        .ok_or_else(|| format!("`{unit}` is not a unit of time"))
}

fn size_factor(unit: &str) -> Option<u64> {
    let (letter, rest) = match unit.chars().next() {
        None => return Some(1),
        Some('B') => return (unit == "B").then_some(1),
        Some(letter) => (letter, &unit[letter.len_utf8()..]),
    };
    let power = match letter {
        'k' | 'K' => 1,
        'M' => 2,
        'G' => 3,
        'T' => 4,
        'P' => 5,
        _ => return None,
    };
    match rest {
        "" | "i" | "iB" => Some(1024u64.pow(power)),
        "B" => Some(1000u64.pow(power)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let table = [
            ("5 minutes", 300_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1 hour, 30 minutes", 5_400_000),
            ("7 days", 604_800_000),
            ("1 week", 604_800_000),
            ("90s", 90_000),
            ("250ms", 250),
            ("1.5 Hours", 5_400_000),
            ("0 s", 0),
        ];
        for (text, milliseconds) in table {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn a_duration_that_says_nothing_says_why() {
        let table = [
            ("", "a duration is missing its number and unit"),
            ("5", "a duration needs a unit"),
            ("5 parsecs", "`parsecs` is not a unit of time"),
            ("minutes", "each part of a duration begins with a number"),
            ("-5 s", "each part of a duration begins with a number"),
            ("1.2.3 s", "each part of a duration begins with a number"),
            ("99999999 weeks", "a duration is at most a hundred years"),
        ];
        for (text, why) in table {
            assert_eq!(parse_duration(text), Err(why.to_owned()), "{text}");
        }
    }

    #[test]
    fn sizes_are_binary_unless_they_end_in_a_decimal_b() {
        let table = [
            ("4096", 4096),
            ("512B", 512),
            ("20G", 21_474_836_480),
            ("20GiB", 21_474_836_480),
            ("20Gi", 21_474_836_480),
            ("20GB", 20_000_000_000),
            ("1k", 1024),
            ("1kB", 1000),
            ("1MiB", 1_048_576),
            ("1MB", 1_000_000),
            ("2 T", 2_199_023_255_552),
            ("1P", 1_125_899_906_842_624),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_size_that_says_nothing_says_why() {
        let table = [
            ("", "a size begins with a whole number"),
            ("G", "a size begins with a whole number"),
            ("1.5G", "`.5G` is not a unit of size"),
            ("1X", "`X` is not a unit of size"),
            ("1GBs", "`GBs` is not a unit of size"),
            ("9999999P", "a size is at most 8 EiB"),
            ("99999999999999999999999", "a size begins with a whole number"),
        ];
        for (text, why) in table {
            assert_eq!(parse_size(text), Err(why.to_owned()), "{text}");
        }
    }
}
