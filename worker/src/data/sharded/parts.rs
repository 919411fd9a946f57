//! Trained parts as encoders.

use tch::Tensor;

use super::{Encoders, Texts};
use crate::assets::{Assets, TEXT, VAE, digest_of};
use crate::models::text::Embedded;

impl Encoders for Assets {
    fn digest(&self) -> String {
        let Self { manifest, .. } = self;
        let files = [VAE, TEXT].map(|name| manifest.files.get(name).map(|file| &file.sha256));
        digest_of(&(files, &manifest.recipe.vae, &manifest.recipe.text, &manifest.tokenizer))
    }

    fn latent_channels(&self) -> i64 {
        self.latent_shape()[0]
    }

    fn codes_time(&self) -> bool {
        self.vae.temporal.is_some()
    }

    fn pixels_per_latent(&self) -> i64 {
        self.vae.spatial.factor()
    }

    fn latents(&self, frames: &Tensor) -> Tensor {
        self.vae.encode(&frames.to_device(self.device()))
    }

    fn texts(&self, captions: &[&str]) -> Texts {
        let Embedded { tokens, pooled } = self.text.embed_both(captions);
        Texts {
            tokens,
            pooled: Some(pooled),
        }
    }
}
