//! The coordinator's own worker: it looks candidates up in uploaded tables, through the same leases as any other.

use std::{sync::Arc, time::Duration};

use protocol::{
    JobId, Metrics, WorkerId,
    devices::{Device, WorkerRegistration},
    jobs::{DeviceSeconds, JobInput, JobKind, JobResult, LookupInput, LookupOutcome, Outcome},
    leases::{FailureReport, LeasedJob, ResultReport},
};

use super::{SearchError, advance, views};
use crate::{
    app::App,
    dispatch::{self, DispatchError, Rules},
    event_hub::Topic,
    store::{workers, workers::Capabilities},
};

/// Jobs taken at once.
const BATCH: i64 = 32;

/// How long it relies on wake-ups: leases run out without one.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Looks up for ever.
pub(super) async fn run(app: Arc<App>) {
    loop {
        if let Err(error) = serve(&app).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "table look-ups are held up; trying again"
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Registers, then takes and answers jobs until something fails.
async fn serve(app: &App) -> Result<(), DispatchError> {
    let worker = WorkerRegistration {
        id: WorkerId::new(),
        name: "coordinator".to_owned(),
        device: Device {
            name: "coordinator".to_owned(),
            description: "looks candidates up in tables; measures nothing".to_owned(),
            memory_bytes: None,
        },
        runtime: None,
        kinds: vec![JobKind::Lookup],
        memory_bytes: 0,
    };
    let now = app.clock.now();
    let mut tx = app.store.begin().await?;
    workers::register(&mut tx, &worker, now).await?;
    tx.commit(now).await?;
    let capabilities = Capabilities {
        id: worker.id,
        device: worker.device.name,
        runtime: None,
        kinds: worker.kinds,
        memory_bytes: 0,
    };
    let mut woken = app.events.subscribe(Topic::Jobs);
    loop {
        woken.borrow_and_update();
        app.store.hear_worker(capabilities.id, app.clock.now()).await?;
        while answer_batch(app, &capabilities).await? {}
        // Either way the next step is to look.
        let _ = tokio::time::timeout(LOOK_AGAIN, woken.changed()).await;
    }
}

/// Answers all jobs that can be had at once; false where there were none.
async fn answer_batch(app: &App, worker: &Capabilities) -> Result<bool, DispatchError> {
    let jobs = dispatch::try_lease(&app.store, Rules::of(&app.config), worker, BATCH, app.clock.now()).await?;
    let any = !jobs.is_empty();
    let mut searches = std::collections::BTreeSet::new();
    for job in jobs {
        if let JobInput::Lookup(input) = &job.input {
            searches.insert(input.search_id);
            answer(app, &job, input).await?;
        }
    }
    for search in searches {
        if let Err(error) = advance(app, search).await {
            tracing::error!(search.id = %search, error = &error as &dyn std::error::Error, "a search could not be advanced");
        }
    }
    Ok(any)
}

/// Reports a candidate's row, or why there is none.
async fn answer(app: &App, job: &LeasedJob, input: &LookupInput) -> Result<(), DispatchError> {
    let now = app.clock.now();
    match look_up(app, input).await {
        Ok(metrics) => {
            let result = JobResult {
                device_seconds: DeviceSeconds::default(),
                artifacts: Vec::new(),
                outcome: Outcome::Lookup(LookupOutcome { metrics }),
            };
            let report = ResultReport {
                lease_token: job.lease_token,
                result,
            };
            ignore_lost(
                job.job_id,
                dispatch::succeed(&app.store, job.job_id, &report, now).await,
            )
        }
        Err(error) => {
            let report = FailureReport {
                lease_token: job.lease_token,
                error: error.to_string(),
                log: None,
                retry: matches!(error, SearchError::Store(_) | SearchError::Artifact(_)),
                released: false,
            };
            ignore_lost(
                job.job_id,
                dispatch::fail(&app.store, Rules::of(&app.config), job.job_id, &report, now).await,
            )
        }
    }
}

/// A job that went to someone else, or was cancelled, is no longer ours to report.
fn ignore_lost<T>(job: JobId, reported: Result<T, DispatchError>) -> Result<(), DispatchError> {
    match reported {
        Err(DispatchError::LeaseLost { why, .. }) => {
            tracing::debug!(job.id = %job, why, "a look-up was taken away");
            Ok(())
        }
        other => other.map(|_| ()),
    }
}

async fn look_up(app: &App, input: &LookupInput) -> Result<Metrics, SearchError> {
    let invalid = |message: String| SearchError::Invalid {
        field: "architecture".into(),
        message,
    };
    let search = app
        .store
        .search(input.search_id)
        .await?
        .ok_or(SearchError::NotFound(input.search_id))?;
    let context = {
        let mut connection = app.store.connection().await?;
        app.searches.context(&app.artifacts, &mut connection, &search).await?
    };
    let architecture = context
        .space
        .architecture(&input.architecture)
        .map_err(|error| invalid(error.to_string()))?;
    let row = context.table().and_then(|table| table.look_up(&architecture));
    let row = row.ok_or_else(|| invalid(format!("the table has no row for {}", input.architecture)))?;
    Ok(views::metrics(&row))
}
