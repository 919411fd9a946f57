//! The spatial-temporal VAE in Open-Sora 1.2's layout and keys (spec section 3).
//!
//! Encode: a 2-D VAE on each frame (8× in space) → × 0.18215 → a causal temporal encoder (4× in time) →
//! `(z − shift) / scale`. Decode is the reverse. Clips are coded in chunks of 17 frames, each into 5 latent frames,
//! independently of each other.

mod spatial;
mod temporal;

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

pub use spatial::{SpatialConfig, SpatialVae};
pub use temporal::{TemporalConfig, TemporalVae};

/// Frames that are coded together.
pub const CHUNK_FRAMES: i64 = 17;
/// Latent frames of a whole chunk.
pub const CHUNK_LATENTS: i64 = 5;
/// Frames per latent frame.
const TIME_FACTOR: i64 = 4;
/// Open-Sora's factor between the two stages, whatever the spatial VAE's own configuration says (spec section 3).
const SPATIAL_SCALING: f64 = 0.18215;

/// Logarithm of the variance of latents when training begins.
const LOG_VARIANCE_AT_START: f64 = -6.0;

/// Sizes of the VAE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaeConfig {
    /// The per-frame stage.
    pub spatial: SpatialConfig,
    /// The stage over time.
    pub temporal: TemporalConfig,
}

/// Latent frames of `frames` frames: 5 of every whole chunk of 17, ⌈T/4⌉ of the rest.
#[must_use]
pub fn latent_frames(frames: i64) -> i64 {
    let rest = frames % CHUNK_FRAMES;
    frames / CHUNK_FRAMES * CHUNK_LATENTS + (rest + TIME_FACTOR - 1) / TIME_FACTOR
}

/// The two stages with their latent statistics.
#[derive(Debug)]
pub struct Vae {
    /// The per-frame stage.
    pub spatial: SpatialVae,
    /// The stage over time.
    pub temporal: TemporalVae,
    shift: Tensor,
    scale: Tensor,
}

impl Vae {
    /// A VAE with fresh weights under `vs`; latent statistics 0 and 1.
    pub fn new(vs: &nn::Path<'_>, cfg: &VaeConfig) -> Self {
        let channels = cfg.spatial.latent_channels;
        Self {
            spatial: SpatialVae::new(&(vs / "spatial_vae" / "module"), &cfg.spatial),
            temporal: TemporalVae::new(&(vs / "temporal_vae"), &cfg.temporal, channels),
            shift: vs.zeros_no_train("shift", &[1, channels, 1, 1, 1]),
            scale: vs.ones_no_train("scale", &[1, channels, 1, 1, 1]),
        }
    }

    /// The means of the latents.
    ///
    /// # Shapes
    /// - `frames`: `[b, 3, t, 8h, 8w]` in −1..1; output `[b, 4, latent_frames(t), h, w]`
    pub fn encode(&self, frames: &Tensor) -> Tensor {
        (self.encode_raw(&self.encode_frames(frames)) - &self.shift) / &self.scale
    }

    /// The first stage alone, scaled for the second.
    ///
    /// # Shapes
    /// - `frames`: `[b, 3, t, 8h, 8w]`; output `[b, 4, t, h, w]`
    pub fn encode_frames(&self, frames: &Tensor) -> Tensor {
        per_frame(frames, |xs| self.spatial.encode(xs)) * SPATIAL_SCALING
    }

    /// The second stage alone, before the latent statistics are taken out.
    ///
    /// # Shapes
    /// - `xs`: `[b, 4, t, h, w]`; output `[b, 4, latent_frames(t), h, w]`
    pub fn encode_raw(&self, xs: &Tensor) -> Tensor {
        let chunks: Vec<Tensor> = xs
            .split(CHUNK_FRAMES, 2)
            .iter()
            .map(|chunk| self.temporal.encode(chunk).0)
            .collect();
        Tensor::cat(&chunks, 2)
    }

    /// Clips from latents.
    ///
    /// # Shapes
    /// - `latents`: `[b, 4, latent_frames(frames), h, w]`; output `[b, 3, frames, 8h, 8w]` in about −1..1
    pub fn decode(&self, latents: &Tensor, frames: i64) -> Tensor {
        let raw = latents * &self.scale + &self.shift;
        let mut left = frames;
        let chunks: Vec<Tensor> = raw
            .split(CHUNK_LATENTS, 2)
            .iter()
            .map(|chunk| {
                let count = left.min(CHUNK_FRAMES);
                left -= count;
                self.temporal.decode(chunk, count)
            })
            .collect();
        self.decode_frames(&Tensor::cat(&chunks, 2))
    }

    /// The reverse of [`Self::encode_frames`].
    ///
    /// # Shapes
    /// - `xs`: `[b, 4, t, h, w]`; output `[b, 3, t, 8h, 8w]`
    pub fn decode_frames(&self, xs: &Tensor) -> Tensor {
        per_frame(&(xs / SPATIAL_SCALING), |xs| self.spatial.decode(xs))
    }

    /// Before training: lets both stages begin with little noise in their latents, or they learn nothing for long.
    pub fn start_certain(&self) {
        for bias in [self.spatial.moments_bias(), self.temporal.moments_bias()]
            .into_iter()
            .flatten()
        {
            let channels = bias.size()[0] / 2;
            let _ = tch::no_grad(|| bias.narrow(0, channels, channels).fill_(LOG_VARIANCE_AT_START));
        }
    }

    /// Sets the latent statistics: mean and standard deviation of each channel of [`Self::encode_raw`].
    ///
    /// # Shapes
    /// - `raw`: `[n, 4, t, h, w]`
    pub fn set_statistics(&mut self, raw: &Tensor) {
        let dims = [0i64, 2, 3, 4];
        tch::no_grad(|| {
            self.shift.copy_(&raw.mean_dim(dims.as_slice(), true, None));
            self.scale.copy_(&raw.std_dim(dims.as_slice(), true, true));
        });
    }
}

/// Runs a 2-D network on every frame of `[b, c, t, h, w]`.
fn per_frame(xs: &Tensor, network: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let (b, t) = (xs.size()[0], xs.size()[2]);
    let frames = xs.transpose(1, 2).flatten(0, 1); // [b*t, c, h, w]
    network(&frames).unflatten(0, [b, t]).transpose(1, 2).contiguous()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    fn open_sora() -> VaeConfig {
        VaeConfig {
            spatial: SpatialConfig {
                block_out_channels: vec![128, 256, 512, 512],
                layers_per_block: 2,
                norm_groups: 32,
                latent_channels: 4,
            },
            temporal: TemporalConfig {
                filters: 128,
                channel_multipliers: vec![1, 2, 2, 4],
                res_blocks: 4,
                norm_groups: 32,
            },
        }
    }

    fn tiny() -> VaeConfig {
        VaeConfig {
            spatial: SpatialConfig {
                block_out_channels: vec![4, 4, 8, 8],
                layers_per_block: 1,
                norm_groups: 2,
                latent_channels: 4,
            },
            temporal: TemporalConfig {
                filters: 4,
                channel_multipliers: vec![1, 1, 2, 2],
                res_blocks: 1,
                norm_groups: 2,
            },
        }
    }

    /// Counts from spec section 3.
    #[test]
    fn chunks_follow_the_rule() {
        for (frames, latents) in [
            (1, 1),
            (16, 4),
            (17, 5),
            (34, 10),
            (51, 15),
            (102, 30),
            (204, 60),
            (408, 120),
            (120, 36),
        ] {
            assert_eq!(latent_frames(frames), latents, "{frames} frames");
        }
    }

    #[test]
    fn shapes_go_there_and_back() {
        let vs = nn::VarStore::new(Device::Cpu);
        let vae = Vae::new(&vs.root(), &tiny());
        for (frames, latents) in [(1, 1), (3, 1), (17, 5), (18, 6)] {
            let clip = Tensor::zeros([2, 3, frames, 32, 16], (Kind::Float, Device::Cpu));
            let code = vae.encode(&clip);
            assert_eq!(code.size(), [2, 4, latents, 4, 2]);
            assert_eq!(vae.decode(&code, frames).size(), clip.size());
        }
    }

    /// Tensor and parameter counts of Open-Sora 1.2 (spec section 3): 267 tensors, 309,687,144; 248 and 83,653,863.
    #[test]
    fn the_large_configuration_has_the_published_parameters() {
        let cfg = open_sora();
        let vs = nn::VarStore::new(Device::Cpu);
        let _guard = tch::no_grad_guard();
        let spatial = nn::VarStore::new(Device::Cpu);
        let _ = TemporalVae::new(&vs.root(), &cfg.temporal, 4);
        let _ = SpatialVae::new(&spatial.root(), &cfg.spatial);
        let count = |vs: &nn::VarStore| (vs.len(), vs.variables().values().map(Tensor::numel).sum::<usize>());
        assert_eq!(count(&vs), (267, 309_687_144));
        assert_eq!(count(&spatial), (248, 83_653_863));
    }
}
