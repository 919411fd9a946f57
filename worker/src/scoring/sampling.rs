//! Clips for prompts, each from a seed of its own: what every evaluator reads.

use std::time::Instant;

use search_spaces::Evaluation;
use tch::{Device, Tensor};

use crate::assets::Assets;
use crate::data::FRAMES;
use crate::flow::{Preset, Sampler};
use crate::models::UNet;
use crate::models::seeded::{generator, normal_from, stream_of};

/// Clips sampled at once where the space does not say.
const USUAL_BATCH: usize = 24;
/// Pixels of a latent's pixel, along one axis.
const PIXELS: i64 = 8;
/// Frames a second of clips of the trained parts' own size, whose data has none.
const OWN_FRAME_RATE: u32 = 12;

/// How clips are sampled.
#[derive(Debug)]
pub struct Sampling<'a> {
    unet: &'a UNet,
    assets: &'a Assets,
    /// Steps and guidance.
    pub sampler: Sampler,
    /// Length, size and frame rate.
    pub size: Preset,
    /// Seed, to which prompt and number are added.
    pub seed: u64,
    /// Clips at once.
    pub batch: usize,
}

/// Which clip of which prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index of the prompt.
    pub prompt: usize,
    /// Number of the clip among those of its prompt.
    pub video: usize,
}

/// Some clips that were sampled together.
#[derive(Debug)]
pub struct Batch<'a> {
    /// Which they are.
    pub places: &'a [Place],
    /// `[batch, 3, t, h, w]` in about −1..1.
    pub clips: Tensor,
    /// Seconds of sampling.
    pub sample_seconds: f64,
    /// Seconds of decoding.
    pub decode_seconds: f64,
    /// Share of all clips that are there with these.
    pub share: f64,
}

impl<'a> Sampling<'a> {
    /// As an evaluation asks for it; none where it names a size that no preset has.
    #[must_use]
    pub fn of(assets: &'a Assets, evaluation: &Evaluation, unet: &'a UNet) -> Option<Self> {
        let size = match &evaluation.preset {
            Some(name) => Preset::named(name)?,
            None => own_size(assets),
        };
        Some(Self {
            unet,
            assets,
            sampler: Sampler {
                steps: evaluation.sample_steps,
                shift: evaluation.training.timestep_shift,
                guidance: evaluation.guidance,
            },
            size,
            seed: evaluation.score_seed,
            batch: evaluation
                .sample_batch
                .map_or(USUAL_BATCH, |batch| batch as usize)
                .max(1),
        })
    }

    /// Samples `videos` clips of each caption in fixed batches, so that a clip has the same bytes whichever others are
    /// `there` already; a batch that is there as a whole is left out.
    ///
    /// # Errors
    /// What `take` says.
    pub fn run<E>(
        &self,
        captions: &[&str],
        videos: usize,
        there: &dyn Fn(Place) -> bool,
        take: &mut dyn FnMut(&Batch<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let places: Vec<Place> = (0..captions.len())
            .flat_map(|prompt| (0..videos).map(move |video| Place { prompt, video }))
            .collect();
        let null_text = self.assets.text.embed(&[""]);
        for (done, batch) in places.chunks(self.batch).enumerate() {
            if batch.iter().all(|place| there(*place)) {
                continue;
            }
            let started = Instant::now();
            let texts: Vec<&str> = batch.iter().map(|place| captions[place.prompt]).collect();
            let noise: Vec<Tensor> = batch
                .iter()
                .map(|place| self.noise(captions[place.prompt], place.video))
                .collect();
            let noise = Tensor::stack(&noise, 0).to_device(self.assets.device());
            let latents = self
                .sampler
                .sample(self.unet, &noise, &self.assets.text.embed(&texts), &null_text);
            let sample_seconds = started.elapsed().as_secs_f64();

            let started = Instant::now();
            let clips = tch::no_grad(|| self.assets.vae.decode(&latents, self.size.frames));
            take(&Batch {
                places: batch,
                clips,
                sample_seconds,
                decode_seconds: started.elapsed().as_secs_f64(),
                share: ((done + 1) * self.batch).min(places.len()) as f64 / places.len() as f64,
            })?;
        }
        Ok(())
    }

    /// The start of a clip: named by seed, caption and number, so that it is the same for every candidate.
    fn noise(&self, caption: &str, video: usize) -> Tensor {
        let mut rng = generator(self.seed ^ stream_of(caption), video as u64);
        let shape = self.size.latent_shape(1, self.assets.latent_shape()[0]);
        normal_from(&mut rng, &shape[1..], Device::Cpu)
    }
}

/// The size of the clips that the trained parts were made for.
fn own_size(assets: &Assets) -> Preset {
    let [_, _, height, width] = assets.latent_shape();
    Preset {
        name: "own",
        frames: FRAMES as i64,
        height: PIXELS * height,
        width: PIXELS * width,
        frame_rate: OWN_FRAME_RATE,
    }
}
