//! Several processes that train one model together: data parallel.
//!
//! Each process (a rank) holds the whole model and takes its share of each batch; gradients are averaged over the ranks
//! while the backward pass still runs, so all take the same step. The engine is libtorch's own c10d: Gloo on
//! processors, NCCL on CUDA where libtorch brings it.
//!
//! Ranks find each other through a store that rank 0 serves. Neither the store nor the collectives know passwords or
//! encryption: they belong on a network whose every user is trusted.

mod data_parallel;
mod group;
mod measure;
mod reducer;
#[cfg(test)]
pub(crate) mod testing;

use std::net::SocketAddr;

pub use data_parallel::DataParallel;
pub use group::{Group, Reduction};
pub use job_client::Gang;
pub use measure::{DataParallelArgs, command};
pub use reducer::{Overlap, Reducer, ReducerConfig};

use crate::checkpoint::CheckpointError;
use crate::shim::c10d::C10dError;

/// Why processes do not work together.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// A place that no group has.
    #[error("rank {rank} of {ranks}; ranks are numbered from 0 and there is at least one")]
    Place {
        /// The rank.
        rank: u32,
        /// Number of ranks.
        ranks: u32,
    },
    /// Rank 0 cannot serve the store.
    #[error("rank 0 cannot listen on {store}: {source}")]
    Listen {
        /// The address.
        store: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is no way to the store.
    #[error("no network leads to the store of rank 0 on {store}: {source}")]
    Route {
        /// The address.
        store: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The ranks did not find together in time.
    #[error("rank {rank} of {ranks} did not find the others through the store on {store}: {source}")]
    Join {
        /// This rank.
        rank: u32,
        /// Number of ranks.
        ranks: u32,
        /// Where the store was looked for.
        store: SocketAddr,
        /// libtorch's words.
        source: C10dError,
    },
    /// A collective failed: a peer is gone, or did not come in time. The group is of no more use.
    #[error("{what} at rank {rank} of {ranks} failed, a peer may be lost: {source}")]
    Collective {
        /// The collective.
        what: &'static str,
        /// This rank.
        rank: u32,
        /// Number of ranks.
        ranks: u32,
        /// libtorch's words.
        source: C10dError,
    },
    /// A gradient changed after it had been sent.
    #[error(
        "the gradient of `{0}` grew again after it had been sent: a weight used in several backward passes of one step \
         needs `begin(false)` before all but the last"
    )]
    Grew(String),
    /// A weight cannot take part.
    #[error("`{name}` cannot be trained by several processes: {source}")]
    Weight {
        /// The weight.
        name: String,
        /// libtorch's words.
        source: C10dError,
    },
    /// A batch that does not come apart into equal shares.
    #[error("a batch of {batch} cannot be shared equally among {ranks} ranks; it must be a multiple of {ranks}")]
    Batch {
        /// Its size.
        batch: i64,
        /// Number of ranks.
        ranks: u32,
    },
    /// Rank 0's state does not fit this rank's training.
    #[error("the state of rank 0 does not fit: {0}")]
    State(#[from] CheckpointError),
    /// libtorch refused a tensor.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
