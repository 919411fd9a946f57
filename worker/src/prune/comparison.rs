//! What pruning saved: the columns of the paper's Table A2 that need no other model.

use std::fmt;

use lut::Samples;
use search_spaces::UnetConfig;
use tch::{Device, Kind, Tensor};

use super::network::Network;
use crate::models::seeded::normal;
use crate::profile::{InTurnError, Progress, Settings, in_turn};
use crate::shim::count_macs;

/// The size of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Trainable scalars.
    pub parameters: u64,
    /// Multiply-accumulates of one pass over one latent frame.
    pub macs: u64,
}

/// A full network beside its pruned version.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The full one.
    pub full: Size,
    /// The pruned one.
    pub pruned: Size,
    /// Milliseconds of a pass of the full one.
    pub full_ms: Samples,
    /// Milliseconds of a pass of the pruned one.
    pub pruned_ms: Samples,
    /// How many times faster the pruned one was, pair by pair.
    pub speedup: Samples,
}

/// Why networks could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ComparisonError {
    /// Whoever asked does not want to wait any longer, or the clock gave no number.
    #[error(transparent)]
    Times(#[from] InTurnError),
    /// What ran is not what the configuration says.
    #[error("one pass took {seen} multiply-accumulates, the closed form of its configuration says {expected}")]
    Macs {
        /// Seen by the observer.
        seen: u64,
        /// By the closed form.
        expected: u64,
    },
}

/// Counts both, and times both in turn on one latent frame: each pair runs within one moment of the machine.
///
/// # Errors
/// Where a pass is not what its configuration says, or `progress` breaks off.
pub fn compare(
    full: &Network,
    pruned: &Network,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Comparison, ComparisonError> {
    let (full, pruned) = (Subject::new(full), Subject::new(pruned));
    let sizes = (full.size()?, pruned.size()?);
    let times = in_turn(settings, [&|| full.run(), &|| pruned.run()], progress)?;
    Ok(Comparison {
        full: sizes.0,
        pruned: sizes.1,
        full_ms: times.first_ms,
        pruned_ms: times.second_ms,
        speedup: times.ratio,
    })
}

/// A network with the input of an image.
struct Subject<'a> {
    network: &'a Network,
    image: UnetConfig,
    xs: Tensor,
    time: Tensor,
    text: Tensor,
}

impl<'a> Subject<'a> {
    fn new(network: &'a Network) -> Self {
        let image = UnetConfig {
            frames: 1,
            ..network.config.clone()
        };
        let device = network.vs.device();
        let random = |shape: [u64; 5]| normal(&shape.map(|size| size as i64), 1, Device::Cpu).to_device(device);
        let text = random([1, 1, 1, image.text_tokens, image.text_width])
            .squeeze_dim(0)
            .squeeze_dim(0);
        Self {
            xs: random([1, image.latent_channels, 1, image.height, image.width]),
            time: Tensor::full([1], 0.5, (Kind::Float, device)),
            text,
            image,
            network,
        }
    }

    fn run(&self) {
        tch::no_grad(|| drop(self.network.unet.forward(&self.xs, &self.time, &self.text)));
    }

    fn size(&self) -> Result<Size, ComparisonError> {
        let ((), seen) = count_macs(|| self.run());
        let expected = self.image.macs(&[]);
        if seen != expected {
            return Err(ComparisonError::Macs { seen, expected });
        }
        Ok(Size {
            parameters: self.network.vs.variables().values().map(|w| w.numel() as u64).sum(),
            macs: seen,
        })
    }
}

impl Comparison {
    /// The figures by name, with standard errors where they are measured.
    pub fn figures(&self) -> impl Iterator<Item = (&'static str, f64, f64)> {
        let sizes = [
            ("parameters", self.pruned.parameters),
            ("macs", self.pruned.macs),
            ("full_parameters", self.full.parameters),
            ("full_macs", self.full.macs),
        ];
        let sizes = sizes.map(|(name, count)| (name, count as f64, 0.0));
        let measured = [
            ("speed_up", &self.speedup),
            ("latency_ms", &self.pruned_ms),
            ("full_latency_ms", &self.full_ms),
        ];
        let measured = measured
            .into_iter()
            .filter_map(|(name, samples)| Some((name, samples.median()?, samples.standard_error().unwrap_or(0.0))));
        sizes.into_iter().chain(measured.collect::<Vec<_>>())
    }
}

/// The rows of Table A2, with the columns that were measured.
impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<8} {:>12} {:>10} {:>12} {:>16}",
            "model", "params (M)", "GMACs", "ms", "speed-up"
        )?;
        let rows = [
            ("full", self.full, &self.full_ms),
            ("pruned", self.pruned, &self.pruned_ms),
        ];
        for (name, size, ms) in rows {
            let speedup = match name {
                "full" => "1".to_owned(),
                _ => format!(
                    "{:.2} ± {:.2}",
                    self.speedup.median().unwrap_or(f64::NAN),
                    self.speedup.spread().unwrap_or(0.0)
                ),
            };
            writeln!(
                f,
                "{name:<8} {:>12.3} {:>10.3} {:>12.2} {speedup:>16}",
                size.parameters as f64 / 1e6,
                size.macs as f64 / 1e9,
                ms.median().unwrap_or(f64::NAN),
            )?;
        }
        write!(
            f,
            "{:.2} times fewer parameters, {:.2} times fewer multiply-accumulates",
            self.full.parameters as f64 / self.pruned.parameters as f64,
            self.full.macs as f64 / self.pruned.macs as f64
        )
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use search_spaces::Dtype;

    use super::*;

    fn config(channels: [u64; 2]) -> UnetConfig {
        UnetConfig {
            latent_channels: 4,
            frames: 5,
            height: 8,
            width: 8,
            channels: channels.to_vec(),
            layers_per_block: 1,
            attention: vec![false, true],
            middle: true,
            heads: 4,
            text_tokens: 5,
            text_width: 12,
            norm_groups: 8,
            ff_multiplier: 2,
            qk_norm: true,
            rope: false,
            dtype: Dtype::F32,
            parts: 1,
        }
    }

    #[test]
    fn a_network_of_half_the_width_is_smaller_and_faster() {
        let [full, pruned] = [[64, 128], [16, 32]].map(|channels| Network::seeded(&config(channels), 1, Device::Cpu));
        let settings = Settings {
            samples: 5,
            ..Settings::new(Device::Cpu, 1, u64::MAX)
        };
        let found = compare(&full, &pruned, &settings, &mut |_, _| ControlFlow::Continue(())).unwrap();
        assert_eq!(found.full.parameters, full.config.parameters(&[]));
        assert_eq!(found.speedup.len(), 5);
        assert!(found.speedup.median().unwrap() > 1.5, "{found}");
        let figures: Vec<_> = found.figures().map(|(name, ..)| name).collect();
        assert!(figures.contains(&"speed_up") && !figures.iter().any(|name| name.contains("score")));
    }

    #[test]
    fn a_network_that_is_not_its_configuration_is_noticed() {
        let full = Network::seeded(&config([16, 32]), 1, Device::Cpu);
        let mut pruned = Network::seeded(&config([16, 32]), 1, Device::Cpu);
        pruned.config.ff_multiplier = 4;
        let settings = Settings::new(Device::Cpu, 1, u64::MAX);
        let error = compare(&full, &pruned, &settings, &mut |_, _| ControlFlow::Continue(())).unwrap_err();
        assert!(
            matches!(error, ComparisonError::Macs { seen, expected } if seen < expected),
            "{error}"
        );
    }

    #[test]
    fn a_comparison_can_be_broken_off() {
        let network = Network::seeded(&config([16, 32]), 1, Device::Cpu);
        let settings = Settings::new(Device::Cpu, 1, u64::MAX);
        let error = compare(&network, &network, &settings, &mut |_, _| ControlFlow::Break(())).unwrap_err();
        assert!(matches!(error, ComparisonError::Times(InTurnError::Interrupted)));
    }
}
