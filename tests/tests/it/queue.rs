//! A queue several times as long as the farm: nobody is passed over, nobody is forgotten, no DUT is held twice. How fast it moves is for
//! the benchmark `queue` to say.

use std::time::{Duration, Instant};

use tests::bench::Bench;
use tests::crowd::{Crowd, Heard};

use crate::farms::WHARF;

/// 300 boots take some seconds; on a machine that compiles meanwhile some ten times that.
const DONE: Duration = Duration::from_secs(120);

#[test]
fn three_hundred_jobs_of_three_priorities_pass_on_fifty_machines_in_the_order_of_the_queue() {
    let crowd = Crowd { duts: 50, classes: 5, jobs: 300, hold_s: 0, first_hold_s: [5, 5] };
    let bench = Bench::start(WHARF, &crowd.farm());
    let heard = Heard::follow(&bench).unwrap();
    crowd.submit(&bench);
    let started = Instant::now();
    while heard.freed() < crowd.jobs {
        assert!(started.elapsed() < DONE, "{} of {} jobs are over", heard.freed(), crowd.jobs);
        heard.wait_for_more();
    }
    let history = heard.history(&bench, &crowd).unwrap();
    history.check_order().unwrap();
    history.check_holders().unwrap();
    let waited = history.delays().unwrap().whole.figures().len();
    assert!(waited >= 50, "a queue was wanted, and only {waited} jobs waited for a machine that was held");
    let listed = bench.get("/api/v1/jobs").json()["jobs"].as_array().map(Vec::len);
    assert_eq!(listed, Some(crowd.jobs));
}
