//! What a submission would cost.

mod assumed;

use lut::{Lut, LutCosts};
use protocol::{
    Figure,
    jobs::{JobKind, VBENCH_EVALUATOR},
    searches::{EstimatePart, NewSearch, SearchEstimate},
};
use search_spaces::{Block, Costs, Evaluation, Space, metric};

use super::{SearchError, profiling, submission};
use crate::{
    app::App,
    aside::aside,
    dispatch::Rules,
    samples,
    store::{jobs, luts::LutFilter},
};
use assumed::{PASSES_A_STEP, Rate};

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
    let lut = table(app, &accepted).await?;
    let missing = lut
        .as_ref()
        .map(|lut| profiling::missing(space, lut))
        .unwrap_or_default();
    let seconds = seconds_per_evaluation(app, space).await?;
    let pass = Pass::of(space, lut.as_ref());

    let mut parts = Vec::new();
    if !missing.is_empty() {
        parts.push(profiling_part(app, &accepted, &missing).await?);
    }
    let evaluating = match (seconds, &space.evaluation, &pass) {
        (Some((mean, count)), _, _) => vec![EstimatePart {
            part: "evaluations".to_owned(),
            seconds: mean.value * evaluations as f64,
            measured: true,
            basis: format!("{count} earlier evaluations with the same settings"),
        }],
        (None, Some(evaluation), Some(pass)) => pass.evaluations(evaluation, evaluations),
        _ => Vec::new(),
    };
    let is_table = new.table.is_some();
    let is_known = is_table || !evaluating.is_empty();
    let in_parallel: f64 = evaluating.iter().map(|part| part.seconds).sum();
    parts.extend(evaluating);
    parts.extend(pass.and_then(|pass| pass.verification(space.search.finalists)));

    let workers = app
        .store
        .workers_taking(JobKind::Evaluate, Rules::of(&app.config).alive_since(now))
        .await?;
    let ranks = space.evaluation.as_ref().map_or(1, |evaluation| evaluation.ranks);
    let parallel = workers.min(u64::from(space.search.width) * u64::from(ranks));
    let all: f64 = parts.iter().map(|part| part.seconds).sum();
    let within = |seconds: f64| {
        let hours = seconds / 3600.0;
        space.search.max_device_hours.map_or(hours, |most| hours.min(most))
    };
    let wall =
        |workers: u64| within(all) * ((all - in_parallel) + in_parallel / workers as f64) / all.max(f64::MIN_POSITIVE);
    Ok(SearchEstimate {
        architectures: space.size().to_string(),
        blocks_to_profile: missing.len() as u64,
        max_evaluations: evaluations,
        seconds_per_evaluation: seconds.map(|(seconds, _)| seconds),
        device_hours: is_known.then(|| within(all)),
        wall_hours: (is_known && parallel > 0).then(|| wall(parallel)),
        basis: basis(is_table, is_known, workers, &parts),
        parts,
    })
}

fn basis(is_table: bool, is_known: bool, workers: u64, parts: &[EstimatePart]) -> String {
    if is_table {
        return "a table space holds no device".to_owned();
    }
    if !is_known {
        return "no earlier evaluation with the same settings, and no UNet whose work could be counted".to_owned();
    }
    let assumed = parts.iter().filter(|part| !part.measured).count();
    let rests = match assumed {
        0 => "measurements alone".to_owned(),
        _ => format!("assumptions in {assumed} of {} parts", parts.len()),
    };
    format!("{rests}; workers that take evaluations now: {workers}")
}

/// Measuring what the table lacks.
async fn profiling_part(
    app: &App,
    accepted: &submission::Accepted,
    missing: &[Block],
) -> Result<EstimatePart, SearchError> {
    let earlier = match (&accepted.device, &accepted.runtime) {
        (Some(device), Some(runtime)) => {
            let mut connection = app.store.connection().await?;
            jobs::profile_seconds(&mut connection, device, runtime).await?
        }
        _ => None,
    };
    let (seconds, measured, basis) = match earlier {
        Some((seconds, blocks)) => {
            let each = seconds / blocks as f64;
            let basis = format!("{each:.2} s a block, the mean of {blocks} that were measured on this device");
            (each * missing.len() as f64, true, basis)
        }
        None => {
            let rate = Rate::of(accepted.runtime.as_ref().map(|runtime| runtime.name.as_str()));
            let dtype = profiling::dtype(&accepted.space);
            let seconds = missing.iter().map(|block| rate.block_seconds(block, dtype)).sum();
            (seconds, false, format!("the blocks' work in closed form, {rate}"))
        }
    };
    Ok(EstimatePart {
        part: "profiling".to_owned(),
        seconds,
        measured,
        basis,
    })
}

/// One forward pass of the UNet at batch 1, of a typical architecture of the space: the mean of its references.
struct Pass {
    seconds: f64,
    measured: bool,
    basis: String,
}

impl Pass {
    /// From the table where it knows all blocks, else from the work in closed form; none without a UNet.
    fn of(space: &Space, lut: Option<&Lut>) -> Option<Self> {
        let unet = space.unet()?;
        let architectures: Vec<_> = match space.references.as_slice() {
            [] => space.backbone().into_iter().collect(),
            references => references
                .iter()
                .map(|reference| reference.architecture.clone())
                .collect(),
        };
        let latencies = lut.map(|lut| {
            let costs = LutCosts::new(lut, space);
            let known = architectures
                .iter()
                .filter_map(|architecture| costs.costs(architecture).ok());
            known
                .filter_map(|costs| Some(costs.get(metric::LATENCY_MS)?.value))
                .collect::<Vec<f64>>()
        });
        if let Some(latency_ms) = latencies.as_deref().and_then(mean) {
            return Some(Self {
                seconds: latency_ms / 1000.0,
                measured: true,
                basis: format!("{latency_ms:.2} ms a pass by this device's table"),
            });
        }
        let rate = Rate::of(lut.map(|lut| lut.runtime().name.as_str()));
        let macs: Vec<f64> = architectures
            .iter()
            .map(|architecture| unet.macs(&space.layers(architecture)) as f64)
            .collect();
        let macs = mean(&macs)?;
        Some(Self {
            seconds: rate.seconds(macs),
            measured: false,
            basis: format!("{:.3} GMAC a pass in closed form, {rate}", macs / 1e9),
        })
    }

    /// Training and sampling of every evaluation; decoding and scoring are small beside them and not counted.
    fn evaluations(&self, evaluation: &Evaluation, evaluations: u64) -> Vec<EstimatePart> {
        let part = |name: &str, passes: f64, what: String| EstimatePart {
            part: name.to_owned(),
            seconds: self.seconds * passes * evaluations as f64,
            // How a batch and a backward pass compare with a pass at batch 1 stays an assumption.
            measured: false,
            basis: format!("{}; {what}", self.basis),
        };
        let steps = f64::from(evaluation.training.steps) * f64::from(evaluation.training.batch);
        let guided = if evaluation.guidance == 1.0 { 1.0 } else { 2.0 };
        let (most, clips) = clips(evaluation);
        vec![
            part(
                "training",
                PASSES_A_STEP * steps,
                format!(
                    "assumed: a step costs {PASSES_A_STEP} passes, a batch of {} as much as {0} single clips",
                    evaluation.training.batch
                ),
            ),
            part(
                "sampling",
                guided * clips * f64::from(evaluation.sample_steps),
                format!(
                    "assumed: {most}{clips} clips of {} steps, one by one and of the size of the space; decoding and \
                     scoring are not counted",
                    evaluation.sample_steps
                ),
            ),
        ]
    }

    /// Measuring the finalists whole.
    fn verification(&self, finalists: u32) -> Option<EstimatePart> {
        (finalists > 0).then(|| EstimatePart {
            part: "verification".to_owned(),
            seconds: assumed::measuring_seconds(self.seconds) * f64::from(finalists),
            measured: self.measured,
            basis: format!("{finalists} finalists, {}", self.basis),
        })
    }
}

/// Clips that an evaluation samples. The package `vbench` has prompts for each dimension, of which `prompts` are the
/// most, and some lists are shorter.
fn clips(evaluation: &Evaluation) -> (&'static str, f64) {
    let clips = f64::from(evaluation.prompts) * f64::from(evaluation.videos_per_prompt);
    if evaluation.evaluator == VBENCH_EVALUATOR {
        ("at most ", clips * evaluation.dimensions.len() as f64)
    } else {
        ("", clips)
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
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
    let amount = |e: &Evaluation| {
        (
            (e.training.steps, e.training.batch),
            (e.prompts, e.videos_per_prompt, e.sample_steps),
            (e.evaluator.clone(), e.preset.clone()),
            e.dimensions.keys().cloned().collect::<Vec<_>>(),
        )
    };
    amount(a) == amount(b)
}

/// The device's table as it stands; none where nothing is measured for the space.
async fn table(app: &App, accepted: &submission::Accepted) -> Result<Option<Lut>, SearchError> {
    let space = &accepted.space;
    let (Some(device), Some(runtime)) = (&accepted.device, &accepted.runtime) else {
        return Ok(None);
    };
    let filter = LutFilter {
        runtime: Some(runtime),
        dtype: Some(profiling::dtype(space).as_str()),
        operator: None,
    };
    let mut lut = Lut::new(device, samples::lut_runtime(runtime), profiling::dtype(space));
    for entry in app.store.lut_entries(device, &filter).await? {
        lut.insert(entry.key.block, entry.state);
    }
    Ok(Some(lut))
}
