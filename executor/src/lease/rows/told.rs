//! A transition as one line that a person reads: when, whose, from where to where, why, and on what. ◆
//!
//! ```text
//!  12:03:05 lease job-7: Pending → Acquired: there was a place for it (on box-1)
//! ```

use std::fmt;

use super::{Label, Moment, Object, Transition};

impl fmt::Display for Moment {
    /// The time of the day in UTC.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000 % 86_400;
        write!(formatter, "{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Label::L1 | Label::R1 => "Pending",
            Label::L2 => "Pending → Acquired",
            Label::L3 => "Pending → Destroyed",
            Label::L4 => "Acquired → Active",
            Label::L5 => "Acquired → Releasing, to wait again",
            Label::L6 => "Acquired → Releasing",
            Label::L7 => "Active → Releasing",
            Label::L8 => "changed",
            Label::L9 => "Releasing, handles closed",
            Label::L10 => "Releasing, torn down",
            Label::L11 => "Releasing, parts are asked to end",
            Label::L12 => "Releasing, not torn down",
            Label::L13 | Label::R12 => "Releasing → Destroyed",
            Label::L14 => "Releasing → Pending",
            Label::L15 => "not changed",
            Label::R2 => "Pending → Active",
            Label::R3 => "Pending, to be tried again",
            Label::R4 => "Pending → Releasing",
            Label::R5 => "Active → Draining",
            Label::R6 => "Draining → Active",
            Label::R7 => "Draining → Releasing",
            Label::R8 => "reclaim",
            Label::R9 => "in use → Releasing",
            Label::R11 => "Releasing",
            Label::R13 => "noted",
            Label::Asked => "asked",
            Label::Intent => "is about to be brought up",
            Label::Noted => "waits for a resource",
            Label::Credited => "deadlines moved",
        })
    }
}

impl fmt::Display for Transition {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}: {}: {}", self.at, self.object, self.label, self.cause)?;
        let Object::Lease(id) = &self.object else { return Ok(()) };
        let lease = self.leases.iter().find(|lease| lease.id() == id);
        let Some(resource) = lease.and_then(|lease| lease.resource.as_ref()) else { return Ok(()) };
        // A row's id is its name and a number; the name is what people say.
        let name = resource.as_str().rsplit_once('#').map_or(resource.as_str(), |(name, _)| name);
        write!(formatter, " (on {name})")
    }
}

#[cfg(test)]
mod tests {
    use crate::lease::rows::Moment;
    use crate::lease::samples::{SmallFarm, request, static_dut};

    #[test]
    fn the_life_of_a_lease_is_told_in_lines() {
        let mut farm = SmallFarm::of(static_dut("box-1", &[]));
        farm.now = Moment(12 * 3_600_000 + 3 * 60_000 + 5_000);
        farm.request(request("job-7", &[]));
        farm.settle();
        farm.release("job-7");
        let lines: Vec<String> = farm.log.iter().map(ToString::to_string).collect();
        let own: Vec<_> = lines.iter().filter(|line| line.contains(" lease job-7: ")).map(String::as_str).collect();
        let expected = [
            "12:03:05 lease job-7: Pending: it was asked for",
            "12:03:05 lease job-7: Pending → Acquired: there was a place for it (on box-1)",
            "12:03:05 lease job-7: Acquired → Active: it came up (on box-1)",
            "12:03:05 lease job-7: asked: somebody released it",
            "12:03:05 lease job-7: Active → Releasing: somebody released it (on box-1)",
            "12:03:05 lease job-7: Releasing, handles closed: somebody released it (on box-1)",
            "12:03:05 lease job-7: Releasing, torn down: somebody released it (on box-1)",
            "12:03:05 lease job-7: Releasing, parts are asked to end: somebody released it",
            "12:03:05 lease job-7: Releasing → Destroyed: somebody released it (on box-1)",
        ];
        assert_eq!(own, expected);
    }
}
