//! A UNet with its temporal layers, from weights that an earlier job left.

use std::collections::{BTreeMap, BTreeSet};

use search_spaces::{TemporalLayer, UnetConfig};
use tch::{Device, Kind, TchError, Tensor, nn};

use super::UNet;
use super::seeded::seed_weights;
use super::unet::is_temporal;

/// A UNet and its weights.
#[derive(Debug)]
pub struct Trained {
    /// The weights by name.
    pub vs: nn::VarStore,
    /// The network.
    pub unet: UNet,
}

/// Which weights a file brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brought {
    /// All of them.
    All,
    /// Those of the temporal layers; the backbone is what it was.
    Temporal,
}

/// Weights that are not those of the model.
#[derive(Debug, thiserror::Error)]
pub enum MisfitError {
    /// One of the model's is missing.
    #[error("no tensor `{name}`, needed with shape {expected:?}")]
    Missing {
        /// Its name.
        name: String,
        /// Its shape.
        expected: Vec<i64>,
    },
    /// One that the model does not have.
    #[error("`{name}` is no tensor of this architecture")]
    Unknown {
        /// Its name.
        name: String,
    },
    /// One of another shape.
    #[error("`{name}` has shape {found:?}, needed is {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// What was found.
        found: Vec<i64>,
        /// What the model has.
        expected: Vec<i64>,
    },
    /// libtorch refused a tensor.
    #[error(transparent)]
    Torch(#[from] TchError),
}

impl Trained {
    /// With weights drawn from a seed; temporal layers start as the identity.
    #[must_use]
    pub fn seeded(config: &UnetConfig, layers: &[Option<TemporalLayer>], seed: u64, device: Device) -> Self {
        let vs = nn::VarStore::new(device);
        let unet = UNet::new(&vs.root(), config, layers);
        seed_weights(&vs, seed);
        Self { vs, unet }
    }

    /// Drops the temporal layers of positions that this architecture leaves empty, as one has to of a model from which
    /// layers were removed; how many tensors these were.
    pub fn drop_removed_layers(&self, weights: &mut BTreeMap<String, Tensor>) -> usize {
        let here: BTreeSet<String> = self.vs.variables().keys().map(|name| position_of(name)).collect();
        let before = weights.len();
        weights.retain(|name, _| !is_temporal(name) || here.contains(&position_of(name)));
        before - weights.len()
    }

    /// Takes weights over: all of the model's, or all of its temporal layers'. From others nothing is taken.
    ///
    /// # Errors
    /// For the first tensor, in order of names, that is not the model's, is missing or has another shape.
    pub fn take(&self, weights: &BTreeMap<String, Tensor>) -> Result<Brought, MisfitError> {
        let variables: BTreeMap<String, Tensor> = self.vs.variables().into_iter().collect();
        for (name, tensor) in weights {
            let variable = variables.get(name);
            let variable = variable.ok_or_else(|| MisfitError::Unknown { name: name.clone() })?;
            let (found, expected) = (tensor.size(), variable.size());
            if found != expected {
                let name = name.clone();
                return Err(MisfitError::Shape { name, found, expected });
            }
        }
        let brought = match weights.keys().all(|name| is_temporal(name)) {
            true => Brought::Temporal,
            false => Brought::All,
        };
        let needed = |name: &str| brought == Brought::All || is_temporal(name);
        let missing = variables
            .iter()
            .find(|(name, _)| needed(name) && !weights.contains_key(*name));
        if let Some((name, variable)) = missing {
            return Err(MisfitError::Missing {
                name: name.clone(),
                expected: variable.size(),
            });
        }
        for (name, tensor) in weights {
            tch::no_grad(|| variables[name].shallow_clone().f_copy_(tensor))?;
        }
        Ok(brought)
    }

    /// All weights in float32, those of a training in place of the model's own, which may be rounded.
    #[must_use]
    pub fn weights(&self, trained: Vec<(String, Tensor)>) -> BTreeMap<String, Tensor> {
        let own = self.vs.variables().into_iter();
        let mut all: BTreeMap<String, Tensor> = own
            .map(|(name, tensor)| (name, tensor.detach().to_kind(Kind::Float)))
            .collect();
        all.extend(trained);
        all
    }

    /// Scalars of all weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.vs.variables().values().map(|weight| weight.numel() as u64).sum()
    }
}

/// `temporal.down_0` of every weight of that position's layers.
fn position_of(name: &str) -> String {
    name.split('.').take(2).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use search_spaces::{Dtype, Operator};

    use super::*;

    fn config() -> UnetConfig {
        UnetConfig {
            latent_channels: 4,
            frames: 3,
            height: 4,
            width: 4,
            channels: vec![8],
            layers_per_block: 1,
            attention: vec![false],
            middle: false,
            heads: 2,
            text_tokens: 4,
            text_width: 8,
            norm_groups: 4,
            ff_multiplier: 2,
            qk_norm: true,
            rope: false,
            dtype: Dtype::F32,
            parts: 1,
        }
    }

    fn built(seed: u64) -> Trained {
        let layers = [Operator::Conv1d, Operator::Conv3d].map(|operator| Some(TemporalLayer { operator, depth: 1 }));
        Trained::seeded(&config(), &layers, seed, Device::Cpu)
    }

    fn of(model: &Trained, keep: impl Fn(&str) -> bool) -> BTreeMap<String, Tensor> {
        let mut weights = model.weights(Vec::new());
        weights.retain(|name, _| keep(name));
        weights
    }

    #[test]
    fn all_weights_or_those_of_the_temporal_layers_are_taken() {
        let other = built(2);
        let ones: Vec<(String, Tensor)> = other
            .vs
            .variables()
            .into_iter()
            .map(|(n, w)| (n, w.ones_like()))
            .collect();
        let all = other.weights(ones);
        let temporal: BTreeMap<String, Tensor> = all
            .iter()
            .filter(|(name, _)| is_temporal(name))
            .map(|(name, weight)| (name.clone(), weight.shallow_clone()))
            .collect();
        for (weights, brought) in [(all, Brought::All), (temporal, Brought::Temporal)] {
            let model = built(1);
            let before = built(1).weights(Vec::new());
            assert_eq!(model.take(&weights).unwrap(), brought);
            for (name, weight) in model.weights(Vec::new()) {
                let expected = weights.get(&name).unwrap_or(&before[&name]);
                assert_eq!(&weight, expected, "{name}");
            }
        }
    }

    #[test]
    fn layers_that_were_removed_are_dropped_and_no_others() {
        let whole = built(2);
        let without_first = [
            None,
            Some(TemporalLayer {
                operator: Operator::Conv3d,
                depth: 1,
            }),
        ];
        let fewer = Trained::seeded(&config(), &without_first, 1, Device::Cpu);
        let mut weights = of(&whole, |_| true);
        let removed = of(&whole, |name| name.starts_with("temporal.down_0.")).len();
        assert!(removed > 0);
        assert_eq!(fewer.drop_removed_layers(&mut weights), removed);
        assert_eq!(fewer.take(&weights).unwrap(), Brought::All);
        assert_eq!(whole.drop_removed_layers(&mut of(&whole, |_| true)), 0);
    }

    #[test]
    fn weights_of_another_model_are_refused_by_tensor_and_nothing_is_taken() {
        let model = built(1);
        let before = model.weights(Vec::new());
        let all = of(&built(2), |_| true);
        let mut unknown = of(&built(2), is_temporal);
        unknown.insert(
            "temporal.down_7.0.conv.bias".to_owned(),
            Tensor::zeros([8], (Kind::Float, Device::Cpu)),
        );
        let mut shaped = of(&built(2), |_| true);
        shaped.insert(
            "conv_in.bias".to_owned(),
            Tensor::zeros([9], (Kind::Float, Device::Cpu)),
        );
        let lacking = of(&built(2), |name| name != "conv_in.bias");
        for (weights, problem) in [
            (
                unknown,
                "`temporal.down_7.0.conv.bias` is no tensor of this architecture",
            ),
            (shaped, "`conv_in.bias` has shape [9], needed is [8]"),
            (lacking, "no tensor `conv_in.bias`, needed with shape [8]"),
        ] {
            assert_eq!(model.take(&weights).unwrap_err().to_string(), problem);
        }
        assert_eq!(model.weights(Vec::new()), before);
        assert_ne!(all, before);
    }
}
