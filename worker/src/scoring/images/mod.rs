//! How near a picture comes to another: PSNR, SSIM and LPIPS (spec section 7.1).
//!
//! All three are defined for pictures in 0..1 and take them in the −1..1 of the VAE here. They are means over the frames
//! of a clip, and a clip is one observation: standard errors are taken over clips.

mod lpips;
mod ssim;

use tch::{Kind, Tensor};

pub use lpips::{Lpips, LpipsConfig};
pub use ssim::ssim;

/// PSNR where pictures are the same for all that floats can tell.
const LARGEST_PSNR_DB: f64 = 100.0;
/// Below this mean squared error.
const SAME: f64 = 1e-10;

/// How near a decoded clip comes to the clip: means over its frames.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeness {
    /// Peak signal-to-noise ratio; more is nearer.
    pub psnr_db: f64,
    /// Structural similarity; 1 is the same.
    pub ssim: f64,
    /// Learned perceptual distance; 0 is the same. Absent where its weights are.
    pub lpips: Option<f64>,
}

impl Likeness {
    /// Of one clip, or any number of pictures.
    ///
    /// # Shapes
    /// - `found`, `wanted`: `[n, 3, h, w]` in −1..1, at least 31 pixels a side with `lpips`, else 11; values beyond are
    ///   cut off, as a screen would
    pub fn of(found: &Tensor, wanted: &Tensor, lpips: Option<&Lpips>) -> Self {
        tch::no_grad(|| {
            let [found, wanted] = [found, wanted].map(|xs| xs.clamp(-1.0, 1.0));
            let [a, b] = [&found, &wanted].map(|xs| (xs + 1.0) / 2.0);
            let mean = |of_each: Tensor| of_each.mean(Kind::Double).double_value(&[]);
            Self {
                psnr_db: mean(psnr_db(&a, &b)),
                ssim: mean(ssim(&a, &b)),
                lpips: lpips.map(|lpips| mean(lpips.distance(&found, &wanted))),
            }
        })
    }
}

/// `20 log₁₀(1 / √mse)` of each picture; 100 dB below an error of 10⁻¹⁰.
///
/// # Shapes
/// - `found`, `wanted`: `[n, c, h, w]` in 0..1; output `[n]`, float64
pub fn psnr_db(found: &Tensor, wanted: &Tensor) -> Tensor {
    let error = (found - wanted).to_kind(Kind::Double).square();
    let mse = error.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double);
    let db = mse.log10() * -10.0;
    db.where_scalarother(&mse.ge(SAME), LARGEST_PSNR_DB)
}

#[cfg(test)]
mod tests;
