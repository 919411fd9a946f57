//! Scores of a candidate: clips for prompts it was never trained on, read by the evaluators.
//!
//! The seeds of the clips depend on prompt and number only, so that two candidates are compared on the same noise, and
//! the score of each prompt is kept for paired comparison.

pub mod clip;
mod estimate;
pub mod evaluators;
pub mod images;
mod motion;
mod pictures;
mod sampling;
pub mod vbench;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use search_spaces::{BUILT_IN_DIMENSIONS, Estimate, Evaluation};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::assets::Assets;
use crate::data::Prompt;
use crate::models::UNet;
pub use estimate::{Paired, PromptScore, mean_of_prompts, paired, quality};
use evaluators::Evaluators;
pub use motion::{is_dynamic, temporal_flickering};
pub use pictures::{animation, sheet};
pub use sampling::{Batch, Place, Sampling};
use vbench::{Environment, VBenchError};

const OVERALL_CONSISTENCY: &str = "overall_consistency";
const OBJECT_CLASS: &str = "object_class";
const COLOR: &str = "color";
const TEMPORAL_FLICKERING: &str = "temporal_flickering";
const DYNAMIC_DEGREE: &str = "dynamic_degree";
/// Clips in the animation and on the sheet.
const SHOWN: usize = 8;
/// A standard error takes two.
const FEWEST_PROMPTS: usize = 2;

/// Why a candidate could not be scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoringError {
    /// A dimension that no evaluator reads.
    #[error("`evaluation.dimensions` names `{found}`; allowed: {}", BUILT_IN_DIMENSIONS.join(", "))]
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
    /// The parts bring no evaluators.
    #[error(
        "the parts of `{dataset}` were imported and have no built-in evaluators; name another scorer as `evaluation.evaluator`"
    )]
    NoEvaluators {
        /// Whose parts.
        dataset: String,
    },
    /// The parts hold too little to score.
    #[error("the parts of `{dataset}` hold {found} held-out prompts; at least {FEWEST_PROMPTS} are needed")]
    Prompts {
        /// Whose parts.
        dataset: String,
        /// How many they hold.
        found: usize,
    },
    /// What was sampled is nothing that could be read.
    #[error("a clip of `{caption}` holds values that are no finite numbers")]
    NoNumbers {
        /// The prompt.
        caption: String,
    },
    /// A size of clips that no preset has.
    #[error("`evaluation.preset` is `{found}`; allowed: paper-eval, paper-demo")]
    Preset {
        /// What was asked for.
        found: String,
    },
    /// The trained parts know single pictures alone.
    #[error("the VAE of `{dataset}` is one of single pictures and decodes no clips; name parts with a video VAE")]
    Pictures {
        /// The parts.
        dataset: String,
    },
    /// Whoever asked does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The published package could not score.
    #[error(transparent)]
    VBench(#[from] VBenchError),
    /// A picture could not be encoded.
    #[error("a picture of the samples could not be encoded: {0}")]
    Picture(#[from] image::ImageError),
}

/// A candidate's figures.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Score {
    /// `quality` and the dimensions, each with its standard error over prompts.
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

/// Who scores.
#[derive(Debug, Clone, Copy)]
pub enum Evaluator<'a> {
    /// The small networks that come with the trained parts.
    BuiltIn,
    /// The published package, in an environment of the user's.
    VBench {
        /// Where it runs.
        environment: &'a Environment,
        /// Where videos are kept until they are scored.
        folder: &'a Path,
        /// What tells the model's weights from all others.
        model: &'a str,
        /// Takes what the package says.
        log: &'a dyn Log,
    },
}

/// Takes lines of a log.
pub trait Log: std::fmt::Debug {
    /// Takes one.
    fn log(&self, line: &str);
}

impl Evaluator<'_> {
    /// Who scores, with its version, how good it is where that is known, and what differs from the published way.
    #[must_use]
    pub fn line(&self, assets: &Assets, evaluation: &Evaluation) -> String {
        match self {
            Self::BuiltIn => assets.evaluator_line(),
            Self::VBench { environment, .. } => {
                let line = environment.line(assets.device());
                // The benchmark keeps the still ones of 25 videos for this dimension.
                let flickering = evaluation.dimensions.contains_key(TEMPORAL_FLICKERING);
                if flickering {
                    line + ", temporal_flickering without the static filter"
                } else {
                    line
                }
            }
        }
    }

    /// Samples clips and scores them; `progress` hears how far it is and may end it.
    ///
    /// # Errors
    /// For settings that ask for nothing or for an unknown dimension, where the package fails, and where `progress`
    /// breaks it off.
    pub fn score(
        &self,
        assets: &Assets,
        evaluation: &Evaluation,
        unet: &UNet,
        progress: &mut dyn FnMut(&SoFar) -> ControlFlow<()>,
    ) -> Result<Score, ScoringError> {
        match *self {
            Self::BuiltIn => score(assets, evaluation, unet, progress),
            Self::VBench {
                environment,
                folder,
                model,
                log,
            } => {
                let run = vbench::Run {
                    environment,
                    folder,
                    model,
                    log,
                };
                run.score(assets, evaluation, unet, progress)
            }
        }
    }
}

pub(crate) fn sampling<'a>(
    assets: &'a Assets,
    evaluation: &Evaluation,
    unet: &'a UNet,
) -> Result<Sampling<'a>, ScoringError> {
    if assets.vae.temporal.is_none() {
        return Err(ScoringError::Pictures {
            dataset: assets.manifest.dataset.clone(),
        });
    }
    Sampling::of(assets, evaluation, unet).ok_or_else(|| ScoringError::Preset {
        found: evaluation.preset.clone().unwrap_or_default(),
    })
}

/// Samples clips of held-out prompts, decodes and reads them; `progress` hears of each batch.
///
/// # Errors
/// For settings that ask for nothing or for an unknown dimension, where clips are no numbers, and where `progress` breaks
/// it off.
pub fn score(
    assets: &Assets,
    evaluation: &Evaluation,
    unet: &UNet,
    progress: &mut dyn FnMut(&SoFar) -> ControlFlow<()>,
) -> Result<Score, ScoringError> {
    check(evaluation)?;
    let evaluators = assets.evaluators.as_ref().ok_or_else(|| ScoringError::NoEvaluators {
        dataset: assets.manifest.dataset.clone(),
    })?;
    let prompts = assets.prompts(evaluation.prompts as usize);
    if prompts.len() < FEWEST_PROMPTS {
        return Err(ScoringError::Prompts {
            dataset: assets.manifest.dataset.clone(),
            found: prompts.len(),
        });
    }
    let captions: Vec<&str> = prompts.iter().map(|prompt| &*prompt.caption).collect();
    let sampling = sampling(assets, evaluation, unet)?;
    let (mut readings, mut shown) = (vec![Vec::new(); prompts.len()], Vec::new());
    let (mut sample_seconds, mut score_seconds) = (0.0, 0.0);
    let videos = evaluation.videos_per_prompt as usize;
    sampling.run(&captions, videos, &|_| false, &mut |batch| {
        let started = Instant::now();
        for (i, Place { prompt, video }) in batch.places.iter().enumerate() {
            let clip = batch.clips.narrow(0, i as i64, 1);
            if clip.isfinite().all().int64_value(&[]) == 0 {
                let caption = prompts[*prompt].caption.clone();
                return Err(ScoringError::NoNumbers { caption });
            }
            readings[*prompt].push(read(evaluators, &clip, &prompts[*prompt]));
            if *video == 0 && shown.len() < SHOWN {
                shown.push(clip.get(0));
            }
        }
        sample_seconds += batch.sample_seconds;
        score_seconds += batch.decode_seconds + started.elapsed().as_secs_f64();
        let so_far = SoFar {
            share: batch.share,
            sample_seconds,
            score_seconds,
            metrics: metrics(&per_prompt(&prompts, &readings), &evaluation.dimensions),
        };
        match progress(&so_far) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ScoringError::Interrupted),
        }
    })?;
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
        .find(|name| !BUILT_IN_DIMENSIONS.contains(&name.as_str()));
    if let Some(found) = unknown {
        return Err(ScoringError::Dimension { found: found.clone() });
    }
    let settings = [
        ("prompts", evaluation.prompts, FEWEST_PROMPTS as u32),
        ("videos_per_prompt", evaluation.videos_per_prompt, 1),
        ("sample_steps", evaluation.sample_steps, 1),
    ];
    match settings.into_iter().find(|(_, found, least)| found < least) {
        Some((field, found, least)) => Err(ScoringError::TooFew { field, found, least }),
        None => Ok(()),
    }
}

fn read(evaluators: &Evaluators, clip: &Tensor, prompt: &Prompt) -> BTreeMap<String, f64> {
    let reading = evaluators.read(clip, prompt);
    let frames = clip.get(0);
    let mut values = BTreeMap::from([
        (OVERALL_CONSISTENCY.to_owned(), reading.overall_consistency),
        (OBJECT_CLASS.to_owned(), reading.object_class),
        (TEMPORAL_FLICKERING.to_owned(), temporal_flickering(&frames)),
        (DYNAMIC_DEGREE.to_owned(), f64::from(u8::from(is_dynamic(&frames)))),
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
    let single = BUILT_IN_DIMENSIONS
        .iter()
        .map(|name| ((*name).to_owned(), mean_of_prompts(per_prompt, name)));
    single
        .chain([("quality".to_owned(), quality(per_prompt, weights))])
        .collect()
}

#[cfg(test)]
mod tests {
    use search_spaces::Space;
    use tch::{Device, nn};

    use super::*;

    /// Why two clips of a network without layers cannot be scored.
    fn refused(change: impl FnOnce(&mut Assets, &nn::VarStore)) -> String {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let text = std::fs::read_to_string(root.join("search-spaces/spaces/shapes-tiny.toml")).unwrap();
        let space = Space::parse(&text).unwrap();
        let mut assets = Assets::open(&root.join("assets"), "shapes", Device::Cpu).unwrap();
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), space.unet().unwrap(), &[]);
        change(&mut assets, &vs);
        let evaluation = Evaluation {
            prompts: 2,
            videos_per_prompt: 1,
            sample_steps: 1,
            ..space.evaluation.unwrap()
        };
        let scored = score(&assets, &evaluation, &unet, &mut |_| ControlFlow::Continue(()));
        scored.unwrap_err().to_string()
    }

    #[test]
    fn parts_without_prompts_are_refused_in_words() {
        let error = refused(|assets, _| assets.manifest.held_out_prompts.truncate(1));
        assert_eq!(
            error,
            "the parts of `shapes` hold 1 held-out prompts; at least 2 are needed"
        );
    }

    #[test]
    fn clips_that_are_no_numbers_have_no_score() {
        let error = refused(|_, vs| {
            for (_, weight) in vs.variables() {
                let _ = tch::no_grad(|| weight.shallow_clone().fill_(f64::NAN));
            }
        });
        assert!(error.ends_with("holds values that are no finite numbers"), "{error}");
    }
}
