//! What a submission would cost.

use protocol::{
    Figure,
    jobs::JobKind,
    searches::{NewSearch, SearchEstimate},
};
use search_spaces::{Evaluation, Space};

use super::{SearchError, profiling, submission};
use crate::{app::App, aside::aside, dispatch::Rules, samples, store::luts::LutFilter};

/// How many earlier evaluations an estimate looks at.
const EARLIER: i64 = 200;

/// Estimates cost and time of a submission without storing anything.
///
/// # Errors
/// What is wrong with the submission, by field; or a store fails.
pub async fn estimate(app: &App, new: &NewSearch) -> Result<SearchEstimate, SearchError> {
    let now = app.clock.now();
    let accepted = submission::check(app, new, now).await?;
    let space = &accepted.space;
    let evaluations = u64::from(space.search.max_evaluations);
    let seconds = seconds_per_evaluation(app, space).await?;
    let workers = app
        .store
        .workers_taking(JobKind::Evaluate, Rules::of(&app.config).alive_since(now))
        .await?;
    let is_table = new.table.is_some();
    let device_hours = match seconds {
        Some((seconds, _)) => Some(seconds.value * evaluations as f64 / 3600.0),
        None => is_table.then_some(0.0),
    };
    let device_hours = device_hours.map(|hours| space.search.max_device_hours.map_or(hours, |most| hours.min(most)));
    let parallel = workers.min(space.search.width.into());
    Ok(SearchEstimate {
        architectures: space.size().to_string(),
        blocks_to_profile: blocks_to_profile(app, &accepted).await?,
        max_evaluations: evaluations,
        seconds_per_evaluation: seconds.map(|(seconds, _)| seconds),
        device_hours,
        wall_hours: device_hours
            .filter(|_| parallel > 0)
            .map(|hours| hours / parallel as f64),
        basis: match seconds {
            _ if is_table => "a table space holds no device".to_owned(),
            Some((_, count)) => {
                format!(
                    "{count} earlier evaluations with the same settings; {workers} workers take evaluations now; profiling and verification are not counted"
                )
            }
            None => "no earlier evaluation with the same settings; the first one will tell".to_owned(),
        },
    })
}

/// Mean device-seconds of earlier evaluations with the same evaluation settings and the same model, with their
/// number.
async fn seconds_per_evaluation(app: &App, space: &Space) -> Result<Option<(Figure, usize)>, SearchError> {
    let Some(evaluation) = &space.evaluation else {
        return Ok(None);
    };
    let earlier = app.store.evaluation_seconds(&space.name, EARLIER).await?;
    let (kind, evaluation) = (space.kind.clone(), evaluation.clone());
    let same = move |text: &str| {
        Space::parse(text).is_ok_and(|other| {
            other.evaluation.as_ref().is_some_and(|e| same_work(e, &evaluation)) && other.kind == kind
        })
    };
    let seconds: Vec<f64> = aside(move || {
        let mut verdicts = std::collections::HashMap::new();
        earlier
            .into_iter()
            .filter(|(text, _)| *verdicts.entry(text.clone()).or_insert_with(|| same(text)))
            .map(|(_, seconds)| seconds)
            .collect()
    })
    .await;
    if seconds.is_empty() {
        return Ok(None);
    }
    let count = seconds.len() as f64;
    let mean = seconds.iter().sum::<f64>() / count;
    let variance = seconds.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    Ok(Some((
        Figure {
            value: mean,
            standard_error: (variance / count).sqrt(),
        },
        seconds.len(),
    )))
}

/// Whether two settings ask for the same amount of work; seeds do not matter.
fn same_work(a: &Evaluation, b: &Evaluation) -> bool {
    let amount = |e: &Evaluation| (e.steps, e.batch, e.prompts, e.videos_per_prompt, e.sample_steps);
    amount(a) == amount(b)
}

async fn blocks_to_profile(app: &App, accepted: &submission::Accepted) -> Result<u64, SearchError> {
    let space = &accepted.space;
    let (Some(device), Some(runtime)) = (&accepted.device, &accepted.runtime) else {
        return Ok(0);
    };
    let filter = LutFilter {
        runtime: Some(runtime),
        dtype: Some(profiling::dtype(space).as_str()),
        operator: None,
    };
    let mut lut = lut::Lut::new(device, samples::lut_runtime(runtime), profiling::dtype(space));
    for entry in app.store.lut_entries(device, &filter).await? {
        lut.insert(entry.key.block, entry.state);
    }
    Ok(profiling::missing(space, &lut).len() as u64)
}
