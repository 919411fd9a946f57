//! Pictures as CLIP takes them.

use tch::{Kind, Tensor};

/// Mean and standard deviation of CLIP's training pictures by channel, of 1.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// As bytes, the shorter side resized to `side` bicubically with antialiasing and rounded to bytes again, the middle
/// square, normalised: what `transformers.CLIPImageProcessor` does with a picture of bytes.
///
/// # Shapes
/// - `pictures`: `[n, 3, h, w]` in about −1..1; output `[n, 3, side, side]`
pub(super) fn pixels(pictures: &Tensor, side: i64) -> Tensor {
    let bytes = ((pictures.to_kind(Kind::Double).clamp(-1.0, 1.0) + 1.0) * 127.5).round();
    let (height, width) = (bytes.size()[2], bytes.size()[3]);
    // The longer side is cut to a whole number.
    let resized = |length: i64| side * length / height.min(width);
    let (rows, columns) = (resized(height), resized(width));
    // Along rows first, then along columns, in bytes between, as Pillow does.
    let resized = resize(&resize(&bytes, [height, columns]), [rows, columns]);
    let middle = resized
        .narrow(2, (rows - side) / 2, side)
        .narrow(3, (columns - side) / 2, side);
    let by_channel = |values: [f64; 3]| {
        Tensor::from_slice(&values)
            .reshape([1, 3, 1, 1])
            .to_device(middle.device())
    };
    ((&middle / 255.0 - by_channel(MEAN)) / by_channel(DEVIATION)).to_kind(Kind::Float)
}

/// Whole numbers from 0 to 255 at another size.
fn resize(bytes: &Tensor, size: [i64; 2]) -> Tensor {
    let resized = bytes.internal_upsample_bicubic2d_aa(size, false, None, None);
    resized.round().clamp(0.0, 255.0)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::parity::recipe;

    #[derive(Deserialize)]
    struct Reference {
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        height: i64,
        width: i64,
        side: i64,
        /// Of the prepared picture, at equal distances.
        values: Vec<f64>,
    }

    #[test]
    fn pictures_are_prepared_as_transformers_and_pillow_do() {
        let Reference { cases } = serde_json::from_str(include_str!("reference.json")).unwrap();
        assert_eq!(cases.len(), 5);
        for case in &cases {
            let Case {
                height, width, side, ..
            } = *case;
            let bytes = recipe::below(256, 1, &format!("picture.{height}.{width}"), &[height, width, 3]);
            let picture = bytes.permute([2, 0, 1]).unsqueeze(0).to_kind(Kind::Float) / 127.5 - 1.0;
            let prepared = pixels(&picture, side);
            assert_eq!(prepared.size(), [1, 3, side, side]);
            let found = Vec::<f64>::try_from(prepared.to_kind(Kind::Double).flatten(0, -1)).unwrap();
            // A byte more or less is at least 0.014.
            for (i, expected) in case.values.iter().enumerate() {
                let found = found[i * found.len() / case.values.len()];
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{height}×{width} to {side}, value {i}: {found} against {expected}"
                );
            }
        }
    }
}
