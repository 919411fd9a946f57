//! The training of both decoders, one after the other.

use std::collections::HashMap;
use std::ops::ControlFlow;

use tch::{TchError, Tensor};

use super::Part;
use super::loss::{Lesson, LossWeights, Terms};
use super::material::{Material, Network};
use super::plan::Plan;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::DataError;
use crate::scoring::images::Lpips;
use crate::train::Descent;

/// Note of a checkpoint that says which part was being trained.
const PART: &str = "part";
/// Before the names of weights of a checkpoint whose training has ended.
const DONE: &str = "done.";

/// A compression: what is learned from, what is trained, and how.
#[derive(Debug, Clone, Copy)]
pub struct Compression<'a> {
    /// The original and the clips.
    pub material: &'a Material,
    /// What the compressed VAE begins with; it is not changed.
    pub start: &'a Network,
    /// What is done.
    pub plan: &'a Plan,
    /// For the perceptual term, where the plan has one.
    pub lpips: Option<&'a Lpips>,
}

/// Where a compression stands after a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The decoder that is being trained.
    pub part: Part,
    /// Steps taken, of both.
    pub step: u64,
    /// The loss of the last step.
    pub loss: f64,
    /// Its terms, of the last micro-batch.
    pub terms: Terms,
    index: usize,
    every: u64,
    descent: &'a Descent<'a>,
    network: &'a Network,
}

impl Progress<'_> {
    /// From which [`Compression::run`] goes on.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let weights = self.network.vs.variables().into_iter();
        let done = weights.filter(|(name, weight)| Part::of(name).is_some() && !weight.requires_grad());
        let done = done.map(|(name, weight)| (format!("{DONE}{name}"), weight));
        let mut checkpoint = self.descent.checkpoint().with(done);
        checkpoint.notes.insert(PART.to_owned(), self.index.to_string());
        checkpoint
    }

    /// Milliseconds of the last step.
    #[must_use]
    pub fn step_milliseconds(&self) -> f64 {
        self.descent.step_milliseconds().last().copied().unwrap_or_default()
    }

    /// Whether the recipe asks for a checkpoint now.
    #[must_use]
    pub fn is_checkpoint_due(&self) -> bool {
        self.descent.step_number().is_multiple_of(self.every)
    }
}

/// Why a compression ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// Whoever follows it does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The checkpoint belongs to another compression.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Clips cannot be read.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The perceptual term has no weights.
    #[error(
        "`decoder.perceptual_weight` is {0}, but this worker knows no weights of LPIPS (`--lpips`, `scripts/lpips`)"
    )]
    NoLpips(f64),
    /// libtorch refused something.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl Compression<'_> {
    /// Steps of all parts.
    #[must_use]
    pub fn steps(&self) -> u64 {
        let parts = self.plan.parts(&self.material.original.config).len() as u64;
        parts * u64::from(self.plan.training().steps)
    }

    /// Trains all parts, from a checkpoint where there is one, and returns the VAE that came out, fixed. `after` sees
    /// every step.
    ///
    /// # Errors
    /// Where the checkpoint is that of another compression, `after` breaks off, or clips cannot be read.
    pub fn run(
        &self,
        checkpoint: Option<&Checkpoint>,
        after: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Network, CompressionError> {
        let original = &self.material.original;
        let weights = LossWeights::from(self.plan.settings());
        if weights.perceptual > 0.0 && self.lpips.is_none() {
            return Err(CompressionError::NoLpips(weights.perceptual));
        }
        let first = checkpoint.map_or(Ok(0), part_of)?;
        let done: HashMap<String, Tensor> = checkpoint.map(|checkpoint| checkpoint.under(DONE)).unwrap_or_default();
        let network = self.start.with_weights(&done)?;
        let training = self.plan.training();
        let mut before = 0;
        for (index, part) in self.plan.parts(&original.config).into_iter().enumerate() {
            if index >= first {
                network.train_only(Some(part));
                let lesson = Lesson {
                    part,
                    original: &original.vae,
                    compressed: &network.vae,
                    weights,
                    spread: self.material.spread(part)?,
                    lpips: self.lpips,
                };
                let mut descent = Descent::new(network.vs.variables(), training);
                if let Some(checkpoint) = checkpoint.filter(|_| index == first) {
                    descent.restore(checkpoint)?;
                }
                while descent.step_number() < u64::from(training.steps) {
                    let (step, mut terms) = (descent.step_number(), Terms::default());
                    let loss = descent.step(|micro| {
                        let example = self.material.example(part, self.plan, step, micro)?;
                        let (loss, found) = lesson.loss(&example);
                        terms = found;
                        Ok::<_, CompressionError>(loss)
                    })?;
                    let progress = Progress {
                        part,
                        step: before + descent.step_number(),
                        loss,
                        terms,
                        index,
                        every: u64::from(training.checkpoint_every.max(1)),
                        descent: &descent,
                        network: &network,
                    };
                    if after(&progress).is_break() {
                        return Err(CompressionError::Interrupted);
                    }
                }
                descent.finish()?;
            }
            before += u64::from(training.steps);
        }
        network.train_only(None);
        Ok(network)
    }
}

fn part_of(checkpoint: &Checkpoint) -> Result<usize, CheckpointError> {
    let note = checkpoint.notes.get(PART).and_then(|note| note.parse().ok());
    note.ok_or_else(|| CheckpointError::Missing(PART.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{RECIPE, noise};

    type Weights = Vec<(String, Vec<f32>)>;
    type Losses = Vec<(Part, f64)>;

    fn weights(network: &Network) -> Weights {
        let mut all: Vec<_> = network.vs.variables().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let flat = |weight: &Tensor| Vec::try_from(weight.detach().flatten(0, -1)).unwrap();
        all.iter().map(|(name, weight)| (name.clone(), flat(weight))).collect()
    }

    /// The terms step by step, and the network or the checkpoint at which it was broken off.
    fn run(checkpoint: Option<&Checkpoint>, until: u64) -> (Losses, Option<Network>, Option<Vec<u8>>) {
        let plan = Plan::parse(RECIPE, 5).unwrap();
        let material = noise();
        let config = plan.config(&material.original.config).unwrap();
        let (start, _) = material.original.compressed(&config, 5).unwrap();
        let compression = Compression {
            material: &material,
            start: &start,
            plan: &plan,
            lpips: None,
        };
        let before = weights(&material.original);
        let (mut losses, mut saved) = (Vec::new(), None);
        let network = compression.run(checkpoint, &mut |progress| {
            losses.push((progress.part, progress.loss));
            if progress.step < until {
                return ControlFlow::Continue(());
            }
            saved = Some(progress.checkpoint().encode().unwrap());
            ControlFlow::Break(())
        });
        assert_eq!(weights(&material.original), before, "the original stays as it is");
        (losses, network.ok(), saved)
    }

    /// Broken off within each part and at the end of the first.
    #[test]
    fn a_compression_resumed_from_its_checkpoint_ends_with_the_same_decoders() {
        let (straight_losses, straight, _) = run(None, u64::MAX);
        let straight = weights(&straight.unwrap());
        assert_eq!(straight_losses.len(), 8);
        assert!(straight_losses[..4].iter().all(|(part, _)| *part == Part::Temporal));
        for at in [2, 4, 7] {
            let (mut losses, _, saved) = run(None, at);
            let checkpoint = Checkpoint::decode(&saved.unwrap()).unwrap();
            let (more, network, _) = run(Some(&checkpoint), u64::MAX);
            losses.extend(more);
            assert_eq!(losses, straight_losses, "broken off at {at}");
            assert_eq!(weights(&network.unwrap()), straight, "broken off at {at}");
        }
    }

    #[test]
    fn what_cannot_be_trained_is_told() {
        let material = noise();
        let error = |recipe: &str, checkpoint: Option<&Checkpoint>| {
            let plan = Plan::parse(recipe, 5).unwrap();
            let config = plan.config(&material.original.config).unwrap();
            let (start, _) = material.original.compressed(&config, 5).unwrap();
            let compression = Compression {
                material: &material,
                start: &start,
                plan: &plan,
                lpips: None,
            };
            let ended = compression.run(checkpoint, &mut |_| ControlFlow::Continue(()));
            ended.unwrap_err().to_string()
        };
        let found = error(RECIPE, Some(&Checkpoint::new(1, [])));
        assert_eq!(found, "the checkpoint has no `part`");
        let found = error(
            &RECIPE.replace("pictures = 4", "pictures = 4\nperceptual_weight = 1"),
            None,
        );
        assert!(found.contains("knows no weights of LPIPS"), "{found}");
    }
}
