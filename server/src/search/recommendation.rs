//! The best candidate within limits, and what to try next.

use std::collections::BTreeSet;

use protocol::{
    Figure, SearchId,
    searches::{CandidateState, FrontPoint, NextAction, Recommendation},
};
use search_spaces::{Architecture, Costs, Direction, Space, metric};

use super::{SearchError, additive::Additive, context::Context, profiling, proposing::Candidates, verification, views};
use crate::{
    app::App,
    aside::aside,
    store::{candidates::CandidateRow, searches::SearchRow},
};

/// Candidates from which next actions start.
const PARENTS: usize = 5;

/// Next actions that are shown.
const ACTIONS: usize = 5;

/// Limits beside those of the space.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Within {
    /// Most milliseconds of a step.
    pub latency_ms: Option<f64>,
    /// Most bytes.
    pub peak_memory_bytes: Option<f64>,
}

impl Within {
    /// Metric and bound.
    fn limits(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let limits = [
            (metric::LATENCY_MS, self.latency_ms),
            (metric::PEAK_MEMORY_BYTES, self.peak_memory_bytes),
        ];
        limits.into_iter().filter_map(|(name, most)| Some((name, most?)))
    }

    /// Whether figures keep the limits; a figure that is not known breaks none.
    fn admits(&self, metrics: &protocol::Metrics) -> bool {
        self.limits()
            .all(|(name, most)| metrics.get(name).is_none_or(|figure| figure.value <= most))
    }

    /// A limit on what nothing in the search has would limit nothing, and say nothing of it.
    fn check(&self, search: &SearchRow, space: &Space, rows: &[CandidateRow]) -> Result<(), SearchError> {
        let told = rows.iter().flat_map(|row| {
            row.predicted
                .keys()
                .chain(row.measured.keys())
                .chain(row.verified.keys())
        });
        let mut metrics: BTreeSet<&str> = told.map(String::as_str).collect();
        metrics.extend(space.objectives.iter().map(|objective| objective.metric.as_str()));
        metrics.extend(space.limits.iter().map(|(name, _)| name));
        if profiling::target(search, space).is_some() {
            metrics.extend([metric::LATENCY_MS, metric::PEAK_MEMORY_BYTES]);
        }
        match self.limits().find(|(name, _)| !metrics.contains(name)) {
            None => Ok(()),
            Some((name, _)) => Err(SearchError::Invalid {
                field: name.into(),
                message: format!(
                    "the search has no such metric; it has {}",
                    metrics.into_iter().collect::<Vec<_>>().join(", ")
                ),
            }),
        }
    }
}

/// Recommends from what is stored.
///
/// # Errors
/// When there is no such search, it has no metric that is to be limited, or a store fails.
pub async fn recommend(app: &App, id: SearchId, within: Within) -> Result<Recommendation, SearchError> {
    let search = app.store.search(id).await?.ok_or(SearchError::NotFound(id))?;
    let space = app.searches.space(&search).await?;
    let known = Candidates::of(app.store.candidates(id, None, None).await?, &space)?;
    within.check(&search, &space, &known.rows)?;
    let figures = app.store.search_figures(id).await?;
    let mut recommendation = Recommendation {
        best: None,
        best_unverified: None,
        next_actions: Vec::new(),
        budget: views::budget(&search, &figures, &space),
    };
    // Before searching begins there is nothing to recommend from.
    if search.ranges.is_none() {
        return Ok(recommendation);
    }
    let context = {
        let mut connection = app.store.connection().await?;
        app.searches.context(&app.artifacts, &mut connection, &search).await?
    };
    let lead = Lead::of(&space);
    let point = |row: &CandidateRow| views::front_point(row, &space, calibration(&search));
    let (verified, unverified) = admitted(&search, &space, &known.rows, within);
    recommendation.best = best(&lead, &verified).map(point);
    let unverified = best(&lead, &unverified).map(point);
    recommendation.best_unverified = unverified.filter(|other| {
        recommendation
            .best
            .as_ref()
            .is_none_or(|best| lead.value(other) > lead.value(best))
    });
    recommendation.next_actions = aside(move || next_actions(&context, &known, within)).await;
    Ok(recommendation)
}

fn calibration(search: &SearchRow) -> &[protocol::searches::CalibrationView] {
    search
        .calibration
        .as_ref()
        .map_or(&[], |calibration| calibration.0.as_slice())
}

/// The objective that a recommendation is for: the first, which is quality wherever there is one.
struct Lead<'a> {
    metric: &'a str,
    sign: f64,
}

impl<'a> Lead<'a> {
    fn of(space: &'a Space) -> Self {
        let first = space.objectives.first();
        let sign = if first.is_some_and(|o| o.direction == Direction::Minimise) {
            -1.0
        } else {
            1.0
        };
        Self {
            metric: first.map_or(metric::QUALITY, |objective| objective.metric.as_str()),
            sign,
        }
    }

    /// Larger is better.
    fn value(&self, point: &FrontPoint) -> f64 {
        point
            .metrics
            .get(self.metric)
            .map_or(f64::NEG_INFINITY, |figure| self.sign * figure.value)
    }

    fn of_row(&self, row: &CandidateRow) -> Option<f64> {
        views::known(row)
            .get(self.metric)
            .map(|figure| self.sign * figure.value)
    }
}

/// Evaluated candidates within all limits: those measured whole, and those only predicted (with what
/// verification taught). Where nothing is measured on a device, an evaluation is all there is to know.
fn admitted<'r>(
    search: &SearchRow,
    space: &Space,
    rows: &'r [CandidateRow],
    within: Within,
) -> (Vec<&'r CandidateRow>, Vec<&'r CandidateRow>) {
    let measurable = profiling::target(search, space).is_some();
    let confirmed = verification::confirmed(space, rows);
    let evaluated = rows.iter().filter(|row| row.state == CandidateState::Evaluated);
    let admitted = evaluated.filter(|row| {
        let mut metrics = views::known(row);
        metrics.extend(views::calibrated(&row.predicted.0, calibration(search)));
        metrics.extend(row.verified.0.clone());
        within.admits(&metrics) && space.limits.broken(&views::estimates(&metrics)).is_empty()
    });
    admitted.partition(|row| !measurable || confirmed.contains(&row.number.unsigned_abs()))
}

fn best<'r>(lead: &Lead<'_>, rows: &[&'r CandidateRow]) -> Option<&'r CandidateRow> {
    let valued = rows.iter().filter_map(|row| Some((*row, lead.of_row(row)?)));
    let best = valued.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.number.cmp(&a.0.number)));
    best.map(|(row, _)| row)
}

/// Untried neighbours of the best front members, by what an additive model of the evaluations expects of them.
fn next_actions(context: &Context, known: &Candidates, within: Within) -> Vec<NextAction> {
    let space = &context.space;
    let lead = Lead::of(space);
    let evaluated = || {
        known
            .rows
            .iter()
            .zip(&known.architectures)
            .filter(|(row, _)| row.state == CandidateState::Evaluated)
    };
    let figures: Vec<(&Architecture, f64)> = evaluated()
        .filter_map(|(row, (_, architecture))| Some((architecture, lead.of_row(row)?)))
        .collect();
    let Some(model) = Additive::fit(space, &figures) else {
        return Vec::new();
    };
    let mut parents: Vec<_> = evaluated()
        .filter(|(row, _)| row.on_front && within.admits(&views::known(row)))
        .collect();
    parents.sort_by(|a, b| {
        lead.of_row(b.0)
            .unwrap_or(f64::MIN)
            .total_cmp(&lead.of_row(a.0).unwrap_or(f64::MIN))
    });
    let mut tried: BTreeSet<&Architecture> = known
        .architectures
        .iter()
        .map(|(_, architecture)| architecture)
        .collect();
    let neighbours: Vec<_> = parents
        .into_iter()
        .take(PARENTS)
        .flat_map(|(_, parent)| {
            space
                .neighbours(&parent.1)
                .into_iter()
                .map(move |neighbour| (parent, neighbour))
        })
        .collect();
    let mut actions = Vec::new();
    for ((number, parent), neighbour) in &neighbours {
        if !tried.insert(&neighbour.architecture) {
            continue;
        }
        let Ok(costs) = context.costs(&neighbour.architecture) else {
            continue;
        };
        let predicted = views::metrics(&costs);
        if space.limits.broken(&costs).is_empty() && within.admits(&predicted) {
            let gain = model.difference(parent, &neighbour.architecture);
            actions.push((gain, number, parent, neighbour, predicted));
        }
    }
    actions.sort_by(|a, b| b.0.total_cmp(&a.0));
    let best = actions.into_iter().take(ACTIONS);
    best.map(|(gain, number, parent, neighbour, predicted)| NextAction {
        from: *number,
        action: space.describe(neighbour.action),
        architecture: space.print(&neighbour.architecture),
        expected_gain: Figure {
            value: gain,
            standard_error: model.standard_error(parent, &neighbour.architecture),
        },
        predicted,
        basis: format!(
            "sum of what each choice adds, learned from {} evaluations; leave-one-out error {:.4}",
            model.evaluations, model.error
        ),
    })
    .collect()
}
