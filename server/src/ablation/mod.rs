//! The paper's ablations, without any I/O: which deployments a table needs, and what their results come to.

mod edit;
mod figures;
mod paper;
mod plan;
mod radar;
mod table;

use protocol::deployments::DeployStep;

pub use edit::EditError;
pub use plan::{Aim, Part, Plan, plan};
pub use radar::{Radar, radar};
pub use table::{Results, fill};

/// The most trainings of a cell.
pub const MOST_SEEDS: u32 = 20;

/// Steps that the baseline of a table does, whose recipes it needs.
#[must_use]
pub fn baseline_steps(table: protocol::ablations::AblationKind, goes_on: bool, is_measured: bool) -> Vec<DeployStep> {
    use protocol::ablations::AblationKind::{Figure6, Table3, Table4, Table5};
    match table {
        Table3 if is_measured => vec![DeployStep::TrainFinal, DeployStep::Export, DeployStep::ProfileModel],
        Table3 | Figure6 => vec![DeployStep::TrainFinal],
        Table4 | Table5 if goes_on => vec![DeployStep::Distill],
        Table4 | Table5 => vec![DeployStep::TrainFinal, DeployStep::Distill],
    }
}
