//! Rotary positions (Su et al. 2021): queries and keys turned by an angle that grows with their place.

use tch::{Device, Kind, Tensor};

use crate::onnx::{Graph, Value};

/// Base of the frequencies.
const THETA: f64 = 10_000.0;

/// Cosines and sines of one grid, for [`Rotary::apply`].
///
/// Pair `i` of `d` channels at place `p` is turned by `p · θ^(−2i/d)`; pairs are interleaved, `(x₀,x₁), (x₂,x₃), …`
/// (spec section 2.1). The product of a turned query and a turned key depends on the distance of their places only.
#[derive(Debug)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Places along time: `frames` places, all of `head_dim` turned by the frame's number.
    pub fn over_time(frames: i64, head_dim: i64, kind: Kind, device: Device) -> Self {
        Self::from_angles(&angles(frames, head_dim, device), kind)
    }

    /// Places in a clip, in the order frame, row, column: [`split`] gives each axis its share of `head_dim`.
    pub fn over_clip(frames: i64, height: i64, width: i64, head_dim: i64, kind: Kind, device: Device) -> Self {
        let (for_time, for_height, for_width) = split(head_dim);
        let time = angles(frames, for_time, device)
            .reshape([frames, 1, 1, -1])
            .expand([-1, height, width, -1], false);
        let rows = angles(height, for_height, device)
            .reshape([1, height, 1, -1])
            .expand([frames, -1, width, -1], false);
        let columns = angles(width, for_width, device)
            .reshape([1, 1, width, -1])
            .expand([frames, height, -1, -1], false);
        let all = Tensor::cat(&[time, rows, columns], -1).reshape([frames * height * width, -1]);
        Self::from_angles(&all, kind)
    }

    /// Places in a frame, in the order row, column: half of `head_dim` each, the rows' half rounded down to even.
    pub fn over_frame(height: i64, width: i64, head_dim: i64, kind: Kind, device: Device) -> Self {
        let for_rows = head_dim / 4 * 2;
        let rows = angles(height, for_rows, device)
            .unsqueeze(1)
            .expand([-1, width, -1], false);
        let columns = angles(width, head_dim - for_rows, device)
            .unsqueeze(0)
            .expand([height, -1, -1], false);
        Self::from_angles(&Tensor::cat(&[rows, columns], -1).flatten(0, 1), kind)
    }

    /// `angles`: `[places, head_dim / 2]`.
    fn from_angles(angles: &Tensor, kind: Kind) -> Self {
        Self {
            cos: angles.cos().to_kind(kind),
            sin: angles.sin().to_kind(kind),
        }
    }

    /// Turns `xs`, `[…, places, head_dim]`, by the angles of its places; same shape.
    pub fn apply(&self, xs: &Tensor) -> Tensor {
        let pairs = xs.unflatten(-1, [-1, 2]); // […, places, head_dim / 2, 2]
        let (even, odd) = (pairs.select(-1, 0), pairs.select(-1, 1));
        let mut turned_even = &even * &self.cos;
        turned_even -= &odd * &self.sin;
        let mut turned_odd = &odd * &self.cos;
        turned_odd += &even * &self.sin;
        Tensor::stack(&[turned_even, turned_odd], -1).flatten(-2, -1)
    }

    /// [`Self::apply`] as part of a graph, for channels whose pairs lie in halves: `(x₀, x₂, …, x₁, x₃, …)`; so does
    /// what comes out.
    pub(super) fn export(&self, graph: &mut Graph, xs: &Value) -> Value {
        let (cos, sin) = (graph.table(&self.cos), graph.table(&self.sin));
        let [even, odd] = graph.halves(xs, -1);
        let mut turned = |a: &Value, b: &Value| (graph.mul(a, &cos), graph.mul(b, &sin));
        let (kept, taken) = turned(&even, &odd);
        let (other, added) = turned(&odd, &even);
        let (even, odd) = (graph.sub(&kept, &taken), graph.add(&other, &added));
        graph.concat(&[&even, &odd], -1)
    }
}

/// Shares of `head_dim` for time, height and width: ¼, ⅜, ⅜, the latter two rounded down to even, the rest to time.
pub fn split(head_dim: i64) -> (i64, i64, i64) {
    let for_space = head_dim * 3 / 8 / 2 * 2;
    (head_dim - 2 * for_space, for_space, for_space)
}

/// Angles of `places` places for `dim` channels: `[places, dim / 2]`.
fn angles(places: i64, dim: i64, device: Device) -> Tensor {
    let exponents = Tensor::arange(dim / 2, (Kind::Double, device)) * (-2.0 / dim.max(1) as f64);
    let frequencies = (exponents * THETA.ln()).exp();
    Tensor::arange(places, (Kind::Double, device)).outer(&frequencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dot(a: &Tensor, b: &Tensor) -> f64 {
        (a * b).sum(Kind::Double).double_value(&[])
    }

    #[test]
    fn the_product_of_a_turned_query_and_key_depends_on_their_distance_only() {
        let q = Tensor::from_slice(&[0.3f64, -1.2, 0.7, 2.0, -0.5, 0.1, 1.1, 0.9]);
        let k = Tensor::from_slice(&[1.0f64, 0.4, -0.2, 0.8, 0.6, -1.5, 0.3, 0.2]);
        let rotary = Rotary::over_time(9, 8, Kind::Double, Device::Cpu);
        let everywhere = |x: &Tensor| rotary.apply(&x.reshape([1, 8]).expand([9, 8], false));
        let (q, k) = (everywhere(&q), everywhere(&k));
        for (near, far) in [((0, 3), (5, 8)), ((4, 2), (7, 5)), ((1, 1), (8, 8))] {
            let [a, b] = [near, far].map(|(i, j)| dot(&q.get(i), &k.get(j)));
            assert!((a - b).abs() < 1e-9, "{a} against {b}");
        }
        assert!((dot(&q.get(0), &k.get(3)) - dot(&q.get(0), &k.get(4))).abs() > 1e-3);
    }

    #[test]
    fn turning_follows_the_interleaved_formula() {
        let rotary = Rotary::over_time(3, 4, Kind::Double, Device::Cpu);
        let xs = Tensor::from_slice(&[1.0f64, 2.0, 3.0, 4.0])
            .reshape([1, 4])
            .expand([3, 4], false);
        let ys = rotary.apply(&xs);
        let (fast, slow) = (2.0f64, 2.0f64 / 100.0); // frame 2: 2·θ⁰ and 2·θ^(−½)
        let expected = [
            fast.cos() - 2.0 * fast.sin(),
            2.0 * fast.cos() + fast.sin(),
            3.0 * slow.cos() - 4.0 * slow.sin(),
            4.0 * slow.cos() + 3.0 * slow.sin(),
        ];
        for (i, expected) in expected.iter().enumerate() {
            assert!((ys.double_value(&[2, i as i64]) - expected).abs() < 1e-12);
        }
    }

    #[test]
    fn a_clip_of_one_pixel_turns_by_time_alone() {
        let xs = Tensor::ones([5, 16], (Kind::Double, Device::Cpu));
        let clip = Rotary::over_clip(5, 1, 1, 16, Kind::Double, Device::Cpu).apply(&xs);
        let (for_time, _, _) = split(16);
        let time = Rotary::over_time(5, for_time, Kind::Double, Device::Cpu).apply(&xs.narrow(1, 0, for_time));
        assert!(clip.narrow(1, 0, for_time).allclose(&time, 1e-12, 1e-12, false));
        assert!(clip.narrow(1, for_time, 16 - for_time).allclose(
            &xs.narrow(1, for_time, 16 - for_time),
            1e-12,
            1e-12,
            false
        ));
    }

    #[test]
    fn a_frame_turns_one_half_by_row_and_the_other_by_column() {
        let (height, width, head_dim) = (3, 4, 40);
        let xs = crate::models::seeded::normal(&[height * width, head_dim], 3, Device::Cpu).to_kind(Kind::Double);
        let turned = Rotary::over_frame(height, width, head_dim, Kind::Double, Device::Cpu).apply(&xs);
        for (row, column) in [(0, 0), (2, 1), (1, 3)] {
            let place = row * width + column;
            for channel in 0..head_dim {
                // Pair i of the half's 20 channels turns by place · θ^(−2i/20).
                let (at, within) = if channel < 20 {
                    (row, channel)
                } else {
                    (column, channel - 20)
                };
                let angle = at as f64 * THETA.powf(-((within / 2 * 2) as f64) / 20.0);
                let x = |c: i64| xs.double_value(&[place, c]);
                let expected = match channel % 2 {
                    0 => x(channel) * angle.cos() - x(channel + 1) * angle.sin(),
                    _ => x(channel) * angle.cos() + x(channel - 1) * angle.sin(),
                };
                assert!((turned.double_value(&[place, channel]) - expected).abs() < 1e-12);
            }
        }
        // Of a narrow head the columns take what is left.
        assert_eq!(
            Rotary::over_frame(2, 2, 2, Kind::Double, Device::Cpu).cos.size(),
            [4, 1]
        );
    }

    #[test]
    fn shares_are_even_and_add_up() {
        for head_dim in (2..=160).step_by(2) {
            let (t, h, w) = split(head_dim);
            assert_eq!(t + h + w, head_dim);
            assert!(t > 0 && t % 2 == 0 && h % 2 == 0 && h == w);
        }
        assert_eq!(split(64), (16, 24, 24));
    }
}
