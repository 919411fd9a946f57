//! What an estimate assumes where nothing was measured. It is meant to tell minutes from days.

use std::fmt;

use search_spaces::{Block, Dtype, work};

/// Forward passes that a training step costs: one forward, and about two to go back.
pub(super) const PASSES_A_STEP: f64 = 3.0;

/// Runs by which a worker measures one subject, and the seconds after which it stops early (see the worker's
/// `profile::Settings`).
const RUNS: f64 = 64.0;
const MOST_SECONDS: f64 = 20.0;

/// Runs that even the slowest subject takes.
const FEWEST_RUNS: f64 = 2.0;

/// Building a subject with its weights.
const BUILDING_SECONDS: f64 = 0.2;

/// Multiply-accumulates in a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    gigamacs_a_second: f64,
    whose: &'static str,
}

impl Rate {
    /// What is assumed of a runtime by its name.
    pub(super) fn of(runtime: Option<&str>) -> Self {
        match runtime {
            Some(name) if name.contains("cuda") => Self {
                gigamacs_a_second: 3000.0,
                whose: "a GPU",
            },
            _ => Self {
                gigamacs_a_second: 10.0,
                whose: "a processor core",
            },
        }
    }

    /// Seconds of so many multiply-accumulates.
    pub(super) fn seconds(self, macs: f64) -> f64 {
        macs / (self.gigamacs_a_second * 1e9)
    }

    /// Seconds to measure a block.
    pub(super) fn block_seconds(self, block: &Block, dtype: Dtype) -> f64 {
        let macs = work(block, dtype).map_or(0, |work| work.macs);
        measuring_seconds(self.seconds(macs as f64))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "assumed: {} GMAC/s as of {}", self.gigamacs_a_second, self.whose)
    }
}

/// Seconds to measure what takes so long for one run.
pub(super) fn measuring_seconds(run: f64) -> f64 {
    BUILDING_SECONDS + (RUNS * run).min(MOST_SECONDS).max(FEWEST_RUNS * run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measuring_is_quick_for_the_small_and_two_runs_for_the_huge() {
        assert!((measuring_seconds(0.001) - 0.264).abs() < 1e-9);
        assert!((measuring_seconds(1.0) - 20.2).abs() < 1e-9);
        assert!((measuring_seconds(100.0) - 200.2).abs() < 1e-9);
    }

    #[test]
    fn the_rate_says_what_it_assumes() {
        assert_eq!(
            Rate::of(Some("libtorch-cpu-1t")).to_string(),
            "assumed: 10 GMAC/s as of a processor core"
        );
        assert_eq!(Rate::of(Some("libtorch-cuda")).seconds(3e12), 1.0);
    }
}
