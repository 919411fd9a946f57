//! The stages of a plan, one after the other, each a [`Training`] with a [`Lesson`] as its objective.

use std::collections::HashMap;
use std::ops::ControlFlow;

use tch::{TchError, Tensor};

use super::copy_map::{CopyMapError, shared_positions};
use super::loss::{Lesson, Teacher, Terms};
use super::network::Network;
use super::plan::{Plan, PlanStage};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::latents::Batch;
use crate::distributed::{Group, GroupError, ReducerConfig};
use crate::models::seeded::stream_of;
use crate::train::{ClipsError, TrainError, Training};

/// Note of a checkpoint that says in which stage it was taken.
const STAGE: &str = "stage";

/// A pruning: both networks and what is done.
#[derive(Debug, Clone, Copy)]
pub struct Pruning<'a> {
    /// The full network; it is not changed.
    pub full: &'a Network,
    /// The pruned one at its start; it is not changed either.
    pub start: &'a Network,
    /// What is done.
    pub plan: &'a Plan,
    /// The processes that do it together, where there are several; all begin with checkpoints of the same stage, and
    /// with rank 0's state within it.
    pub group: Option<&'a Group>,
}

/// Where a pruning stands after a step.
#[derive(Debug)]
pub struct Progress<'a> {
    /// The stage.
    pub stage: PlanStage<'a>,
    /// Steps taken, over all stages.
    pub step: u64,
    /// The loss of the last step.
    pub loss: f64,
    /// Its terms, of the last micro-batch.
    pub terms: Terms,
    index: usize,
    training: &'a Training<'a>,
}

impl Progress<'_> {
    /// From which [`Pruning::run`] goes on.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let mut checkpoint = self.training.checkpoint();
        checkpoint.notes.insert(STAGE.to_owned(), self.index.to_string());
        checkpoint
    }

    /// Milliseconds of the last step.
    #[must_use]
    pub fn step_milliseconds(&self) -> f64 {
        self.training.step_milliseconds().last().copied().unwrap_or_default()
    }

    /// Whether the stage's recipe asks for a checkpoint now.
    #[must_use]
    pub fn is_checkpoint_due(&self) -> bool {
        let settings = self.stage.settings;
        let every = u64::from(settings.checkpoint_every.max(1));
        self.training.step_number().is_multiple_of(every)
    }
}

/// Why a pruning ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum PruningError {
    /// Whoever follows it does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The networks do not fit.
    #[error(transparent)]
    CopyMap(#[from] CopyMapError),
    /// The checkpoint belongs to another pruning.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A step could not be taken.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Several processes did not come together.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// They did not begin with checkpoints of the same stage.
    #[error("rank {rank} begins with stage {found} of the plan and rank 0 with stage {expected}")]
    Stage {
        /// This rank.
        rank: u32,
        /// Its stage, from 0.
        found: usize,
        /// Rank 0's.
        expected: i64,
    },
    /// libtorch refused something.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl Pruning<'_> {
    /// Goes through all stages, from a checkpoint where there is one, and returns the network that came out.
    ///
    /// `batches` gives the single latent frames of a step within a stage; `after` sees every step.
    ///
    /// # Errors
    /// Where the checkpoint is that of another pruning, `after` breaks off, or libtorch fails.
    pub fn run(
        &self,
        checkpoint: Option<&Checkpoint>,
        batches: &dyn Fn(usize, &PlanStage<'_>, u64) -> Result<Batch, ClipsError>,
        after: &mut dyn FnMut(&Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Network, PruningError> {
        let shared = shared_positions(&self.full.config, &self.start.config)?;
        let first = checkpoint.map_or(Ok(0), stage_of)?;
        let mut network = self.start.with_weights(&HashMap::new())?;
        let mut before = 0;
        for (index, stage) in self.plan.stages().into_iter().enumerate() {
            let steps = u64::from(stage.settings.steps);
            if index >= first {
                let teacher = Teacher {
                    unet: &self.full.unet,
                    predicts: stage.teacher,
                    shared: &shared,
                };
                let lesson = Lesson::new(stage.process, stage.weights, teacher);
                let seed = self.plan.seed ^ stream_of(stage.name);
                let training = Training::of_trainable(&network.unet, &network.vs, stage.settings, seed)?;
                let mut training = training.with_objective(Box::new(&lesson));
                if let Some(checkpoint) = checkpoint.filter(|_| index == first) {
                    training.restore(checkpoint)?;
                }
                if let Some(group) = self.group {
                    agree_on(group, index)?;
                    training = training.with_group(group.clone(), ReducerConfig::default())?;
                }
                let mut told = |training: &Training<'_>, loss| {
                    after(&Progress {
                        stage,
                        step: before + training.step_number(),
                        loss,
                        terms: lesson.last(),
                        index,
                        training,
                    })
                };
                if training
                    .run(steps, &|step| batches(index, &stage, step), &mut told)?
                    .is_break()
                {
                    return Err(PruningError::Interrupted);
                }
                // A network of its own in float32, whatever this stage computed in.
                let weights: HashMap<String, Tensor> = training.finish()?.into_iter().collect();
                network = self.start.with_weights(&weights)?;
            }
            before += steps;
        }
        Ok(network)
    }
}

/// Two stages have gradients of the same shapes: ranks in different ones would train something else in silence.
fn agree_on(group: &Group, index: usize) -> Result<(), PruningError> {
    let of_first = Tensor::from_slice(&[index as i64]);
    group.broadcast(std::slice::from_ref(&of_first), 0)?;
    let expected = of_first.f_int64_value(&[0])?;
    if expected == index as i64 {
        return Ok(());
    }
    Err(PruningError::Stage {
        rank: group.rank(),
        found: index,
        expected,
    })
}

fn stage_of(checkpoint: &Checkpoint) -> Result<usize, CheckpointError> {
    let note = checkpoint.notes.get(STAGE).and_then(|note| note.parse().ok());
    note.ok_or_else(|| CheckpointError::Missing(STAGE.to_owned()))
}

#[cfg(test)]
mod tests {
    use search_spaces::{Dtype, UnetConfig};
    use tch::Device;

    use super::*;
    use crate::distributed::testing::together;
    use crate::models::seeded::{generator, normal_from};
    use crate::prune::tests::plan;

    fn config() -> UnetConfig {
        UnetConfig {
            latent_channels: 4,
            frames: 3,
            height: 4,
            width: 4,
            channels: vec![8, 16],
            layers_per_block: 2,
            attention: vec![false, true],
            middle: true,
            heads: 2,
            text_tokens: 4,
            text_width: 8,
            norm_groups: 4,
            ff_multiplier: 2,
            qk_norm: false,
            rope: false,
            dtype: Dtype::F32,
            parts: 1,
        }
    }

    fn smaller() -> UnetConfig {
        UnetConfig {
            channels: vec![8, 8],
            layers_per_block: 1,
            qk_norm: true,
            rope: false,
            ..config()
        }
    }

    fn batch(index: usize, _: &PlanStage<'_>, step: u64) -> Result<Batch, ClipsError> {
        let noise = |stream, shape: &[i64]| {
            normal_from(&mut generator(77 + index as u64, 2 * step + stream), shape, Device::Cpu)
        };
        Ok(Batch {
            latents: noise(0, &[4, 4, 1, 4, 4]),
            text: noise(1, &[4, 4, 8]),
            pooled: None,
        })
    }

    fn networks() -> (Network, Network) {
        let full = Network::seeded(&config(), 1, Device::Cpu);
        let pruned = full.pruned(&smaller(), 2).unwrap();
        (full, pruned)
    }

    type Losses = Vec<(String, f64)>;

    /// The losses, and the network or the checkpoint at which it was broken off.
    fn run(plan: &Plan, checkpoint: Option<&Checkpoint>, until: u64) -> (Losses, Option<Network>, Option<Vec<u8>>) {
        let (full, start) = networks();
        let pruning = Pruning {
            full: &full,
            start: &start,
            plan,
            group: None,
        };
        let (mut losses, mut saved) = (Vec::new(), None);
        let network = pruning.run(checkpoint, &batch, &mut |progress| {
            losses.push((progress.stage.name.to_owned(), progress.loss));
            if progress.step < until {
                return ControlFlow::Continue(());
            }
            saved = Some(progress.checkpoint().encode().unwrap());
            ControlFlow::Break(())
        });
        (losses, network.ok(), saved)
    }

    fn weights(network: &Network) -> Vec<(String, Vec<f32>)> {
        let mut all: Vec<_> = network.vs.variables().into_iter().collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        let flat = |w: &Tensor| Vec::try_from(w.detach().flatten(0, -1)).unwrap();
        all.iter().map(|(name, w)| (name.clone(), flat(w))).collect()
    }

    /// Distillation from a diffusion model, then adaptation to rectified flow with the teacher's velocity; broken off
    /// within each stage, and at the end of the first.
    #[test]
    fn a_pruning_resumed_from_its_checkpoint_ends_with_the_same_network() {
        let plan = plan(6, 6);
        let (straight_losses, straight, _) = run(&plan, None, u64::MAX);
        let straight = weights(&straight.unwrap());
        assert_eq!(straight_losses.len(), 12);
        assert!(straight_losses[..6].iter().all(|(stage, _)| stage == "distil"));
        for at in [4, 6, 9] {
            let (mut losses, _, saved) = run(&plan, None, at);
            let checkpoint = Checkpoint::decode(&saved.unwrap()).unwrap();
            let (more, network, _) = run(&plan, Some(&checkpoint), u64::MAX);
            losses.extend(more);
            assert_eq!(losses, straight_losses, "broken off at {at}");
            assert_eq!(weights(&network.unwrap()), straight, "broken off at {at}");
        }
    }

    #[test]
    fn the_teacher_stays_as_it_is_and_the_pruned_network_comes_closer_to_it() {
        let plan = Plan {
            adaptation: None,
            ..plan(60, 1)
        };
        let (full, start) = networks();
        let before = weights(&full);
        let pruning = Pruning {
            full: &full,
            start: &start,
            plan: &plan,
            group: None,
        };
        let mut apart = Vec::new();
        let trained = pruning.run(None, &batch, &mut |progress| {
            apart.push(progress.terms.output + progress.terms.feature);
            ControlFlow::Continue(())
        });
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (first, last) = (mean(&apart[..5]), mean(&apart[55..]));
        assert!(last < 0.75 * first, "{first} to {last}");
        assert_eq!(weights(&full), before);
        assert_ne!(weights(&trained.unwrap()), weights(&start));
    }

    #[test]
    fn a_checkpoint_of_another_pruning_is_refused() {
        let plan = plan(2, 2);
        let (full, start) = networks();
        let error = Pruning {
            full: &full,
            start: &start,
            plan: &plan,
            group: None,
        }
        .run(
            Some(&Checkpoint::new(1, [])),
            &batch,
            &mut |_| ControlFlow::Continue(()),
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "the checkpoint has no `stage`");
    }

    #[test]
    fn ranks_that_begin_with_different_stages_end_instead_of_training_something_else() {
        let plan = plan(2, 4);
        let (_, _, saved) = run(&plan, None, 4);
        let saved = saved.unwrap();
        let ended = together(2, |group| {
            let (full, start) = networks();
            let pruning = Pruning {
                full: &full,
                start: &start,
                plan: &plan,
                group: Some(&group),
            };
            // Rank 1 could not read its checkpoint.
            let checkpoint = (group.rank() == 0).then(|| Checkpoint::decode(&saved).unwrap());
            let ended = pruning.run(checkpoint.as_ref(), &batch, &mut |_| ControlFlow::Continue(()));
            ended.unwrap_err().to_string()
        });
        assert_eq!(
            ended[1],
            "rank 1 begins with stage 0 of the plan and rank 0 with stage 1"
        );
        assert!(ended[0].contains("a peer may be lost"), "{}", ended[0]);
    }
}
