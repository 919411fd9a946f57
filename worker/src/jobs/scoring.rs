//! What jobs that score have in common: who scores, and what is told meanwhile.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use protocol::jobs::{DeviceSeconds, VBENCH_EVALUATOR};
use protocol::{Figure, Metrics};
use search_spaces::{Estimate, Evaluation};

use super::{JobContext, JobError};
use crate::assets::Assets;
use crate::models::UNet;
use crate::scoring::vbench::VBenchError;
use crate::scoring::{Evaluator, Log, Score, ScoringError};

impl Log for JobContext {
    fn log(&self, line: &str) {
        Self::log(self, line);
    }
}

/// A model to score, and where the job stands.
pub(super) struct Scoring<'a> {
    /// The job.
    pub context: &'a JobContext,
    /// Its trained parts.
    pub assets: &'a Assets,
    /// Who scores what.
    pub evaluation: &'a Evaluation,
    /// What tells the model's weights from all others.
    pub model: String,
    /// Shares of the job that are done before and after.
    pub share: (f64, f64),
}

impl Scoring<'_> {
    /// Scores the model; says who did. What sampling and scoring take is added to `device_seconds` as it goes.
    pub(super) fn run(&self, unet: &UNet, device_seconds: &mut DeviceSeconds) -> Result<(Score, String), JobError> {
        let &Self {
            context,
            assets,
            evaluation,
            share: (from, to),
            ..
        } = self;
        let before = *device_seconds;
        let folder = context.settings.cache.join("vbench");
        let evaluator = match evaluation.evaluator.as_str() {
            VBENCH_EVALUATOR => Evaluator::VBench {
                environment: context.settings.vbench.as_ref().ok_or_else(|| {
                    JobError::Attempt("this worker was started without an environment for `vbench`".to_owned())
                })?,
                folder: &folder,
                model: &self.model,
                log: context,
            },
            _ => Evaluator::BuiltIn,
        };
        let line = evaluator.line(assets, evaluation);
        context.log(&line);
        let scored = evaluator.score(assets, evaluation, unet, &mut |so_far| {
            device_seconds.sample = before.sample + so_far.sample_seconds;
            device_seconds.score = before.score + so_far.score_seconds;
            context.spent(*device_seconds);
            context.figures(figures(&so_far.metrics));
            match context.progress(from + (to - from) * so_far.share, "sampling and scoring") {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        let score = scored.map_err(told)?;
        device_seconds.sample = before.sample + score.sample_seconds;
        device_seconds.score = before.score + score.score_seconds;
        Ok((score, line))
    }
}

/// Whether another attempt may fare better.
fn told(error: ScoringError) -> JobError {
    match error {
        ScoringError::Interrupted | ScoringError::VBench(VBenchError::Interrupted) => JobError::Interrupted,
        ScoringError::Dimension { .. }
        | ScoringError::TooFew { .. }
        | ScoringError::Prompts { .. }
        | ScoringError::NoNumbers { .. }
        | ScoringError::Preset { .. }
        | ScoringError::Pictures { .. }
        | ScoringError::NoEvaluators { .. } => JobError::Input(error.to_string()),
        ScoringError::VBench(VBenchError::Unknown { .. } | VBenchError::TooMany { .. } | VBenchError::Name { .. }) => {
            JobError::Input(error.to_string())
        }
        ScoringError::VBench(_) | ScoringError::Picture(_) => JobError::Attempt(error.to_string()),
    }
}

/// Estimates as the wire has them.
pub(super) fn figures(estimates: &BTreeMap<String, Estimate>) -> Metrics {
    let figure = |estimate: &Estimate| Figure {
        value: estimate.value,
        standard_error: estimate.standard_error,
    };
    estimates
        .iter()
        .map(|(name, estimate)| (name.clone(), figure(estimate)))
        .collect()
}
