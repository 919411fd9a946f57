//! The state of a training apart from what is trained: weights, their average, the optimizer's moments, steps taken.

use std::time::Instant;

use search_spaces::TrainingSettings;
use tch::{Kind, TchError, Tensor};

use super::average::Average;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::optimizer::{AdamW, AdamWConfig};

/// Moves some weights down the gradient of a loss, in float32 by one process. Everything random in the loss must come
/// from the number of the step.
#[derive(Debug)]
pub struct Descent<'a> {
    optimizer: AdamW,
    average: Option<Average>,
    settings: &'a TrainingSettings,
    step: u64,
    step_ms: Vec<f64>,
}

impl<'a> Descent<'a> {
    /// Of those of `variables` that are trainable, at step 0.
    pub fn new(variables: impl IntoIterator<Item = (String, Tensor)>, settings: &'a TrainingSettings) -> Self {
        let config = AdamWConfig {
            beta1: settings.betas[0],
            beta2: settings.betas[1],
            weight_decay: settings.weight_decay,
            max_gradient_norm: settings.max_gradient_norm,
            ..Default::default()
        };
        let optimizer = AdamW::new(variables, config);
        let average = settings.ema.map(|decay| Average::new(decay, optimizer.masters()));
        Self {
            optimizer,
            average,
            settings,
            step: 0,
            step_ms: Vec::new(),
        }
    }

    /// Steps taken.
    #[must_use]
    pub const fn step_number(&self) -> u64 {
        self.step
    }

    /// Milliseconds of each step that was taken here.
    pub fn step_milliseconds(&self) -> &[f64] {
        &self.step_ms
    }

    /// One step down the mean of the losses of the settings' micro-batches; that mean.
    ///
    /// # Errors
    /// The first of `loss`, which is given the number of a micro-batch, from 0.
    pub fn step<E>(&mut self, mut loss: impl FnMut(u32) -> Result<Tensor, E>) -> Result<f64, E> {
        let started = Instant::now();
        self.optimizer.zero_gradients();
        let parts = self.settings.accumulate.max(1);
        let mut total: Option<Tensor> = None;
        for part in 0..parts {
            let share = loss(part)? / f64::from(parts);
            share.backward();
            let share = share.detach();
            total = Some(total.map_or_else(|| share.shallow_clone(), |total| total + &share));
        }
        self.optimizer.step(self.settings.learning_rate_at(self.step));
        if let Some(average) = &mut self.average {
            average.follow(self.optimizer.masters());
        }
        self.step += 1;
        // Reading the loss waits for an accelerator to finish, so the time is that of the whole step.
        let loss = total.map_or(0.0, |total| total.to_kind(Kind::Double).double_value(&[]));
        self.step_ms.push(started.elapsed().as_secs_f64() * 1000.0);
        Ok(loss)
    }

    /// Ends the training: the variables are left with the weights that count, their average where one was asked for.
    ///
    /// # Errors
    /// Where libtorch cannot copy a tensor.
    pub fn finish(mut self) -> Result<(), TchError> {
        for (name, weight) in self.average.take().iter().flat_map(Average::weights) {
            self.optimizer.set_master(name, weight)?;
        }
        Ok(())
    }

    /// Weights, their average, moments and step, from which [`Self::restore`] goes on.
    #[must_use]
    pub fn checkpoint(&self) -> Checkpoint {
        let weights = self.optimizer.masters();
        let weights = weights.map(|(name, w)| (format!("weights.{name}"), w.shallow_clone()));
        let moments = self.optimizer.state().into_iter();
        let moments = moments.map(|(name, m)| (format!("optimizer.{name}"), m));
        let average = self.average.iter().flat_map(Average::state);
        Checkpoint::new(self.step, weights.chain(moments).chain(average))
    }

    /// Goes on from a checkpoint of the same weights; from any other it takes nothing.
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
        if let Some(average) = &mut self.average {
            average.check(checkpoint)?;
            average.restore(checkpoint)?;
        }
        for (name, weight) in checkpoint.under("weights.") {
            self.optimizer.set_master(&name, &weight)?;
        }
        self.optimizer.load_state(&checkpoint.under("optimizer."))?;
        self.step = checkpoint.step;
        Ok(())
    }
}
