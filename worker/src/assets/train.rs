//! The stages of `assets`, one after another; each goes on from its checkpoint.

use std::path::PathBuf;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor, nn};

use super::stage::{Stage, read_tensors, write_tensors};
use super::{AssetsError, Recipe, Schedule, Training};
use crate::data::{ClipSource, FRAME_BYTES, FRAMES, Prompt, Split, frames_to_tensor, to_tensor};
use crate::decoder::loss::reconstruction;
use crate::flow;
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from, seed_weights, stream_of};
use crate::models::text::TextEncoder;
use crate::models::tokenizer::Tokenizer;
use crate::models::vae::Vae;
use crate::scoring::evaluators::EvaluatorConfig;

/// Weight of the latents' pull towards the standard normal distribution, per element.
const KL_WEIGHT: f64 = 1e-5;
/// Share of captions that are dropped while the backbone is trained.
const TEXT_DROPOUT: f64 = 0.1;
/// Clips that go through a network at once where nothing is trained.
const CHUNK: usize = 16;

/// Everything the stages share.
pub(super) struct Workshop<'a> {
    pub source: &'a dyn ClipSource,
    pub recipe: &'a Recipe,
    pub evaluators: EvaluatorConfig,
    pub training: Training,
    /// Checkpoints and intermediate tensors.
    pub folder: PathBuf,
}

/// Clips of a split in memory.
pub(super) struct Clips {
    pub frames: Vec<Vec<u8>>,
    pub prompts: Vec<Prompt>,
}

impl Clips {
    pub(super) fn tensor(&self, indices: &[usize]) -> Tensor {
        let clips: Vec<&[u8]> = indices.iter().map(|&i| self.frames[i].as_slice()).collect();
        to_tensor(&clips)
    }
}

impl<'a> Workshop<'a> {
    /// None where the recipe trains nothing.
    pub(super) fn new(source: &'a dyn ClipSource, recipe: &'a Recipe, folder: PathBuf) -> Option<Self> {
        Some(Self {
            source,
            recipe,
            evaluators: recipe.evaluators?,
            training: recipe.training?,
            folder,
        })
    }
}

impl Workshop<'_> {
    pub(super) fn stage<'b>(&'b self, name: &'b str, schedule: Schedule) -> Stage<'b> {
        Stage {
            name,
            folder: &self.folder,
            steps: schedule.steps,
            learning_rate: schedule.learning_rate,
        }
    }

    pub(super) fn rng(&self, stage: &str, step: u64) -> ChaCha8Rng {
        generator(self.recipe.seed ^ stream_of(stage), step)
    }

    pub(super) fn clips(&self, split: Split) -> Result<Clips, AssetsError> {
        let (mut frames, mut prompts) = (Vec::new(), Vec::new());
        for index in 0..self.source.len(split) {
            let clip = self.source.clip(split, index)?;
            frames.push(clip.frames);
            prompts.push(clip.prompt);
        }
        Ok(Clips { frames, prompts })
    }

    /// Trains the VAE, first on frames, then over time, and measures its latents.
    pub(super) fn vae(&self, clips: &Clips) -> Result<(nn::VarStore, Vae), AssetsError> {
        let vs = nn::VarStore::new(Device::Cpu);
        let mut vae = Vae::new(&vs.root(), &self.recipe.vae);
        seed_weights(&vs, self.recipe.seed);
        vae.start_certain();
        self.vae_spatial(&vs, &vae, clips)?;
        let per_frame = self.kept("per-frame-latents", || {
            in_chunks(clips.frames.len(), |indices| vae.encode_frames(&clips.tensor(indices)))
        })?;
        self.vae_temporal(&vs, &vae, &per_frame)?;
        let raw = in_chunks(clips.frames.len(), |indices| vae.encode_raw(&pick(&per_frame, indices)));
        vae.set_statistics(&raw);
        for (_, variable) in vs.variables() {
            let _ = variable.set_requires_grad(false);
        }
        Ok((vs, vae))
    }

    fn vae_spatial(&self, vs: &nn::VarStore, vae: &Vae, clips: &Clips) -> Result<(), AssetsError> {
        const NAME: &str = "vae-spatial";
        train_only(vs, "spatial_vae.");
        let schedule = self.training.vae_spatial;
        self.stage(NAME, schedule).run(vs, |step| {
            let mut rng = self.rng(NAME, step);
            let indices = draw(&mut rng, clips.frames.len(), schedule.batch);
            let frames: Vec<&[u8]> = indices
                .iter()
                .map(|&i| frame(&clips.frames[i], rng.random_range(0..FRAMES)))
                .collect();
            let frames = frames_to_tensor(&frames); // [batch, 3, side, side]
            let (mean, log_variance) = vae.spatial.moments(&frames);
            let noise = normal_from(&mut rng, &mean.size(), Device::Cpu);
            let decoded = vae.spatial.decode(&(&mean + (&log_variance * 0.5).exp() * noise));
            reconstruction(&decoded, &frames) + kl(&mean, &log_variance) * KL_WEIGHT
        })
    }

    fn vae_temporal(&self, vs: &nn::VarStore, vae: &Vae, per_frame: &Tensor) -> Result<(), AssetsError> {
        const NAME: &str = "vae-temporal";
        let Some(temporal) = &vae.temporal else {
            return Ok(());
        };
        train_only(vs, "temporal_vae.");
        let schedule = self.training.vae_temporal;
        // The loss must not depend on the scale that the first stage happened to find.
        let spread = per_frame.std(true).double_value(&[]);
        self.stage(NAME, schedule).run(vs, |step| {
            let mut rng = self.rng(NAME, step);
            let clips = pick(per_frame, &draw(&mut rng, per_frame.size()[0] as usize, schedule.batch));
            let (mean, log_variance) = temporal.encode(&clips);
            let noise = normal_from(&mut rng, &mean.size(), Device::Cpu);
            let decoded = temporal.decode(&(&mean + (&log_variance * 0.5).exp() * noise), FRAMES as i64);
            reconstruction(&(decoded / spread), &(&clips / spread)) + kl(&mean, &log_variance) * KL_WEIGHT
        })
    }

    /// Trains backbone and text encoder on single latent frames of clips, so that a frame shows what a latent frame
    /// of a clip shows, its share of motion included.
    ///
    /// # Shapes
    /// - `latents`: `[n, 4, t, h, w]`
    pub(super) fn backbone(
        &self,
        latents: &Tensor,
        prompts: &[Prompt],
        tokenizer: &Tokenizer,
    ) -> Result<nn::VarStore, AssetsError> {
        const NAME: &str = "backbone";
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &self.recipe.backbone, &[]);
        let text = TextEncoder::new(&vs.root(), &self.recipe.text, tokenizer.size());
        seed_weights(&vs, self.recipe.seed);
        let schedule = self.training.backbone;
        let (mean, std) = self.training.backbone_times;
        let frames = latents.transpose(1, 2).flatten(0, 1).unsqueeze(2); // [n*t, 4, 1, h, w]
        let per_clip = latents.size()[2] as usize;
        self.stage(NAME, schedule).run(&vs, |step| {
            let mut rng = self.rng(NAME, step);
            let indices = draw(&mut rng, frames.size()[0] as usize, schedule.batch);
            let captions: Vec<&str> = indices
                .iter()
                .map(|i| {
                    if rng.random::<f64>() < TEXT_DROPOUT {
                        ""
                    } else {
                        &*prompts[i / per_clip].caption
                    }
                })
                .collect();
            let context = text.forward(&tokenizer.encode_all(&captions, self.recipe.text.tokens));
            let clean = pick(&frames, &indices);
            let times = flow::logit_normal(&mut rng, schedule.batch as i64, mean, std);
            let noise = normal_from(&mut rng, &clean.size(), Device::Cpu);
            flow::loss(|x, t| unet.forward(x, t, &context), &clean, &noise, &times)
        })?;
        Ok(vs)
    }

    /// A tensor that is made once and then read from the folder.
    pub(super) fn kept(&self, name: &str, make: impl FnOnce() -> Tensor) -> Result<Tensor, AssetsError> {
        let path = self.folder.join(format!("{name}.safetensors"));
        if !path.exists() {
            write_tensors(&[(name.to_owned(), make())], &path)?;
        }
        let missing = || AssetsError::Content {
            path: path.clone(),
            problem: format!("no tensor `{name}`"),
        };
        read_tensors(&path)?.remove(name).ok_or_else(missing)
    }
}

fn frame(clip: &[u8], at: usize) -> &[u8] {
    &clip[at * FRAME_BYTES..(at + 1) * FRAME_BYTES]
}

/// Runs over `0..count` in chunks without gradients and joins the results.
pub(super) fn in_chunks(count: usize, run: impl Fn(&[usize]) -> Tensor) -> Tensor {
    let all: Vec<usize> = (0..count).collect();
    let parts: Vec<Tensor> = all.chunks(CHUNK).map(|indices| tch::no_grad(|| run(indices))).collect();
    Tensor::cat(&parts, 0)
}

/// Rows of a tensor.
pub(super) fn pick(xs: &Tensor, indices: &[usize]) -> Tensor {
    let indices: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
    xs.index_select(0, &Tensor::from_slice(&indices))
}

pub(super) fn draw(rng: &mut ChaCha8Rng, count: usize, size: u64) -> Vec<usize> {
    (0..size).map(|_| rng.random_range(0..count)).collect()
}

fn train_only(vs: &nn::VarStore, prefix: &str) {
    for (name, variable) in vs.variables() {
        let _ = variable.set_requires_grad(name.starts_with(prefix));
    }
}

/// Mean over the elements of the divergence from the standard normal distribution.
fn kl(mean: &Tensor, log_variance: &Tensor) -> Tensor {
    (mean.square() + log_variance.exp() - 1.0 - log_variance).mean(Kind::Float) * 0.5
}
