//! Deployments as they are shown.

use protocol::{
    DeploymentId, Metrics,
    deployments::{DeployStep, DeploymentView, StepView},
    jobs::{JobState, Outcome},
};

use super::{DeploymentError, plan};
use crate::{
    app::App,
    store::deployments::{DeploymentRow, StepRow},
};

/// One deployment as it is shown.
///
/// # Errors
/// When there is none, or the store fails.
pub async fn view(app: &App, id: DeploymentId) -> Result<DeploymentView, DeploymentError> {
    let row = app.store.deployment(id).await?;
    let row = row.ok_or(DeploymentError::NotFound(id))?;
    let steps = app.store.deployment_steps(&[id]).await?;
    Ok(deployment(row, &steps))
}

/// A deployment with those of the steps that are its own.
#[must_use]
pub fn deployment(row: DeploymentRow, steps: &[StepRow]) -> DeploymentView {
    let own = |step: DeployStep| {
        let found = steps
            .iter()
            .find(|asked| asked.deployment_id == row.id && asked.step == step);
        match found {
            Some(asked) => self::step(asked),
            None => StepView {
                step,
                state: None,
                job_id: None,
                progress: 0.0,
                status: None,
                metrics: Metrics::new(),
            },
        }
    };
    DeploymentView {
        steps: plan::steps(&row.settings).into_iter().map(own).collect(),
        id: row.id,
        candidate_id: row.candidate_id,
        search_id: row.search_id,
        architecture: row.architecture,
        ablation_id: row.ablation_id,
        cell: row.cell,
        settings: row.settings.0,
        state: row.state,
        state_reason: row.state_reason,
        created_at: row.created_at,
        ended_at: row.ended_at,
    }
}

fn step(row: &StepRow) -> StepView {
    let found = row.result.as_ref().map(|result| metrics(&result.outcome));
    StepView {
        step: row.step,
        state: Some(row.state),
        job_id: Some(row.job_id),
        progress: if row.state == JobState::Succeeded {
            1.0
        } else {
            row.progress
        },
        status: row.status.clone(),
        metrics: found.unwrap_or(&row.metrics.0).clone(),
    }
}

/// Figures of a step's result.
#[must_use]
pub fn metrics(outcome: &Outcome) -> &Metrics {
    static NONE: Metrics = Metrics::new();
    match outcome {
        Outcome::TrainFinal(found) => &found.metrics,
        Outcome::Distill(found) => &found.metrics,
        Outcome::CompressDecoder(found) => &found.metrics,
        Outcome::Export(found) => &found.metrics,
        Outcome::ProfileModel(found) => &found.metrics,
        _ => &NONE,
    }
}
