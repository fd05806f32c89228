//! Job descriptions that were never meant to be any: a job, or problems that fit on a screen.

use job_schema::{DOCUMENT_BYTES_AT_MOST, Job, Rendered, decode};

use crate::corpus;

/// 50 problems are drawn, each with its line, arrows and hint.
const DRAWN_BYTES_MAX: usize = 256 * 1024;

pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = decode("job.yml", bytes) else { return };
    assert!(text.len() <= DOCUMENT_BYTES_AT_MOST);
    match Job::parse_all(&Rendered::plain("job.yml", text)) {
        Ok(roles) => {
            let count = roles.names().count();
            assert!(count <= 32, "{count} roles");
        }
        Err(problems) => {
            let drawn = problems.to_string();
            assert!(!drawn.is_empty() && drawn.len() <= DRAWN_BYTES_MAX, "{} bytes of problems", drawn.len());
            assert!(!drawn.contains(|letter: char| letter.is_control() && letter != '\n'), "{drawn:?}");
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = [
        include_str!("../../../../fixtures/jobs/bad/alias-bomb.yml"),
        include_str!("../../../../fixtures/jobs/bad/nest-of-brackets.yml"),
        include_str!("../../../../fixtures/jobs/bad/said-twice.yml"),
        include_str!("../../../../fixtures/jobs/bad/proxy-and-dhcp.yml"),
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec();
    seeds.extend(corpus(include_str!("../../corpus/job.hex")));
    seeds
}
