//! The domain of temponas: space files, architectures, what they cost in closed form, which of them
//! are worth keeping, and the strategies that propose the next one.
//!
//! Everything here is pure and deterministic: no files, no clock, no network, no threads, and every
//! random draw comes from a seed. Text goes in, values come out, so a crash replays to the same search.

mod action;
mod architecture;
mod block;
mod cholesky;
mod costs;
pub mod counts;
mod dtype;
pub mod hypervolume;
mod operator;
pub mod pareto;
mod ranges;
mod schedule;
pub mod search;
mod shape;
mod space;
mod staircase;
pub mod strategies;
mod structure;
mod table;
mod unet;
pub mod vbench;

pub use action::{Action, Neighbour};
pub use architecture::{Architecture, ArchitectureError};
pub use block::Block;
pub use cholesky::Cholesky;
pub use costs::{Costs, Estimate, Infeasible, NoCosts};
pub use counts::{Work, work};
pub use dtype::{Dtype, UnknownDtype};
pub use operator::{Operator, TemporalLayer};
pub use ranges::{Ranges, RangesError};
pub use schedule::{Step, heaviest_part};
pub use shape::Shape;
pub use space::{
    ActionMode, ActionsSettings, Adversarial, BUILT_IN_DIMENSIONS, Choice, Decoder, Direction, Distillation,
    Evaluation, Heads, Joint, Limits, Mix, Nsga2Settings, Objective, Pipeline, Position, Precision, Prediction,
    Problem, Recipe, Reference, SearchSettings, Space, SpaceError, SpaceKind, Stage, Start, StrategySettings,
    TableSettings, TimestepShift, TrainingSettings, Trains,
};
pub use structure::Structure;
pub use table::{Table, TableError, TableProblem};
pub use unet::{UnetConfig, UnetPosition};

/// Names of the metrics that every part of temponas knows. A table's columns are further metrics.
pub mod metric {
    /// Score of an evaluation, higher is better.
    pub const QUALITY: &str = "quality";
    /// One forward pass of the UNet at batch 1.
    pub const LATENCY_MS: &str = "latency_ms";
    /// Highest memory in use during one forward pass, weights of the largest part included.
    pub const PEAK_MEMORY_BYTES: &str = "peak_memory_bytes";
    /// Trainable scalars of backbone and temporal layers.
    pub const PARAMETERS: &str = "parameters";
    /// Multiply-accumulate operations of one forward pass.
    pub const MACS: &str = "macs";
    /// Text encoder, all UNet passes of one clip and decoding of all its frames.
    pub const PIPELINE_LATENCY_MS: &str = "pipeline_latency_ms";
    /// The built-in metrics, in the order in which they are shown.
    pub const ALL: [&str; 6] = [
        QUALITY,
        LATENCY_MS,
        PEAK_MEMORY_BYTES,
        PARAMETERS,
        MACS,
        PIPELINE_LATENCY_MS,
    ];
}
