//! The six temporal operators; the table of formulas stands in the parent module.

use super::{Count, Tally, dimension, n};
use crate::{Operator, Shape};

pub(super) fn tally(operator: Operator, shape: &Shape) -> Option<Tally> {
    let get = |name| dimension(shape, name);
    let (b, t, area, c) = (get("b")?, get("t")?, get("h")? * get("w")?, get("c")?);
    let tokens = b * t * area;
    Some(match operator {
        Operator::Conv1d => convolution(n(3), c, tokens),
        Operator::Conv3d => convolution(n(27), c, tokens),
        Operator::SelfAttention1d => self_attention(c, heads(shape)?, tokens, t),
        Operator::SelfAttention3d => self_attention(c, heads(shape)?, tokens, t * area),
        Operator::CrossAttention1d => cross_attention(c, heads(shape)?, tokens, text(shape)?, b * area),
        Operator::CrossAttention3d => cross_attention(c, heads(shape)?, tokens, text(shape)?, b),
    })
}

/// Number of heads; none is no layer.
fn heads(shape: &Shape) -> Option<Count> {
    dimension(shape, "heads").filter(|heads| heads.0 > 0)
}

/// Text tokens and their width.
fn text(shape: &Shape) -> Option<(Count, Count)> {
    Some((dimension(shape, "l")?, dimension(shape, "d")?))
}

/// GroupNorm, SiLU, convolution of `taps` with bias, residual.
fn convolution(taps: Count, c: Count, tokens: Count) -> Tally {
    Tally {
        parameters: taps * c * c + c + n(2) * c,
        macs: taps * c * c * tokens,
        // Norm, activation and convolution read one tensor and write one; the sum reads two.
        moved: n(9) * c * tokens,
        alive: n(3) * c * tokens,
    }
}

/// LayerNorm, projections, QK-norm, rotary term, attention of each token to `reach` tokens, projection,
/// residual.
fn self_attention(c: Count, heads: Count, tokens: Count, reach: Count) -> Tally {
    let scores = heads * tokens * reach;
    Tally {
        parameters: n(4) * c * c + c + n(2) * c + n(2) * (c / heads),
        macs: n(4) * c * c * tokens + n(2) * c * tokens * reach,
        // Norm 2, q k v 6, QK-norm 4, rotary 4, scores 2, values 2, projection 2, sum 3; the scores are
        // written, read and written by the softmax, and read.
        moved: n(25) * c * tokens + n(4) * scores,
        alive: n(5) * c * tokens + scores,
    }
}

/// As self-attention, with keys and values from text, made `copies` times.
fn cross_attention(c: Count, heads: Count, tokens: Count, (l, d): (Count, Count), copies: Count) -> Tally {
    let scores = heads * tokens * l;
    let keys_and_values = n(2) * l * c * copies;
    Tally {
        parameters: n(2) * c * c + n(2) * d * c + c + n(2) * c + n(2) * (c / heads),
        macs: n(2) * c * c * tokens + keys_and_values * d + n(2) * l * c * tokens,
        // Norm 2, q 2, QK-norm 2, rotary 2, scores 1, values 1, projection 2, sum 3; text is read for
        // keys and for values, the keys are normed, both are read once.
        moved: n(15) * c * tokens + n(2) * l * d * copies + n(3) * keys_and_values + n(4) * scores,
        alive: n(4) * c * tokens + keys_and_values + scores,
    }
}

#[cfg(test)]
mod tests {
    use crate::{Block, Dtype, Operator, Shape, Work, work};

    fn at(operator: Operator, c: u64, side: u64, t: u64) -> Work {
        let shape = Shape::new([
            ("b", 1),
            ("t", t),
            ("h", side),
            ("w", side),
            ("c", c),
            ("heads", 8),
            ("l", 77),
            ("d", 768),
        ]);
        work(&Block::new(operator.as_str(), shape), Dtype::F16).unwrap()
    }

    /// The table of bare operators counts neither norms (2C) nor QK-norm (2d, d = 40 at C = 320).
    #[test]
    fn parameters_are_the_bare_values_and_the_stated_extras() {
        let (norm, qk_norm) = (2 * 320, 2 * 40);
        for (operator, bare, extras) in [
            (Operator::Conv1d, 307_520, norm),
            (Operator::Conv3d, 2_765_120, norm),
            (Operator::SelfAttention1d, 409_920, norm + qk_norm),
            (Operator::SelfAttention3d, 409_920, norm + qk_norm),
            (Operator::CrossAttention1d, 696_640, norm + qk_norm),
            (Operator::CrossAttention3d, 696_640, norm + qk_norm),
        ] {
            assert_eq!(at(operator, 320, 64, 12).parameters, bare + extras, "{operator}");
        }
    }

    /// GMAC and MiB of activations at T = 12, 77 tokens, 8 heads, 16 bits, as printed in the table of
    /// `video-models` section 2.3. Cross-attention there has shared keys and values, which is our 3D.
    #[test]
    fn macs_and_activations_agree_with_the_published_table_at_twelve_frames() {
        let levels = [(320, 64), (640, 32), (1280, 16), (1280, 8)];
        let rows = [
            (Operator::Conv1d, [(15.1, 90.0), (15.1, 45.0), (15.1, 22.0), (3.8, 6.0)]),
            (
                Operator::Conv3d,
                [(135.9, 90.0), (135.9, 45.0), (135.9, 22.0), (34.0, 6.0)],
            ),
            (
                Operator::SelfAttention1d,
                [(20.5, 159.0), (20.3, 77.0), (20.2, 38.0), (5.1, 10.0)],
            ),
            (
                Operator::SelfAttention3d,
                [(1566.0, 37_014.0), (213.0, 2379.0), (44.3, 182.0), (6.5, 18.0)],
            ),
            (
                Operator::CrossAttention3d,
                [(12.5, 178.0), (11.4, 75.0), (10.8, 34.0), (2.8, 9.0)],
            ),
        ];
        for (operator, row) in rows {
            for ((c, side), (giga_macs, mebibytes)) in levels.into_iter().zip(row) {
                let work = at(operator, c, side, 12);
                // Printed figures carry one decimal, or none from a hundred on.
                let unit = if giga_macs >= 200.0 { 0.5 } else { 0.05 };
                assert!(
                    (work.macs as f64 / 1e9 - giga_macs).abs() <= unit,
                    "{operator} {c}@{side}: {}",
                    work.macs
                );
                let found = work.activation_bytes as f64 / f64::from(1 << 20);
                assert!((found - mebibytes).abs() <= 0.51, "{operator} {c}@{side}: {found}");
            }
        }
    }

    #[test]
    fn full_attention_agrees_with_the_published_values_at_fifteen_frames() {
        for (c, side, giga_macs, mebibytes, unit) in [
            (320, 64, 2441.0, 56.4 * 1024.0, 0.05 * 1024.0),
            (640, 32, 327.0, 3.6 * 1024.0, 0.05 * 1024.0),
            (1280, 16, 62.9, 272.0, 0.5),
            (1280, 8, 8.65, 26.0, 0.5),
        ] {
            let work = at(Operator::SelfAttention3d, c, side, 15);
            assert!(
                (work.macs as f64 / 1e9 / giga_macs - 1.0).abs() < 2e-3,
                "{c}@{side}: {}",
                work.macs
            );
            let found = work.activation_bytes as f64 / f64::from(1 << 20);
            assert!((found - mebibytes).abs() <= unit, "{c}@{side}: {found}");
        }
    }

    /// Text is projected once a clip in 3D and once a location in 1D; nothing else differs.
    #[test]
    fn replicated_keys_and_values_are_the_whole_difference_between_the_cross_attentions() {
        let (one, three) = (
            at(Operator::CrossAttention1d, 320, 64, 12),
            at(Operator::CrossAttention3d, 320, 64, 12),
        );
        let copies = 64 * 64 - 1;
        assert_eq!(one.macs - three.macs, 2 * 77 * 320 * 768 * copies);
        assert_eq!(one.activation_bytes - three.activation_bytes, 2 * 2 * 77 * 320 * copies);
        assert_eq!(one.parameters, three.parameters);
    }

    #[test]
    fn a_batch_of_two_does_twice_the_work_with_the_same_parameters() {
        for operator in Operator::ALL {
            let shape = Shape::new([
                ("b", 1),
                ("t", 5),
                ("h", 8),
                ("w", 8),
                ("c", 64),
                ("heads", 4),
                ("l", 8),
                ("d", 32),
            ]);
            let one = work(&Block::new(operator.as_str(), shape.clone()), Dtype::F32).unwrap();
            let two = work(&Block::new(operator.as_str(), shape.with("b", 2)), Dtype::F32).unwrap();
            assert_eq!(
                (two.parameters, two.macs, two.activation_bytes),
                (one.parameters, 2 * one.macs, 2 * one.activation_bytes)
            );
            assert_eq!(
                two.bytes_moved - 4 * one.parameters,
                2 * (one.bytes_moved - 4 * one.parameters)
            );
        }
    }

    #[test]
    fn absurd_sizes_saturate_and_missing_dimensions_have_no_work() {
        let huge = ["b", "t", "h", "w", "c", "l", "d", "heads"].map(|name| (name, u64::MAX));
        for operator in Operator::ALL {
            assert_eq!(
                work(&Block::new(operator.as_str(), Shape::new(huge)), Dtype::F32)
                    .unwrap()
                    .macs,
                u64::MAX
            );
            assert_eq!(
                work(&Block::new(operator.as_str(), Shape::new([("c", 8)])), Dtype::F32),
                None
            );
        }
        let no_heads = Shape::new([("b", 1), ("t", 5), ("h", 8), ("w", 8), ("c", 64), ("heads", 0)]);
        assert_eq!(work(&Block::new("self_attention1d", no_heads), Dtype::F32), None);
    }
}
