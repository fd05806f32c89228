//! The order of the desk: (priority, age), and a later request overtakes only where the earlier one does not fit. ◆

use super::{Candidate, Wants};

/// A request in the queue.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The request's number; lower is older.
    pub number: u64,
    /// Higher goes first.
    pub priority: i32,
    /// What it asks for.
    pub wants: Wants,
}

/// What happens to one request now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// It gets this DUT.
    Granted {
        /// The DUT's id.
        dut: String,
    },
    /// It waits.
    Waits {
        /// Its place in the queue; 1 is next.
        place: usize,
        /// Per fitting DUT, why not now.
        reasons: Vec<String>,
    },
}

/// Places every pending request; the answer is in the order of the queue.
pub fn plan(pending: &[Pending], duts: &[Candidate]) -> Vec<(u64, Placement)> {
    let mut queue: Vec<&Pending> = pending.iter().collect();
    queue.sort_by_key(|request| (std::cmp::Reverse(request.priority), request.number));
    let mut taken: Vec<&str> = Vec::new();
    let mut waiting = 0;
    let mut placements = Vec::with_capacity(queue.len());
    for request in queue {
        let fitting: Vec<_> = duts.iter().filter(|dut| dut.fits(&request.wants).is_ok()).collect();
        let free = fitting.iter().find(|dut| dut.busy().is_none() && !taken.contains(&dut.id.as_str()));
        let placement = match free {
            Some(dut) => {
                taken.push(&dut.id);
                Placement::Granted { dut: dut.id.clone() }
            }
            None => {
                waiting += 1;
                let reason = |dut: &&Candidate| {
                    dut.busy().unwrap_or_else(|| format!("{} goes to an earlier job", dut.full_name))
                };
                Placement::Waits { place: waiting, reasons: fitting.iter().map(reason).collect() }
            }
        };
        placements.push((request.number, placement));
    }
    placements
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dut(id: &str, tags: &[&str], holder: Option<&str>) -> Candidate {
        Candidate {
            id: id.into(),
            full_name: format!("farm-{id}"),
            tags: tags.iter().map(|tag| tag.to_string()).collect(),
            held_back: None,
            holder: holder.map(str::to_owned),
        }
    }

    fn request(number: u64, priority: i32, tags: &[&str]) -> Pending {
        Pending { number, priority, wants: Wants { id: None, tags: tags.iter().map(|tag| tag.to_string()).collect() } }
    }

    fn granted(dut: &str) -> Placement {
        Placement::Granted { dut: dut.into() }
    }

    #[test]
    fn the_older_of_two_equal_requests_gets_the_only_dut() {
        let plan = plan(&[request(2, 0, &[]), request(1, 0, &[])], &[dut("a", &[], None)]);
        let reasons = vec!["farm-a goes to an earlier job".to_owned()];
        assert_eq!(plan, [(1, granted("a")), (2, Placement::Waits { place: 1, reasons })]);
    }

    #[test]
    fn a_higher_priority_goes_before_age() {
        let plan = plan(&[request(1, 0, &[]), request(2, 5, &[])], &[dut("a", &[], None)]);
        assert_eq!(plan[0], (2, granted("a")));
    }

    #[test]
    fn a_newcomer_overtakes_only_where_the_head_does_not_fit() {
        let duts = [dut("gpu", &["gpu"], Some("7")), dut("plain", &[], None)];
        let plan = plan(&[request(1, 0, &["gpu"]), request(2, 0, &[])], &duts);
        let reasons = vec!["farm-gpu is busy with job 7".to_owned()];
        assert_eq!(plan, [(1, Placement::Waits { place: 1, reasons }), (2, granted("plain"))]);
    }

    #[test]
    fn a_held_back_dut_is_not_given_away_and_says_why() {
        let mut held = dut("a", &[], None);
        held.held_back = Some("the console said it is unfit".into());
        let plan = plan(&[request(1, 0, &[])], &[held]);
        let reasons = vec!["farm-a is held back: the console said it is unfit".to_owned()];
        assert_eq!(plan, [(1, Placement::Waits { place: 1, reasons })]);
    }
}
