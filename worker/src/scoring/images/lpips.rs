//! Learned perceptual image patch similarity on AlexNet (Zhang et al. 2018).

use std::path::Path;

use tch::{Device, Kind, Tensor, nn};

use crate::models::chain::Chain;
use crate::weights::{self, Layout, WeightsError};

/// Mean and standard deviation of the colours that AlexNet was trained on, in −1..1.
const MEAN: [f64; 3] = [-0.030, -0.088, -0.188];
const DEVIATION: [f64; 3] = [0.458, 0.448, 0.450];
/// Added to the length of a feature.
const EPS: f64 = 1e-10;
/// Kernel, stride and padding of each layer; the first two are followed by a maximum over 3×3 places, every other one.
const LAYERS: [(i64, i64, i64); 5] = [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)];

/// Widths of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LpipsConfig {
    /// Features of each layer.
    pub channels: [i64; 5],
}

impl LpipsConfig {
    /// AlexNet's.
    pub const ALEX: Self = Self {
        channels: [64, 192, 384, 256, 256],
    };
}

/// The distance of two pictures: features after each of five layers, scaled to length one at every place; their squared
/// differences, weighted by feature, as a mean over places and a sum over layers.
///
/// # Shapes
/// - pictures: `[n, 3, h, w]` in −1..1, at least 31 pixels a side
#[derive(Debug)]
pub struct Lpips {
    layers: Vec<(nn::Conv2D, Tensor)>,
    mean: Tensor,
    deviation: Tensor,
}

impl Lpips {
    /// Fresh weights under `vs`: `features.I.{weight, bias}` and `heads.I.weight`, `[1, channels, 1, 1]`.
    pub fn new(vs: &nn::Path<'_>, config: LpipsConfig) -> Self {
        let mut inputs = 3;
        let layer = |(i, (kernel, stride, padding)): (usize, (i64, i64, i64))| {
            let outputs = config.channels[i];
            let settings = nn::ConvConfig {
                stride,
                padding,
                ..Default::default()
            };
            let conv = nn::conv2d(vs / "features" / i, inputs, outputs, kernel, settings);
            inputs = outputs;
            let head = (vs / "heads" / i).zeros("weight", &[1, outputs, 1, 1]);
            (conv, head)
        };
        let colours = |of: [f64; 3]| Tensor::from_slice(&of.map(|value| value as f32)).reshape([1, 3, 1, 1]);
        Self {
            layers: LAYERS.into_iter().enumerate().map(layer).collect(),
            mean: colours(MEAN).to_device(vs.device()),
            deviation: colours(DEVIATION).to_device(vs.device()),
        }
    }

    /// Reads AlexNet and its heads from the file that `scripts/lpips` lays out; the weights are fixed.
    ///
    /// # Errors
    /// Where the file cannot be read or holds other tensors.
    pub fn open(path: &Path, device: Device) -> Result<Self, WeightsError> {
        let vs = nn::VarStore::new(device);
        let lpips = Self::new(&vs.root(), LpipsConfig::ALEX);
        weights::load(&vs, path, &Layout::PLAIN)?;
        for (_, variable) in vs.variables() {
            let _ = variable.set_requires_grad(false);
        }
        Ok(lpips)
    }

    /// The distance of each pair, `[n]`; gradients pass to the pictures.
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Tensor {
        let mut sum = Tensor::zeros([a.size()[0]], (Kind::Float, a.device()));
        let [mut a, mut b] = [a, b].map(|xs| (xs - &self.mean) / &self.deviation);
        for (i, (conv, head)) in self.layers.iter().enumerate() {
            if i == 1 || i == 2 {
                [a, b] = [a, b].map(|xs| xs.max_pool2d([3, 3], [2, 2], [0, 0], [1, 1], false));
            }
            [a, b] = [a, b].map(|xs| xs.apply(conv).then(Tensor::relu));
            let difference = (of_length_one(&a) - of_length_one(&b)).square() * head;
            let by_place = difference.sum_dim_intlist([1i64].as_slice(), false, Kind::Float);
            sum += by_place.mean_dim([1i64, 2].as_slice(), false, Kind::Float);
        }
        sum
    }
}

fn of_length_one(features: &Tensor) -> Tensor {
    let squares = features.square().sum_dim_intlist([1i64].as_slice(), true, Kind::Float);
    // The root has no slope at zero, where a picture shows nothing that a layer reacts to.
    features / (squares.clamp_min(EPS * EPS).sqrt() + EPS)
}
