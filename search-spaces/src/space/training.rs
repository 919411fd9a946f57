//! How weights are trained: the settings that evaluations, recipes and every other training job share.

use serde::{Deserialize, Serialize};

use super::read::{Node, Section};

/// Pixels of a latent's pixel, along one axis.
const PIXELS: f64 = 8.0;
/// Pixels along one axis of the picture at which [`TimestepShift::Resolution`] leaves times alone.
const REFERENCE: f64 = 512.0;
/// Latent frames of a whole chunk of the VAE.
const CHUNK: u64 = 5;

/// How one training runs: its length, its batches, its optimizer, its arithmetic, and where on the flow it looks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingSettings {
    /// Optimizer steps.
    pub steps: u32,
    /// Clips a step, all micro-batches together.
    pub batch: u32,
    /// Micro-batches that a step's clips are split into; divides `batch`. More of them take less memory for the same
    /// step.
    #[serde(default = "one")]
    pub accumulate: u32,
    /// AdamW's learning rate.
    pub learning_rate: f64,
    /// Steps over which the learning rate grows from 0, linearly.
    #[serde(default)]
    pub warmup_steps: u32,
    /// AdamW's decays of the mean of gradients and of their squares.
    #[serde(default = "usual_betas")]
    pub betas: [f64; 2],
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Norm to which the gradients, all together, are scaled down.
    #[serde(default = "unit")]
    pub max_gradient_norm: f64,
    /// Decay of the moving average of the weights, which is what is scored and kept; the weights themselves where
    /// absent.
    #[serde(default)]
    pub ema: Option<f64>,
    /// Number format of the model; optimizer, masters and average are float32 in any case.
    #[serde(default)]
    pub precision: Precision,
    /// Whether the backward pass computes the blocks' activations again instead of keeping them.
    #[serde(default)]
    pub gradient_checkpointing: bool,
    /// Probability that a clip's text is dropped, for guidance.
    pub text_dropout: f64,
    /// Mean of the logit of t.
    pub noise_mean: f64,
    /// Standard deviation of the logit of t.
    pub noise_std: f64,
    /// How times are moved towards the noise, in training and in sampling.
    #[serde(default)]
    pub timestep_shift: TimestepShift,
    /// Steps between checkpoints.
    pub checkpoint_every: u32,
}

const fn one() -> u32 {
    1
}

const fn unit() -> f64 {
    1.0
}

const fn usual_betas() -> [f64; 2] {
    [0.9, 0.999]
}

impl TrainingSettings {
    /// Clips of a micro-batch.
    #[must_use]
    pub fn micro_batch(&self) -> u32 {
        self.batch / self.accumulate.max(1)
    }

    /// Learning rate of a step, from 0.
    #[must_use]
    pub fn learning_rate_at(&self, step: u64) -> f64 {
        if step >= u64::from(self.warmup_steps) {
            return self.learning_rate;
        }
        self.learning_rate * ((step + 1) as f64 / f64::from(self.warmup_steps))
    }
}

/// Number format in which a model is trained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 binary32 throughout.
    #[default]
    F32,
    /// bfloat16 for weights and activations; what is trained has float32 masters.
    Bf16,
}

/// Moves times `t` in [0, 1] towards the noise: `t' = r t / (1 + (r − 1) t)` (Esser et al. 2024, eq. 23).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimestepShift {
    /// r = 1.
    #[default]
    None,
    /// One r for all clips.
    Fixed(f64),
    /// Open-Sora's rule: r = √(H W / 512²) · √T, with H and W in pixels and T the latent frames of whole chunks of 17
    /// frames, 1 for images.
    Resolution,
}

impl TimestepShift {
    /// r for latents of `frames` × `height` × `width`.
    #[must_use]
    pub fn factor(self, frames: u64, height: u64, width: u64) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Fixed(r) => r,
            Self::Resolution => {
                let area = (PIXELS * height as f64) * (PIXELS * width as f64) / (REFERENCE * REFERENCE);
                area.sqrt() * ((frames / CHUNK * CHUNK).max(1) as f64).sqrt()
            }
        }
    }

    /// A time moved by `factor`.
    #[must_use]
    pub fn moved(time: f64, factor: f64) -> f64 {
        factor * time / (1.0 + (factor - 1.0) * time)
    }
}

/// Reads the keys of a training from `section`, which may hold others.
pub(super) fn training(section: &Section) -> Option<TrainingSettings> {
    let count = |key, most| section.need_integer(key, 1..=most).and_then(small);
    let (steps, batch) = (count("steps", 10_000_000), count("batch", 1 << 16));
    let accumulate = section.integer_or("accumulate", 1, 1..=1 << 16).and_then(small);
    if let (Some(batch), Some(accumulate)) = (batch, accumulate)
        && !u32::is_multiple_of(batch, accumulate)
    {
        section.report(
            "accumulate",
            accumulate.to_string(),
            format!("a divisor of the batch of {batch}"),
        );
    }
    let learning_rate = section.number_or("learning_rate", 5e-5, 0.0..=10.0);
    let warmup_steps = section.integer_or("warmup_steps", 0, 0..=10_000_000).and_then(small);
    let betas = section.get("betas").map_or(Some(usual_betas()), |node| betas(&node));
    let weight_decay = section.number_or("weight_decay", 0.01, 0.0..=10.0);
    let max_gradient_norm = section.number_or("max_gradient_norm", 1.0, 1e-9..=1e9);
    let ema = section
        .get("ema")
        .map_or(Some(None), |node| node.number(0.0..=0.999_999).map(Some));
    let precision = section.get("precision").map_or(Some(Precision::F32), |node| {
        node.one_of([("f32", Precision::F32), ("bf16", Precision::Bf16)])
    });
    let gradient_checkpointing = section.boolean_or("gradient_checkpointing", false);
    let text_dropout = section.number_or("text_dropout", 0.1, 0.0..=1.0);
    let noise_mean = section.number_or("noise_mean", 0.0, -10.0..=10.0);
    let noise_std = section.number_or("noise_std", 1.0, 1e-3..=10.0);
    let timestep_shift = section
        .get("timestep_shift")
        .map_or(Some(TimestepShift::None), |node| timestep_shift(&node));
    let checkpoint_every = count("checkpoint_every", 10_000_000);
    Some(TrainingSettings {
        steps: steps?,
        batch: batch?,
        accumulate: accumulate?,
        learning_rate: learning_rate?,
        warmup_steps: warmup_steps?,
        betas: betas?,
        weight_decay: weight_decay?,
        max_gradient_norm: max_gradient_norm?,
        ema: ema?,
        precision: precision?,
        gradient_checkpointing: gradient_checkpointing?,
        text_dropout: text_dropout?,
        noise_mean: noise_mean?,
        noise_std: noise_std?,
        timestep_shift: timestep_shift?,
        checkpoint_every: checkpoint_every?,
    })
}

fn small(value: u64) -> Option<u32> {
    u32::try_from(value).ok()
}

/// Two decays of AdamW.
pub(super) fn betas(node: &Node) -> Option<[f64; 2]> {
    let allowed = "two numbers from 0 to 0.999999";
    let decays = node.list(allowed, 2..=2)?;
    let decay = |i: usize| decays[i].number(0.0..=0.999_999);
    let (first, second) = (decay(0), decay(1));
    Some([first?, second?])
}

fn timestep_shift(node: &Node) -> Option<TimestepShift> {
    if node.is_text() {
        return node.one_of([("none", TimestepShift::None), ("resolution", TimestepShift::Resolution)]);
    }
    node.number(0.01..=100.0).map(TimestepShift::Fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spec section 4: 3.87 for 51 frames of 512², 6.66 for 120 frames of 432×768.
    #[test]
    fn the_shift_follows_resolution_and_length() {
        let r = TimestepShift::Resolution;
        assert!((r.factor(15, 64, 64) - 3.87).abs() < 5e-3);
        assert!((r.factor(36, 54, 96) - 6.66).abs() < 5e-3);
        assert!((r.factor(1, 64, 64) - 1.0).abs() < 1e-12, "an image of 512²");
        assert_eq!(TimestepShift::Fixed(3.0).factor(15, 64, 64), 3.0);
        assert_eq!(TimestepShift::None.factor(36, 54, 96), 1.0);
    }

    /// Spec section 4: the four-step grids.
    #[test]
    fn shifted_times_are_the_published_grids() {
        for (r, grid) in [
            (1.0, [1.0, 0.75, 0.5, 0.25]),
            (3.87, [1.0, 0.921, 0.795, 0.563]),
            (5.0, [1.0, 0.9375, 0.833, 0.625]),
        ] {
            for (time, wanted) in [1.0, 0.75, 0.5, 0.25].into_iter().zip(grid) {
                let moved = TimestepShift::moved(time, r);
                assert!((moved - wanted).abs() < 5e-4, "{r}: {time} to {moved}");
            }
        }
    }

    #[test]
    fn settings_from_before_have_the_behaviour_of_before() {
        let old = r#"{"steps": 3, "batch": 2, "learning_rate": 0.1, "weight_decay": 0.01, "text_dropout": 0.1,
            "noise_mean": 0.0, "noise_std": 1.0, "checkpoint_every": 5}"#;
        let settings: TrainingSettings = serde_json::from_str(old).expect("an older file");
        assert_eq!((settings.accumulate, settings.warmup_steps, settings.ema), (1, 0, None));
        assert_eq!((settings.betas, settings.max_gradient_norm), ([0.9, 0.999], 1.0));
        assert_eq!(
            (settings.precision, settings.gradient_checkpointing),
            (Precision::F32, false)
        );
        assert_eq!(settings.timestep_shift, TimestepShift::None);
        assert_eq!(settings.learning_rate_at(0), 0.1);
    }

    #[test]
    fn the_learning_rate_warms_up_in_a_line() {
        let old = r#"{"steps": 3, "batch": 2, "learning_rate": 1.0, "warmup_steps": 4, "weight_decay": 0.01,
            "text_dropout": 0.1, "noise_mean": 0.0, "noise_std": 1.0, "checkpoint_every": 5}"#;
        let settings: TrainingSettings = serde_json::from_str(old).expect("settings");
        let rates: Vec<f64> = (0..6).map(|step| settings.learning_rate_at(step)).collect();
        assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
    }
}
