//! How well a backbone does on clips it was not trained on.

use std::path::Path;

use tch::{Kind, Reduction, Tensor};

use super::network::Network;
use super::process::Process;
use crate::assets::{Assets, AssetsError};
use crate::data::{ClipSource, Split, to_tensor};
use crate::models::seeded::{generator, stream_of};

/// Seed of times and noise, the same for every network.
const SEED: u64 = 1;
/// Frames that are measured at once.
const CHUNK: i64 = 64;

/// Captioned clips in latents.
#[derive(Debug)]
pub struct Coded {
    /// `[n, c, t, h, w]`
    pub latents: Tensor,
    /// `[n, tokens, width]`
    pub texts: Tensor,
}

impl Coded {
    /// Up to `most` clips of a split, spread over all of them; none where the split is empty.
    ///
    /// # Errors
    /// Where clips cannot be read.
    pub fn of(
        assets: &Assets,
        source: &dyn ClipSource,
        split: Split,
        most: usize,
    ) -> Result<Option<Self>, AssetsError> {
        let count = source.len(split).min(most);
        let (mut latents, mut captions) = (Vec::new(), Vec::new());
        for i in 0..count {
            let clip = source.clip(split, i * source.len(split) / count)?;
            let clip_tensor = to_tensor(&[&clip.frames]).to_device(assets.device());
            latents.push(tch::no_grad(|| assets.vae.encode(&clip_tensor)));
            captions.push(clip.prompt.caption);
        }
        let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
        Ok((count > 0).then(|| Self {
            latents: Tensor::cat(&latents, 0),
            texts: assets.text.embed(&captions),
        }))
    }

    /// Up to `most` clips kept apart of the dataset of trained parts; none where it keeps none apart.
    ///
    /// # Errors
    /// Where clips cannot be read.
    pub fn held_out(assets: &Assets, cache: &Path, most: usize) -> Result<Option<Self>, AssetsError> {
        Self::of(assets, assets.source(cache)?.as_ref(), Split::HeldOut, most)
    }

    /// Mean squared error of the prediction over every latent frame, at times of `process` and with noise that are the
    /// same for every network.
    #[must_use]
    pub fn loss(&self, network: &Network, process: &Process) -> f64 {
        let per_clip = self.latents.size()[2];
        let frames = self.latents.transpose(1, 2).flatten(0, 1).unsqueeze(2); // [n*t, c, 1, h, w]
        let texts = self.texts.repeat_interleave_self_int(per_clip, 0, None);
        let count = frames.size()[0];
        let mut sum = 0.0;
        for start in (0..count).step_by(CHUNK as usize) {
            let length = CHUNK.min(count - start);
            let mut rng = generator(SEED ^ stream_of("held out"), start as u64);
            let noised = process.noised(&frames.narrow(0, start, length), &mut rng);
            let text = texts.narrow(0, start, length);
            let error = tch::no_grad(|| {
                let found = network.unet.forward(&noised.xs, &noised.time, &text);
                found.mse_loss(&noised.target, Reduction::Mean)
            });
            sum += error.to_kind(Kind::Double).double_value(&[]) * length as f64;
        }
        sum / count as f64
    }
}
