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

#[cfg(test)]
mod tests {
    use search_spaces::{TimestepShift, UnetConfig};

    use super::*;
    use crate::models::seeded::distance;
    use crate::prune::material::{Parts, Sources};
    use crate::prune::tests::{plan, shipped_with_clip, shipped_with_latents};

    fn material(root: &std::path::Path, config: &dyn Fn(&UnetConfig) -> UnetConfig) -> Material {
        let parts = Parts {
            assets: root,
            dataset: "shapes",
        };
        let full = Assets::open(root, "shapes", Device::Cpu)
            .unwrap()
            .manifest
            .recipe
            .backbone;
        let sources = Sources {
            distillation: parts,
            adaptation: None,
            cache: root,
            device: Device::Cpu,
        };
        Material::open(&sources, &config(&full), 1, &mut |_| ControlFlow::Continue(())).unwrap()
    }

    fn settings(pictures: u32, prompts: &[&str]) -> PictureScoring {
        PictureScoring {
            pictures,
            sample_steps: 2,
            guidance: 3.0,
            prompts: prompts.iter().map(|&prompt| prompt.to_owned()).collect(),
        }
    }

    const FIRST: Sampler = Sampler {
        steps: 1,
        shift: TimestepShift::None,
        guidance: 1.0,
    };

    #[test]
    fn the_mean_has_the_standard_error_of_the_textbook() {
        let Estimate { value, standard_error } = mean(&[1.0, 2.0, 3.0, 6.0]);
        // s² = (4 + 1 + 0 + 9) / 3.
        assert_eq!(value, 3.0);
        assert!((standard_error - (14.0_f64 / 3.0 / 4.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn prompts_come_in_turn_and_each_picture_has_a_seed_of_its_own() {
        let of = |pictures, prompts: &[&str]| captions(&settings(pictures, prompts), &[]).unwrap();
        let named = |list: &[(&str, u64)]| -> Vec<(String, u64)> {
            list.iter()
                .map(|&(caption, number)| (caption.to_owned(), number))
                .collect()
        };
        assert_eq!(
            of(5, &["a", "b"]),
            named(&[("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)])
        );
        assert_eq!(of(2, &["a", "b", "c"]), named(&[("a", 0), ("b", 0)]));
        assert!(matches!(captions(&settings(2, &[]), &[]), Err(ScoresError::NoPrompts)));
    }

    /// One step from pure noise, written out: a teacher of velocities moves by its velocity; one of noise shows the
    /// `x̂₀` of Stable Diffusion's last step, whose ratio of noise is known to be 14.6146.
    #[test]
    fn pictures_follow_what_the_backbone_predicts() {
        let folder = tempfile::tempdir().unwrap();
        let material = material(&shipped_with_latents(folder.path()), &UnetConfig::clone);
        let parts = material.first_parts();
        let noise = normal_from(&mut generator(1, 0), &[2, 4, 1, 8, 8], Device::Cpu);
        let captions = ["a red circle", "a blue star"];
        let paint = |predicts| {
            let painter = Painter {
                network: &material.full,
                parts,
                predicts,
            };
            painter.paint(&FIRST, &noise, &captions)
        };
        let answer = |time: f64| {
            let time = Tensor::full([2], time, (Kind::Float, Device::Cpu));
            let text = parts.text.embed(&captions);
            tch::no_grad(|| material.full.unet.forward(&noise, &time, &text))
        };
        let decoded = |latents: Tensor| tch::no_grad(|| parts.vae.decode(&latents, 1)).select(2, 0);
        let close = |a: &Tensor, b: &Tensor| assert!(distance(a, b) < 1e-3, "{}", distance(a, b));
        let pictures = paint(Prediction::Velocity);
        assert_eq!(pictures.size(), [2, 3, 64, 64]);
        close(&pictures, &decoded(&noise - answer(1.0)));

        let signal = 1.0 / (1.0 + 14.6146_f64.powi(2));
        let predicted = answer(0.999);
        let clean = (&noise - &predicted * (1.0 - signal).sqrt()) / signal.sqrt();
        close(&paint(Prediction::Noise), &decoded(&noise - (predicted - clean)));
    }

    #[test]
    fn both_backbones_are_scored_on_the_same_pictures_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let mut material = material(&shipped_with_clip(folder.path()), &UnetConfig::clone);
        let plan = crate::prune::plan::Plan::parse(
            include_str!("../../recipes/pruning.toml"),
            Some(include_str!("../../recipes/adaptation.toml")),
            5,
        );
        let mut plan = plan.unwrap();
        if let search_spaces::Stage::Pruning(settings) = &mut plan.distillation.stage {
            settings.teacher_predicts = Prediction::Velocity;
        }
        // The same network as the full one must score the same, to the last digits.
        let twin = Network::of_parts(material.first_parts()).unwrap();
        let mut shares = Vec::new();
        let scores = score(&mut material, &plan, &twin, &settings(6, &[]), &mut |share| {
            shares.push(share);
            ControlFlow::Continue(())
        });
        let Scores { full, pruned } = scores.unwrap().unwrap();
        assert!(
            (full.clip.value - pruned.clip.value).abs() < 1e-3,
            "{full:?} {pruned:?}"
        );
        let [a, b] = [full, pruned].map(|score| score.aesthetic.unwrap());
        assert!((a.value - b.value).abs() < 1e-3 && a.standard_error > 0.0);
        // The head's bias is 5, its weights are drawn, and its input has length 1.
        assert!((a.value - 5.0).abs() < 5.0, "{a:?}");
        assert!((0.0..=100.0).contains(&full.clip.value));
        assert!(shares.is_sorted() && shares.last() == Some(&1.0), "{shares:?}");

        // Other weights, other pictures.
        let other = Network::seeded(&twin.config, 9, Device::Cpu);
        let mut again =
            |settings: &PictureScoring, go_on| score(&mut material, &plan, &other, settings, &mut |_| go_on);
        let found = again(&settings(6, &[]), ControlFlow::Continue(())).unwrap().unwrap();
        assert_eq!(found.full.clip.value, full.clip.value, "the same seeds");
        assert!((found.pruned.aesthetic.unwrap().value - b.value).abs() > 1e-3);

        assert_eq!(again(&settings(0, &[]), ControlFlow::Continue(())).unwrap(), None);
        let broken_off = again(&settings(6, &["a red circle"]), ControlFlow::Break(()));
        assert!(matches!(broken_off, Err(ScoresError::Interrupted)));
    }

    #[test]
    fn parts_without_clip_give_no_scores() {
        let folder = tempfile::tempdir().unwrap();
        let mut material = material(&shipped_with_latents(folder.path()), &UnetConfig::clone);
        let twin = Network::of_parts(material.first_parts()).unwrap();
        let found = score(&mut material, &plan(1, 1), &twin, &settings(4, &[]), &mut |_| {
            ControlFlow::Continue(())
        });
        assert_eq!(found.unwrap(), None);
        assert_eq!(Score::cells(None), ["", ""]);
    }
}
