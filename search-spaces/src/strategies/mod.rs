//! Who proposes the next architecture.

mod actions;
mod draw;
mod nsga2;
mod promise;
mod random;
mod sight;

pub use actions::Actions;
pub use nsga2::Nsga2;
pub use random::Random;

use crate::search::{Step, Strategy, View};
use crate::{SearchSettings, StrategySettings};

/// The strategy that a space file asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum AnyStrategy {
    /// The paper's Appendix A.
    Actions(Actions),
    /// NSGA-II.
    Nsga2(Nsga2),
    /// Uniform draws.
    Random(Random),
}

impl AnyStrategy {
    /// From the settings of a search.
    #[must_use]
    pub fn new(settings: &SearchSettings) -> Self {
        match &settings.strategy {
            StrategySettings::Actions(actions) => Self::Actions(Actions::new(actions.clone())),
            StrategySettings::Nsga2(nsga2) => Self::Nsga2(Nsga2::new(nsga2.clone(), settings.seed)),
            StrategySettings::Random => Self::Random(Random::new(settings.seed)),
        }
    }
}

impl Strategy for AnyStrategy {
    fn next(&self, view: &View) -> Step {
        match self {
            Self::Actions(actions) => actions.next(view),
            Self::Nsga2(nsga2) => nsga2.next(view),
            Self::Random(random) => random.next(view),
        }
    }
}
