//! What a candidate is trained on: batches of precomputed latents with their captions.

use std::ops::ControlFlow;
use std::path::Path;

use rand::RngExt;
use tch::{Device, Kind, Tensor};

use super::encoded::Encoded;
use super::sharded::{Encoders, INDEX, Reader, Sampler, ShardError};
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
        /// Row of `texts` of each clip.
        caption_of: Vec<i64>,
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
        let clips = Clips::Held {
            caption_of: of_clip.iter().map(row).collect(),
            texts: assets.text.embed(&captions),
            latents: latents.to_device(device),
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

    /// Draws pictures for a share of all clips, from 0 to 1, where the set holds both pictures and clips.
    #[must_use]
    pub fn with_share_of_pictures(mut self, share: f64) -> Self {
        if let Clips::Sharded { reader, weights } = &mut self.clips {
            *weights = Sampler::weights_for(reader.index(), share);
        }
        self
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
                caption_of,
            } => {
                let drawn: Vec<i64> = (0..size).map(|_| rng.random_range(0..self.len()) as i64).collect();
                let caption = |&clip: &i64| dropped(&mut rng, text_dropout).unwrap_or(caption_of[clip as usize]);
                let text: Vec<i64> = drawn.iter().map(caption).collect();
                let rows = |indices: &[i64]| Tensor::from_slice(indices).to_device(self.device);
                Ok(Batch {
                    latents: latents.index_select(0, &rows(&drawn)),
                    text: texts.index_select(0, &rows(&text)),
                })
            }
            Clips::Sharded { reader, weights } => {
                let clips = Sampler::new(reader.clips_by_bucket(), weights, size, seed)?
                    .draw(step)
                    .clips;
                let caption_of = |&clip: &usize| reader.index().clips[clip].caption;
                let caption = |clip| dropped(&mut rng, text_dropout).unwrap_or(caption_of(clip));
                let text: Vec<usize> = clips.iter().map(caption).collect();
                let here = |tensor: Tensor| tensor.to_device(self.device).to_kind(Kind::Float);
                Ok(Batch {
                    latents: here(reader.latents(&clips)?),
                    text: here(reader.texts(&text)?.tokens),
                })
            }
        }
    }
}

/// The null text's row, where the caption is dropped.
fn dropped<T: From<u8>>(rng: &mut rand_chacha::ChaCha8Rng, text_dropout: f64) -> Option<T> {
    (rng.random::<f64>() < text_dropout).then(|| T::from(0))
}
