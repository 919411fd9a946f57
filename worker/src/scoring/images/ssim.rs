//! Structural similarity (Wang et al. 2004).

use tch::{Kind, Tensor};

/// Pixels a side of the window, and the standard deviation of its weights.
const WINDOW: i64 = 11;
const SIGMA: f64 = 1.5;
/// `(0.01 L)²` and `(0.03 L)²` with `L = 1`.
const STABILISERS: (f64, f64) = (1e-4, 9e-4);

/// `(2 μₐμ_b + C₁)(2 σ_ab + C₂) / ((μₐ² + μ_b² + C₁)(σₐ² + σ_b² + C₂))` of each picture: moments in a Gaussian window of
/// 11×11 that lies within the picture, the mean over its places and over the channels.
///
/// # Shapes
/// - `a`, `b`: `[n, c, h, w]` in 0..1, at least 11 pixels a side; output `[n]`, float64
pub fn ssim(a: &Tensor, b: &Tensor) -> Tensor {
    let [a, b] = [a, b].map(|xs| xs.to_kind(Kind::Double));
    let (mean_a, mean_b) = (blurred(&a), blurred(&b));
    let (square_a, square_b, product) = (mean_a.square(), mean_b.square(), &mean_a * &mean_b);
    let variances = blurred(&(a.square() + b.square())) - &square_a - &square_b;
    let covariance = blurred(&(a * b)) - &product;
    let (c1, c2) = STABILISERS;
    let likeness = (product * 2.0 + c1) * (covariance * 2.0 + c2);
    let largest = (square_a + square_b + c1) * (variances + c2);
    (likeness / largest).mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double)
}

/// Weighted means over the window at every place where it lies within the picture.
fn blurred(xs: &Tensor) -> Tensor {
    let places = Tensor::arange(WINDOW, (Kind::Double, xs.device())) - (WINDOW / 2);
    let weights = (places.square() / (-2.0 * SIGMA * SIGMA)).exp();
    let weights = &weights / weights.sum(Kind::Double);
    let channels = xs.size()[1];
    let along = |xs: &Tensor, shape: [i64; 4]| {
        let kernel = weights.reshape(shape).repeat([channels, 1, 1, 1]);
        xs.conv2d(&kernel, None::<&Tensor>, [1, 1], [0, 0], [1, 1], channels)
    };
    along(&along(xs, [1, 1, WINDOW, 1]), [1, 1, 1, WINDOW])
}
