//! The temporal VAE against a second implementation in plain loops over float64, written from the description of
//! Open-Sora 1.2's (spec section 3): causal convolutions, group norms, unfolding of channels to frames, chunks of 17.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor, nn};
use temponas_worker::models::vae::{SpatialConfig, TemporalConfig, TemporalVae, Vae, VaeConfig, latent_frames};
use temponas_worker::parity::recipe;

const LATENT: usize = 4;
const GROUPS: usize = 2;
const RES_BLOCKS: usize = 2;
/// Shift and scale of Open-Sora's latents.
const SHIFT: [f64; LATENT] = [-0.10, 0.34, 0.27, 0.98];
const SCALE: [f64; LATENT] = [3.85, 2.32, 2.33, 3.06];

/// `[channels, frames, height, width]`.
#[derive(Clone)]
struct Volume {
    size: [usize; 4],
    values: Vec<f64>,
}

impl Volume {
    fn filled(size: [usize; 4], value: impl Fn([usize; 4]) -> f64) -> Self {
        let [c, t, h, w] = size;
        let mut values = Vec::with_capacity(c * t * h * w);
        for c in 0..c {
            for t in 0..t {
                for y in 0..h {
                    for x in 0..w {
                        values.push(value([c, t, y, x]));
                    }
                }
            }
        }
        Self { size, values }
    }

    fn at(&self, [c, t, y, x]: [usize; 4]) -> f64 {
        let [_, frames, h, w] = self.size;
        self.values[((c * frames + t) * h + y) * w + x]
    }

    /// Zero outside of the volume.
    fn padded(&self, c: usize, t: isize, y: isize, x: isize) -> f64 {
        let [_, frames, h, w] = self.size;
        let inside = |place: isize, size: usize| usize::try_from(place).ok().filter(|&place| place < size);
        match (inside(t, frames), inside(y, h), inside(x, w)) {
            (Some(t), Some(y), Some(x)) => self.at([c, t, y, x]),
            _ => 0.0,
        }
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Self {
        Self {
            size: self.size,
            values: self.values.iter().map(|&value| f(value)).collect(),
        }
    }

    fn plus(&self, other: &Self) -> Self {
        assert_eq!(self.size, other.size);
        let values = self.values.iter().zip(&other.values).map(|(a, b)| a + b).collect();
        Self {
            size: self.size,
            values,
        }
    }

    fn silu(&self) -> Self {
        self.map(|x| x / (1.0 + (-x).exp()))
    }

    fn channels(&self, first: usize, count: usize) -> Self {
        let [_, t, h, w] = self.size;
        Self::filled([count, t, h, w], |[c, t, y, x]| self.at([first + c, t, y, x]))
    }

    fn frames(&self, first: usize, count: usize) -> Self {
        let [c, _, h, w] = self.size;
        Self::filled([c, count, h, w], |[c, t, y, x]| self.at([c, first + t, y, x]))
    }

    /// Zero frames in front.
    fn after_zeros(&self, count: usize) -> Self {
        let [c, t, h, w] = self.size;
        Self::filled([c, t + count, h, w], |[c, t, y, x]| {
            if t < count { 0.0 } else { self.at([c, t - count, y, x]) }
        })
    }

    /// One after another in time.
    fn joined(parts: &[Self]) -> Self {
        let [c, _, h, w] = parts[0].size;
        let places: Vec<(usize, usize)> = parts
            .iter()
            .enumerate()
            .flat_map(|(i, part)| (0..part.size[1]).map(move |t| (i, t)))
            .collect();
        Self::filled([c, places.len(), h, w], |[c, t, y, x]| {
            let (part, t) = places[t];
            parts[part].at([c, t, y, x])
        })
    }

    fn of(tensor: &Tensor) -> Self {
        let size = tensor.size();
        assert_eq!((size.len(), size[0]), (5, 1), "one clip");
        Self {
            size: std::array::from_fn(|i| size[i + 1] as usize),
            values: plain(tensor),
        }
    }

    fn tensor(&self) -> Tensor {
        Tensor::from_slice(&self.values)
            .reshape(self.size.map(|size| size as i64))
            .unsqueeze(0)
    }
}

fn plain(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("a flat tensor")
}

/// The reference: weights by their published names.
struct Plain(BTreeMap<String, (Vec<i64>, Vec<f64>)>);

impl Plain {
    /// `Σ w · x + b` with zeros around height and width, and in time in front only: (k − 1) + (1 − stride) of them.
    fn conv(&self, name: &str, xs: &Volume, stride: usize) -> Volume {
        let (shape, weight) = &self.0[&format!("{name}.conv.weight")];
        let bias = self.0.get(&format!("{name}.conv.bias"));
        let (outputs, inputs, k) = (shape[0] as usize, shape[1] as usize, shape[2] as usize);
        let [channels, frames, h, w] = xs.size;
        assert_eq!(channels, inputs, "{name}");
        let (front, side) = (k - 1 + 1 - stride, k / 2);
        Volume::filled([outputs, (frames + front - k) / stride + 1, h, w], |[o, t, y, x]| {
            let mut sum = bias.map_or(0.0, |(_, bias)| bias[o]);
            for i in 0..inputs {
                for dt in 0..k {
                    for dy in 0..k {
                        for dx in 0..k {
                            let value = xs.padded(
                                i,
                                (t * stride + dt) as isize - front as isize,
                                (y + dy) as isize - side as isize,
                                (x + dx) as isize - side as isize,
                            );
                            sum += weight[(((o * inputs + i) * k + dt) * k + dy) * k + dx] * value;
                        }
                    }
                }
            }
            sum
        })
    }

    fn norm(&self, name: &str, xs: &Volume) -> Volume {
        let (weight, bias) = (&self.0[&format!("{name}.weight")].1, &self.0[&format!("{name}.bias")].1);
        let per_group = xs.values.len() / GROUPS;
        let statistics: Vec<(f64, f64)> = xs
            .values
            .chunks(per_group)
            .map(|group| {
                let mean = group.iter().sum::<f64>() / per_group as f64;
                let variance = group.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / per_group as f64;
                (mean, (variance + 1e-5).sqrt())
            })
            .collect();
        let in_group = xs.size[0] / GROUPS;
        Volume::filled(xs.size, |[c, t, y, x]| {
            let (mean, deviation) = statistics[c / in_group];
            (xs.at([c, t, y, x]) - mean) / deviation * weight[c] + bias[c]
        })
    }

    fn res_block(&self, name: &str, xs: &Volume) -> Volume {
        let branch = self.conv(
            &format!("{name}.conv1"),
            &self.norm(&format!("{name}.norm1"), xs).silu(),
            1,
        );
        let branch = self.conv(
            &format!("{name}.conv2"),
            &self.norm(&format!("{name}.norm2"), &branch).silu(),
            1,
        );
        let shortcut = format!("{name}.conv3");
        match self.0.contains_key(&format!("{shortcut}.conv.weight")) {
            true => self.conv(&shortcut, xs, 1).plus(&branch),
            false => xs.plus(&branch),
        }
    }

    fn res_blocks(&self, name: &str, xs: &Volume) -> Volume {
        (0..RES_BLOCKS).fold(xs.clone(), |xs, i| self.res_block(&format!("{name}.{i}"), &xs))
    }

    /// Means and logarithms of variances of at most 17 frames.
    fn encode_chunk(&self, xs: &Volume) -> (Volume, Volume) {
        let mut h = self.conv("encoder.conv_in", &xs.after_zeros(padding(xs.size[1])), 1);
        for level in 0..4 {
            h = self.res_blocks(&format!("encoder.block_res_blocks.{level}"), &h);
            if level == 1 || level == 2 {
                h = self.conv(&format!("encoder.conv_blocks.{level}"), &h, 2);
            }
        }
        h = self.res_blocks("encoder.res_blocks", &h);
        h = self.conv("encoder.conv2", &self.norm("encoder.norm1", &h).silu(), 1);
        let moments = self.conv("quant_conv", &h, 1);
        (
            moments.channels(0, LATENT),
            moments.channels(LATENT, LATENT).map(|x| x.clamp(-30.0, 20.0)),
        )
    }

    /// At most 17 frames of their latents.
    fn decode_chunk(&self, latents: &Volume, frames: usize) -> Volume {
        let mut h = self.conv("decoder.conv1", &self.conv("post_quant_conv", latents, 1), 1);
        h = self.res_blocks("decoder.res_blocks", &h);
        for level in (0..4).rev() {
            h = self.res_blocks(&format!("decoder.block_res_blocks.{level}"), &h);
            if level == 3 || level == 2 {
                h = unfold(&self.conv(&format!("decoder.conv_blocks.{}", level - 1), &h, 1));
            }
        }
        h = self.conv("decoder.conv_out", &self.norm("decoder.norm1", &h).silu(), 1);
        h.frames(padding(frames), frames)
    }

    /// Means, in chunks of 17 frames that know nothing of each other.
    fn encode(&self, xs: &Volume) -> Volume {
        let frames = xs.size[1];
        let chunks = (0..frames).step_by(17).map(|first| {
            let chunk = xs.frames(first, (frames - first).min(17));
            self.encode_chunk(&chunk).0
        });
        Volume::joined(&chunks.collect::<Vec<_>>())
    }

    fn decode(&self, latents: &Volume, frames: usize) -> Volume {
        let chunks = (0..frames).step_by(17).map(|first| {
            let (count, from) = ((frames - first).min(17), first / 17 * 5);
            self.decode_chunk(&latents.frames(from, count.div_ceil(4)), count)
        });
        Volume::joined(&chunks.collect::<Vec<_>>())
    }
}

fn padding(frames: usize) -> usize {
    (4 - frames % 4) % 4
}

/// "(C ts)": channels 2c and 2c + 1 are the two frames of channel c.
fn unfold(xs: &Volume) -> Volume {
    let [c, t, h, w] = xs.size;
    Volume::filled([c / 2, 2 * t, h, w], |[c, t, y, x]| xs.at([2 * c + t % 2, t / 2, y, x]))
}

fn config() -> TemporalConfig {
    TemporalConfig {
        filters: 4,
        channel_multipliers: vec![1, 2, 2, 4],
        res_blocks: RES_BLOCKS as i64,
        norm_groups: GROUPS as i64,
        decoder: None,
    }
}

/// Draws every weight and gives those under `prefix` to the reference, without it.
fn draw(vs: &nn::VarStore, prefix: &str) -> Plain {
    let _guard = tch::no_grad_guard();
    let mut weights = BTreeMap::new();
    for (name, mut variable) in vs.variables() {
        let drawn = recipe::weight(1, &name, &variable.size());
        variable.copy_(&drawn);
        if let Some(name) = name.strip_prefix(prefix) {
            weights.insert(name.to_owned(), (drawn.size(), plain(&drawn)));
        }
    }
    Plain(weights)
}

/// max|ours − reference| / max|reference|.
fn error(ours: &Tensor, reference: &Volume) -> f64 {
    let reference = reference.tensor();
    assert_eq!(ours.size(), reference.size());
    ((ours.to_kind(Kind::Double) - &reference).abs().max() / reference.abs().max()).double_value(&[])
}

fn clip(name: &str, channels: i64, frames: i64, height: i64, width: i64) -> Tensor {
    recipe::input(1, name, &[1, channels, frames, height, width])
}

#[test]
fn both_directions_are_the_plain_loops_for_every_kind_of_chunk() {
    for (kind, limit) in [(Kind::Double, 1e-12), (Kind::Float, 1e-5)] {
        let mut vs = nn::VarStore::new(Device::Cpu);
        let vae = TemporalVae::new(&vs.root(), &config(), LATENT as i64);
        let reference = draw(&vs, "");
        vs.set_kind(kind);
        for frames in [1, 3, 16, 17] {
            let xs = clip("clip", LATENT as i64, frames, 3, 2);
            let (mean, log_variance) = vae.encode(&xs.to_kind(kind));
            let (plain_mean, plain_log_variance) = reference.encode_chunk(&Volume::of(&xs));
            let latents = clip("latents", LATENT as i64, latent_frames(frames), 3, 2);
            let decoded = vae.decode(&latents.to_kind(kind), frames);
            let plain_decoded = reference.decode_chunk(&Volume::of(&latents), frames as usize);
            for (what, ours, plain) in [
                ("mean", &mean, &plain_mean),
                ("log variance", &log_variance, &plain_log_variance),
                ("decoded", &decoded, &plain_decoded),
            ] {
                let error = error(ours, plain);
                assert!(error < limit, "{what} of {frames} frames in {kind:?}: {error:.1e}");
            }
        }
    }
}

/// The whole VAE with Open-Sora's statistics: its chunks over time between its stage of single frames, which
/// `tests/parity.rs` compares.
#[test]
fn longer_clips_are_the_plain_loops_over_chunks() {
    let cfg = VaeConfig {
        spatial: SpatialConfig {
            block_out_channels: vec![4, 4, 8, 8],
            layers_per_block: 1,
            norm_groups: 2,
            latent_channels: LATENT as i64,
            decoder: None,
        },
        temporal: Some(config()),
    };
    let vs = nn::VarStore::new(Device::Cpu);
    let vae = Vae::new(&vs.root(), &cfg);
    let reference = draw(&vs, "temporal_vae.");
    let statistics = |values: [f64; LATENT]| Tensor::from_slice(&values).reshape([1, LATENT as i64, 1, 1, 1]);
    tch::no_grad(|| {
        vs.variables()["shift"].shallow_clone().copy_(&statistics(SHIFT));
        vs.variables()["scale"].shallow_clone().copy_(&statistics(SCALE));
    });
    let _guard = tch::no_grad_guard();
    for frames in [18, 34] {
        let pixels = clip("pixels", 3, frames, 16, 24).clamp(-1.0, 1.0);
        let between = Volume::of(&vae.encode_frames(&pixels));
        let coded = reference.encode(&between);
        let expected = Volume::filled(coded.size, |place| {
            (coded.at(place) - SHIFT[place[0]]) / SCALE[place[0]]
        });
        let found = error(&vae.encode(&pixels), &expected);
        assert!(found < 1e-5, "encoding {frames} frames: {found:.1e}");

        let latents = clip("latents", LATENT as i64, latent_frames(frames), 2, 3);
        let given = Volume::of(&latents);
        let raw = Volume::filled(given.size, |place| given.at(place) * SCALE[place[0]] + SHIFT[place[0]]);
        let plain = reference.decode(&raw, frames as usize).tensor().to_kind(Kind::Float);
        let expected = Volume::of(&vae.decode_frames(&plain));
        let found = error(&vae.decode(&latents, frames), &expected);
        assert!(found < 1e-5, "decoding {frames} frames: {found:.1e}");
    }
}
