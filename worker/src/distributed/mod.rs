//! Several processes that train one model together.

use std::net::SocketAddr;

/// One process's place among those that train one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gang {
    /// Its number, from 0; rank 0 serves the store and saves checkpoints.
    pub rank: u32,
    /// Number of processes.
    pub ranks: u32,
    /// Where rank 0's store listens.
    pub store: SocketAddr,
    /// Tells attempts apart: no two that could reach the same store may share it.
    pub generation: String,
}
