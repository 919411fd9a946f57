//! Scores of the published package `vbench`: clips as videos under its names, its own prompts, its own code in an
//! environment of the user's, its results read strictly.
//!
//! `temporal_flickering` is scored on the videos as they are: the benchmark's protocol samples 25 a prompt and keeps five
//! still ones, by a filter that needs RAFT's weights. Without it a moving video counts too, and lowers the score.

pub mod check;
mod environment;
pub mod prompts;
mod results;
mod videos;
mod workplace;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use search_spaces::vbench::{Dimension, Summary};
use search_spaces::{Estimate, Evaluation};

use super::{Log, Place, PromptScore, Sampling, Score, ScoringError, SoFar, mean_of_prompts, quality, sampling};
use crate::assets::{Assets, digest_of};
use crate::models::UNet;
pub use environment::Environment;
use prompts::{MOST_VIDEOS, Selection, video_name};
use results::Found;
use workplace::{SAMPLING, Workplace};

/// Why the package could not score.
#[derive(Debug, thiserror::Error)]
pub enum VBenchError {
    /// The environment does not work.
    #[error("{python}: no environment with the package vbench: {problem}")]
    Environment {
        /// Its Python.
        python: PathBuf,
        /// What it said.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// A prompt cannot name a video.
    #[error("`{name}` {problem}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        problem: String,
    },
    /// A video cannot be written or read.
    #[error("{path}: {problem}")]
    Video {
        /// The video.
        path: PathBuf,
        /// What ffmpeg said.
        problem: String,
    },
    /// Videos are missing, which the package would pass over in silence.
    #[error("{} videos of {expected} are missing: {}", .missing.len(), .missing.join(", "))]
    Missing {
        /// How many there should be.
        expected: usize,
        /// Names of the missing ones.
        missing: Vec<String>,
    },
    /// More videos than the package looks at.
    #[error("{found} videos a prompt; the package looks at the first {MOST_VIDEOS} and no more")]
    TooMany {
        /// What was asked for.
        found: usize,
    },
    /// The package has no such dimension, or none was asked for.
    #[error("`dimensions` holds {found}; allowed: {}", Dimension::ALL.map(Dimension::name).join(", "))]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// A dimension failed.
    #[error("`{dimension}` was not scored: the package {problem}")]
    Dimension {
        /// The dimension.
        dimension: Dimension,
        /// What the package said.
        problem: String,
    },
    /// Whoever asked does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
}

/// One model's scoring.
#[derive(Debug)]
pub struct Run<'a> {
    /// Where the package runs.
    pub environment: &'a Environment,
    /// Where videos are kept until all is scored; those that are there are not sampled again. What nobody came back to
    /// for a month goes.
    pub folder: &'a Path,
    /// What tells the model's weights from all others.
    pub model: &'a str,
    /// Takes what the package says.
    pub log: &'a dyn Log,
}

impl Run<'_> {
    /// Samples the package's prompts, writes the videos, has each dimension scored.
    ///
    /// # Errors
    /// For settings that ask for nothing, where the package or ffmpeg fails, and where `progress` breaks it off.
    pub fn score(
        &self,
        assets: &Assets,
        evaluation: &Evaluation,
        unet: &UNet,
        progress: &mut dyn FnMut(&SoFar) -> ControlFlow<()>,
    ) -> Result<Score, ScoringError> {
        let (score, place) = self.score_and_keep(assets, evaluation, unet, progress)?;
        place.remove();
        Ok(score)
    }

    /// As [`Self::score`]; the videos stay.
    fn score_and_keep(
        &self,
        assets: &Assets,
        evaluation: &Evaluation,
        unet: &UNet,
        progress: &mut dyn FnMut(&SoFar) -> ControlFlow<()>,
    ) -> Result<(Score, Workplace), ScoringError> {
        let plan = Plan::new(self.environment, evaluation)?;
        let sampling = sampling(assets, evaluation, unet)?;
        let place = Workplace::open(self.folder, &self.key(&sampling, &plan), &plan)?;
        self.log.log(&format!(
            "{} prompts × {} videos of {} frames, {}×{}, {} a second, for {}",
            plan.selection.prompts.len(),
            plan.videos,
            sampling.size.frames,
            sampling.size.width,
            sampling.size.height,
            sampling.size.frame_rate,
            plan.dimensions.iter().map(|d| d.name()).collect::<Vec<_>>().join(", ")
        ));
        let mut so_far = SoFar {
            share: 0.0,
            sample_seconds: 0.0,
            score_seconds: 0.0,
            metrics: BTreeMap::new(),
        };
        place.sample(&plan, &sampling, &mut so_far, progress)?;
        let absent = videos::missing(&place.videos, plan.expected.keys());
        if !absent.is_empty() {
            return Err(VBenchError::Missing {
                expected: plan.expected.len(),
                missing: absent,
            }
            .into());
        }

        let mut found = BTreeMap::new();
        let (started, before) = (Instant::now(), so_far.score_seconds);
        for (i, dimension) in plan.dimensions.iter().enumerate() {
            let of_it = self.dimension(*dimension, &place, &plan, assets, &mut || {
                so_far.share = SAMPLING + (1.0 - SAMPLING) * i as f64 / plan.dimensions.len() as f64;
                so_far.score_seconds = before + started.elapsed().as_secs_f64();
                progress(&so_far).is_continue()
            })?;
            found.insert(*dimension, of_it);
            so_far.metrics = metrics(&plan, &found, &evaluation.dimensions);
        }
        so_far.score_seconds = before + started.elapsed().as_secs_f64();
        let shown = place.shown(&plan, &sampling)?;
        let score = Score {
            metrics: so_far.metrics,
            per_prompt: plan.per_prompt(&found),
            animation: super::animation(&shown, 4)?,
            sheet: super::sheet(&shown)?,
            sample_seconds: so_far.sample_seconds,
            score_seconds: so_far.score_seconds,
        };
        Ok((score, place))
    }

    /// All that the videos and the results depend on.
    fn key(&self, sampling: &Sampling<'_>, plan: &Plan) -> String {
        let parts = (
            self.model,
            format!(
                "{:?} {:?} {} {}",
                sampling.sampler, sampling.size, sampling.seed, sampling.batch
            ),
            &plan.selection.entries,
            plan.videos,
            &self.environment.package,
        );
        digest_of(&parts)
    }

    fn dimension(
        &self,
        dimension: Dimension,
        place: &Workplace,
        plan: &Plan,
        assets: &Assets,
        goes_on: &mut dyn FnMut() -> bool,
    ) -> Result<Found, ScoringError> {
        let results = place.results.join(format!("{dimension}_eval_results.json"));
        let expected = plan.expected_of(dimension);
        let parse = |text: &[u8]| results::parse(text, dimension, &expected);
        // Of an earlier attempt.
        if let Some(found) = fs::read(&results).ok().and_then(|text| parse(&text).ok()) {
            return Ok(found);
        }
        self.log.log(&format!("scoring {dimension}"));
        let folders = [&*place.full_info, &*place.videos, &*place.results];
        let mut said = |line: &str| self.log.log(&format!("vbench: {line}"));
        let ran = self
            .environment
            .score(dimension, assets.device(), folders, &mut said, goes_on);
        ran.map_err(|error| match error {
            VBenchError::Interrupted => ScoringError::Interrupted,
            error => error.into(),
        })?;
        let wrong = |problem: String| VBenchError::Dimension {
            dimension,
            problem: format!("wrote {}, which {problem}", results.display()),
        };
        let text = fs::read(&results).map_err(|error| wrong(format!("cannot be read: {error}")))?;
        Ok(parse(&text).map_err(wrong)?)
    }
}

/// What is sampled and scored.
#[derive(Debug)]
struct Plan {
    dimensions: Vec<Dimension>,
    selection: Selection,
    videos: usize,
    /// The videos by name.
    expected: BTreeMap<String, Place>,
}

impl Plan {
    fn new(environment: &Environment, evaluation: &Evaluation) -> Result<Self, VBenchError> {
        let videos = evaluation.videos_per_prompt as usize;
        if videos > MOST_VIDEOS {
            return Err(VBenchError::TooMany { found: videos });
        }
        let named = |name: &String| {
            Dimension::named(name).ok_or_else(|| VBenchError::Unknown {
                found: format!("`{name}`"),
            })
        };
        let dimensions: Vec<Dimension> = evaluation.dimensions.keys().map(named).collect::<Result<_, _>>()?;
        let list = prompts::read(&environment.full_info)?;
        let selection = prompts::select(&list, &dimensions, evaluation.prompts as usize);
        if selection.prompts.is_empty() || videos == 0 {
            return Err(VBenchError::Unknown {
                found: "nothing to score".to_owned(),
            });
        }
        let mut expected = BTreeMap::new();
        for (prompt, caption) in selection.prompts.iter().enumerate() {
            for video in 0..videos {
                expected.insert(video_name(caption, video)?, Place { prompt, video });
            }
        }
        Ok(Self {
            dimensions,
            selection,
            videos,
            expected,
        })
    }

    /// The videos that a dimension scores.
    fn expected_of(&self, dimension: Dimension) -> BTreeMap<String, Place> {
        let of_it = |entry: &&prompts::Entry| entry.dimension.iter().any(|name| name == dimension.name());
        let captions: Vec<&str> = self
            .selection
            .entries
            .iter()
            .filter(of_it)
            .map(|e| &*e.prompt_en)
            .collect();
        let wanted = |place: &Place| captions.contains(&self.selection.prompts[place.prompt].as_str());
        let videos = self.expected.iter().filter(|(_, place)| wanted(place));
        videos.map(|(name, place)| (name.clone(), *place)).collect()
    }

    /// Means over the videos of each prompt.
    fn per_prompt(&self, found: &BTreeMap<Dimension, Found>) -> Vec<PromptScore> {
        let mut scores: Vec<PromptScore> = self
            .selection
            .prompts
            .iter()
            .map(|caption| PromptScore {
                caption: caption.clone(),
                values: BTreeMap::new(),
            })
            .collect();
        for (dimension, Found { videos, .. }) in found {
            let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
            for (place, value) in videos {
                let sum = sums.entry(place.prompt).or_default();
                *sum = (sum.0 + value, sum.1 + 1.0);
            }
            for (prompt, (sum, count)) in sums {
                scores[prompt].values.insert(dimension.name().to_owned(), sum / count);
            }
        }
        scores
    }
}

/// The dimensions as the package averages them, their average by weight as `quality`, and what scores they add up to;
/// each with its standard error over prompts.
fn metrics(
    plan: &Plan,
    found: &BTreeMap<Dimension, Found>,
    weights: &BTreeMap<String, f64>,
) -> BTreeMap<String, Estimate> {
    let per_prompt = plan.per_prompt(found);
    let raw: BTreeMap<Dimension, f64> = found
        .iter()
        .map(|(dimension, found)| (*dimension, found.score))
        .collect();
    let mut metrics: BTreeMap<String, Estimate> = raw
        .iter()
        .map(|(dimension, score)| {
            let standard_error = mean_of_prompts(&per_prompt, dimension.name()).standard_error;
            (
                dimension.name().to_owned(),
                Estimate {
                    value: *score,
                    standard_error,
                },
            )
        })
        .collect();
    if found.len() == plan.dimensions.len() {
        let total: f64 = weights.values().sum();
        let weighted = |(dimension, score): (&Dimension, &f64)| weights.get(dimension.name()).unwrap_or(&0.0) * score;
        let value = raw.iter().map(weighted).sum::<f64>() / total;
        let standard_error = quality(&per_prompt, weights).standard_error;
        metrics.insert("quality".to_owned(), Estimate { value, standard_error });
    }
    for summary in Summary::ALL {
        if let Some(value) = summary.of(&raw) {
            let slopes: BTreeMap<String, f64> = summary
                .slopes()
                .into_iter()
                .map(|(dimension, slope)| (dimension.name().to_owned(), slope))
                .collect();
            let standard_error = quality(&per_prompt, &slopes).standard_error * slopes.values().sum::<f64>();
            metrics.insert(summary.name().to_owned(), Estimate { value, standard_error });
        }
    }
    metrics
}

#[cfg(test)]
mod tests;
