//! Pruning of the spatial backbone: a smaller UNet starts from parts of a full one and learns from it (the paper's
//! section 4, "Training"; BK-SDM, Kim et al. 2023).

mod command;
pub mod comparison;
pub mod copy_map;
mod layout;
pub mod loss;
pub mod material;
pub mod process;
pub mod recipe;
pub mod training;

pub use command::{PruneArgs, command};
