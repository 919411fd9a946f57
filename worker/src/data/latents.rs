//! What a candidate is trained on: batches of precomputed latents with their captions.

use std::ops::ControlFlow;
use std::path::Path;

use rand::RngExt;
use tch::Tensor;

use super::encoded::Encoded;
use crate::assets::{Assets, AssetsError};
use crate::models::seeded::{generator, stream_of};

/// Latents with the embeddings of their captions.
#[derive(Debug)]
pub struct TrainingSet {
    /// `[clips, 4, t, h, w]`
    latents: Tensor,
    /// `[captions + 1, tokens, width]`; the first is the null text.
    texts: Tensor,
    /// Row of `texts` of each clip.
    caption_of: Vec<i64>,
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
    pub(crate) fn open(
        assets: &Assets,
        cache: &Path,
        progress: &mut dyn FnMut(f64) -> ControlFlow<()>,
    ) -> Result<Self, AssetsError> {
        let Encoded {
            latents,
            captions: of_clip,
        } = Encoded::open(assets, cache, progress)?;
        let mut captions: Vec<&str> = of_clip.iter().map(String::as_str).collect();
        captions.push("");
        captions.sort_unstable();
        captions.dedup();
        let row = |caption: &String| captions.binary_search(&caption.as_str()).unwrap_or_default() as i64;
        Ok(Self {
            caption_of: of_clip.iter().map(row).collect(),
            texts: assets.text.embed(&captions),
            latents: latents.to_device(assets.device()),
        })
    }

    /// Number of clips.
    #[must_use]
    pub fn len(&self) -> usize {
        self.caption_of.len()
    }

    /// Whether there are no clips.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.caption_of.is_empty()
    }

    /// The clips of a step: drawn with replacement, named by (seed, step) and nothing else.
    #[must_use]
    pub fn batch(&self, seed: u64, step: u64, size: u64, text_dropout: f64) -> Batch {
        let mut rng = generator(seed ^ stream_of("batch"), step);
        let drawn: Vec<i64> = (0..size).map(|_| rng.random_range(0..self.len()) as i64).collect();
        let text: Vec<i64> = drawn
            .iter()
            .map(|&clip| {
                if rng.random::<f64>() < text_dropout {
                    0
                } else {
                    self.caption_of[clip as usize]
                }
            })
            .collect();
        let rows = |indices: &[i64]| Tensor::from_slice(indices).to_device(self.latents.device());
        Batch {
            latents: self.latents.index_select(0, &rows(&drawn)),
            text: self.texts.index_select(0, &rows(&text)),
        }
    }
}
