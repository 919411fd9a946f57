//! Rows as they are shown.

use std::collections::BTreeMap;

use lut::Calibration;
use protocol::{
    Figure, Metrics,
    events::EventBody,
    jobs::JobState,
    searches::{Budget, CalibrationView, CandidateView, FrontPoint, LayerView, LimitView, ObjectiveView, SearchView},
};
use search_spaces::{Architecture, Direction, Estimate, Space};

use crate::store::{
    candidates::CandidateRow,
    jobs::JobRow,
    searches::{SearchFigures, SearchRow},
    unsigned,
};

/// A job's event as it stands, in the given state.
#[must_use]
pub fn job_event(job: &JobRow, state: JobState) -> EventBody {
    EventBody::Job {
        job_id: job.id,
        kind: job.kind,
        state,
        candidate_id: job.candidate_id,
        progress: job.progress,
        status: job.status.clone(),
        curve: Vec::new(),
    }
}

/// A candidate with its predictions as they are and as verification corrects them.
#[must_use]
pub fn candidate(row: CandidateRow, calibration: &[CalibrationView]) -> CandidateView {
    CandidateView {
        id: row.id,
        search_id: row.search_id,
        number: unsigned(row.number),
        architecture: row.architecture,
        layers: row.layers.0,
        state: row.state,
        state_reason: row.state_reason,
        reference: row.reference,
        parent: row.parent.map(unsigned),
        action: row.action,
        why: row.why,
        calibrated: calibrated(&row.predicted.0, calibration),
        predicted: row.predicted.0,
        measured: row.measured.0,
        verified: row.verified.0,
        evaluator: row.evaluator,
        on_front: row.on_front,
        job_id: row.job_id,
        device_seconds: row.device_seconds.map(|seconds| seconds.0),
        artifacts: row.artifacts.0,
        created_at: row.created_at,
        evaluated_at: row.evaluated_at,
    }
}

/// A candidate as a point of the front.
#[must_use]
pub fn front_point(row: &CandidateRow, space: &Space, calibration: &[CalibrationView]) -> FrontPoint {
    let verified = (!row.verified.0.is_empty()).then(|| within_limits(space, row));
    FrontPoint {
        candidate_id: row.id,
        number: unsigned(row.number),
        architecture: row.architecture.clone(),
        reference: row.reference.clone(),
        metrics: known(row),
        calibrated: calibrated(&row.predicted.0, calibration),
        verified: row.verified.0.clone(),
        verified_within_limits: verified,
    }
}

/// Figures of evaluation and look-up table together; what the table says stands.
#[must_use]
pub fn known(row: &CandidateRow) -> Metrics {
    let mut metrics = row.measured.0.clone();
    metrics.extend(row.predicted.0.clone());
    metrics
}

/// Whether a candidate keeps every limit by its best figures: measured whole where it was.
#[must_use]
pub fn within_limits(space: &Space, row: &CandidateRow) -> bool {
    let mut metrics = known(row);
    metrics.extend(row.verified.0.clone());
    space.limits.broken(&estimates(&metrics)).is_empty()
}

/// Predictions as verification corrects them; only metrics that it taught something about.
#[must_use]
pub fn calibrated(predicted: &Metrics, calibration: &[CalibrationView]) -> Metrics {
    let corrected = calibration.iter().filter_map(|view| {
        let figure = predicted.get(&view.metric)?;
        let calibration = Calibration {
            factor: view.factor,
            offset: view.offset,
            residual: view.residual,
        };
        let corrected = calibration.apply(estimate(*figure));
        Some((view.metric.clone(), figure_of(corrected)))
    });
    corrected.collect()
}

/// A search with its figures.
#[must_use]
pub fn search(row: SearchRow, figures: &SearchFigures, space: &Space) -> SearchView {
    let ranges = row.ranges.as_ref().map(|ranges| ranges.0.as_slice());
    SearchView {
        id: row.id,
        runtime: row.runtime(),
        budget: budget(&row, figures, space),
        objectives: objectives(space, ranges),
        limits: limits(space),
        positions: space.positions.iter().map(|position| position.name.clone()).collect(),
        hypervolume: figures.hypervolume,
        front_points: figures.front_points,
        name: row.name,
        space_name: row.space_name,
        space: row.space,
        state: row.state,
        paused_from: row.paused_from,
        state_reason: row.state_reason,
        device: row.device,
        strategy: row.strategy,
        seed: row.seed.cast_unsigned(),
        base: row.base.0,
        elimination: row.elimination.map(|elimination| elimination.0),
        calibration: row.calibration.map(|calibration| calibration.0).unwrap_or_default(),
        last_event: figures.last_event,
        created_at: row.created_at,
        ended_at: row.ended_at,
    }
}

/// What a search has spent and what is left.
#[must_use]
pub fn budget(row: &SearchRow, figures: &SearchFigures, space: &Space) -> Budget {
    Budget {
        evaluations: figures.evaluations,
        max_evaluations: unsigned(row.max_evaluations),
        device_hours: figures.device_seconds.total() / 3600.0,
        max_device_hours: space.search.max_device_hours,
        device_seconds: figures.device_seconds,
        stalled_evaluations: figures.stalled,
        stall_limit: space.search.stall_evaluations.map(u64::from),
    }
}

/// Objectives with the box's sides: those of the search where they are fixed, else those that the space declares.
#[must_use]
pub fn objectives(space: &Space, ranges: Option<&[(f64, f64)]>) -> Vec<ObjectiveView> {
    let views = space
        .objectives
        .iter()
        .enumerate()
        .map(|(index, objective)| ObjectiveView {
            metric: objective.metric.clone(),
            direction: match objective.direction {
                Direction::Maximise => "maximize".to_owned(),
                Direction::Minimise => "minimize".to_owned(),
            },
            range: ranges.and_then(|ranges| ranges.get(index).copied()).or(objective.range),
        });
    views.collect()
}

/// Limits as they are shown.
#[must_use]
pub fn limits(space: &Space) -> Vec<LimitView> {
    space
        .limits
        .iter()
        .map(|(metric, at_most)| LimitView {
            metric: metric.to_owned(),
            at_most,
        })
        .collect()
}

/// An architecture position by position.
#[must_use]
pub fn layers(space: &Space, architecture: &Architecture) -> Vec<LayerView> {
    let chosen = space.positions.iter().zip(space.chosen(architecture));
    let layers = chosen.map(|(position, choice)| LayerView {
        position: position.name.clone(),
        choice: choice.map_or_else(String::new, |choice| choice.name.clone()),
    });
    layers.collect()
}

/// A figure of the wire.
#[must_use]
pub fn figure_of(estimate: Estimate) -> Figure {
    Figure {
        value: estimate.value,
        standard_error: estimate.standard_error,
    }
}

/// An estimate of the domain.
#[must_use]
pub fn estimate(figure: Figure) -> Estimate {
    Estimate {
        value: figure.value,
        standard_error: figure.standard_error,
    }
}

/// Metrics of the wire.
#[must_use]
pub fn metrics(estimates: &BTreeMap<String, Estimate>) -> Metrics {
    estimates
        .iter()
        .map(|(name, estimate)| (name.clone(), figure_of(*estimate)))
        .collect()
}

/// Metrics of the domain.
#[must_use]
pub fn estimates(metrics: &Metrics) -> BTreeMap<String, Estimate> {
    metrics
        .iter()
        .map(|(name, figure)| (name.clone(), estimate(*figure)))
        .collect()
}
