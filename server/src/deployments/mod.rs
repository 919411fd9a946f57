//! Deployments: chains of jobs that take a candidate to a device.
//!
//! As with searches, what is stored decides, a pure function says what follows, one transaction moves on, and nothing
//! is remembered between two moves.

pub mod ablations;
mod advance;
mod check;
pub mod plan;
mod report;
mod steering;
pub mod views;

use protocol::{AblationId, CandidateId, DeploymentId, FieldProblem, deployments::DeploymentState};

pub use advance::{advance, advance_all, advance_of};
pub use check::submit;
pub use plan::steps;
pub use report::report;
pub use steering::{cancel, retry};

use crate::{artifacts::ArtifactError, job_requests::JobRequestError, search::SearchError, store::StoreError};

/// Why a deployment cannot be made, steered or moved on.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// There is no such deployment.
    #[error("there is no deployment {0}")]
    NotFound(DeploymentId),
    /// There is no such ablation.
    #[error("there is no ablation {0}")]
    NoAblation(AblationId),
    /// There is no such candidate.
    #[error("there is no candidate {0}")]
    NoCandidate(CandidateId),
    /// Fields of the request are wrong.
    #[error("the request cannot be accepted")]
    Invalid(Vec<FieldProblem>),
    /// The number is another one's.
    #[error("{0} is another one; draw a fresh id")]
    IdTaken(uuid::Uuid),
    /// It cannot be done in the state it is in.
    #[error("deployment {id} is {}; {wish}", state.as_str())]
    WrongState {
        /// The deployment.
        id: DeploymentId,
        /// Where it stands.
        state: DeploymentState,
        /// What was asked for and when it can be done.
        wish: &'static str,
    },
    /// The space is wrong.
    #[error(transparent)]
    Space(#[from] SearchError),
    /// A file cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A figure cannot be drawn.
    #[error(transparent)]
    Plot(#[from] crate::plots::PlotError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<JobRequestError> for DeploymentError {
    fn from(error: JobRequestError) -> Self {
        match error {
            JobRequestError::Invalid(errors) => Self::Invalid(errors),
            JobRequestError::Space(error) => Self::Space(error),
            JobRequestError::Store(error) => Self::Store(error),
            error => Self::Invalid(vec![field("input", error.to_string())]),
        }
    }
}

/// A field at fault.
fn field(field: &str, message: String) -> FieldProblem {
    FieldProblem {
        field: field.to_owned(),
        line: None,
        column: None,
        message,
    }
}
