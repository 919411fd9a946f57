//! Measuring finalists whole: a table is an estimate, and the best within budget is picked by its error too.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use lut::{Calibration, Pair};
use protocol::{
    CandidateId, Figure, JobId, Metrics, SearchId,
    jobs::{JobInput, JobKind, JobState, VerifyInput},
    searches::{CalibrationView, CandidateState, SearchState},
};
use search_spaces::{Estimate, Space, hypervolume::hypervolume, metric, pareto};

use super::{
    SearchError, advance::Move, containment::contain, context::Context, profiling, proposing, proposing::Candidates,
    views,
};
use crate::{
    app::App,
    dispatch::MAX_ATTEMPTS,
    store::{
        StoreError,
        candidates::{self, CandidateRow},
        jobs::{self, NewJob},
        searches, unsigned,
    },
};

/// Metrics that a whole measurement can correct.
const MEASURED: [&str; 2] = [metric::LATENCY_MS, metric::PEAK_MEMORY_BYTES];

/// Takes new measurements over, then asks for the next ones, until as many finalists as the space asks for are
/// truly within the limits or nobody is left to measure. One that the device cannot hold makes room for the next.
pub(super) async fn step(step: &mut Move<'_>) -> Result<bool, SearchError> {
    let context = step.context().await?;
    let known = take_over(step, &context).await?;
    let states = jobs::states(step.tx.connection(), step.search.id, JobKind::Verify).await?;
    let tried: BTreeSet<CandidateId> = states.iter().filter_map(|(_, candidate, _)| *candidate).collect();
    let open = states
        .iter()
        .filter(|(_, _, state)| matches!(state, JobState::Queued | JobState::Leased))
        .count();
    let confirmed = known
        .rows
        .iter()
        .filter(|row| is_verified(row) && views::within_limits(&context.space, row))
        .count();
    let wanted = context.space.search.finalists as usize;
    let next: Vec<&CandidateRow> = ranking(&context, &known)
        .into_iter()
        .filter_map(|number| known.rows.get(usize::try_from(number).ok()?))
        .filter(|row| !tried.contains(&row.id))
        .take(wanted.saturating_sub(confirmed + open))
        .collect();
    for row in &next {
        let job = verify_job(step, &context.space, row);
        jobs::insert(step.tx, &job, step.now).await?;
    }
    if open == 0 && next.is_empty() {
        let reason = summary(step.search.state_reason.as_deref(), confirmed, tried.len(), wanted);
        step.go(SearchState::Done, Some(&reason)).await?;
    }
    Ok(false)
}

/// Has a search learn from figures that were measured whole, whatever state it is in; one that runs does so by itself.
/// Doing it again changes nothing.
///
/// # Errors
/// When the store fails.
pub async fn recalibrate(app: &Arc<App>, id: SearchId) -> Result<(), SearchError> {
    let mover = Arc::clone(app);
    let moves = async move {
        let now = mover.clock.now();
        let mut tx = mover.store.begin().await?;
        let search = searches::lock(tx.connection(), id)
            .await?
            .ok_or(SearchError::NotFound(id))?;
        if search.state != SearchState::Done {
            return Ok(());
        }
        let mut step = Move {
            tx: &mut tx,
            search: &search,
            caches: &mover.searches,
            artifacts: &mover.artifacts,
            now,
        };
        let context = step.context().await?;
        take_over(&mut step, &context).await?;
        tx.commit(now).await?;
        Ok(())
    };
    contain(app, id, moves).await
}

/// Takes new measurements over into the corrections of predictions; answers all candidates.
pub(super) async fn take_over(step: &mut Move<'_>, context: &Context) -> Result<Candidates, StoreError> {
    complete_pipelines(step, &context.space).await?;
    let known = Candidates::read(step, &context.space).await?;
    calibrate(step, context, &known).await?;
    Ok(known)
}

fn is_verified(row: &CandidateRow) -> bool {
    !row.verified.0.is_empty()
}

fn summary(stopped: Option<&str>, confirmed: usize, tried: usize, wanted: usize) -> String {
    let stopped = stopped.map(|reason| format!("{reason}; ")).unwrap_or_default();
    let short = if confirmed < wanted {
        format!(", {wanted} were asked for")
    } else {
        String::new()
    };
    format!("{stopped}{confirmed} of {tried} measured finalists are within the limits{short}")
}

fn verify_job(step: &Move<'_>, space: &Space, row: &CandidateRow) -> NewJob {
    let target = profiling::target(step.search, space);
    let peak = row
        .predicted
        .get(metric::PEAK_MEMORY_BYTES)
        .map_or(0.0, |figure| figure.value);
    NewJob {
        id: JobId::new(),
        search_id: Some(step.search.id),
        candidate_id: Some(row.id),
        input: JobInput::Verify(VerifyInput {
            search_id: step.search.id,
            candidate_id: row.id,
            space: step.search.space.clone(),
            architecture: row.architecture.clone(),
        }),
        device: target.as_ref().map(|(device, _)| device.clone()),
        runtime: target.map(|(_, runtime)| runtime),
        ranks: 1,
        evaluator: None,
        memory_bytes: peak as i64,
        max_attempts: MAX_ATTEMPTS,
    }
}

/// Numbers of the evaluated candidates, the one to measure first foremost: the front, then the front of the
/// rest, and so on; within each the one that adds most hypervolume to those before it. Those whose prediction
/// breaks a limit come last, the nearest to it first.
fn ranking(context: &Context, known: &Candidates) -> Vec<u64> {
    let space = &context.space;
    let evaluated = known.finished.values().filter_map(|candidate| {
        let row = known.rows.get(usize::try_from(candidate.number).ok()?)?;
        let metrics = views::estimates(&views::known(row));
        let point = search_spaces::search::point(space, &context.ranges, &metrics)?;
        (row.state == CandidateState::Evaluated).then_some((candidate.number, point, metrics))
    });
    let (within, mut beyond): (Vec<_>, Vec<_>) =
        evaluated.partition(|(_, _, metrics)| space.limits.broken(metrics).is_empty());
    let excess = |metrics: &BTreeMap<String, Estimate>| {
        space
            .limits
            .broken(metrics)
            .into_iter()
            .map(|(_, value, bound)| value / bound)
            .fold(0.0_f64, f64::max)
    };
    beyond.sort_by(|a, b| excess(&a.2).total_cmp(&excess(&b.2)));
    let mut rest: Vec<(u64, Vec<f64>)> = within.into_iter().map(|(number, point, _)| (number, point)).collect();
    let mut order = Vec::new();
    while !rest.is_empty() {
        let points: Vec<Vec<f64>> = rest.iter().map(|(_, point)| point.clone()).collect();
        let mut layer: Vec<(u64, Vec<f64>)> = pareto::front(&points).into_iter().map(|i| rest[i].clone()).collect();
        rest.retain(|(number, _)| !layer.iter().any(|(member, _)| member == number));
        let mut chosen: Vec<Vec<f64>> = Vec::new();
        while let Some(best) = most_spread(&layer, &chosen) {
            let (number, point) = layer.swap_remove(best);
            order.push(number);
            chosen.push(point);
        }
    }
    order.extend(beyond.into_iter().map(|(number, _, _)| number));
    order
}

/// The member that adds most hypervolume to the chosen points; of equals the first evaluated.
fn most_spread(layer: &[(u64, Vec<f64>)], chosen: &[Vec<f64>]) -> Option<usize> {
    let gains = layer.iter().enumerate().map(|(index, (number, point))| {
        let mut with = chosen.to_vec();
        with.push(point.clone());
        (index, *number, hypervolume(&with))
    });
    let best = gains.max_by(|a, b| a.2.total_cmp(&b.2).then(b.1.cmp(&a.1)));
    best.map(|(index, _, _)| index)
}

/// Fits the corrections of predictions to all measurements so far, and tells the front with them.
async fn calibrate(step: &mut Move<'_>, context: &Context, known: &Candidates) -> Result<(), StoreError> {
    let views: Vec<CalibrationView> = MEASURED
        .iter()
        .filter_map(|metric| {
            let pairs: Vec<Pair> = known.rows.iter().filter_map(|row| pair(row, metric)).collect();
            let Calibration {
                factor,
                offset,
                residual,
            } = Calibration::fit(&pairs);
            let view = CalibrationView {
                metric: (*metric).to_owned(),
                factor,
                offset,
                residual,
                architectures: pairs.len() as u64,
            };
            (!pairs.is_empty()).then_some(view)
        })
        .collect();
    let standing = step
        .search
        .calibration
        .as_ref()
        .map_or(&[][..], |calibration| calibration.0.as_slice());
    if views == standing {
        return Ok(());
    }
    searches::set_calibration(step.tx, step.search.id, &views).await?;
    let mut calibrated = step.search.clone();
    calibrated.calibration = Some(sqlx::types::Json(views));
    let mut telling = Move {
        tx: step.tx,
        search: &calibrated,
        caches: step.caches,
        artifacts: step.artifacts,
        now: step.now,
    };
    proposing::tell_front(&mut telling, context, known);
    Ok(())
}

fn pair(row: &CandidateRow, metric: &str) -> Option<Pair> {
    let (predicted, measured) = (row.predicted.get(metric)?.value, row.verified.get(metric)?.value);
    Some(Pair { predicted, measured })
}

/// Works out the latency of the whole pipeline from the measured one of the UNet: text encoder and decoder stay
/// as the table has them.
async fn complete_pipelines(step: &mut Move<'_>, space: &Space) -> Result<(), StoreError> {
    let Some(pipeline) = &space.pipeline else { return Ok(()) };
    let rows = candidates::list(step.tx.connection(), step.search.id, None, None).await?;
    for row in rows {
        if let Some(verified) = with_pipeline(&row, pipeline.passes() as f64) {
            candidates::set_verified(step.tx, row.id, &verified, &[]).await?;
        }
    }
    Ok(())
}

fn with_pipeline(row: &CandidateRow, passes: f64) -> Option<Metrics> {
    let whole = row.predicted.get(metric::PIPELINE_LATENCY_MS)?;
    let predicted = row.predicted.get(metric::LATENCY_MS)?;
    let measured = row.verified.get(metric::LATENCY_MS)?;
    if row.verified.contains_key(metric::PIPELINE_LATENCY_MS) {
        return None;
    }
    let rest_error = (whole.standard_error.powi(2) - (passes * predicted.standard_error).powi(2)).max(0.0);
    let figure = Figure {
        value: whole.value + passes * (measured.value - predicted.value),
        standard_error: (rest_error + (passes * measured.standard_error).powi(2)).sqrt(),
    };
    let mut verified = row.verified.0.clone();
    verified.insert(metric::PIPELINE_LATENCY_MS.to_owned(), figure);
    Some(verified)
}

/// Numbers of verified candidates within the limits, for recommendations.
pub(super) fn confirmed(space: &Space, rows: &[CandidateRow]) -> BTreeSet<u64> {
    rows.iter()
        .filter(|row| is_verified(row) && views::within_limits(space, row))
        .map(|row| unsigned(row.number))
        .collect()
}
