//! What decoding costs, in closed form.

use super::convolution::KERNEL;
use super::{Convolutions, SpatialConfig, SpatialDecoder, TIME_FACTOR, TemporalConfig, TemporalDecoder, VaeConfig};

/// Parameters and multiply-accumulates of one stage's decoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Trainable scalars, those of norms included.
    pub parameters: u64,
    /// Multiply-accumulates of convolutions, linear layers and attention.
    pub macs: u64,
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            parameters: self.parameters + other.parameters,
            macs: self.macs + other.macs,
        }
    }
}

impl VaeConfig {
    /// Decoders of both stages, for one clip of `frames` frames with latents of `height` × `width`: that over time,
    /// where there is one, and that of single frames, for all frames.
    #[must_use]
    pub fn decoder_work(&self, frames: i64, height: i64, width: i64) -> [Work; 2] {
        let over_time = self.temporal.as_ref().map(|temporal| {
            let channels = self.spatial.latent_channels;
            temporal.decoder_work(channels, super::latent_frames(frames), height * width)
        });
        let of_a_frame = self.spatial.decoder_work(height * width);
        let per_frame = Work {
            macs: of_a_frame.macs * frames.unsigned_abs(),
            ..of_a_frame
        };
        [over_time.unwrap_or_default(), per_frame]
    }
}

/// Adds up layers.
#[derive(Default)]
struct Sum(Work);

impl Sum {
    /// A convolution of `taps` places, or a linear layer, at `places` places.
    fn layer(&mut self, [inputs, outputs]: [i64; 2], taps: i64, bias: bool, places: i64) {
        self.filters(inputs * outputs * taps, places);
        self.0.parameters += if bias { outputs.unsigned_abs() } else { 0 };
    }

    fn filters(&mut self, weights: i64, places: i64) {
        self.0.parameters += weights.unsigned_abs();
        self.0.macs += (weights * places).unsigned_abs();
    }

    fn norm(&mut self, channels: i64) {
        self.0.parameters += 2 * channels.unsigned_abs();
    }

    fn convolution(&mut self, sizes: [i64; 2], taps: i64, bias: bool, places: i64, convolutions: Convolutions) {
        match convolutions {
            Convolutions::Dense => self.layer(sizes, taps, bias, places),
            Convolutions::Separable => {
                self.filters(sizes[0] * taps, places);
                self.layer(sizes, 1, bias, places);
            }
        }
    }

    fn residual(
        &mut self,
        [inputs, outputs]: [i64; 2],
        taps: i64,
        bias: bool,
        places: i64,
        convolutions: Convolutions,
    ) {
        self.norm(inputs);
        self.convolution([inputs, outputs], taps, bias, places, convolutions);
        self.norm(outputs);
        self.convolution([outputs, outputs], taps, bias, places, convolutions);
        if inputs != outputs {
            self.layer([inputs, outputs], 1, bias, places);
        }
    }
}

impl SpatialConfig {
    /// The decoder for one frame with latents of `places` places.
    #[must_use]
    pub fn decoder_work(&self, places: i64) -> Work {
        const TAPS: i64 = KERNEL * KERNEL;
        let SpatialDecoder {
            block_out_channels: widths,
            convolutions,
            middle_attention,
        } = self.decoder();
        let latent = self.latent_channels;
        let Some(&first) = widths.last() else {
            return Work::default();
        };
        let (mut sum, mut places, mut inputs) = (Sum::default(), places, first);
        sum.layer([latent, latent], 1, true, places);
        sum.layer([latent, first], TAPS, true, places);
        for _ in 0..2 {
            sum.residual([first, first], TAPS, true, places, convolutions);
        }
        if middle_attention {
            sum.norm(first);
            for _ in 0..4 {
                sum.layer([first, first], 1, true, places);
            }
            sum.0.macs += (2 * first * places * places).unsigned_abs();
        }
        for (level, &width) in widths.iter().enumerate().rev() {
            for _ in 0..=self.layers_per_block {
                sum.residual([inputs, width], TAPS, true, places, convolutions);
                inputs = width;
            }
            if level > 0 {
                places *= 4;
                sum.convolution([width, width], TAPS, true, places, convolutions);
            }
        }
        sum.norm(inputs);
        sum.layer([inputs, 3], TAPS, true, places);
        sum.0
    }
}

impl TemporalConfig {
    /// The decoder for `frames` latent frames of `channels` channels and `places` places each.
    #[must_use]
    pub fn decoder_work(&self, channels: i64, frames: i64, places: i64) -> Work {
        const TAPS: i64 = KERNEL * KERNEL * KERNEL;
        let TemporalDecoder {
            level_channels: widths,
            convolutions,
        } = self.decoder();
        let Some(&first) = widths.last() else {
            return Work::default();
        };
        let (mut sum, mut inputs) = (Sum::default(), first);
        let mut places = frames * places;
        let last_places = TIME_FACTOR * places;
        sum.layer([channels, channels], 1, true, places);
        sum.layer([channels, first], TAPS, true, places);
        let residuals = |sum: &mut Sum, inputs: &mut i64, width, places| {
            for _ in 0..self.res_blocks {
                // Without bias.
                sum.residual([*inputs, width], TAPS, false, places, convolutions);
                *inputs = width;
            }
        };
        residuals(&mut sum, &mut inputs, first, places);
        for (level, &width) in widths.iter().enumerate().rev() {
            residuals(&mut sum, &mut inputs, width, places);
            if level > 0 && super::temporal::HALVES_TIME[level - 1] {
                sum.convolution([width, 2 * width], TAPS, true, places, convolutions);
                places *= 2;
            }
        }
        debug_assert_eq!(places, last_places);
        sum.norm(inputs);
        sum.layer([inputs, channels], TAPS, true, places);
        sum.0
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor, nn};

    use super::*;
    use crate::models::published::open_sora_vae;
    use crate::models::vae::Vae;
    use crate::shim::count_macs;

    fn separable(mut config: VaeConfig, middle_attention: bool) -> VaeConfig {
        let convolutions = Convolutions::Separable;
        config.spatial.decoder = Some(SpatialDecoder {
            convolutions,
            middle_attention,
            ..config.spatial.decoder()
        });
        config.temporal = config.temporal.map(|temporal| TemporalConfig {
            decoder: Some(TemporalDecoder {
                convolutions,
                ..temporal.decoder()
            }),
            ..temporal
        });
        config
    }

    /// Spec section 3, for 17 frames of 512×512: 4.90 and 21.4 TMAC, 165.27 and 49.49 million parameters; separable,
    /// 0.20 and 2.69.
    #[test]
    fn at_the_papers_sizes_separable_decoders_take_24_and_8_times_less() {
        let original = open_sora_vae();
        let compressed = separable(original.clone(), false);
        let [before, after] = [&original, &compressed].map(|config| config.decoder_work(17, 64, 64));
        let teras = |work: Work| work.macs as f64 / 1e12;
        assert!((teras(before[0]) - 4.90).abs() < 5e-3 && (teras(before[1]) - 21.4).abs() < 0.05);
        assert!((teras(after[0]) - 0.204).abs() < 5e-3 && (teras(after[1]) - 2.69).abs() < 1e-2);
        let millions = before.map(|work| format!("{:.2}", work.parameters as f64 / 1e6));
        assert_eq!(millions, ["165.27", "49.49"]);
        let times = |stage: usize| teras(before[stage]) / teras(after[stage]);
        assert_eq!(
            [times(0).round(), times(1).round()],
            [24.0, 8.0],
            "{} {}",
            times(0),
            times(1)
        );
        // With the attention of the middle left in, a seventh is left.
        let attending = separable(original, true).decoder_work(17, 64, 64);
        assert!((teras(before[1]) / teras(attending[1]) - 7.0).abs() < 0.05);
    }

    /// Against what libtorch ran, and against the variables.
    #[test]
    fn the_closed_form_is_what_runs() {
        let mut small = open_sora_vae();
        small.spatial = SpatialConfig {
            block_out_channels: vec![4, 8, 8],
            layers_per_block: 1,
            norm_groups: 2,
            latent_channels: 4,
            decoder: None,
        };
        small.temporal = Some(TemporalConfig {
            filters: 4,
            channel_multipliers: vec![1, 1, 2, 2],
            res_blocks: 2,
            norm_groups: 2,
            decoder: None,
        });
        let mut wider = separable(small.clone(), false);
        if let Some(decoder) = &mut wider.spatial.decoder {
            decoder.block_out_channels = vec![6, 6, 4];
        }
        for config in [small.clone(), separable(small.clone(), true), wider] {
            assert_eq!(config.check(), Ok(()));
            let vs = nn::VarStore::new(Device::Cpu);
            let vae = Vae::new(&vs.root(), &config);
            let latents = Tensor::zeros([1, 4, 5, 3, 2], (Kind::Float, Device::Cpu));
            let ((), macs) = count_macs(|| drop(tch::no_grad(|| vae.decode(&latents, 17))));
            let work = config.decoder_work(17, 3, 2);
            // Three frames stand for the padding of the first chunk; they are made over time and not decoded further.
            assert_eq!(macs, work[0].macs + work[1].macs, "{config:?}");
            let of = |part: &str| -> u64 {
                let is_of = |name: &String| {
                    name.starts_with(&format!("{part}decoder.")) || name.starts_with(&format!("{part}post_quant_conv."))
                };
                vs.variables()
                    .iter()
                    .filter(|(name, _)| is_of(name))
                    .map(|(_, v)| v.numel() as u64)
                    .sum()
            };
            assert_eq!(work[0].parameters, of("temporal_vae."));
            assert_eq!(work[1].parameters, of("spatial_vae.module."));
        }
    }
}
