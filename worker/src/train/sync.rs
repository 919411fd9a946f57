//! The place between backward pass and optimizer step where several devices agree on the gradients.

use tch::Tensor;

use crate::distributed::Overlap;

/// Brings the gradients of all ranks together. A training alone has none.
///
/// The gradients are those of [`super::Training::variables`], read and written at the variables (`Tensor::grad`), in
/// float32 whatever the precision of the model. The mean over ranks is what belongs there: the loss of each rank is a
/// mean over its own clips.
pub trait GradientSync: std::fmt::Debug {
    /// This rank's rows of a tensor of the global batch, `[batch, …]`.
    ///
    /// # Errors
    /// Where the batch does not come apart into equal shares.
    fn share(&self, global: &Tensor) -> Result<Tensor, SyncError> {
        Ok(global.shallow_clone())
    }

    /// The backward pass that completes the gradients of a step is about to begin: from now on they may travel as soon
    /// as each is whole. The micro-batches before, if any, have been added up already.
    fn begin_backward(&mut self);

    /// That pass has ended. When this returns, every gradient is the mean over all ranks.
    ///
    /// # Errors
    /// Where a rank is lost or the gradients cannot travel.
    fn finish(&mut self) -> Result<(), SyncError>;

    /// Mean over the ranks of the losses of their shares.
    ///
    /// # Errors
    /// Where a rank is lost.
    fn mean(&self, loss: Tensor) -> Result<Tensor, SyncError> {
        Ok(loss)
    }

    /// How far the last step's exchange ran beside its backward pass.
    fn overlap(&self) -> Overlap {
        Overlap::default()
    }
}

/// Several ranks did not come together.
#[derive(Debug, thiserror::Error)]
#[error("the ranks of this training did not come together: {0}")]
pub struct SyncError(pub String);

/// Why a training ended before its last step.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The clips of a step could not be had.
    #[error("the clips of step {step}: {source}")]
    Clips {
        /// The step, from 0.
        step: u64,
        /// What their source says.
        source: super::ClipsError,
    },
    /// Another attempt comes to the same.
    #[error("at step {step} the loss is {loss} and the norm of its gradients {norm}; a lower learning rate may help")]
    Diverged {
        /// The step, from 0.
        step: u64,
        /// Its loss.
        loss: f64,
        /// The norm of the gradients.
        norm: f64,
    },
    /// Several ranks did not come together.
    #[error(transparent)]
    Sync(#[from] SyncError),
}
