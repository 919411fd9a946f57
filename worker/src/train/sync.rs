//! The place between backward pass and optimizer step where several devices agree on the gradients.

/// Brings the gradients of all ranks together. A training alone has none.
///
/// The gradients are those of [`super::Training::variables`], read and written at the variables (`Tensor::grad`), in
/// float32 whatever the precision of the model. The mean over ranks is what belongs there: the loss of each rank is a
/// mean over its own clips.
pub trait GradientSync: std::fmt::Debug {
    /// The backward pass that completes the gradients of a step is about to begin: from now on they may travel as soon
    /// as each is whole. The micro-batches before, if any, have been added up already.
    fn begin_backward(&mut self);

    /// That pass has ended. When this returns, every gradient is the mean over all ranks.
    ///
    /// # Errors
    /// Where a rank is lost or the gradients cannot travel.
    fn finish(&mut self) -> Result<(), SyncError>;
}

/// The gradients of several ranks did not come together.
#[derive(Debug, thiserror::Error)]
#[error("the gradients of this step did not come together: {0}")]
pub struct SyncError(pub String);
