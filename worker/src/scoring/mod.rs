//! Scores of a candidate: clips for prompts it was never trained on, read by the evaluators.
//!
//! The seeds of the clips depend on prompt and number only, so that two candidates are compared on the same noise, and
//! the score of each prompt is kept for paired comparison.

mod estimate;
pub mod evaluators;
mod motion;
mod pictures;

use std::collections::BTreeMap;
use std::time::Instant;

use search_spaces::{Estimate, Evaluation};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::assets::Assets;
use crate::data::{FRAMES, Prompt};
use crate::flow::Sampler;
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from, stream_of};
pub use estimate::{PromptScore, mean_of_prompts, quality};
pub use motion::{is_dynamic, temporal_flickering};
pub use pictures::{animation, sheet};

/// Dimensions that can be averaged.
pub const DIMENSIONS: [&str; 3] = [OVERALL_CONSISTENCY, OBJECT_CLASS, COLOR];
const OVERALL_CONSISTENCY: &str = "overall_consistency";
const OBJECT_CLASS: &str = "object_class";
const COLOR: &str = "color";
/// Clips sampled at once.
const SAMPLE_BATCH: usize = 24;
/// Clips in the animation and on the sheet.
const SHOWN: usize = 8;

/// Why a candidate could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoringError {
    /// A dimension that no evaluator reads.
    #[error("`evaluation.dimensions` names `{found}`; allowed: overall_consistency, object_class, color")]
    Dimension {
        /// What was asked for.
        found: String,
    },
    /// Too little to score.
    #[error("`evaluation.{field}` is {found}; it must be at least {least}")]
    TooFew {
        /// The setting.
        field: &'static str,
        /// What it is.
        found: u32,
        /// What it must be.
        least: u32,
    },
    /// A picture could not be encoded.
    #[error("a picture of the samples could not be encoded: {0}")]
    Picture(#[from] image::ImageError),
}

/// A candidate's figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Score {
    /// `quality`, the dimensions, `temporal_flickering` and `dynamic_degree`, each with its standard error over prompts.
    pub metrics: BTreeMap<String, Estimate>,
    /// The dimensions by prompt, means over its clips.
    pub per_prompt: Vec<PromptScore>,
    /// Some clips as a GIF.
    #[serde(skip)]
    pub animation: Vec<u8>,
    /// The same clips as a PNG, one a row.
    #[serde(skip)]
    pub sheet: Vec<u8>,
    /// Seconds spent sampling.
    pub sample_seconds: f64,
    /// Seconds spent decoding and reading.
    pub score_seconds: f64,
}

/// How far scoring is.
#[derive(Debug)]
pub struct SoFar {
    /// Share done, 0 to 1.
    pub share: f64,
    /// Seconds spent sampling.
    pub sample_seconds: f64,
    /// Seconds spent decoding and reading.
    pub score_seconds: f64,
    /// As in [`Score`], over the prompts that have been read.
    pub metrics: BTreeMap<String, Estimate>,
}

/// Samples clips of held-out prompts, decodes and reads them; `progress` hears of each batch.
///
/// # Errors
/// For settings that ask for nothing or for an unknown dimension.
pub fn score(
    assets: &Assets,
    evaluation: &Evaluation,
    unet: &UNet,
    progress: &mut dyn FnMut(&SoFar),
) -> Result<Score, ScoringError> {
    check(evaluation)?;
    let prompts = assets.prompts(evaluation.prompts as usize);
    let videos = evaluation.videos_per_prompt as usize;
    let jobs: Vec<(usize, usize)> = (0..prompts.len())
        .flat_map(|p| (0..videos).map(move |v| (p, v)))
        .collect();
    let null_text = assets.text.embed(&[""]);
    let sampler = Sampler {
        steps: evaluation.sample_steps,
        shift: evaluation.training.timestep_shift,
        guidance: evaluation.guidance,
    };
    let (mut readings, mut shown) = (vec![Vec::new(); prompts.len()], Vec::new());
    let (mut sample_seconds, mut score_seconds) = (0.0, 0.0);
    for (done, batch) in jobs.chunks(SAMPLE_BATCH).enumerate() {
        let started = Instant::now();
        let captions: Vec<&str> = batch.iter().map(|(prompt, _)| &*prompts[*prompt].caption).collect();
        let noise: Vec<Tensor> = batch
            .iter()
            .map(|(prompt, video)| noise(evaluation.score_seed, &prompts[*prompt], *video, &assets.latent_shape()))
            .collect();
        let noise = Tensor::stack(&noise, 0);
        let latents = sampler.sample(unet, &noise, &assets.text.embed(&captions), &null_text);
        sample_seconds += started.elapsed().as_secs_f64();

        let started = Instant::now();
        let clips = tch::no_grad(|| assets.vae.decode(&latents, FRAMES as i64));
        for (i, (prompt, video)) in batch.iter().enumerate() {
            let clip = clips.narrow(0, i as i64, 1);
            readings[*prompt].push(read(assets, &clip, &prompts[*prompt]));
            if *video == 0 && shown.len() < SHOWN {
                shown.push(clip.get(0));
            }
        }
        score_seconds += started.elapsed().as_secs_f64();
        progress(&SoFar {
            share: ((done + 1) * SAMPLE_BATCH).min(jobs.len()) as f64 / jobs.len() as f64,
            sample_seconds,
            score_seconds,
            metrics: metrics(&per_prompt(&prompts, &readings), &evaluation.dimensions),
        });
    }
    let per_prompt = per_prompt(&prompts, &readings);
    let shown = Tensor::stack(&shown, 0);
    Ok(Score {
        metrics: metrics(&per_prompt, &evaluation.dimensions),
        per_prompt,
        animation: animation(&shown, 4)?,
        sheet: sheet(&shown)?,
        sample_seconds,
        score_seconds,
    })
}

fn check(evaluation: &Evaluation) -> Result<(), ScoringError> {
    let unknown = evaluation
        .dimensions
        .keys()
        .find(|name| !DIMENSIONS.contains(&name.as_str()));
    if let Some(found) = unknown {
        return Err(ScoringError::Dimension { found: found.clone() });
    }
    // A standard error takes two prompts.
    let settings = [
        ("prompts", evaluation.prompts, 2),
        ("videos_per_prompt", evaluation.videos_per_prompt, 1),
        ("sample_steps", evaluation.sample_steps, 1),
    ];
    match settings.into_iter().find(|(_, found, least)| found < least) {
        Some((field, found, least)) => Err(ScoringError::TooFew { field, found, least }),
        None => Ok(()),
    }
}

/// The start of a clip: named by seed, caption and number, so that it is the same for every candidate.
fn noise(seed: u64, prompt: &Prompt, video: usize, shape: &[i64]) -> Tensor {
    let mut rng = generator(seed ^ stream_of(&prompt.caption), video as u64);
    normal_from(&mut rng, shape, Device::Cpu)
}

fn read(assets: &Assets, clip: &Tensor, prompt: &Prompt) -> BTreeMap<String, f64> {
    let reading = assets.evaluators.read(clip, prompt);
    let frames = clip.get(0);
    let mut values = BTreeMap::from([
        (OVERALL_CONSISTENCY.to_owned(), reading.overall_consistency),
        (OBJECT_CLASS.to_owned(), reading.object_class),
        ("temporal_flickering".to_owned(), temporal_flickering(&frames)),
        ("dynamic_degree".to_owned(), f64::from(u8::from(is_dynamic(&frames)))),
    ]);
    values.extend(reading.color.map(|color| (COLOR.to_owned(), color)));
    values
}

/// Scores of the prompts that have readings.
fn per_prompt(prompts: &[Prompt], readings: &[Vec<BTreeMap<String, f64>>]) -> Vec<PromptScore> {
    let read = prompts
        .iter()
        .zip(readings)
        .filter(|(_, readings)| !readings.is_empty());
    read.map(|(prompt, readings)| PromptScore {
        caption: prompt.caption.clone(),
        values: means(readings),
    })
    .collect()
}

/// Means by name over the clips that have the value.
fn means(readings: &[BTreeMap<String, f64>]) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (name, value) in readings.iter().flatten() {
        let sum = sums.entry(name.clone()).or_default();
        *sum = (sum.0 + value, sum.1 + 1.0);
    }
    sums.into_iter()
        .map(|(name, (sum, count))| (name, sum / count))
        .collect()
}

fn metrics(per_prompt: &[PromptScore], weights: &BTreeMap<String, f64>) -> BTreeMap<String, Estimate> {
    let names = [
        OVERALL_CONSISTENCY,
        OBJECT_CLASS,
        COLOR,
        "temporal_flickering",
        "dynamic_degree",
    ];
    let single = names
        .iter()
        .map(|name| ((*name).to_owned(), mean_of_prompts(per_prompt, name)));
    single
        .chain([("quality".to_owned(), quality(per_prompt, weights))])
        .collect()
}
