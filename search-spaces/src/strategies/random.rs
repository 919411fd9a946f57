//! Uniform draws without repetition: the baseline that every strategy must beat.

use super::draw::{fresh, generator, uniform};
use crate::search::{Proposal, Step, Strategy, View};

/// Uniform draws among the architectures that the known costs admit.
#[derive(Debug, Clone, PartialEq)]
pub struct Random {
    seed: u64,
}

impl Random {
    /// With a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }
}

impl Strategy for Random {
    fn next(&self, view: &View) -> Step {
        let mut rng = generator(self.seed, view.number());
        match fresh(view, &mut rng, |rng| uniform(view.space, rng)) {
            Some(architecture) => Step::Propose(Proposal {
                architecture,
                parent: None,
                action: None,
                why: "a uniform draw".into(),
            }),
            None => Step::Exhausted,
        }
    }
}
