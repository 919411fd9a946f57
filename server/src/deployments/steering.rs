//! Cancelling and retrying.

use std::sync::Arc;

use protocol::{DeploymentId, deployments::DeploymentState, jobs::JobState};

use super::{DeploymentError, check::start};
use crate::{
    app::App,
    dispatch::MAX_ATTEMPTS,
    store::{
        Tx,
        deployments::{self, DeploymentRow, StepRow},
        jobs,
    },
};

/// Ends a deployment; whoever does its job learns so by the next heartbeat. Asking again changes nothing.
///
/// # Errors
/// When there is none, or it has ended otherwise; or the store fails.
pub async fn cancel(app: &App, id: DeploymentId) -> Result<(), DeploymentError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let (row, steps) = locked(&mut tx, id).await?;
    match row.state {
        DeploymentState::Cancelled => return Ok(()),
        DeploymentState::Running => {}
        state @ (DeploymentState::Done | DeploymentState::Failed) => {
            let wish = "only one that runs can be cancelled";
            return Err(DeploymentError::WrongState { id, state, wish });
        }
    }
    for step in steps {
        if matches!(step.state, JobState::Queued | JobState::Leased) {
            jobs::cancel(&mut tx, step.job_id, now).await?;
        }
    }
    deployments::set_state(&mut tx, id, DeploymentState::Cancelled, None, now).await?;
    tx.commit(now).await?;
    Ok(())
}

/// Takes a failed or cancelled deployment up again: finished steps stay, the one that ended without a result goes on
/// from its checkpoint. What it goes on from is taken up again with it.
///
/// # Errors
/// When there is none, or it is done; or the store fails.
pub async fn retry(app: &Arc<App>, id: DeploymentId) -> Result<(), DeploymentError> {
    let mut chain = vec![id];
    while let Some(last) = chain.last() {
        let row = app.store.deployment(*last).await?;
        let row = row.ok_or(DeploymentError::NotFound(*last))?;
        match row.after_id {
            Some(before) if row.state != DeploymentState::Done => chain.push(before),
            _ => break,
        }
    }
    // Those that others go on from first, or these would fail again at once.
    for id in chain.into_iter().rev() {
        revive(app, id).await?;
        start(app, id).await;
    }
    Ok(())
}

async fn revive(app: &App, id: DeploymentId) -> Result<(), DeploymentError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    let (row, steps) = locked(&mut tx, id).await?;
    match row.state {
        DeploymentState::Running | DeploymentState::Done => return Ok(()),
        DeploymentState::Failed | DeploymentState::Cancelled => {}
    }
    for step in steps {
        if matches!(step.state, JobState::Failed | JobState::Cancelled) {
            jobs::revive(&mut tx, step.job_id, MAX_ATTEMPTS, now).await?;
        }
    }
    deployments::set_state(&mut tx, id, DeploymentState::Running, None, now).await?;
    tx.commit(now).await?;
    Ok(())
}

/// A deployment, its row and the jobs of its steps locked.
async fn locked(tx: &mut Tx, id: DeploymentId) -> Result<(DeploymentRow, Vec<StepRow>), DeploymentError> {
    let row = deployments::lock(tx, id).await?.ok_or(DeploymentError::NotFound(id))?;
    let asked: Vec<StepRow> = deployments::steps(tx.connection(), &[id]).await?;
    for step in &asked {
        jobs::lock(tx, step.job_id).await?;
    }
    let steps = deployments::steps(tx.connection(), &[id]).await?;
    Ok((row, steps))
}
