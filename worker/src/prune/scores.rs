//! Pictures of the full backbone and of the pruned one, from the same prompts and seeds, and how CLIP scores them: the
//! last columns of the paper's Table A2.

use std::ops::ControlFlow;

use protocol::jobs::PictureScoring;
use search_spaces::{Estimate, Precision, Prediction};
use tch::{Device, Kind, Tensor};

use super::material::Material;
use super::network::Network;
use super::plan::Plan;
use super::process::Question;
use crate::assets::{Assets, AssetsError};
use crate::flow::Sampler;
use crate::models::seeded::{generator, normal_from, stream_of};
use crate::scoring::clip::{PictureScore, PictureScorer};

/// Pictures sampled at once.
const AT_ONCE: usize = 4;

/// What the pictures of one backbone scored: means with standard errors over pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Score {
    /// See [`PictureScore::clip`].
    pub clip: Estimate,
    /// Where the parts bring who tells it.
    pub aesthetic: Option<Estimate>,
}

/// Both backbones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scores {
    /// The full one.
    pub full: Score,
    /// The pruned one.
    pub pruned: Score,
}

/// Why nothing was scored.
#[derive(Debug, thiserror::Error)]
pub enum ScoresError {
    /// Whoever asked does not want to wait any longer.
    #[error("interrupted")]
    Interrupted,
    /// The models that score cannot be read.
    #[error(transparent)]
    Assets(#[from] AssetsError),
    /// There is nothing to show.
    #[error("`scoring.prompts` is empty, and the parts keep no prompts apart; name some")]
    NoPrompts,
}

/// Samples and scores pictures of both, those of the full backbone decoded by the VAE of the parts it came with, those
/// of the pruned one by that of the last stage; none where no parts bring CLIP or no pictures are asked for.
///
/// Steps, guidance and grid are the same for both; the grid is shifted as in the last stage's training. Both compute in
/// float32.
///
/// # Errors
/// Where the models cannot be read, there are no prompts, or `progress` breaks off.
pub fn score(
    material: &mut Material,
    plan: &Plan,
    pruned: &Network,
    settings: &PictureScoring,
    progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
) -> Result<Option<Scores>, ScoresError> {
    let parts = [material.last_parts(), material.first_parts()];
    let bringing = parts.into_iter().find(|parts| parts.manifest.recipe.clip.is_some());
    let Some(bringing) = bringing.filter(|_| settings.pictures > 0) else {
        return Ok(None);
    };
    let captions = captions(settings, &parts)?;
    let scorer = bringing.picture_scorer()?;
    let (Some(scorer), Some(last)) = (scorer, plan.stages().pop()) else {
        return Ok(None);
    };
    material.compute_in(Precision::F32);
    let session = Session {
        scorer: &scorer,
        captions: &captions,
        sampler: Sampler {
            steps: settings.sample_steps,
            shift: last.settings.timestep_shift,
            guidance: settings.guidance,
        },
        shape: [
            pruned.config.latent_channels,
            1,
            pruned.config.height,
            pruned.config.width,
        ]
        .map(|size| size as i64),
        seed: plan.seed,
    };
    let full = Painter {
        network: &material.full,
        parts: material.first_parts(),
        predicts: last.teacher,
    };
    let painter = Painter {
        network: pruned,
        parts: material.last_parts(),
        predicts: last.predicts,
    };
    Ok(Some(Scores {
        full: session.score(&full, &mut |share| progress(share / 2.0))?,
        pruned: session.score(&painter, &mut |share| progress(0.5 + share / 2.0))?,
    }))
}

/// The caption of each picture, with its number among those of this caption.
fn captions(settings: &PictureScoring, parts: &[&Assets]) -> Result<Vec<(String, u64)>, ScoresError> {
    let pictures = settings.pictures as usize;
    let kept_apart = || {
        parts
            .iter()
            .map(|parts| parts.prompts(pictures))
            .find(|prompts| !prompts.is_empty())
    };
    let prompts: Vec<String> = if settings.prompts.is_empty() {
        let prompts = kept_apart().ok_or(ScoresError::NoPrompts)?;
        prompts.into_iter().map(|prompt| prompt.caption).collect()
    } else {
        settings.prompts.clone()
    };
    let count = prompts.len();
    Ok((0..pictures)
        .map(|i| (prompts[i % count].clone(), (i / count) as u64))
        .collect())
}

/// A backbone with what stands before and behind it.
struct Painter<'a> {
    network: &'a Network,
    /// Its text encoder and VAE.
    parts: &'a Assets,
    predicts: Prediction,
}

impl Painter<'_> {
    /// Pictures `[n, 3, 8h, 8w]` in about −1..1 from `noise` `[n, c, 1, h, w]`.
    fn paint(&self, sampler: &Sampler, noise: &Tensor, captions: &[&str]) -> Tensor {
        let text = &self.parts.text;
        let latents = sampler.follow(noise, [&text.embed(captions), &text.embed(&[""])], |point, text| {
            let time = Tensor::full([point.xs.size()[0]], point.time, (Kind::Float, point.xs.device()));
            let question = Question::of_flow(self.predicts, point.xs, &time);
            question.read(self.network.unet.forward(&question.xs, &question.time, text))
        });
        tch::no_grad(|| self.parts.vae.decode(&latents, 1)).select(2, 0)
    }
}

/// What is the same for both.
struct Session<'a> {
    scorer: &'a PictureScorer,
    captions: &'a [(String, u64)],
    sampler: Sampler,
    /// Of one picture's latents, `[c, 1, h, w]`.
    shape: [i64; 4],
    seed: u64,
}

impl Session<'_> {
    fn score(
        &self,
        painter: &Painter<'_>,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Score, ScoresError> {
        let mut scores: Vec<PictureScore> = Vec::with_capacity(self.captions.len());
        for some in self.captions.chunks(AT_ONCE) {
            let noise: Vec<Tensor> = some
                .iter()
                .map(|(caption, number)| self.noise(caption, *number))
                .collect();
            let noise = Tensor::stack(&noise, 0).to_device(painter.parts.device());
            let captions: Vec<&str> = some.iter().map(|(caption, _)| caption.as_str()).collect();
            let pictures = painter.paint(&self.sampler, &noise, &captions);
            scores.extend(self.scorer.score(&pictures, &captions));
            if progress(scores.len() as f64 / self.captions.len() as f64).is_break() {
                return Err(ScoresError::Interrupted);
            }
        }
        let clip: Vec<f64> = scores.iter().map(|score| score.clip).collect();
        let aesthetic: Option<Vec<f64>> = scores.iter().map(|score| score.aesthetic).collect();
        Ok(Score {
            clip: mean(&clip),
            aesthetic: aesthetic.as_deref().map(mean),
        })
    }

    /// The start of a picture, the same for both backbones.
    fn noise(&self, caption: &str, number: u64) -> Tensor {
        let mut rng = generator(self.seed ^ stream_of("pictures") ^ stream_of(caption), number);
        normal_from(&mut rng, &self.shape, Device::Cpu)
    }
}

/// The mean and its standard error, s/√n.
fn mean(values: &[f64]) -> Estimate {
    let count = values.len() as f64;
    let value = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|x| (x - value).powi(2)).sum();
    Estimate {
        value,
        standard_error: (squares / (count - 1.0).max(1.0) / count).sqrt(),
    }
}

impl Scores {
    /// The figures by name.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, Estimate)> {
        let clip = [("clip_score", self.pruned.clip), ("full_clip_score", self.full.clip)];
        let aesthetic = [
            ("aesthetic_score", self.pruned.aesthetic),
            ("full_aesthetic_score", self.full.aesthetic),
        ];
        let aesthetic = aesthetic.into_iter().filter_map(|(name, score)| Some((name, score?)));
        clip.into_iter().chain(aesthetic)
    }
}

impl Score {
    /// The cells of Table A2; empty where nothing is known.
    #[must_use]
    pub fn cells(score: Option<&Self>) -> [String; 2] {
        let cell = |score: Option<Estimate>| {
            score.map_or_else(String::new, |Estimate { value, standard_error }| {
                format!("{value:.2} ± {standard_error:.2}")
            })
        };
        [
            cell(score.map(|score| score.clip)),
            cell(score.and_then(|score| score.aesthetic)),
        ]
    }
}
