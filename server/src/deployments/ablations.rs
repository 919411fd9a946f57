//! Asking for ablations, steering them, and what they came to.

use std::{collections::BTreeMap, sync::Arc};

use protocol::{
    AblationId, DeploymentId,
    ablations::{AblationKind, AblationPart, AblationTable, AblationView, NewAblation},
    deployments::{DeploymentSettings, DeploymentState},
    jobs::JobState,
};
use search_spaces::{Space, metric};

use super::{
    DeploymentError, cancel as cancel_one,
    check::{self, origin, start},
    field, retry as retry_one, steps,
};
use crate::{
    ablation::{self, MOST_SEEDS, Plan, Results},
    app::App,
    aside::aside,
    job_requests::check::Check,
    plots::{self, Format},
    search::read_space,
    store::{
        StoreError,
        deployments::{self, AblationRow, DeploymentFilter, DeploymentRow, NewDeploymentRow, StepRow},
    },
};

/// The most deployments of an ablation.
const MOST_PARTS: i64 = 1000;

/// Checks what was asked for, stores its deployments and starts them. Asking again under the same id changes nothing.
///
/// # Errors
/// What is wrong with it, by field; or the store fails.
pub async fn submit(app: &Arc<App>, new: &NewAblation) -> Result<AblationId, DeploymentError> {
    let id = new.id.unwrap_or_default();
    let request = NewAblation {
        id: Some(id),
        ..new.clone()
    };
    if let Some(standing) = app.store.ablation(id).await? {
        return if standing.request.0 == request {
            Ok(id)
        } else {
            Err(DeploymentError::IdTaken(id.0))
        };
    }
    let (candidate, search) = origin(app, new.candidate_id).await?;
    let space = read_space(&search.space).await?;
    let mut check = Check::new(app);
    check.fresh_id(id.0);
    check.within("seeds", new.seeds, 1..=MOST_SEEDS);
    if !new.settings.steps.is_empty() {
        check.wrong("settings.steps", "found some; the table has its own");
    }
    let goes_on = new.settings.after.is_some();
    let needed = DeploymentSettings {
        steps: ablation::baseline_steps(new.table, goes_on, new.settings.profile.is_some()),
        ..new.settings.clone()
    };
    check::settings(&mut check, &needed, &space).await?;
    if let Some(after) = new.settings.after {
        match app.store.deployment(after).await? {
            None => check.wrong("settings.after", format!("there is no deployment {after}")),
            Some(row) if row.candidate_id != new.candidate_id => {
                let message = format!("deployment {after} is of candidate {}, another one", row.candidate_id);
                check.wrong("settings.after", message);
            }
            Some(_) if matches!(new.table, AblationKind::Table3 | AblationKind::Figure6) => {
                check.wrong(
                    "settings.after",
                    "found one; this table trains all of its models itself",
                );
            }
            Some(_) => {}
        }
    }
    check.finish()?;
    let architecture = space.architecture(&candidate.architecture);
    let architecture = architecture.map_err(|error| StoreError::inconsistent("candidates", candidate.id, error))?;
    let plan = ablation::plan(&request, &space, &architecture);
    let plan = plan.map_err(|error| DeploymentError::Invalid(vec![field("settings.recipes", error.to_string())]))?;
    let ids = store(app, id, &request, &plan).await?;
    for id in ids {
        start(app, id).await;
    }
    Ok(id)
}

/// Stores an ablation with all its deployments.
async fn store(
    app: &App,
    id: AblationId,
    request: &NewAblation,
    plan: &Plan,
) -> Result<Vec<DeploymentId>, DeploymentError> {
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    if !deployments::insert_ablation(&mut tx, id, request, now).await? {
        return Err(DeploymentError::IdTaken(id.0));
    }
    let mut ids: Vec<DeploymentId> = Vec::with_capacity(plan.parts.len());
    for part in &plan.parts {
        let after = part.after.and_then(|part| ids.get(part).copied());
        let settings = DeploymentSettings {
            after: after.or(part.settings.after),
            ..part.settings.clone()
        };
        let row = NewDeploymentRow {
            id: DeploymentId::new(),
            candidate_id: request.candidate_id,
            settings: &settings,
            space: &part.space,
            architecture: &part.architecture,
            fresh: part.fresh,
            cell: Some((id, &part.cell)),
        };
        deployments::insert(&mut tx, &row, now).await?;
        ids.push(row.id);
    }
    tx.commit(now).await?;
    Ok(ids)
}

/// Cancels every deployment of an ablation that runs.
///
/// # Errors
/// When there is none, or the store fails.
pub async fn cancel(app: &App, id: AblationId) -> Result<(), DeploymentError> {
    for row in parts(app, id).await? {
        if row.state == DeploymentState::Running {
            match cancel_one(app, row.id).await {
                // It ended in the meantime.
                Ok(()) | Err(DeploymentError::WrongState { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Takes every failed or cancelled deployment of an ablation up again.
///
/// # Errors
/// When there is none, or the store fails.
pub async fn retry(app: &Arc<App>, id: AblationId) -> Result<(), DeploymentError> {
    for row in parts(app, id).await? {
        if matches!(row.state, DeploymentState::Failed | DeploymentState::Cancelled) {
            retry_one(app, row.id).await?;
        }
    }
    Ok(())
}

async fn require(app: &App, id: AblationId) -> Result<AblationRow, DeploymentError> {
    app.store.ablation(id).await?.ok_or(DeploymentError::NoAblation(id))
}

async fn parts(app: &App, id: AblationId) -> Result<Vec<DeploymentRow>, DeploymentError> {
    require(app, id).await?;
    let filter = DeploymentFilter {
        ablation: Some(id),
        ..DeploymentFilter::default()
    };
    Ok(app.store.deployments(filter, MOST_PARTS).await?)
}

/// An ablation as it is shown, its table as far as it is known.
///
/// # Errors
/// When there is none, or the store fails.
pub async fn view(app: &App, id: AblationId) -> Result<AblationView, DeploymentError> {
    let row = require(app, id).await?;
    let rows = parts(app, id).await?;
    let ids: Vec<DeploymentId> = rows.iter().map(|row| row.id).collect();
    let found = app.store.deployment_steps(&ids).await?;
    let result = table(app, &row, &rows, &found).await?;
    let request = row.request.0;
    Ok(AblationView {
        id,
        candidate_id: row.candidate_id,
        table: request.table,
        seeds: request.seeds,
        state: state(&rows),
        deployments: rows.into_iter().map(|row| part(row, &found)).collect(),
        result,
        created_at: row.created_at,
    })
}

/// Where an ablation stands: it runs while a part of it does.
fn state(rows: &[DeploymentRow]) -> DeploymentState {
    let has = |state| rows.iter().any(|row| row.state == state);
    [
        DeploymentState::Running,
        DeploymentState::Failed,
        DeploymentState::Cancelled,
    ]
    .into_iter()
    .find(|state| has(*state))
    .unwrap_or(DeploymentState::Done)
}

fn part(row: DeploymentRow, found: &[StepRow]) -> AblationPart {
    let own = found.iter().filter(|step| step.deployment_id == row.id);
    let done: f64 = own
        .map(|step| {
            if step.state == JobState::Succeeded {
                1.0
            } else {
                step.progress
            }
        })
        .sum();
    AblationPart {
        progress: (done / steps(&row.settings).len().max(1) as f64).clamp(0.0, 1.0),
        id: row.id,
        cell: row.cell.unwrap_or_default(),
        state: row.state,
        state_reason: row.state_reason,
    }
}

async fn table(
    app: &App,
    row: &AblationRow,
    rows: &[DeploymentRow],
    found: &[StepRow],
) -> Result<AblationTable, DeploymentError> {
    let (candidate, search) = origin(app, row.candidate_id).await?;
    let text = search.space;
    let space = aside(move || Space::parse(&text)).await;
    let space = space.map_err(|error| StoreError::inconsistent("searches", search.id, error))?;
    let architecture = space.architecture(&candidate.architecture);
    let architecture = architecture.map_err(|error| StoreError::inconsistent("candidates", candidate.id, error))?;
    let plan = ablation::plan(&row.request, &space, &architecture);
    let plan = plan.map_err(|error| StoreError::inconsistent("ablations", row.id, error))?;
    let names: BTreeMap<DeploymentId, &str> = rows
        .iter()
        .filter_map(|row| Some((row.id, row.cell.as_deref()?)))
        .collect();
    let mut results = Results::new();
    for step in found {
        if let (Some(name), Some(result)) = (names.get(&step.deployment_id), &step.result) {
            let of_part = results.entry((*name).to_owned()).or_default();
            of_part.insert(step.step, result.outcome.clone());
        }
    }
    Ok(ablation::fill(row.request.table, &plan, &scores(&space), &results))
}

/// What the evaluator of a space tells, the whole first.
fn scores(space: &Space) -> Vec<String> {
    let dimensions = space
        .evaluation
        .iter()
        .flat_map(|evaluation| evaluation.dimensions.keys());
    std::iter::once(metric::QUALITY.to_owned())
        .chain(dimensions.cloned())
        .collect()
}

/// An ablation's scores as a radar (the paper's Figure 6).
///
/// # Errors
/// When there is none, or it cannot be drawn.
pub async fn figure(app: &App, id: AblationId, format: Format) -> Result<Vec<u8>, DeploymentError> {
    let view = view(app, id).await?;
    let radar = ablation::radar(&view.result);
    Ok(aside(move || plots::radar(&radar, &view.result.title, format)).await?)
}
