//! What workers say about their jobs: heartbeats, results, failures.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use protocol::{
    CandidateId, FieldProblem, JobId, Metrics, SearchId,
    devices::RuntimeName,
    events::EventBody,
    jobs::{
        BenchmarkOutcome, CompressDecoderOutcome, DistillOutcome, EvaluateOutcome, JobInput, JobResult, JobState,
        LookupOutcome, Outcome, ProfileOutcome, PruneBackboneOutcome, TrainFinalOutcome, VerifyOutcome,
    },
    leases::{FailureReport, Heartbeat, HeartbeatReply, ResultReport},
    luts::batch_id,
};
use search_spaces::Space;

use super::{
    DispatchError, ERROR_LIMIT, Ending, LOG_LIMIT, Rules, at_fault, figures, graphs, holder::Holder, models, put_back,
    tell_candidate,
};
use crate::{
    samples,
    search::{self, views},
    store::{
        Store, StoreError, Tx, candidates,
        jobs::{self, JobRow},
        luts::{self, Batch},
        seats,
    },
};

/// Renews a lease and takes over progress, curve, figures, checkpoint, device-seconds and log.
///
/// # Errors
/// When the job does not exist, the lease is lost, the progress is no share, or the store fails.
pub async fn heartbeat(
    store: &Store,
    rules: Rules,
    id: JobId,
    beat: &Heartbeat,
    now: DateTime<Utc>,
) -> Result<HeartbeatReply, DispatchError> {
    if !(0.0..=1.0).contains(&beat.progress) {
        return Err(at_fault(
            id,
            "progress",
            format!("{} is not between 0 and 1", beat.progress),
        ));
    }
    figures::require_seconds(id, "device_seconds", &beat.device_seconds)?;
    figures::require_few(id, &beat.metrics)?;
    if let Some(checkpoint) = &beat.checkpoint {
        require_artifacts(store, id, std::slice::from_ref(checkpoint), "checkpoint").await?;
    }
    let expires_at = now + rules.lease;
    let mut tx = store.begin().await?;
    let job = jobs::lock(&mut tx, id).await?.ok_or(DispatchError::UnknownJob(id))?;
    let holder = match Holder::of(&mut tx, &job, beat.lease_token).await? {
        Holder::Cancelled => {
            return Ok(HeartbeatReply {
                expires_at: now,
                cancelled: true,
            });
        }
        holder => holder,
    };
    if let Some(seat) = holder.seat() {
        seats::renew(&mut tx, seat, expires_at, None).await?;
        seats::note(&mut tx, id, seat, &beat.device_seconds).await?;
    }
    if !holder.reports() {
        tx.commit(now).await?;
        if let Some(seat) = holder.seat() {
            store.hear_worker(seat.worker_id, now).await?;
        }
        return Ok(HeartbeatReply {
            expires_at,
            cancelled: false,
        });
    }
    jobs::renew(&mut tx, id, expires_at, beat).await?;
    let log = beat.log.as_deref().map(|log| storable(tail(log)));
    jobs::note_attempt(&mut tx, id, &beat.device_seconds, log.as_deref()).await?;
    if !beat.curve.is_empty() {
        jobs::extend_curve(&mut tx, id, &beat.curve).await?;
    }
    tx.tell(
        job.search_id,
        EventBody::Job {
            job_id: id,
            kind: job.kind,
            state: JobState::Leased,
            candidate_id: job.candidate_id,
            progress: beat.progress,
            status: beat.status.clone(),
            curve: beat.curve.clone(),
            metrics: beat.metrics.clone(),
        },
    );
    tx.commit(now).await?;
    if let Some(worker) = job.worker_id {
        store.hear_worker(worker, now).await?;
    }
    Ok(HeartbeatReply {
        expires_at,
        cancelled: false,
    })
}

/// Takes a result in, once. The same result sent again under the same token is answered as the first time
/// and changes nothing. Answers the search, which has then to be advanced; without one all have to be, because each
/// may wait for what was measured.
///
/// # Errors
/// When the job does not exist, the lease is lost, the result does not fit the job, or the store fails.
pub async fn succeed(
    store: &Store,
    id: JobId,
    report: &ResultReport,
    now: DateTime<Utc>,
) -> Result<Option<SearchId>, DispatchError> {
    require_artifacts(store, id, &report.result.artifacts, "result.artifacts").await?;
    let mut tx = store.begin().await?;
    let job = jobs::lock(&mut tx, id).await?.ok_or(DispatchError::UnknownJob(id))?;
    if let (JobState::Succeeded, Some(standing)) = (job.state, &job.result)
        && job.lease_token == Some(report.lease_token)
    {
        return if standing.0 == report.result {
            Ok(job.search_id)
        } else {
            Err(DispatchError::ResultDiffers(id))
        };
    }
    let holder = Holder::of(&mut tx, &job, report.lease_token).await?;
    if !holder.reports() {
        return Err(holder.refusal(&job));
    }
    figures::require_seconds(id, "result.device_seconds", &report.result.device_seconds)?;
    if let Some(seat) = holder.seat() {
        seats::note(&mut tx, id, seat, &report.result.device_seconds).await?;
        seats::finish(&mut tx, seat, now).await?;
    }
    jobs::succeed(&mut tx, id, &report.result, now).await?;
    store_outcome(&mut tx, &job, &report.result, now).await?;
    let done = JobRow {
        progress: 1.0,
        status: None,
        ..job
    };
    tx.tell(done.search_id, views::job_event(&done, JobState::Succeeded));
    tx.commit(now).await?;
    Ok(done.search_id)
}

/// Ends an attempt without a result: the job waits for the next one, or is given up. Answers the search, if it has one.
///
/// # Errors
/// When the job does not exist, the lease is lost, or the store fails.
pub async fn fail(
    store: &Store,
    rules: Rules,
    id: JobId,
    report: &FailureReport,
    now: DateTime<Utc>,
) -> Result<Option<SearchId>, DispatchError> {
    figures::require_seconds(id, "device_seconds", &report.device_seconds)?;
    let mut tx = store.begin().await?;
    let job = jobs::lock(&mut tx, id).await?.ok_or(DispatchError::UnknownJob(id))?;
    let holder = Holder::of(&mut tx, &job, report.lease_token).await?;
    match &holder {
        Holder::Cancelled => return Err(holder.refusal(&job)),
        Holder::Waits(seat) => {
            seats::free(&mut tx, seat).await?;
            if !report.released {
                // Whoever cannot use the seat would take it again at once.
                jobs::put_off(&mut tx, id, now + rules.retry).await?;
            }
            tx.commit(now).await?;
            return Ok(job.search_id);
        }
        Holder::Alone => jobs::note_attempt(&mut tx, id, &report.device_seconds, None).await?,
        Holder::First(seat) | Holder::Other(seat) => {
            seats::note(&mut tx, id, seat, &report.device_seconds).await?;
        }
    }
    let error = if report.released {
        "released: the worker was told to stop"
    } else {
        head(&report.error)
    };
    let error = match holder.seat() {
        Some(seat) => format!("rank {}: {error}", seat.rank),
        None => error.to_owned(),
    };
    let log = report.log.as_deref().map(|log| storable(tail(log)));
    jobs::end_attempt(&mut tx, id, Some(&storable(&error)), log.as_deref(), now).await?;
    let ending = Ending {
        retry: report.retry,
        released: report.released,
    };
    put_back(&mut tx, rules, &job, ending, now).await?;
    tx.commit(now).await?;
    Ok(job.search_id)
}

async fn require_artifacts(
    store: &Store,
    job: JobId,
    artifacts: &[protocol::artifacts::ArtifactRef],
    field: &str,
) -> Result<(), DispatchError> {
    for (index, artifact) in artifacts.iter().enumerate() {
        if store.artifact(&artifact.digest).await?.is_none() {
            let message = format!("artifact {} was not uploaded; upload it first", artifact.digest);
            return Err(at_fault(job, format!("{field}[{index}].digest"), message));
        }
    }
    Ok(())
}

async fn store_outcome(tx: &mut Tx, job: &JobRow, result: &JobResult, now: DateTime<Utc>) -> Result<(), DispatchError> {
    match (&job.input.0, &result.outcome) {
        (JobInput::Profile(input), Outcome::Profile(outcome)) => {
            let asked: BTreeSet<_> = input.blocks.iter().collect();
            let found: BTreeSet<_> = outcome.entries.iter().map(|entry| &entry.block).collect();
            if let Some(missing) = asked.difference(&found).next() {
                let missing = format!("no entry for {}", samples::lut_block(missing));
                return Err(at_fault(job.id, "result.outcome.entries", missing));
            }
            require_runtime(job, &outcome.runtime)?;
            store_samples(tx, job, &space(job, &input.space).await?, outcome, now).await
        }
        (JobInput::Evaluate(input), Outcome::Evaluate(EvaluateOutcome { metrics, evaluator })) => {
            figures::require_figures(job.id, metrics)?;
            require_objectives(tx, job, &space(job, &input.space).await?, input.candidate_id, metrics).await?;
            store_evaluation(tx, job, result, metrics, Some(evaluator), now).await
        }
        (JobInput::Lookup(_), Outcome::Lookup(LookupOutcome { metrics })) => {
            // The coordinator's own: what the table was accepted with.
            store_evaluation(tx, job, result, metrics, None, now).await
        }
        (JobInput::Verify(input), Outcome::Verify(verified)) => {
            let VerifyOutcome {
                runtime,
                metrics,
                latency_ms_samples,
                out_of_memory,
            } = verified;
            require_runtime(job, runtime)?;
            if let Some(detail) = out_of_memory {
                candidates::set_out_of_memory(tx, input.candidate_id, &storable(tail(detail))).await?;
                return Ok(tell_candidate(tx, job.search_id, input.candidate_id).await?);
            }
            figures::require_figures(job.id, metrics)?;
            figures::require_samples(job.id, latency_ms_samples, "result.outcome.latency_ms_samples")?;
            candidates::set_verified(tx, input.candidate_id, metrics, &result.artifacts).await?;
            Ok(tell_candidate(tx, job.search_id, input.candidate_id).await?)
        }
        (JobInput::EncodeLatents(_), Outcome::EncodeLatents(_)) => Ok(()),
        (JobInput::PruneBackbone(_), Outcome::PruneBackbone(PruneBackboneOutcome { metrics, .. }))
        | (JobInput::TrainFinal(_), Outcome::TrainFinal(TrainFinalOutcome { metrics, .. }))
        | (JobInput::Distill(_), Outcome::Distill(DistillOutcome { metrics, .. }))
        | (JobInput::CompressDecoder(_), Outcome::CompressDecoder(CompressDecoderOutcome { metrics, .. }))
        | (JobInput::Benchmark(_), Outcome::Benchmark(BenchmarkOutcome { metrics, .. })) => {
            figures::require_figures(job.id, metrics)
        }
        (JobInput::Export(input), Outcome::Export(outcome)) => graphs::store(tx, job, input, outcome, now).await,
        (JobInput::ProfileModel(input), Outcome::ProfileModel(outcome)) => {
            require_runtime(job, &outcome.runtime)?;
            models::store(tx, job, input, outcome).await
        }
        (input, _) => Err(at_fault(
            job.id,
            "result.outcome.kind",
            format!("the job is to {}; its outcome must be of that kind", input.kind()),
        )),
    }
}

/// The space of a job, which its search was accepted with.
pub(super) async fn space(job: &JobRow, text: &str) -> Result<Space, StoreError> {
    let space = search::read_space(text).await;
    space.map_err(|error| StoreError::inconsistent("jobs", job.id, error))
}

/// What was measured with another runtime would stand in another table than the one that is waited for.
fn require_runtime(job: &JobRow, found: &RuntimeName) -> Result<(), DispatchError> {
    match job.runtime().filter(|asked| asked != found) {
        None => Ok(()),
        Some(asked) => {
            let message = format!(
                "found {} {}; the job asks for {} {}",
                found.name, found.version, asked.name, asked.version
            );
            Err(at_fault(job.id, "result.outcome.runtime", message))
        }
    }
}

/// Every objective must be known after an evaluation, or the candidate could never stand on a front.
async fn require_objectives(
    tx: &mut Tx,
    job: &JobRow,
    space: &Space,
    candidate: CandidateId,
    measured: &Metrics,
) -> Result<(), DispatchError> {
    let row = candidates::get(tx.connection(), candidate).await?;
    let predicted = row.map(|row| row.predicted.0).unwrap_or_default();
    let objectives = space.objectives.iter().map(|objective| &objective.metric);
    let missing = objectives.filter(|metric| !measured.contains_key(*metric) && !predicted.contains_key(*metric));
    let errors: Vec<FieldProblem> = missing
        .map(|metric| FieldProblem {
            field: format!("result.outcome.metrics.{metric}"),
            line: None,
            column: None,
            message: "found nothing; it is an objective of the space that only the evaluation can tell".to_owned(),
        })
        .collect();
    if errors.is_empty() {
        Ok(())
    } else {
        Err(DispatchError::Unacceptable { job: job.id, errors })
    }
}

async fn store_evaluation(
    tx: &mut Tx,
    job: &JobRow,
    result: &JobResult,
    metrics: &Metrics,
    evaluator: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), DispatchError> {
    let Some(candidate) = job.candidate_id else {
        return Err(StoreError::inconsistent("jobs", job.id, "it evaluates no candidate").into());
    };
    let evaluation = candidates::Evaluation {
        measured: metrics,
        evaluator,
        device_seconds: jobs::device_seconds(tx.connection(), job.id).await?,
        artifacts: &result.artifacts,
    };
    if candidates::set_evaluated(tx, candidate, &evaluation, now).await? {
        tell_candidate(tx, job.search_id, candidate).await?;
    }
    Ok(())
}

async fn store_samples(
    tx: &mut Tx,
    job: &JobRow,
    space: &Space,
    outcome: &ProfileOutcome,
    now: DateTime<Utc>,
) -> Result<(), DispatchError> {
    let Some(device) = &job.device else {
        return Err(StoreError::inconsistent("jobs", job.id, "it profiles no device").into());
    };
    let entries = samples::entries(device, &outcome.runtime, &outcome.entries, "result.outcome.entries")
        .map_err(|errors| DispatchError::Unacceptable { job: job.id, errors })?;
    let asked = search::profiled_dtype(space);
    if let Some(index) = entries.iter().position(|entry| entry.key.dtype != asked) {
        let field = format!("result.outcome.entries[{index}].dtype");
        let message = format!("found {}; the space runs in {asked}", entries[index].key.dtype);
        return Err(at_fault(job.id, field, message));
    }
    // A batch for each block: no repetition stores it twice, nor does the result of one who sent it as it was measured.
    for (uploaded, entry) in outcome.entries.iter().zip(&entries) {
        let content = serde_json::to_vec(uploaded).unwrap_or_default();
        let batch = Batch {
            id: batch_id(job.id, &uploaded.block),
            device,
            runtime: &outcome.runtime,
            digest: &samples::digest(&content),
            entries: std::slice::from_ref(entry),
        };
        luts::insert_batch(tx.connection(), &batch, now).await?;
    }
    Ok(())
}

/// Text of a program that failed, whatever it wrote: U+0000 cannot be stored.
pub(super) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The beginning of an error, cut at a character: what went wrong stands first.
fn head(error: &str) -> &str {
    let mut end = error.len().min(ERROR_LIMIT);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    &error[..end]
}

/// The end of a log, cut at a character.
pub(super) fn tail(log: &str) -> &str {
    let mut start = log.len().saturating_sub(LOG_LIMIT);
    while !log.is_char_boundary(start) {
        start += 1;
    }
    &log[start..]
}
