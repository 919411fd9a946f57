//! Asking for a deployment.

use std::sync::Arc;

use protocol::{
    DeploymentId,
    deployments::{DeployStep, DeploymentSettings, NewDeployment},
};
use search_spaces::Space;

use super::{DeploymentError, advance, plan};
use crate::{
    app::App,
    job_requests::{
        JobRequestError,
        check::{Check, RANKS, RUNS, SUSTAINED_SECONDS, UNET_PARTS},
    },
    search::read_space,
    store::{
        candidates::CandidateRow,
        deployments::{self, NewDeploymentRow},
        searches::SearchRow,
    },
};

/// Checks what was asked for, stores it and starts it. Asking again under the same id changes nothing.
///
/// # Errors
/// What is wrong with it, by field; or the store fails.
pub async fn submit(app: &Arc<App>, new: &NewDeployment) -> Result<DeploymentId, DeploymentError> {
    let id = new.id.unwrap_or_default();
    // What was accepted once stays accepted, whatever has become of devices since.
    if let Some(standing) = app.store.deployment(id).await? {
        let is_same = standing.candidate_id == new.candidate_id && standing.settings.0 == new.settings;
        return if is_same {
            Ok(id)
        } else {
            Err(DeploymentError::IdTaken(id.0))
        };
    }
    let (candidate, search) = origin(app, new.candidate_id).await?;
    let space = read_space(&search.space).await?;
    let mut check = Check::new(app);
    check.fresh_id(id.0);
    settings(&mut check, &new.settings, &space).await?;
    after(app, &mut check, new).await?;
    check.finish()?;
    let now = app.clock.now();
    let row = NewDeploymentRow {
        id,
        candidate_id: new.candidate_id,
        settings: &new.settings,
        space: &search.space,
        architecture: &candidate.architecture,
        fresh: false,
        cell: None,
    };
    let mut tx = app.store.begin().await?;
    if !deployments::insert(&mut tx, &row, now).await? {
        return Err(DeploymentError::IdTaken(id.0));
    }
    tx.commit(now).await?;
    start(app, id).await;
    Ok(id)
}

/// Starts what is stored: should this fail, the next sweep does.
pub(super) async fn start(app: &Arc<App>, id: DeploymentId) {
    if let Err(error) = advance(app, id).await {
        tracing::error!(deployment.id = %id, error = &error as &dyn std::error::Error, "a new deployment could not be started yet");
    }
}

/// A candidate with its search.
pub(super) async fn origin(
    app: &App,
    candidate: protocol::CandidateId,
) -> Result<(CandidateRow, SearchRow), DeploymentError> {
    let row = app.store.candidate(candidate).await?;
    let row = row.ok_or(DeploymentError::NoCandidate(candidate))?;
    let search = app.store.search(row.search_id).await?;
    let search = search.ok_or(DeploymentError::NoCandidate(candidate))?;
    Ok((row, search))
}

/// Checks settings, whose steps say which recipes are needed.
pub(super) async fn settings(
    check: &mut Check<'_>,
    settings: &DeploymentSettings,
    space: &Space,
) -> Result<(), JobRequestError> {
    if space.unet().is_none() {
        check.wrong(
            "candidate_id",
            "its space has no [unet]; only models that have one are deployed",
        );
    }
    let steps = plan::steps(settings);
    let recipes = [
        (DeployStep::TrainFinal, "joint", &settings.recipes.joint),
        (DeployStep::Distill, "adversarial", &settings.recipes.adversarial),
        (DeployStep::CompressDecoder, "decoder", &settings.recipes.decoder),
    ];
    for (step, stage, recipe) in recipes {
        let field = format!("settings.recipes.{stage}");
        match recipe {
            Some(recipe) => check.stage(&field, recipe, stage),
            None if steps.contains(&step) => check.wrong(field, format!("found none; {step} needs one")),
            None => {}
        }
    }
    if steps.contains(&DeployStep::CompressDecoder) && plan::parts(settings, space).is_none() {
        check.wrong(
            "settings.parts",
            "found none, and the space names no dataset; compress_decoder needs the name of the trained parts",
        );
    }
    for (name, folder) in [("parts", &settings.parts), ("dataset", &settings.dataset)] {
        if let Some(folder) = folder {
            check.plain_name(&format!("settings.{name}"), folder);
        }
    }
    check.scoring("settings.scoring", &settings.scoring);
    check.within("settings.ranks", settings.ranks, RANKS);
    check.memory("settings.memory_bytes", settings.memory_bytes);
    let export = &settings.export;
    check.within("settings.export.unet_parts", export.unet_parts, UNET_PARTS);
    check.within("settings.export.batch", export.batch, 1..=1024);
    if let Some(steps) = export.sample_steps {
        check.within("settings.export.sample_steps", steps, 1..=10_000);
    }
    if let Some(guidance) = export.guidance {
        check.within("settings.export.guidance", guidance, 0.0..=100.0);
    }
    match &settings.profile {
        Some(profile) => {
            check.device("settings.profile.device", &profile.device).await?;
            check.within("settings.profile.runs", profile.runs, RUNS);
            check.within(
                "settings.profile.sustained_seconds",
                profile.sustained_seconds,
                SUSTAINED_SECONDS,
            );
        }
        None if steps.contains(&DeployStep::ProfileModel) => check.wrong(
            "settings.profile",
            "found none; profile_model needs the device to measure on",
        ),
        None => {}
    }
    Ok(())
}

/// What it goes on from must be the same candidate's; and each step must find what it starts from.
async fn after(app: &App, check: &mut Check<'_>, new: &NewDeployment) -> Result<(), DeploymentError> {
    let steps = plan::steps(&new.settings);
    let mut made = steps.clone();
    let mut earlier = new.settings.after;
    while let Some(id) = earlier {
        let Some(row) = app.store.deployment(id).await? else {
            check.wrong("settings.after", format!("there is no deployment {id}"));
            return Ok(());
        };
        if row.candidate_id != new.candidate_id {
            let message = format!("deployment {id} is of candidate {}, another one", row.candidate_id);
            check.wrong("settings.after", message);
            return Ok(());
        }
        made.extend(plan::steps(&row.settings));
        earlier = row.after_id;
    }
    let needs = [
        (DeployStep::Distill, DeployStep::TrainFinal),
        (DeployStep::Export, DeployStep::TrainFinal),
        (DeployStep::ProfileModel, DeployStep::Export),
    ];
    for (step, needed) in needs {
        let is_distilled = step == DeployStep::Export && made.contains(&DeployStep::Distill);
        if steps.contains(&step) && !made.contains(&needed) && !is_distilled {
            let message = format!("{step} starts from {needed}, which is neither here nor before (`settings.after`)");
            check.wrong("settings.steps", message);
        }
    }
    Ok(())
}
