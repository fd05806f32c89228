//! Measured numbers and how they are shown: medians of interleaved rounds, beside the peer of the same run.
//!
//! A median of rounds that take turns is what is left of a figure when other work shares the machine: a slow minute slows
//! both sides, and a single slow round moves nothing.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::bench::Bench;
use crate::lab::Running;

/// Figures of one thing, one per round.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Adds a round's figure.
    pub fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The figures in the order of the rounds.
    pub fn figures(&self) -> &[f64] {
        &self.0
    }

    /// The middle figure, or the mean of the two in the middle; NaN without any.
    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            length if length % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        }
    }

    /// The figure that this share of all does not exceed: 0.99 is the 99th percentile (the nearest rank). NaN without any.
    pub fn percentile(&self, share: f64) -> f64 {
        let sorted = self.sorted();
        let rank = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }

    /// The smallest and the largest figure.
    pub fn range(&self) -> (f64, f64) {
        let sorted = self.sorted();
        (sorted.first().copied().unwrap_or(f64::NAN), sorted.last().copied().unwrap_or(f64::NAN))
    }

    /// The quotients with the peer's figure of the same round: what drifts during the run drops out.
    pub fn ratios(&self, peer: &Samples) -> Samples {
        Samples(self.0.iter().zip(&peer.0).map(|(own, other)| own / other).collect())
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }
}

/// Rows of text, drawn as Markdown with columns that line up.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these heads.
    pub fn new(heads: &[&str]) -> Self {
        Table { rows: vec![heads.iter().map(|head| (*head).to_owned()).collect()] }
    }

    /// Adds a row with as many cells as there are heads.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "a row has a cell per head");
        self.rows.push(cells);
    }

    /// The table as text: the first column to the left, figures to the right.
    pub fn draw(&self) -> String {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default().max(3);
        let widths: Vec<_> = (0..self.rows[0].len()).map(width).collect();
        let mut drawn = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let _ =
                    if column == 0 { write!(drawn, "| {cell:<width$} ") } else { write!(drawn, "| {cell:>width$} ") };
            }
            drawn.push_str("|\n");
            if index == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    let _ = if column == 0 { write!(drawn, "|{dashes}-") } else { write!(drawn, "|{dashes}:") };
                }
                drawn.push_str("|\n");
            }
        }
        drawn
    }
}

/// The machine that figures are from, in a line: processor, cores, kernel, and how busy it was.
pub fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, it)| it);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = load.split(' ').next().unwrap_or_default();
    let model = model.unwrap_or("unknown processor");
    format!("{model}, {cores} cores, Linux {}, load {load} at the start", kernel.trim())
}

/// A server as the kernel sees it: its processor time, its memory, its threads.
pub struct ServerProcess {
    /// Its folder in /proc.
    folder: PathBuf,
}

impl ServerProcess {
    /// The server of this farm.
    pub fn of(bench: &Bench) -> anyhow::Result<Self> {
        let mut folders = bench.processes().into_iter().map(|id| PathBuf::from(format!("/proc/{id}")));
        let is_server = |folder: &PathBuf| fs::read(folder.join("comm")).is_ok_and(|name| name == b"wharf\n");
        Ok(ServerProcess { folder: folders.find(is_server).context("the server has no process")? })
    }

    /// Somebody else's server.
    pub fn running(server: &Running) -> Self {
        ServerProcess { folder: PathBuf::from(format!("/proc/{}", server.id())) }
    }

    /// Processor time so far, in seconds: of all threads, and of the children that have ended, which render its templates.
    pub fn processor_s(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(self.folder.join("stat"))?;
        // proc(5): fields 14 to 17 in ticks of 10 ms, counted from behind the name in brackets, which is field 2.
        let after_name = stat.rsplit_once(')').context("no name in brackets")?.1;
        let ticks = after_name.split_whitespace().skip(14 - 3).take(4).map(str::parse::<f64>);
        Ok(ticks.sum::<Result<f64, _>>()? / 100.0)
    }

    /// Memory that it holds now, in MiB.
    pub fn memory_mib(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(self.folder.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// How many threads it has.
    pub fn threads(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(self.folder.join("task"))?.count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_rounds_is_between_the_two_in_the_middle() {
        let mut samples = Samples::default();
        for figure in [4.0, 1.0, 9.0, 2.0] {
            samples.push(figure);
        }
        assert_eq!(samples.median(), 3.0);
        assert_eq!(samples.range(), (1.0, 9.0));
        samples.push(100.0);
        assert_eq!(samples.median(), 4.0);
    }

    #[test]
    fn a_percentile_is_a_figure_that_was_measured() {
        let samples = Samples((1..=200).map(f64::from).collect());
        assert_eq!([0.5, 0.99, 1.0].map(|share| samples.percentile(share)), [100.0, 198.0, 200.0]);
        assert_eq!(Samples(vec![7.0]).percentile(0.99), 7.0);
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let (own, peer) = (Samples(vec![2.0, 30.0]), Samples(vec![1.0, 10.0]));
        assert_eq!(own.ratios(&peer).figures(), [2.0, 3.0]);
    }

    #[test]
    fn a_table_lines_up_and_is_markdown() {
        let mut table = Table::new(&["server", "MB/s"]);
        table.row(vec!["wharf".into(), "9".into()]);
        assert_eq!(table.draw(), "| server | MB/s |\n|--------|-----:|\n| wharf  |    9 |\n");
    }
}
