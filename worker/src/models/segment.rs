//! Blocks of a model as segments whose activations may be computed again instead of being kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tch::Tensor;

use crate::shim::recomputed;

/// What a forward pass leaves for the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activations {
    /// Everything inside the blocks.
    #[default]
    Kept,
    /// The blocks' inputs: the backward pass runs each block once more, which takes a third more time and leaves the
    /// activations of one block alive at a time. The gradients are the same.
    Recomputed,
}

/// A block that the graph of a backward pass can hold on to. The lock is never contended: a block runs forward on one
/// thread, and again in the backward pass for which that thread waits.
#[derive(Debug)]
pub(crate) struct Segment<T>(Arc<Mutex<T>>);

impl<T: Send + 'static> Segment<T> {
    pub(crate) fn new(block: T) -> Self {
        Self(Arc::new(Mutex::new(block)))
    }

    /// What `read` makes of the block.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&locked(&self.0))
    }

    /// `run(block, inputs)`; the inputs are `run`'s to end, which keeps the peak of a pass without gradients low.
    pub(crate) fn run<const N: usize>(
        &self,
        activations: Activations,
        inputs: [Tensor; N],
        run: impl Fn(&T, [Tensor; N]) -> Tensor + Send + Sync + 'static,
    ) -> Tensor {
        if activations == Activations::Kept {
            return run(&locked(&self.0), inputs);
        }
        let block = self.0.clone();
        recomputed(&inputs.each_ref(), move |inputs| {
            let inputs = std::array::from_fn(|i| inputs[i].shallow_clone());
            run(&locked(&block), inputs)
        })
    }
}

/// A block is only read: a panic while it ran left nothing half done.
fn locked<T>(block: &Mutex<T>) -> MutexGuard<'_, T> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}
