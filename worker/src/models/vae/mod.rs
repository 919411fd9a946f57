//! The spatial-temporal VAE in Open-Sora 1.2's layout and keys (spec section 3).
//!
//! Encode: a 2-D VAE on each frame (8× in space) → × 0.18215 → a causal temporal encoder (4× in time) →
//! `(z − shift) / scale`. Decode is the reverse. Clips are coded in chunks of 17 frames, each into 5 latent frames,
//! independently of each other, and within a chunk the per-frame stage takes a few frames at a time: memory does not
//! grow with the length of a clip. Decoding a chunk goes over time first, then frame by frame (SnapGen-V, Appendix B).
//!
//! A decoder mirrors its encoder, or has widths and [`Convolutions`] of its own: the paper's compressed decoder is this
//! code with separable ones. Its weights stand under the same names, with `depthwise` and `pointwise` behind those of a
//! convolution that was dense.

mod config;
mod convolution;
mod spatial;
mod temporal;
mod work;

use std::convert::Infallible;
use std::ops::Range;

use tch::{Kind, Tensor, nn};

use crate::onnx::{Graph, Value};
pub use config::{Convolutions, VaeConfig};
pub use spatial::{SpatialConfig, SpatialDecoder, SpatialVae};
pub use temporal::{TemporalConfig, TemporalDecoder, TemporalVae};
pub use work::Work;

/// Frames that are coded together.
pub const CHUNK_FRAMES: i64 = 17;
/// Latent frames of a whole chunk.
pub const CHUNK_LATENTS: i64 = 5;
/// Frames per latent frame.
const TIME_FACTOR: i64 = 4;
/// Frames that the per-frame stage takes together, Open-Sora's `micro_batch_size`; more where they are small.
const FRAMES_TOGETHER: i64 = 4;
/// Pixels that it takes together where more than [`FRAMES_TOGETHER`] have no more: as many as those at 512×512.
const PIXELS_TOGETHER: i64 = FRAMES_TOGETHER * 512 * 512;
/// Open-Sora's factor between the two stages, whatever the spatial VAE's own configuration says (spec section 3).
const SPATIAL_SCALING: f64 = 0.18215;

/// Logarithm of the variance of latents when training begins.
const LOG_VARIANCE_AT_START: f64 = -6.0;

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
    /// The stage over time; without it each frame has a latent frame of its own.
    pub temporal: Option<TemporalVae>,
    shift: Tensor,
    scale: Tensor,
}

impl Vae {
    /// A VAE with fresh weights under `vs`; latent statistics 0 and 1. One of pictures has its published names, without
    /// Open-Sora's beginning and statistics.
    pub fn new(vs: &nn::Path<'_>, cfg: &VaeConfig) -> Self {
        let channels = cfg.spatial.latent_channels;
        let Some(temporal) = &cfg.temporal else {
            let all = |value: f64| Tensor::full([1, channels, 1, 1, 1], value, (Kind::Float, vs.device()));
            return Self {
                spatial: SpatialVae::new(vs, &cfg.spatial),
                temporal: None,
                shift: all(0.0),
                scale: all(1.0),
            };
        };
        Self {
            spatial: SpatialVae::new(&(vs / "spatial_vae" / "module"), &cfg.spatial),
            temporal: Some(TemporalVae::new(&(vs / "temporal_vae"), temporal, channels)),
            shift: vs.zeros_no_train("shift", &[1, channels, 1, 1, 1]),
            scale: vs.ones_no_train("scale", &[1, channels, 1, 1, 1]),
        }
    }

    /// The means of the latents.
    ///
    /// # Shapes
    /// - `frames`: `[b, 3, t, 8h, 8w]` in −1..1; output `[b, 4, latent_frames(t), h, w]`
    pub fn encode(&self, frames: &Tensor) -> Tensor {
        let read = |range: Range<i64>| Ok::<_, Infallible>(frames.narrow(2, range.start, range.end - range.start));
        let Ok(latents) = self.encode_from(frames.size()[2], read);
        latents
    }

    /// As [`Self::encode`] for a clip that is read while it is encoded: `read` gives the frames of a range, which are
    /// asked for in order and at most 17 at once.
    ///
    /// # Errors
    /// The first of `read`.
    pub fn encode_from<E>(
        &self,
        frames: i64,
        mut read: impl FnMut(Range<i64>) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let mut chunks = Vec::new();
        let mut first = 0;
        while first < frames {
            let next = (first + CHUNK_FRAMES).min(frames);
            let per_frame = self.encode_frames(&read(first..next)?);
            chunks.push((self.over_time(&per_frame) - &self.shift) / &self.scale);
            first = next;
        }
        Ok(Tensor::cat(&chunks, 2))
    }

    /// The first stage alone, scaled for the second.
    ///
    /// # Shapes
    /// - `frames`: `[b, 3, t, 8h, 8w]`; output `[b, 4, t, h, w]`
    pub fn encode_frames(&self, frames: &Tensor) -> Tensor {
        per_frame(frames, pixels_of(frames), |xs| self.spatial.encode(xs)) * SPATIAL_SCALING
    }

    /// The second stage alone, before the latent statistics are taken out.
    ///
    /// # Shapes
    /// - `xs`: `[b, 4, t, h, w]`; output `[b, 4, latent_frames(t), h, w]`
    pub fn encode_raw(&self, xs: &Tensor) -> Tensor {
        let chunks: Vec<Tensor> = xs
            .split(CHUNK_FRAMES, 2)
            .iter()
            .map(|chunk| self.over_time(chunk))
            .collect();
        Tensor::cat(&chunks, 2)
    }

    /// The second stage on one chunk.
    fn over_time(&self, per_frame: &Tensor) -> Tensor {
        match &self.temporal {
            Some(temporal) => temporal.encode(per_frame).0,
            None => per_frame.shallow_clone(),
        }
    }

    /// Clips from latents.
    ///
    /// # Shapes
    /// - `latents`: `[b, 4, latent_frames(frames), h, w]`; output `[b, 3, frames, 8h, 8w]` in about −1..1
    pub fn decode(&self, latents: &Tensor, frames: i64) -> Tensor {
        let mut all = Vec::new();
        let Ok(()) = self.decode_into(latents, frames, |some| {
            all.push(some);
            Ok::<_, Infallible>(())
        });
        Tensor::cat(&all, 2)
    }

    /// As [`Self::decode`], handing out the frames in order as they come, a few at a time: a clip of any length never
    /// stands decoded as a whole.
    ///
    /// # Shapes
    /// - what `sink` gets: `[b, 3, n, 8h, 8w]`, of all clips of the batch
    ///
    /// # Errors
    /// The first of `sink`.
    pub fn decode_into<E>(
        &self,
        latents: &Tensor,
        frames: i64,
        mut sink: impl FnMut(Tensor) -> Result<(), E>,
    ) -> Result<(), E> {
        let together = (frames_together(self.pixels_from(latents)) / latents.size()[0]).max(1);
        let mut left = frames;
        for chunk in latents.split(CHUNK_LATENTS, 2) {
            let count = left.min(CHUNK_FRAMES);
            left -= count;
            let per_frame = self.decode_chunk(&chunk, count);
            for some in per_frame.split(together, 2) {
                sink(self.decode_frames(&some))?;
            }
        }
        Ok(())
    }

    /// The first stage of decoding alone: what [`Self::decode_frames`] takes.
    ///
    /// # Shapes
    /// - `latents`: `[b, 4, latent_frames(frames), h, w]`; output `[b, 4, frames, h, w]`
    pub fn decode_time(&self, latents: &Tensor, frames: i64) -> Tensor {
        let mut left = frames;
        let chunk = |chunk: &Tensor| {
            let count = left.min(CHUNK_FRAMES);
            left -= count;
            self.decode_chunk(chunk, count)
        };
        let chunks: Vec<Tensor> = latents.split(CHUNK_LATENTS, 2).iter().map(chunk).collect();
        Tensor::cat(&chunks, 2)
    }

    fn decode_chunk(&self, latents: &Tensor, frames: i64) -> Tensor {
        let raw = latents * &self.scale + &self.shift;
        match &self.temporal {
            Some(temporal) => temporal.decode(&raw, frames),
            None => raw,
        }
    }

    /// The reverse of [`Self::encode_frames`].
    ///
    /// # Shapes
    /// - `xs`: `[b, 4, t, h, w]`; output `[b, 3, t, 8h, 8w]`
    pub fn decode_frames(&self, xs: &Tensor) -> Tensor {
        let pixels = self.pixels_from(xs);
        per_frame(&(xs / SPATIAL_SCALING), pixels, |xs| self.spatial.decode(xs))
    }

    /// Both stages of [`Self::decode`] as part of a graph.
    pub fn export(&self, graph: &mut Graph, latents: &Value, frames: i64) -> Value {
        let mut all = Vec::new();
        let (mut first, mut left) = (0, frames);
        while left > 0 {
            let (latent_count, count) = (CHUNK_LATENTS.min(latents.size(2) - first), CHUNK_FRAMES.min(left));
            let chunk = graph.narrow(latents, 2, first, latent_count);
            let per_frame = self.export_over_time(graph, &chunk, count);
            all.push(self.export_frames(graph, &per_frame));
            (first, left) = (first + latent_count, left - count);
        }
        // Chunks have their clips outermost: [b * count, 3, h, w].
        let batch = latents.size(0);
        let clips: Vec<Value> = all
            .iter()
            .map(|chunk| graph.unflatten(chunk, 0, &[batch, -1]))
            .collect();
        let clips = match clips.as_slice() {
            [one] => one.clone(),
            several => graph.concat(&several.iter().collect::<Vec<_>>(), 1),
        };
        graph.swap(&clips, 1, 2)
    }

    /// The first stage of [`Self::decode`] for one chunk as part of a graph.
    ///
    /// # Shapes
    /// - `latents`: `[b, 4, latent_frames(frames), h, w]` with at most 5 latent frames; output `[b · frames, 4, h, w]`
    pub fn export_over_time(&self, graph: &mut Graph, latents: &Value, frames: i64) -> Value {
        let per_frame = match &self.temporal {
            Some(temporal) => {
                let (shift, scale) = (graph.weight(&self.shift), graph.weight(&self.scale));
                let raw = graph.mul(latents, &scale);
                let raw = graph.add(&raw, &shift);
                graph.within("temporal_decoder", |graph| temporal.export(graph, &raw, frames))
            }
            None => latents.clone(),
        };
        let by_clip = graph.swap(&per_frame, 1, 2);
        graph.flatten(&by_clip, 0, 1)
    }

    /// [`Self::decode_frames`] as part of a graph.
    ///
    /// # Shapes
    /// - `frames`: `[n, 4, h, w]`; output `[n, 3, 8h, 8w]`
    pub fn export_frames(&self, graph: &mut Graph, frames: &Value) -> Value {
        let latents = graph.scale(frames, 1.0 / SPATIAL_SCALING);
        graph.within("spatial_decoder", |graph| self.spatial.export(graph, &latents))
    }

    /// Frames that the second stage of [`Self::decode`] takes together, of latents `[…, h, w]`.
    #[must_use]
    pub fn slice_frames(&self, height: i64, width: i64) -> i64 {
        frames_together(height * width * self.spatial.factor() * self.spatial.factor())
    }

    /// The first stage of [`Self::decode`] for one chunk.
    ///
    /// # Shapes
    /// - as [`Self::export_over_time`]
    pub fn decode_over_time(&self, latents: &Tensor, frames: i64) -> Tensor {
        self.decode_chunk(latents, frames).transpose(1, 2).flatten(0, 1)
    }

    /// Pixels of a frame that is decoded from latents.
    fn pixels_from(&self, latents: &Tensor) -> i64 {
        pixels_of(latents) * self.spatial.factor() * self.spatial.factor()
    }

    /// Before training: lets both stages begin with little noise in their latents, or they learn nothing for long.
    pub fn start_certain(&self) {
        let temporal = self.temporal.as_ref().and_then(TemporalVae::moments_bias);
        for bias in [self.spatial.moments_bias(), temporal].into_iter().flatten() {
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

/// Places of a frame of `[b, c, t, h, w]`.
fn pixels_of(xs: &Tensor) -> i64 {
    xs.size()[3] * xs.size()[4]
}

/// How many frames of so many pixels the per-frame stage takes together.
fn frames_together(pixels: i64) -> i64 {
    (PIXELS_TOGETHER / pixels.max(1)).max(FRAMES_TOGETHER)
}

/// Runs a 2-D network on every frame of `[b, c, t, h, w]`; `pixels` is the size of a frame in pixels.
fn per_frame(xs: &Tensor, pixels: i64, network: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let (b, t) = (xs.size()[0], xs.size()[2]);
    let frames = xs.transpose(1, 2).flatten(0, 1); // [b*t, c, h, w]
    let mut done: Vec<Tensor> = frames.split(frames_together(pixels), 0).iter().map(network).collect();
    let all = if done.len() == 1 {
        done.remove(0)
    } else {
        Tensor::cat(&done, 0)
    };
    drop(done);
    all.unflatten(0, [b, t]).transpose(1, 2).contiguous()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::models::seeded::{normal, seed_weights};
    use crate::shim::measure_peak;

    fn tiny() -> VaeConfig {
        VaeConfig {
            spatial: SpatialConfig {
                block_out_channels: vec![4, 4, 8, 8],
                layers_per_block: 1,
                norm_groups: 2,
                latent_channels: 4,
                decoder: None,
            },
            temporal: Some(TemporalConfig {
                filters: 4,
                channel_multipliers: vec![1, 1, 2, 2],
                res_blocks: 1,
                norm_groups: 2,
                decoder: None,
            }),
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

    fn tiny_vae() -> Vae {
        let vs = nn::VarStore::new(Device::Cpu);
        let mut vae = Vae::new(&vs.root(), &tiny());
        seed_weights(&vs, 3);
        vae.set_statistics(&normal(&[3, 4, 2, 2, 2], 5, Device::Cpu));
        for (_, variable) in vs.variables() {
            let _ = variable.set_requires_grad(false);
        }
        vae
    }

    /// What is coded of a clip is what is coded of its chunks, whether it is given whole or read while it is encoded,
    /// and decoded whole or handed out.
    #[test]
    fn chunks_do_not_meet() {
        let vae = tiny_vae();
        let clip = normal(&[1, 3, 38, 16, 16], 1, Device::Cpu);
        let whole = vae.encode(&clip);
        assert_eq!(whole.size()[2], 11);
        let parts = [(0, 17), (17, 17), (34, 4)].map(|(first, count)| vae.encode(&clip.narrow(2, first, count)));
        assert!(whole.allclose(&Tensor::cat(&parts, 2), 1e-5, 1e-6, false));
        let mut asked = Vec::new();
        let read = vae.encode_from(38, |range| {
            asked.push((range.start, range.end));
            Ok::<_, String>(clip.narrow(2, range.start, range.end - range.start))
        });
        assert_eq!(asked, [(0, 17), (17, 34), (34, 38)]);
        assert!(read.unwrap().allclose(&whole, 1e-5, 1e-6, false));
        let decoded = vae.decode(&whole, 38);
        let parts = [(0, 5, 17), (5, 5, 17), (10, 1, 4)];
        let parts = parts.map(|(first, count, frames)| vae.decode(&whole.narrow(2, first, count), frames));
        assert!(decoded.allclose(&Tensor::cat(&parts, 2), 1e-5, 1e-6, false));
    }

    #[test]
    fn an_error_of_the_sink_or_the_source_ends_the_work() {
        let vae = tiny_vae();
        let mut seen = 0;
        let latents = Tensor::zeros([1, 4, 10, 2, 2], (Kind::Float, Device::Cpu));
        let ended = vae.decode_into(&latents, 34, |_| {
            seen += 1;
            Err("the disk is full")
        });
        assert_eq!((ended, seen), (Err("the disk is full"), 1));
        assert_eq!(
            vae.encode_from(34, |_| Err("no such file")).unwrap_err(),
            "no such file"
        );
    }

    #[test]
    fn large_frames_are_decoded_four_at_a_time() {
        assert_eq!(
            [512 * 512, 432 * 768, 720 * 1280, 256 * 256].map(frames_together),
            [4, 4, 4, 16]
        );
        let cfg = VaeConfig {
            spatial: SpatialConfig {
                block_out_channels: vec![2, 2, 2, 2],
                ..tiny().spatial
            },
            ..tiny()
        };
        let vs = nn::VarStore::new(Device::Cpu);
        let vae = Vae::new(&vs.root(), &cfg);
        let _guard = tch::no_grad_guard();
        let mut counts = Vec::new();
        let latents = normal(&[1, 4, 2, 64, 64], 2, Device::Cpu);
        let decoded = vae.decode_into(&latents, 6, |some| {
            counts.push(some.size());
            Ok::<_, Infallible>(())
        });
        assert_eq!(decoded, Ok(()));
        assert_eq!(counts, [[1, 3, 4, 512, 512], [1, 3, 2, 512, 512]]);
    }

    #[test]
    fn memory_does_not_grow_with_the_length_of_a_clip() {
        let vae = tiny_vae();
        let _guard = tch::no_grad_guard();
        let decode = |chunks: i64| {
            let latents = Tensor::zeros([1, 4, 5 * chunks, 4, 4], (Kind::Float, Device::Cpu));
            let sink = |frames: Tensor| {
                drop(frames);
                Ok::<_, Infallible>(())
            };
            measure_peak(Device::Cpu, || vae.decode_into(&latents, 17 * chunks, sink)).1
        };
        assert_eq!(decode(1), decode(9));
        let encode = |chunks: i64| {
            let read = |range: Range<i64>| {
                let count = range.end - range.start;
                Ok::<_, Infallible>(Tensor::zeros([1, 3, count, 32, 32], (Kind::Float, Device::Cpu)))
            };
            measure_peak(Device::Cpu, || vae.encode_from(17 * chunks, read)).1.0
        };
        // The latents of 8 more chunks, of 4 × 5 × 4 × 4 floats each, and nothing else.
        assert_eq!(encode(9) - encode(1), 8 * 4 * 4 * 5 * 4 * 4);
    }

    /// Spec section 1.2: Stable Diffusion's own, whose latents are the means of its one stage times 0.18215.
    #[test]
    fn a_vae_of_pictures_has_one_stage_and_the_names_of_its_file() {
        let vs = nn::VarStore::new(Device::Cpu);
        let config = VaeConfig {
            temporal: None,
            ..tiny()
        };
        assert_eq!(config.check(), Ok(()));
        let vae = Vae::new(&vs.root(), &config);
        let twin = nn::VarStore::new(Device::Cpu);
        let _ = SpatialVae::new(&twin.root(), &config.spatial);
        assert!(vs.variables().keys().all(|name| twin.variables().contains_key(name)));
        assert_eq!(vs.len(), twin.len());
        let picture = normal(&[2, 3, 1, 16, 16], 1, Device::Cpu);
        let latents = vae.encode(&picture);
        let means = vae.spatial.encode(&picture.squeeze_dim(2)) * 0.18215;
        assert!(latents.squeeze_dim(2).allclose(&means, 1e-5, 1e-6, false));
        let decoded = vae.decode(&latents, 1).squeeze_dim(2);
        assert!(decoded.allclose(&vae.spatial.decode(&(means / 0.18215)), 1e-4, 1e-5, false));
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
}
