//! The clocks of leases stand while the farm is away: what that moves, when it is back. ◆
//!
//! | the clock says | it was | moves on |
//! |---|---|---|
//! | up to [`AWAY_MS_MAX`] later | away | the ends of queue, activation and hold; the hold's latest end stays |
//! | earlier, or later by more | set | everything, so that what was left of each time is left, and what was used counts as much |

use super::*;

/// Longer than this nobody is away without his leases being over for other reasons; it is the clock that was set. A week: a machine
/// that stood over the holidays still has its clock.
pub const AWAY_MS_MAX: u64 = 7 * 24 * 3_600_000;

/// What moves when the farm that was last alive at `then` goes on now.
pub fn credit(then: Moment, context: &Context) -> Vec<Transition> {
    let now = context.now;
    let ms = now.0 as i64 - then.0 as i64;
    if ms == 0 {
        return Vec::new();
    }
    let was_set = ms < 0 || ms as u64 > AWAY_MS_MAX;
    let moves = if was_set { everything } else { working_time };
    let cause = Cause::FarmWasAway { ms };
    let alive = context.tables.leases().filter(|lease| lease.state != LeaseState::Destroyed);
    let leases = alive.filter_map(|lease| {
        let mut deadlines = moves(lease.deadlines, ms);
        deadlines.expires = earlier(deadlines.expires, deadlines.expires_at_most);
        let acquired_at = if was_set { shifted(lease.acquired_at, ms) } else { lease.acquired_at };
        let mut transition = Transition::new(now, lease.object(), Label::Credited, cause.clone());
        transition.leases.push(Lease { version: lease.version + 1, deadlines, acquired_at, ..lease.clone() });
        ((deadlines, acquired_at) != (lease.deadlines, lease.acquired_at)).then_some(transition)
    });
    let alive = context.tables.resources().filter(|resource| resource.state != ResourceState::Destroyed);
    let resources = alive.filter_map(|resource| {
        // A resource's own end is a date, and no time that somebody works.
        let deadlines = Deadlines { expires: resource.deadlines.expires, ..moves(resource.deadlines, ms) };
        let deadlines = if was_set { everything(resource.deadlines, ms) } else { deadlines };
        let idle_since = if was_set { shifted(resource.idle_since, ms) } else { resource.idle_since };
        let mut transition = Transition::new(now, resource.object(), Label::Credited, cause.clone());
        transition.resources.push(Resource {
            version: resource.version + 1,
            deadlines,
            idle_since,
            ..resource.clone()
        });
        ((deadlines, idle_since) != (resource.deadlines, resource.idle_since)).then_some(transition)
    });
    let moved = of_projects(context, ms, cause.clone());
    leases.chain(resources).chain(moved.filter(|_| was_set)).collect()
}

/// What projects have used belongs to no row; a farm without any resource has nothing to share.
fn of_projects(context: &Context, ms: i64, cause: Cause) -> Option<Transition> {
    let object = context.tables.resources().next()?.object();
    let mut transition = Transition::new(context.now, object, Label::Credited, cause);
    let moved = |used: &Used| Used { at: Moment(used.at.0.saturating_add_signed(ms)), ..used.clone() };
    transition.used = context.tables.used().map(moved).collect();
    (!transition.used.is_empty()).then_some(transition)
}

fn working_time(deadlines: Deadlines, ms: i64) -> Deadlines {
    Deadlines {
        queue: shifted(deadlines.queue, ms),
        activate: shifted(deadlines.activate, ms),
        expires: shifted(deadlines.expires, ms),
        ..deadlines
    }
}

fn everything(deadlines: Deadlines, ms: i64) -> Deadlines {
    Deadlines {
        expires_at_most: shifted(deadlines.expires_at_most, ms),
        retry: shifted(deadlines.retry, ms),
        ..working_time(deadlines, ms)
    }
}

fn shifted(at: Option<Moment>, ms: i64) -> Option<Moment> {
    at.map(|at| Moment(at.0.saturating_add_signed(ms)))
}

fn earlier(one: Option<Moment>, other: Option<Moment>) -> Option<Moment> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, _) => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::samples::{SmallFarm, request, static_dut};

    const HOUR_MS: u64 = 3_600_000;

    /// One lease that is held until an hour from now, and at most for two; one that waits for an hour at most.
    fn farm() -> SmallFarm {
        let mut farm = SmallFarm::of(static_dut("a", &[]));
        farm.now = Moment(1_000_000_000_000);
        let held = Timeouts { hold_ms: Some(HOUR_MS), hold_ms_max: Some(2 * HOUR_MS), ..Timeouts::default() };
        farm.request(LeaseRequest { timeouts: held, ..request("1", &[]) });
        let waits = Timeouts { queue_ms: Some(HOUR_MS), ..Timeouts::default() };
        farm.request(LeaseRequest { timeouts: waits, ..request("2", &[]) });
        farm.settle();
        farm
    }

    /// What is left of the hold, of the longest hold, and of the wait, after the clock has moved by this much.
    fn left_after(ms: i64) -> [i64; 3] {
        let mut farm = farm();
        let then = farm.now;
        let deadlines = |farm: &SmallFarm, id: &str| farm.tables.lease(&id.into()).unwrap().deadlines;
        let before = (deadlines(&farm, "1"), deadlines(&farm, "2"));
        farm.now = Moment(farm.now.0.saturating_add_signed(ms));
        credit(then, &farm.context()).into_iter().for_each(|transition| farm.commit(transition));
        let after = (deadlines(&farm, "1"), deadlines(&farm, "2"));
        let moved = |before: Option<Moment>, after: Option<Moment>| after.unwrap().0 as i64 - before.unwrap().0 as i64;
        [
            moved(before.0.expires, after.0.expires),
            moved(before.0.expires_at_most, after.0.expires_at_most),
            moved(before.1.queue, after.1.queue),
        ]
    }

    #[test]
    fn the_time_that_the_farm_was_away_is_given_back_but_the_longest_hold_stays() {
        assert_eq!(left_after(60_000), [60_000, 0, 60_000]);
        assert_eq!(left_after(3 * HOUR_MS as i64), [HOUR_MS as i64, 0, 3 * HOUR_MS as i64]);
    }

    #[test]
    fn a_clock_that_was_set_changes_nothing_that_was_left() {
        let (back, year) = (-5 * HOUR_MS as i64, 365 * 24 * HOUR_MS as i64);
        assert_eq!(left_after(back), [back; 3]);
        assert_eq!(left_after(year), [year; 3]);
    }

    #[test]
    fn a_clock_that_was_set_changes_nothing_of_what_projects_have_used() {
        for ms in [-5 * HOUR_MS as i64, 365 * 24 * HOUR_MS as i64] {
            let mut farm = farm();
            farm.now = farm.now.plus_ms(HOUR_MS / 2);
            farm.release("1");
            farm.now = farm.now.plus_ms(HOUR_MS / 2);
            let (then, before) = (farm.now, farm.tables.standing("somebody", farm.now));
            farm.now = Moment(farm.now.0.saturating_add_signed(ms));
            credit(then, &farm.context()).into_iter().for_each(|transition| farm.commit(transition));
            assert_eq!(farm.tables.standing("somebody", farm.now), before);
        }
    }

    #[test]
    fn a_farm_that_was_not_away_writes_nothing() {
        assert_eq!(credit(farm().now, &farm().context()), []);
    }
}
