//! What CLIP says of single pictures: how well they show their captions, and how they please (the last two columns of
//! the paper's Table A2).

mod aesthetic;
mod pixels;

use tch::{Device, Kind, Tensor};

use crate::models::clip::{ClipConfig, ClipModel};
use crate::models::tokenizer::Tokenizer;
pub use aesthetic::Aesthetic;
use pixels::pixels;

/// CLIP with the tokenizer of its captions, and who reads what pleases from its pictures; weights are fixed.
#[derive(Debug)]
pub struct PictureScorer {
    /// Both towers.
    pub clip: ClipModel,
    /// Their sizes.
    pub config: ClipConfig,
    /// Captions to tokens.
    pub tokenizer: Tokenizer,
    /// Where there is one.
    pub aesthetic: Option<Aesthetic>,
    /// Where all of it is.
    pub device: Device,
}

/// What one picture scored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureScore {
    /// 100 · max(cos(picture, caption), 0) (Hessel et al. 2021, without their factor 2.5). The paper prints a hundredth
    /// of it.
    pub clip: f64,
    /// From about 1 to 10, where there is who tells it.
    pub aesthetic: Option<f64>,
}

impl PictureScorer {
    /// Scores pictures, each against its own caption.
    ///
    /// # Shapes
    /// - `pictures`: `[captions, 3, h, w]` in about −1..1, of any size
    pub fn score(&self, pictures: &Tensor, captions: &[&str]) -> Vec<PictureScore> {
        let _guard = tch::no_grad_guard();
        let pixels = pixels(&pictures.to_device(self.device), self.config.image.image);
        let tokens = self.tokenizer.encode_all(captions, self.config.text.tokens);
        let tokens = tokens.to_device(self.device);
        let pictures = unit(&self.clip.image_features(&pixels));
        let texts = unit(&self.clip.text_features(&tokens, self.tokenizer.end()));
        let aesthetic = self.aesthetic.as_ref().map(|head| numbers(&head.forward(&pictures)));
        let scores = numbers(&clip_scores(&pictures, &texts));
        let score = |(i, clip)| PictureScore {
            clip,
            aesthetic: aesthetic.as_ref().map(|scores| scores[i]),
        };
        scores.into_iter().enumerate().map(score).collect()
    }
}

/// `[n, d]` both, of length 1 each; output `[n]`.
fn clip_scores(pictures: &Tensor, texts: &Tensor) -> Tensor {
    (pictures * texts)
        .sum_dim_intlist(-1, false, Kind::Float)
        .clamp_min(0.0)
        * 100.0
}

/// At length 1: `[n, d]`.
fn unit(features: &Tensor) -> Tensor {
    let length = features.norm_scalaropt_dim(2.0, -1, true);
    features / length.clamp_min(1e-12)
}

fn numbers(scores: &Tensor) -> Vec<f64> {
    Vec::try_from(scores.to_kind(Kind::Double)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tch::nn;

    use super::*;
    use crate::models::clip::ClipImageConfig;
    use crate::models::seeded::{normal, seed_weights};
    use crate::models::text::TextConfig;

    #[test]
    fn the_score_is_the_cosine_in_percent_and_never_negative() {
        let pictures = Tensor::from_slice2(&[[2.0_f32, 0.0], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]]);
        let texts = Tensor::from_slice2(&[[5.0_f32, 0.0], [1.0, 0.0], [4.0, 0.0], [1.0, 0.0]]);
        let scores = numbers(&clip_scores(&unit(&pictures), &unit(&texts)));
        for (found, expected) in scores.into_iter().zip([100.0, 0.0, 100.0 / 2f64.sqrt(), 0.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} against {expected}");
        }
    }

    #[test]
    fn nothing_has_no_direction_and_scores_nothing() {
        let nothing = Tensor::zeros([1, 3], (Kind::Float, Device::Cpu));
        assert_eq!(numbers(&clip_scores(&unit(&nothing), &unit(&nothing))), [0.0]);
    }

    fn scorer() -> PictureScorer {
        let config = ClipConfig {
            image: ClipImageConfig {
                image: 8,
                patch: 4,
                width: 8,
                heads: 2,
                layers: 1,
                projection: 6,
            },
            text: TextConfig {
                tokens: 5,
                width: 4,
                heads: 2,
                layers: 1,
            },
        };
        let tokenizer = Tokenizer::from_captions(["a red circle"]);
        let vs = nn::VarStore::new(Device::Cpu);
        let clip = ClipModel::new(&vs.root(), &config, tokenizer.size());
        seed_weights(&vs, 4);
        PictureScorer {
            clip,
            config,
            tokenizer,
            aesthetic: None,
            device: Device::Cpu,
        }
    }

    /// One picture and one caption at a time say the same as all together, so each picture met its own caption.
    #[test]
    fn each_picture_is_held_against_its_own_caption() {
        let scorer = scorer();
        let pictures = normal(&[3, 3, 12, 16], 5, Device::Cpu) * 0.4;
        let captions = ["a red circle", "circle", ""];
        let together = scorer.score(&pictures, &captions);
        assert_eq!(together.len(), 3);
        for (i, score) in together.iter().enumerate() {
            let alone = scorer.score(&pictures.narrow(0, i as i64, 1), &captions[i..=i]);
            assert!((alone[0].clip - score.clip).abs() < 1e-3, "{alone:?} {together:?}");
            assert_eq!(score.aesthetic, None);
        }
        let swapped = scorer.score(&pictures, &["circle", "", "a red circle"]);
        assert!(
            swapped
                .iter()
                .zip(&together)
                .any(|(a, b)| (a.clip - b.clip).abs() > 1e-3)
        );
    }
}
