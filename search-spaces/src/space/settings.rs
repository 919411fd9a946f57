//! Objectives, limits and the settings of search and evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::training::TrainingSettings;
use crate::{Architecture, Estimate};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// More is better.
    Maximise,
    /// Less is better.
    Minimise,
}

/// A metric that is traded against the others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Objective {
    /// Name of the metric: built-in, or a column of the table.
    pub metric: String,
    /// Which way is better.
    pub direction: Direction,
    /// Lower and upper end of the hypervolume's box; fixed when the search starts where absent.
    pub range: Option<(f64, f64)>,
}

/// Upper bounds by metric.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Limits(BTreeMap<String, f64>);

impl Limits {
    /// The bound of a metric.
    #[must_use]
    pub fn get(&self, metric: &str) -> Option<f64> {
        self.0.get(metric).copied()
    }

    /// Metric and bound, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(metric, bound)| (metric.as_str(), *bound))
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Metrics above their bound, with figure and bound. A metric that is not known breaks no limit; one
    /// that is no number does.
    #[must_use]
    pub fn broken(&self, metrics: &BTreeMap<String, Estimate>) -> Vec<(&str, f64, f64)> {
        let known = self
            .iter()
            .filter_map(|(name, bound)| Some((name, metrics.get(name)?.value, bound)));
        known
            .filter(|(_, value, bound)| value.is_nan() || value > bound)
            .collect()
    }
}

impl FromIterator<(String, f64)> for Limits {
    fn from_iter<I: IntoIterator<Item = (String, f64)>>(limits: I) -> Self {
        Self(limits.into_iter().collect())
    }
}

/// How a space is searched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchSettings {
    /// Who proposes.
    pub strategy: StrategySettings,
    /// Source of every random draw.
    pub seed: u64,
    /// How many candidates may be open at once. It belongs to the search, not to the fleet: proposals
    /// are the same however many workers there are.
    pub width: u32,
    /// Evaluations, references included, after which the search ends.
    pub max_evaluations: u32,
    /// Device-hours after which the search ends.
    pub max_device_hours: Option<f64>,
    /// Evaluations without growth of the hypervolume after which the search ends.
    pub stall_evaluations: Option<u32>,
    /// Candidates of the front that are measured whole at the end.
    pub finalists: u32,
}

impl SearchSettings {
    /// Whether this is the paper's own search: one incumbent, additions and removals, candidates from scratch.
    #[must_use]
    pub const fn is_paper(&self) -> bool {
        matches!(
            self.strategy,
            StrategySettings::Actions(ActionsSettings {
                mode: ActionMode::Paper,
                ..
            })
        )
    }
}

impl Default for SearchSettings {
    fn default() -> Self {
        Self {
            strategy: StrategySettings::Random,
            seed: 0,
            width: 1,
            max_evaluations: 1,
            max_device_hours: None,
            stall_evaluations: None,
            finalists: 0,
        }
    }
}

/// Who proposes the next architecture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum StrategySettings {
    /// The paper's Appendix A.
    Actions(ActionsSettings),
    /// NSGA-II.
    Nsga2(Nsga2Settings),
    /// Uniform draws without repetition.
    Random,
}

impl StrategySettings {
    /// Name in space files.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Actions(_) => "actions",
            Self::Nsga2(_) => "nsga2",
            Self::Random => "random",
        }
    }
}

/// Settings of the `actions` strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionsSettings {
    /// Which reading of the algorithm.
    pub mode: ActionMode,
    /// Where it begins.
    pub start: Start,
    /// Members of the front that are expanded together once the first sweep is done.
    pub parents: u32,
    /// Most children tried per parent and step, the most promising first; all where absent, and in the paper's mode.
    pub tries: Option<u32>,
}

impl Default for ActionsSettings {
    fn default() -> Self {
        Self {
            mode: ActionMode::Front,
            start: Start::Filled,
            parents: 2,
            tries: None,
        }
    }
}

/// Which reading of the paper's Appendix A.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionMode {
    /// One incumbent, add and remove only, every candidate from scratch: the reference.
    Paper,
    /// Swaps as well, and several parents from the front.
    Front,
}

/// Where `actions` begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Start {
    /// The null choice everywhere.
    Backbone,
    /// The largest architecture that the limits admit.
    Filled,
    /// A given architecture.
    Given(Architecture),
}

/// Settings of the `nsga2` strategy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nsga2Settings {
    /// Parents that breed.
    pub population: u32,
    /// Probability that a child mixes two parents.
    pub crossover: f64,
    /// Probability that a position mutates; one expected mutation a child where absent.
    pub mutation: Option<f64>,
}

impl Default for Nsga2Settings {
    fn default() -> Self {
        Self {
            population: 20,
            crossover: 0.9,
            mutation: None,
        }
    }
}

/// How a candidate is trained and scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Who scores; `built-in` is the only one.
    pub evaluator: String,
    /// Data that it is trained on.
    pub dataset: String,
    /// How its temporal layers are trained.
    #[serde(flatten)]
    pub training: TrainingSettings,
    /// Whether a child starts from its parent's weights.
    pub inherit: bool,
    /// Held-out prompts that are scored.
    pub prompts: u32,
    /// Clips sampled for each prompt.
    pub videos_per_prompt: u32,
    /// Euler steps of a sample.
    pub sample_steps: u32,
    /// Scale of classifier-free guidance; 1 is none.
    pub guidance: f64,
    /// Scored dimensions with their weights in the average.
    pub dimensions: BTreeMap<String, f64>,
    /// Seed of training.
    pub train_seed: u64,
    /// Seed of sampling, shared by all candidates.
    pub score_seed: u64,
}

/// What surrounds the UNet when a clip is made on the device:
/// `pipeline_latency_ms` = text encoder + passes × UNet + decoding of all frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    /// Denoising steps.
    pub steps: u32,
    /// With guidance the UNet runs twice a step.
    pub guidance: bool,
    /// Latency of the text encoder where it is given; measured as block `text_encoder` otherwise.
    pub text_latency_ms: Option<f64>,
    /// Latency of decoding where it is given; measured as block `vae.decode` otherwise.
    pub decode_latency_ms: Option<f64>,
}

impl Pipeline {
    /// Forward passes of the UNet for one clip.
    #[must_use]
    pub const fn passes(&self) -> u64 {
        self.steps as u64 * if self.guidance { 2 } else { 1 }
    }
}

/// Where the rows of a table space are found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSettings {
    /// Column that holds the printed architecture.
    pub key: String,
    /// Columns that are known without an evaluation.
    pub known: Vec<String>,
}
