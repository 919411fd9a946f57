//! What a compression works with: the VAE, and examples of what its decoders are to decode.

use std::collections::HashMap;
use std::path::Path;

use rand::RngExt;
use tch::{Device, Kind, Tensor, nn};

use super::Part;
use super::loss::Example;
use super::pictures::{Dataset, Folder, Pictures};
use super::plan::Plan;
use super::start::{Origin, from_original};
use crate::assets::{Assets, AssetsError, VAE, digest_of};
use crate::data::{DataError, Split};
use crate::models::seeded::{generator, normal_from, stream_of};
use crate::models::vae::{Vae, VaeConfig};
use crate::weights::{self, Layout};

/// Clips whose latents tell the scale of errors over time.
const CLIPS_OF_SPREAD: usize = 16;

/// A VAE with its weights by name.
#[derive(Debug)]
pub struct Network {
    /// Its sizes.
    pub config: VaeConfig,
    /// Its weights.
    pub vs: nn::VarStore,
    /// The model.
    pub vae: Vae,
}

impl Network {
    fn build(config: &VaeConfig, device: Device) -> Self {
        let vs = nn::VarStore::new(device);
        Self {
            vae: Vae::new(&vs.root(), config),
            config: config.clone(),
            vs,
        }
    }

    /// That of trained parts, fixed.
    ///
    /// # Errors
    /// Where its file cannot be read or does not fit.
    pub fn of_parts(parts: &Assets) -> Result<Self, AssetsError> {
        let network = Self::build(&parts.manifest.recipe.vae, parts.device());
        weights::load(&network.vs, &parts.folder().join(VAE), &Layout::VAE)?;
        network.fix();
        Ok(network)
    }

    /// A VAE with decoders of other sizes for this one's encoder: what it begins with, fixed.
    ///
    /// # Errors
    /// Where libtorch refuses a decomposition of the weights.
    pub fn compressed(&self, config: &VaeConfig, seed: u64) -> Result<(Self, Origin), tch::TchError> {
        let network = Self::build(config, self.vs.device());
        let origin = from_original(&network.vs, &self.vs.variables(), seed)?;
        network.fix();
        Ok((network, origin))
    }

    /// A copy with other weights where they are given.
    ///
    /// # Errors
    /// Where one has another shape.
    pub fn with_weights(&self, weights: &HashMap<String, Tensor>) -> Result<Self, tch::TchError> {
        let network = Self::build(&self.config, self.vs.device());
        let own = self.vs.variables();
        for (name, mut variable) in network.vs.variables() {
            let weight = weights.get(&name).unwrap_or(&own[&name]);
            tch::no_grad(|| variable.f_copy_(weight))?;
        }
        network.fix();
        Ok(network)
    }

    /// Lets gradients move a part, or nothing.
    pub(super) fn train_only(&self, part: Option<Part>) {
        for (name, variable) in self.vs.variables() {
            let trained = part.is_some() && Part::of(&name) == part;
            let _ = variable.set_requires_grad(trained);
        }
    }

    fn fix(&self) {
        self.train_only(None);
    }
}

/// The VAE whose decoder is compressed, with what it is trained and measured on.
#[derive(Debug)]
pub struct Material {
    /// The parts that hold it.
    pub parts: Assets,
    /// The VAE, fixed.
    pub original: Network,
    /// Clips and pictures.
    pub pictures: Box<dyn Pictures>,
}

impl Material {
    /// Of trained parts, on the clips of their dataset, or those of a folder in the size that `plan` asks for.
    ///
    /// # Errors
    /// Where parts or clips cannot be read.
    pub fn open(parts: Assets, folder: Option<&Path>, plan: &Plan, cache: &Path) -> Result<Self, AssetsError> {
        let pictures: Box<dyn Pictures> = match folder {
            Some(folder) => {
                let settings = plan.settings();
                Box::new(Folder::open(folder, settings.size, settings.frame_rate_hz)?)
            }
            None => Box::new(Dataset::new(parts.source(cache)?)),
        };
        Ok(Self {
            original: Network::of_parts(&parts)?,
            parts,
            pictures,
        })
    }

    /// Names all of it: a compression of one digest is not gone on with by one of another.
    #[must_use]
    pub fn digest(&self) -> String {
        digest_of(&(self.parts.manifest.digest(), self.pictures.settings()))
    }

    /// Examples of a micro-batch, named by (seed, step, micro-batch) and nothing else.
    ///
    /// Latents are drawn from the encoder's distribution, as they are where a VAE is trained.
    ///
    /// # Errors
    /// Where clips cannot be read.
    pub fn example(&self, part: Part, plan: &Plan, step: u64, micro: u32) -> Result<Example, DataError> {
        let training = plan.training();
        let parts = training.accumulate.max(1);
        let device = self.original.vs.device();
        let stream = step * u64::from(parts) + u64::from(micro);
        let mut rng = generator(plan.seed ^ stream_of(part.name()), stream);
        let vae = &self.original.vae;
        let (moments, target) = match (part, &vae.temporal) {
            (Part::Temporal, Some(temporal)) => {
                let mut clips = Vec::new();
                for _ in 0..training.batch / parts {
                    let clip = rng.random_range(0..self.pictures.clips(Split::Train));
                    clips.push(self.pictures.clip(Split::Train, clip, Some(&mut rng))?);
                }
                let clips = Tensor::cat(&clips, 0).to_device(device);
                let per_frame = tch::no_grad(|| vae.encode_frames(&clips));
                (tch::no_grad(|| temporal.encode(&per_frame)), per_frame)
            }
            _ => {
                let mut pictures = Vec::new();
                for _ in 0..plan.settings().pictures / parts {
                    pictures.push(self.pictures.picture(&mut rng)?);
                }
                let pictures = Tensor::cat(&pictures, 0).to_device(device);
                (tch::no_grad(|| vae.spatial.moments(&pictures)), pictures)
            }
        };
        let (mean, log_variance) = moments;
        let noise = normal_from(&mut rng, &mean.size(), device);
        Ok(Example {
            latents: mean + (log_variance * 0.5).exp() * noise,
            target,
        })
    }

    /// Standard deviation of what a part decodes to.
    ///
    /// # Errors
    /// Where clips cannot be read.
    pub fn spread(&self, part: Part) -> Result<f64, DataError> {
        if part == Part::Spatial {
            return Ok(1.0);
        }
        let count = self.pictures.clips(Split::Train).min(CLIPS_OF_SPREAD);
        let mut latents = Vec::new();
        for i in 0..count {
            let clip = i * self.pictures.clips(Split::Train) / count;
            let clip = self.pictures.clip(Split::Train, clip, None)?;
            let clip = clip.to_device(self.original.vs.device());
            latents.push(tch::no_grad(|| self.original.vae.encode_frames(&clip)).flatten(0, -1));
        }
        let spread = Tensor::cat(&latents, 0)
            .to_kind(Kind::Double)
            .std(true)
            .double_value(&[]);
        Ok(if spread > 0.0 { spread } else { 1.0 })
    }
}
