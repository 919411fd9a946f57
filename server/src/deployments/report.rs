//! Everything that a deployment's report shows, from the stores.

use std::collections::BTreeMap;

use protocol::{
    DeploymentId,
    artifacts::{ArtifactRef, ArtifactRole},
    deployments::DeployStep,
    jobs::Outcome,
};

use super::{DeploymentError, advance::results, check::origin, plan::Found, views};
use crate::{
    app::App,
    aside::aside,
    report::{self, Clip, ClipKind, Device, Report},
    store::jobs,
};

/// The most clips of a step.
const MOST_CLIPS: usize = 12;

/// The largest clip, in bytes; a page is read whole.
const LARGEST_CLIP: u64 = 6 << 20;

/// A deployment's report as an HTML page.
///
/// # Errors
/// When there is no such deployment, or a store fails.
pub async fn report(app: &App, id: DeploymentId) -> Result<String, DeploymentError> {
    let row = app.store.deployment(id).await?;
    let row = row.ok_or(DeploymentError::NotFound(id))?;
    let (candidate, search) = origin(app, row.candidate_id).await?;
    let mut connection = app.store.connection().await?;
    let found = results(&mut connection, &row).await?;
    let view = views::deployment(row, &app.store.deployment_steps(&[id]).await?);
    let mut steps = Vec::with_capacity(view.steps.len());
    for step in &view.steps {
        let seconds = match step.job_id {
            Some(job) => jobs::device_seconds(&mut connection, job).await?.total(),
            None => 0.0,
        };
        steps.push((step.step, step.state, seconds));
    }
    drop(connection);
    let device = match &view.settings.profile {
        Some(profile) => app.store.device(&profile.device).await?,
        None => None,
    };
    let report = Report {
        name: search.name,
        architecture: view.architecture,
        candidate: candidate.id.to_string(),
        state: view.state,
        state_reason: view.state_reason,
        steps,
        device: device.map(|shown| Device {
            name: shown.device.name,
            description: shown.device.description,
            memory_bytes: shown.device.memory_bytes,
        }),
        before: clips(app, &found, DeployStep::TrainFinal).await?,
        after: clips(app, &found, DeployStep::Distill).await?,
        training: outcome(&found, DeployStep::TrainFinal, |outcome| match outcome {
            Outcome::TrainFinal(found) => Some(found),
            _ => None,
        }),
        distillation: outcome(&found, DeployStep::Distill, |outcome| match outcome {
            Outcome::Distill(found) => Some(found),
            _ => None,
        }),
        decoder: outcome(&found, DeployStep::CompressDecoder, |outcome| match outcome {
            Outcome::CompressDecoder(found) => Some(found),
            _ => None,
        }),
        export: outcome(&found, DeployStep::Export, |outcome| match outcome {
            Outcome::Export(found) => Some(found),
            _ => None,
        }),
        profile: outcome(&found, DeployStep::ProfileModel, |outcome| match outcome {
            Outcome::ProfileModel(found) => Some(found),
            _ => None,
        }),
        made_at: app.clock.now(),
    };
    Ok(aside(move || report::page(&report)).await)
}

fn outcome<T>(found: &BTreeMap<DeployStep, Found>, step: DeployStep, read: impl Fn(Outcome) -> Option<T>) -> Option<T> {
    read(found.get(&step)?.result.outcome.clone())
}

/// Animations that a step made, as far as a page may hold them.
async fn clips(app: &App, found: &BTreeMap<DeployStep, Found>, step: DeployStep) -> Result<Vec<Clip>, DeploymentError> {
    let files = found
        .get(&step)
        .map_or(&[][..], |found| found.result.artifacts.as_slice());
    let shown = |file: &&ArtifactRef| file.role == ArtifactRole::Animation && file.bytes <= LARGEST_CLIP;
    let mut clips = Vec::new();
    for file in files.iter().filter(shown).take(MOST_CLIPS) {
        let Some(kind) = ClipKind::of(&file.media_type) else {
            continue;
        };
        clips.push(Clip {
            name: file.name.clone(),
            kind,
            bytes: app.artifacts.bytes(&file.digest, LARGEST_CLIP).await?.to_vec(),
        });
    }
    Ok(clips)
}
