//! What a candidate is trained on: batches of precomputed latents with their captions.

use std::ops::ControlFlow;
use std::path::Path;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use search_spaces::Mix;
use tch::{Device, Kind, Tensor};

use super::encoded::Encoded;
use super::sharded::{Encoders, INDEX, Reader, Sampler, SamplerError, ShardError};
use crate::assets::{Assets, AssetsError};
use crate::models::seeded::{generator, stream_of};

/// Latents with the embeddings of their captions.
#[derive(Debug)]
pub struct TrainingSet {
    clips: Clips,
    device: Device,
}

#[derive(Debug)]
enum Clips {
    /// Of one size, in memory.
    Held {
        /// `[clips, 4, t, h, w]`
        latents: Tensor,
        /// `[captions + 1, tokens, width]`; the first is the null text.
        texts: Tensor,
        /// `[captions + 1, width]`
        pooled: Tensor,
        /// Row of `texts` of each clip.
        caption_of: Vec<i64>,
        /// Of the batches: those of images are single frames of clips.
        image_share: f64,
    },
    /// Of several sizes, on disk.
    Sharded {
        reader: Box<Reader>,
        /// Of each bucket's share of the batches.
        weights: Vec<f64>,
    },
}

/// Clips drawn for one step.
#[derive(Debug)]
pub struct Batch {
    /// `[b, 4, t, h, w]`
    pub latents: Tensor,
    /// `[b, tokens, width]`; the null text where the caption was dropped.
    pub text: Tensor,
    /// `[b, width]`: embeddings of the captions as a whole, of the same; none where the latents were encoded without.
    pub pooled: Option<Tensor>,
}

impl TrainingSet {
    /// From shards where their index lies beside the parts, else from the one file there, else from the clips.
    pub(crate) fn open(
        assets: &Assets,
        cache: &Path,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, AssetsError> {
        let device = assets.device();
        if assets.folder().join(INDEX).exists() {
            return Ok(Self::sharded(assets.folder(), assets, device)?);
        }
        let Encoded {
            latents,
            captions: of_clip,
        } = Encoded::open(assets, cache, progress)?;
        let mut captions: Vec<&str> = of_clip.iter().map(String::as_str).collect();
        captions.push("");
        captions.sort_unstable();
        captions.dedup();
        let row = |caption: &String| captions.binary_search(&caption.as_str()).unwrap_or_default() as i64;
        let embedded = assets.text.embed_both(&captions);
        let clips = Clips::Held {
            caption_of: of_clip.iter().map(row).collect(),
            texts: embedded.tokens,
            pooled: embedded.pooled,
            latents: latents.to_device(device),
            image_share: 0.0,
        };
        Ok(Self { clips, device })
    }

    /// From the shards of a folder.
    ///
    /// # Errors
    /// Where a shard is damaged, or they were made by other encoders.
    pub fn sharded(folder: &Path, encoders: &dyn Encoders, device: Device) -> Result<Self, ShardError> {
        let reader = Reader::open(folder)?;
        let (found, expected) = (&reader.index().made_by.parts, encoders.digest());
        if *found != expected {
            let problem =
                format!("`made_by.parts` is {found}; the parts here are {expected}: encode the clips with them");
            return Err(ShardError::Content {
                path: folder.join(INDEX),
                problem,
            });
        }
        let weights = vec![1.0; reader.clips_by_bucket().len()];
        Ok(Self {
            clips: Clips::Sharded {
                reader: Box::new(reader),
                weights,
            },
            device,
        })
    }

    /// Draws batches as a recipe mixes them. Clips in memory are of one size and rate: their images are single latent
    /// frames, as a picture shows what a latent frame of a clip shows.
    ///
    /// # Errors
    /// Where the mix asks for what is not there.
    pub fn with_mix(mut self, mix: &Mix) -> Result<Self, SamplerError> {
        match &mut self.clips {
            Clips::Sharded { reader, weights } => *weights = Sampler::weights_for(reader.index(), mix)?,
            Clips::Held { image_share, .. } => {
                let allowed = "nothing: these clips are of one size and rate; encode a folder of clips to choose";
                let refused = |field, found: String| SamplerError::Setting {
                    field,
                    found,
                    allowed: allowed.to_owned(),
                };
                if let Some(rate) = mix.frame_rate_hz {
                    return Err(refused("frame_rate_hz", rate.to_string()));
                }
                if let Some(bucket) = mix.bucket_shares.keys().next() {
                    return Err(refused("bucket_shares", bucket.clone()));
                }
                *image_share = mix.image_share;
            }
        }
        Ok(self)
    }

    /// Whether captions have embeddings as a whole, which a discriminator goes by.
    #[must_use]
    pub fn has_pooled(&self) -> bool {
        match &self.clips {
            Clips::Held { .. } => true,
            Clips::Sharded { reader, .. } => reader.index().made_by.text.pooled.is_some(),
        }
    }

    /// Number of clips.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.clips {
            Clips::Held { caption_of, .. } => caption_of.len(),
            Clips::Sharded { reader, .. } => reader.index().clips.len(),
        }
    }

    /// Whether there are no clips.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The clips of a step, of one size: named by (seed, step) and nothing else. From memory they are drawn with
    /// replacement, from shards as [`Sampler`] says.
    ///
    /// # Errors
    /// Where shards cannot be read.
    pub fn batch(&self, seed: u64, step: u64, size: u64, text_dropout: f64) -> Result<Batch, ShardError> {
        let mut rng = generator(seed ^ stream_of("batch"), step);
        match &self.clips {
            Clips::Held {
                latents,
                texts,
                pooled,
                caption_of,
                image_share,
            } => {
                let drawn: Vec<i64> = (0..size).map(|_| rng.random_range(0..self.len()) as i64).collect();
                let caption = |&clip: &i64| dropped(&mut rng, text_dropout).unwrap_or(caption_of[clip as usize]);
                let text: Vec<i64> = drawn.iter().map(caption).collect();
                let rows = |indices: &[i64]| Tensor::from_slice(indices).to_device(self.device);
                let batch = Batch {
                    latents: latents.index_select(0, &rows(&drawn)),
                    text: texts.index_select(0, &rows(&text)),
                    pooled: Some(pooled.index_select(0, &rows(&text))),
                };
                if is_image(step, *image_share) {
                    return Ok(single_frames(batch, &mut generator(seed ^ stream_of("frame"), step)));
                }
                Ok(batch)
            }
            Clips::Sharded { reader, weights } => {
                let clips = Sampler::new(reader.clips_by_bucket(), weights, size, seed)?
                    .draw(step)
                    .clips;
                let caption_of = |&clip: &usize| reader.index().clips[clip].caption;
                let caption = |clip| dropped(&mut rng, text_dropout).unwrap_or(caption_of(clip));
                let text: Vec<usize> = clips.iter().map(caption).collect();
                let here = |tensor: Tensor| tensor.to_device(self.device).to_kind(Kind::Float);
                let texts = reader.texts(&text)?;
                Ok(Batch {
                    latents: here(reader.latents(&clips)?),
                    text: here(texts.tokens),
                    pooled: texts.pooled.map(here),
                })
            }
        }
    }
}

/// The null text's row, where the caption is dropped.
fn dropped<T: From<u8>>(rng: &mut rand_chacha::ChaCha8Rng, text_dropout: f64) -> Option<T> {
    (rng.random::<f64>() < text_dropout).then(|| T::from(0))
}

/// Whether the batch of a step is one of images: of the first n steps n times the share are, rounded down.
fn is_image(step: u64, share: f64) -> bool {
    ((step + 1) as f64 * share).floor() > (step as f64 * share).floor()
}

/// One latent frame of each clip, `[b, c, 1, h, w]`.
pub(crate) fn single_frames(batch: Batch, rng: &mut ChaCha8Rng) -> Batch {
    let (clips, frames) = (batch.latents.size()[0], batch.latents.size()[2]);
    let drawn: Vec<Tensor> = (0..clips)
        .map(|clip| batch.latents.get(clip).narrow(1, rng.random_range(0..frames), 1))
        .collect();
    Batch {
        latents: Tensor::stack(&drawn, 0),
        text: batch.text,
        pooled: batch.pooled,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_of_each_clip_is_drawn() {
        let clips = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([1, 1, 6, 1, 1]);
        let clips = Batch {
            latents: clips.expand([50, 1, 6, 2, 2], true),
            text: Tensor::zeros([50, 1, 1], (Kind::Float, Device::Cpu)),
            pooled: None,
        };
        let frames = single_frames(clips, &mut generator(1, 0)).latents;
        assert_eq!(frames.size(), [50, 1, 1, 2, 2]);
        let means = frames.mean_dim([1i64, 2, 3, 4].as_slice(), false, Kind::Float);
        let mut seen = Vec::<f32>::try_from(means).unwrap();
        seen.sort_by(f32::total_cmp);
        seen.dedup();
        assert_eq!(seen, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn the_share_of_images_is_kept_over_any_stretch_of_steps() {
        for share in [0.0, 0.2, 0.25, 1.0 / 3.0, 0.5, 1.0] {
            for steps in [1, 7, 100, 1000] {
                let images = (0..steps).filter(|&step| is_image(step, share)).count() as f64;
                assert!(
                    (images - share * steps as f64).abs() < 1.0,
                    "{images} of {steps} at {share}"
                );
            }
        }
    }

    fn held(image_share: f64) -> TrainingSet {
        let normal = |shape: &[i64]| crate::models::seeded::normal(shape, 1, Device::Cpu);
        TrainingSet {
            clips: Clips::Held {
                latents: normal(&[6, 4, 5, 2, 2]),
                texts: normal(&[3, 4, 8]),
                pooled: normal(&[3, 8]),
                caption_of: vec![1, 2, 1, 2, 1, 2],
                image_share,
            },
            device: Device::Cpu,
        }
    }

    #[test]
    fn a_mix_draws_single_frames_for_images_and_leaves_the_clips_as_they_were() {
        let mix = |image_share| Mix {
            image_share,
            ..Mix::default()
        };
        let (plain, mixed) = (held(0.0), held(0.0).with_mix(&mix(0.25)).unwrap());
        let frames: Vec<i64> = (0..40)
            .map(|step| {
                let [ours, theirs] = [&mixed, &plain].map(|set| set.batch(3, step, 4, 0.1).unwrap());
                assert_eq!(
                    (&ours.text, &ours.pooled),
                    (&theirs.text, &theirs.pooled),
                    "step {step}"
                );
                if ours.latents.size()[2] > 1 {
                    assert_eq!(ours.latents, theirs.latents, "step {step}");
                }
                ours.latents.size()[2]
            })
            .collect();
        assert_eq!(frames.iter().filter(|&&frames| frames == 1).count(), 10);
        assert!(frames.iter().all(|&frames| frames == 1 || frames == 5));
    }

    #[test]
    fn clips_of_one_size_offer_no_choice_of_rate_or_bucket() {
        let rate = Mix {
            frame_rate_hz: Some(10.0),
            ..Mix::default()
        };
        let error = held(0.0).with_mix(&rate).unwrap_err().to_string();
        assert!(error.starts_with("`frame_rate_hz` is 10; allowed: nothing"), "{error}");
        let buckets = Mix {
            bucket_shares: [("17x64x64@12".to_owned(), 1.0)].into(),
            ..Mix::default()
        };
        let error = held(0.0).with_mix(&buckets).unwrap_err().to_string();
        assert!(error.starts_with("`bucket_shares` is 17x64x64@12"), "{error}");
    }
}
