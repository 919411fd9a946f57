//! Results that would do harm later are refused when they come, by field.

use protocol::{
    Figure,
    devices::RuntimeName,
    jobs::{DeviceSeconds, JobKind, JobResult, JobState, Outcome},
    leases::{LeasedJob, ResultReport},
    searches::NewSearch,
};
use sqlx::PgPool;
use temponas_server::{MIGRATOR, dispatch::DispatchError, store::luts::LutFilter};

use crate::harness::{Harness, NAMED, SHAPES, done, new_search};

/// The fields at fault of a refused report, with what is said of each.
async fn refused(t: &Harness, job: &LeasedJob, outcome: Outcome) -> Vec<(String, String)> {
    fields(t.report(job, outcome).await)
}

fn fields<T: std::fmt::Debug>(result: Result<T, DispatchError>) -> Vec<(String, String)> {
    match result {
        Err(DispatchError::Unacceptable { errors, .. }) => {
            errors.into_iter().map(|error| (error.field, error.message)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn figures_that_no_sum_survives_are_refused(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    let search = t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    let report = |outcome: Outcome, train: f64| ResultReport {
        lease_token: job.lease_token,
        result: JobResult {
            device_seconds: DeviceSeconds {
                train,
                ..DeviceSeconds::default()
            },
            artifacts: Vec::new(),
            outcome,
        },
    };
    let endless = fields(t.send(job.job_id, report(done(&job), 1e308)).await);
    assert_eq!(endless[0].0, "result.device_seconds.train");
    let Outcome::Evaluate(mut wild) = done(&job) else {
        panic!("an evaluation")
    };
    let figure = Figure {
        value: 1e300,
        standard_error: 0.0,
    };
    wild.metrics.insert("size".to_owned(), figure);
    let wild = fields(t.send(job.job_id, report(Outcome::Evaluate(wild), 1.0)).await);
    assert_eq!(wild[0].0, "result.outcome.metrics.size");
    assert_eq!(t.job(job.job_id).await.state, JobState::Leased, "nothing is stored");
    t.finish(&job).await;
    let spent = t.app.store.search_figures(search).await.unwrap().device_seconds;
    assert_eq!(spent.total(), 3.5);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn measurements_of_another_runtime_or_number_format_are_refused(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker_on("x", &[JobKind::Profile]).await;
    let new = NewSearch {
        device: Some("x".to_owned()),
        ..new_search(SHAPES)
    };
    t.try_submit(&new).await.unwrap();
    let job = t.claim(worker).await.unwrap();
    let Outcome::Profile(good) = done(&job) else {
        panic!("a profile job")
    };
    let mut other = good.clone();
    other.runtime = RuntimeName {
        name: "coreml".to_owned(),
        version: "18".to_owned(),
    };
    let at = refused(&t, &job, Outcome::Profile(other)).await;
    assert_eq!(at[0].0, "result.outcome.runtime");
    assert!(
        at[0].1.contains("coreml 18") && at[0].1.contains("libtorch-cpu-1t 2.11.0"),
        "{at:?}"
    );
    let mut half = good;
    half.entries[1].dtype = "f16".to_owned();
    let at = refused(&t, &job, Outcome::Profile(half)).await;
    assert_eq!(at[0].0, "result.outcome.entries[1].dtype");
    assert!(at[0].1.contains("f16") && at[0].1.contains("f32"), "{at:?}");
    let stored = t.app.store.lut_entries("x", &LutFilter::default()).await.unwrap();
    assert!(stored.is_empty());
    t.finish(&job).await;
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_evaluation_without_an_objective_is_refused(pool: PgPool) {
    let t = Harness::new(pool);
    let worker = t.worker("a").await;
    t.submit(NAMED).await;
    let job = t.claim(worker).await.unwrap();
    let Outcome::Evaluate(mut evaluated) = done(&job) else {
        panic!("an evaluation")
    };
    evaluated.metrics.remove("quality");
    let at = refused(&t, &job, Outcome::Evaluate(evaluated)).await;
    assert_eq!(at[0].0, "result.outcome.metrics.quality");
    assert_eq!(at.len(), 1, "size is there: {at:?}");
    t.finish(&job).await;
}
