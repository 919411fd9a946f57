//! What a training needs to be one of several.

use tch::Tensor;

use super::{Group, GroupError, Overlap, Reducer, ReducerConfig, Reduction};
use crate::train::{GradientSync, SyncError};

/// A training's part in a group: its share of each batch, and gradients and losses over all shares.
///
/// All ranks draw the same global batch, noise and times, and take their rows of them: so one process and several see
/// the same samples.
#[derive(Debug)]
pub struct DataParallel {
    group: Group,
    reducer: Reducer,
    overlap: Overlap,
}

impl DataParallel {
    /// Begins to watch the gradients of weights, named in the order of their use. All ranks hold the same weights
    /// already ([`Group::broadcast`]).
    ///
    /// # Errors
    /// Where a weight is not trainable.
    pub fn new(group: Group, weights: &[(String, Tensor)], config: ReducerConfig) -> Result<Self, GroupError> {
        Ok(Self {
            reducer: Reducer::new(&group, weights, config)?,
            group,
            overlap: Overlap::default(),
        })
    }
}

impl GradientSync for DataParallel {
    fn share(&self, global: &Tensor) -> Result<Tensor, SyncError> {
        let (batch, ranks) = (global.size()[0], self.group.ranks());
        if batch % i64::from(ranks) != 0 {
            return Err(GroupError::Batch { batch, ranks }.into());
        }
        let rows = batch / i64::from(ranks);
        let share = global.f_narrow(0, i64::from(self.group.rank()) * rows, rows);
        share.map_err(|error| GroupError::from(error).into())
    }

    fn begin_backward(&mut self) {
        self.reducer.begin(true);
    }

    fn finish(&mut self) -> Result<(), SyncError> {
        self.overlap = self.reducer.finish()?;
        Ok(())
    }

    fn mean(&self, loss: Tensor) -> Result<Tensor, SyncError> {
        let mut loss = [loss];
        self.group.all_reduce(&mut loss, Reduction::Mean)?;
        let [mean] = loss;
        Ok(mean)
    }

    fn overlap(&self) -> Overlap {
        self.overlap
    }
}

impl From<GroupError> for SyncError {
    fn from(error: GroupError) -> Self {
        Self(error.to_string())
    }
}
