//! Training of a candidate's temporal layers on precomputed latents, the backbone frozen.
//!
//! Every draw is named by (seed, step), so the state of a training is its weights, their average, the optimizer's moments
//! and the number of steps taken: from a checkpoint it goes on to the same bytes (same processor, same threads).
//!
//! In bfloat16 the model computes on rounded copies: what is trained has float32 masters in the optimizer, gradients are
//! added up in float32, and what is frozen exists in bfloat16 alone. The sinusoids of the time embedding, statistics of
//! norms, softmax and the loss stay float32.

mod average;
mod descent;
mod objective;
mod sync;

use std::ops::ControlFlow;
use std::time::Instant;

use search_spaces::{Precision, TrainingSettings};
use tch::{Kind, TchError, Tensor, nn};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::data::latents::Batch;
use crate::distributed::{DataParallel, Group, GroupError, ReducerConfig};
use crate::models::UNet;
use crate::models::seeded::{generator, stream_of};
use crate::models::unet::{Activations, freeze_spatial, place_in_pass};
use crate::optimizer::{AdamW, AdamWConfig};
use average::Average;
pub use descent::Descent;
pub use objective::{Flow, Judge, Mean, Noised, Objective};
pub use sync::{GradientSync, SyncError, TrainError};

/// Why the clips of a step could not be had.
pub type ClipsError = Box<dyn std::error::Error + Send + Sync>;

/// A training in progress.
#[derive(Debug)]
pub struct Training<'a> {
    unet: &'a UNet,
    objective: Box<dyn Objective + 'a>,
    variables: Vec<(String, Tensor)>,
    optimizer: AdamW,
    average: Option<Average>,
    sync: Option<Box<dyn GradientSync + 'a>>,
    settings: &'a TrainingSettings,
    seed: u64,
    step: u64,
    step_ms: Vec<f64>,
}

impl<'a> Training<'a> {
    /// Starts at step 0 with the weights as they are; freezes the spatial weights of `vs`, and brings all of them to the
    /// precision that is asked for.
    ///
    /// # Errors
    /// Where libtorch refuses the precision.
    pub fn new(unet: &'a UNet, vs: &nn::VarStore, settings: &'a TrainingSettings, seed: u64) -> Result<Self, TchError> {
        freeze_spatial(vs);
        Self::of_trainable(unet, vs, settings, seed)
    }

    /// The same for whatever `vs` leaves trainable, as the joint training of all weights.
    ///
    /// # Errors
    /// Where libtorch refuses the precision.
    pub fn of_trainable(
        unet: &'a UNet,
        vs: &nn::VarStore,
        settings: &'a TrainingSettings,
        seed: u64,
    ) -> Result<Self, TchError> {
        let (mut variables, frozen): (Vec<_>, Vec<_>) = vs
            .variables()
            .into_iter()
            .partition(|(_, variable)| variable.requires_grad());
        variables.sort_by(|a, b| a.0.cmp(&b.0));
        let config = AdamWConfig {
            beta1: settings.betas[0],
            beta2: settings.betas[1],
            weight_decay: settings.weight_decay,
            max_gradient_norm: settings.max_gradient_norm,
            ..Default::default()
        };
        let trained = variables.iter().map(|(name, w)| (name.clone(), w.shallow_clone()));
        let mut optimizer = AdamW::new(trained, config);
        if settings.precision == Precision::Bf16 {
            optimizer.keep_masters(Kind::BFloat16)?;
            for (_, mut variable) in frozen {
                let rounded = variable.f_to_kind(Kind::BFloat16)?;
                variable.f_set_data(&rounded)?;
            }
        }
        let average = settings.ema.map(|decay| Average::new(decay, optimizer.masters()));
        Ok(Self {
            unet,
            objective: Box::new(Flow::new(settings)),
            variables,
            optimizer,
            average,
            sync: None,
            settings,
            seed,
            step: 0,
            step_ms: Vec::new(),
        })
    }

    /// Minimises `objective` instead of the error of the flow's velocity.
    #[must_use]
    pub fn with_objective(mut self, objective: Box<dyn Objective + 'a>) -> Self {
        self.objective = objective;
        self
    }

    /// Lets the gradients of each step pass through `sync` before the optimizer sees them.
    #[must_use]
    pub fn with_sync(mut self, sync: Box<dyn GradientSync + 'a>) -> Self {
        self.sync = Some(sync);
        self
    }

    /// Makes this training one of several: each rank takes its share of every batch, and all take the same steps. They
    /// go on from rank 0's state, so it alone need restore a checkpoint, and it alone saves them. What is frozen must
    /// be the same on all ranks already.
    ///
    /// # Errors
    /// Where a peer is lost.
    pub fn with_group(mut self, group: Group, config: ReducerConfig) -> Result<Self, GroupError> {
        let mut state = self.checkpoint();
        let step = Tensor::from_slice(&[state.step as i64]);
        group.broadcast(&state.tensors(), 0)?;
        group.broadcast(std::slice::from_ref(&step), 0)?;
        state.step = step.f_int64_value(&[0])? as u64;
        self.restore(&state)?;
        let named = self.variables.iter().map(|(name, v)| (name.clone(), v.shallow_clone()));
        let mut by_use: Vec<(String, Tensor)> = named.collect();
        by_use.sort_by_key(|(name, _)| place_in_pass(name));
        let parallel = DataParallel::new(group, &by_use, config)?;
        Ok(self.with_sync(Box::new(parallel)))
    }

    /// What brings the ranks together, where there are several.
    #[must_use]
    pub fn sync(&self) -> Option<&dyn GradientSync> {
        self.sync.as_deref().map(|sync| sync as &dyn GradientSync)
    }

    /// Steps taken.
    #[must_use]
    pub const fn step_number(&self) -> u64 {
        self.step
    }

    /// Whether there is anything to train.
    #[must_use]
    pub fn has_layers(&self) -> bool {
        !self.variables.is_empty()
    }

    /// The model's trained tensors by name, in the precision in which it computes; their gradients stand at them.
    pub fn variables(&self) -> &[(String, Tensor)] {
        &self.variables
    }

    /// The trained weights by name in float32, as the optimizer moves them.
    pub fn masters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.optimizer.masters()
    }

    /// Milliseconds of each step that was taken here.
    pub fn step_milliseconds(&self) -> &[f64] {
        &self.step_ms
    }

    /// Ends the training: the model is left with the weights that count, their average where one was asked for, and
    /// they are returned in float32, by name.
    ///
    /// # Errors
    /// Where libtorch cannot copy a tensor.
    pub fn finish(mut self) -> Result<Vec<(String, Tensor)>, TchError> {
        if let Some(average) = self.average.take() {
            for (name, weight) in average.weights() {
                self.optimizer.set_master(name, weight)?;
            }
        }
        let masters = self.optimizer.masters();
        Ok(masters
            .map(|(name, master)| (name.to_owned(), master.detach()))
            .collect())
    }

    /// One step; its loss, the mean over all ranks. They draw the same noise and times for the same batch and take their
    /// rows of them, so what is learned from does not depend on their number.
    ///
    /// # Errors
    /// Where the batch cannot be shared, the gradients of several ranks do not come together, or loss or gradients are
    /// no finite numbers.
    pub fn step(&mut self, batch: &Batch) -> Result<f64, TrainError> {
        let started = Instant::now();
        let settings = self.settings;
        let device = batch.latents.device();
        let mut rng = generator(self.seed ^ stream_of("flow"), self.step);
        let share = |global: &Tensor| match &self.sync {
            Some(sync) => sync.share(global),
            None => Ok::<_, SyncError>(global.shallow_clone()),
        };
        let noised = self.objective.noised(batch, &mut rng).try_map(share)?;
        let text = share(&batch.text)?;
        let clips = noised.xs.size()[0];

        self.optimizer.zero_gradients();
        let mut total = Tensor::zeros([], (Kind::Float, device));
        let activations = match settings.gradient_checkpointing {
            true => Activations::Recomputed,
            false => Activations::Kept,
        };
        let parts = i64::from(settings.accumulate).clamp(1, clips.max(1));
        let parts = noised.chunk(parts).into_iter().zip(text.chunk(parts, 0));
        let count = parts.len();
        for (i, (noised, text)) in parts.enumerate() {
            if i + 1 == count {
                self.sync.iter_mut().for_each(|sync| sync.begin_backward());
            }
            // Weighed by its clips: the sum over the parts is the mean over the batch.
            let share = noised.xs.size()[0] as f64 / clips as f64;
            let loss = self.objective.loss(self.unet, &noised, &text, activations) * share;
            loss.backward();
            total += loss.detach();
        }
        if let Some(sync) = &mut self.sync {
            sync.finish()?;
            total = sync.mean(total)?;
        }
        self.objective.follow(&|tensor| match &self.sync {
            Some(sync) => sync.mean(tensor),
            None => Ok(tensor),
        })?;
        let norm = self.optimizer.step(settings.learning_rate_at(self.step));
        // Reading the loss waits for an accelerator to finish, so the time is that of a whole step.
        let loss = total.double_value(&[]);
        if !(loss.is_finite() && norm.is_finite()) {
            let step = self.step;
            return Err(TrainError::Diverged { step, loss, norm });
        }
        if let Some(average) = &mut self.average {
            average.follow(self.optimizer.masters());
        }
        self.step += 1;
        self.step_ms.push(started.elapsed().as_secs_f64() * 1000.0);
        Ok(loss)
    }

    /// Steps until `steps` have been taken or `after` breaks off; `after` sees the number of steps taken and the loss
    /// of the last.
    ///
    /// # Errors
    /// Where `batches` has no clips for a step, and as [`Self::step`].
    pub fn run(
        &mut self,
        steps: u64,
        batches: &dyn Fn(u64) -> Result<Batch, ClipsError>,
        after: &mut dyn FnMut(&Self, f64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, TrainError> {
        while self.has_layers() && self.step < steps {
            let step = self.step;
            let batch = batches(step).map_err(|source| TrainError::Clips { step, source })?;
            let loss = self.step(&batch)?;
            if after(self, loss).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Weights, their average, moments and step, from which [`Self::restore`] goes on.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let masters = self.optimizer.masters();
        let weights = masters.map(|(name, w)| (format!("weights.{name}"), w.shallow_clone()));
        let moments = self.optimizer.state().into_iter();
        let moments = moments.map(|(name, m)| (format!("optimizer.{name}"), m));
        let average = self.average.iter().flat_map(Average::state);
        let all = weights.chain(moments).chain(average).chain(self.objective.state());
        Checkpoint::new(self.step, all)
    }

    /// Goes on from a checkpoint of the same architecture; from any other it takes nothing.
    ///
    /// # Errors
    /// Where a tensor is missing or has another shape.
    pub fn restore(&mut self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        for (name, master) in self.optimizer.masters() {
            checkpoint.check(&format!("weights.{name}"), master)?;
        }
        for (name, moment) in self.optimizer.state() {
            checkpoint.check(&format!("optimizer.{name}"), &moment)?;
        }
        self.objective.check(checkpoint)?;
        if let Some(average) = &mut self.average {
            average.check(checkpoint)?;
            average.restore(checkpoint)?;
        }
        self.objective.restore(checkpoint)?;
        for (name, weight) in checkpoint.under("weights.") {
            self.optimizer.set_master(&name, &weight)?;
        }
        self.optimizer.load_state(&checkpoint.under("optimizer."))?;
        self.step = checkpoint.step;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
