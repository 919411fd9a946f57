//! The evaluators: small networks that read clips, trained by this project on data it can make again.
//!
//! They measure what VBench's dimensions of the same names measure (spec section 6.2), each in its own words below;
//! they are not VBench.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

use crate::data::{Prompt, Vocabulary};
use crate::models::norm::{Conv2d, GroupNorm, RESNET_EPS, Start, conv2d, group_norm, linear};
use crate::models::text::LARGEST;
use crate::models::tokenizer::Tokenizer;

/// Sizes of the evaluators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvaluatorConfig {
    /// Channels of the first convolution; a multiple of 8.
    pub width: i64,
    /// Width of the embedding that clip and caption share.
    pub embedding: i64,
}

impl EvaluatorConfig {
    /// Looks whether evaluators of these sizes can be built.
    ///
    /// # Errors
    /// The size that cannot be, what it is and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let Self { width, embedding } = *self;
        if !(1..=LARGEST).contains(&width) || width % 8 != 0 {
            return Err(format!(
                "evaluators.width is {width}; allowed are multiples of 8 to {LARGEST}"
            ));
        }
        if !(1..=LARGEST).contains(&embedding) {
            return Err(format!(
                "evaluators.embedding is {embedding}; allowed is 1 to {LARGEST}"
            ));
        }
        Ok(())
    }
}

/// Says which object and which colour a single frame shows, or that it shows none.
///
/// # Shapes
/// - `[n, 3, h, w]` in −1..1 → logits `[n, objects + 1]` and `[n, colors + 1]`, the last class being "none"
#[derive(Debug)]
pub struct FrameReader {
    trunk: Vec<(Conv2d, GroupNorm)>,
    object: nn::Linear,
    color: nn::Linear,
}

impl FrameReader {
    /// Fresh weights under `vs`.
    pub fn new(vs: &nn::Path<'_>, cfg: EvaluatorConfig, objects: i64, colors: i64) -> Self {
        let widths = [3, cfg.width, 2 * cfg.width, 3 * cfg.width, 4 * cfg.width];
        let layer = |i: usize| {
            let vs = vs / i;
            let conv = conv2d(&vs / "conv", widths[i], widths[i + 1], if i == 0 { 5 } else { 3 }, 2);
            (conv, group_norm(&vs / "norm", 8, widths[i + 1], RESNET_EPS))
        };
        let features = 2 * widths[4];
        Self {
            trunk: (0..4).map(layer).collect(),
            object: linear(vs / "object", features, objects + 1, true, Start::Random),
            color: linear(vs / "color", features, colors + 1, true, Start::Random),
        }
    }

    /// Logits of objects and of colours.
    pub fn forward(&self, frames: &Tensor) -> (Tensor, Tensor) {
        let mut xs = frames.shallow_clone();
        for (conv, norm) in &self.trunk {
            xs = xs.apply(conv).apply(norm).silu();
        }
        let dims = [2i64, 3];
        let features = Tensor::cat(&[xs.mean_dim(dims.as_slice(), false, None), xs.amax(dims, false)], 1);
        (features.apply(&self.object), features.apply(&self.color))
    }
}

/// Says how well a clip fits a caption: both become unit vectors; their product, scaled and shifted, is the logit of
/// "this caption describes this clip" (Zhai et al. 2023, sigmoid loss).
///
/// A caption is the sum of its words, so that captions never trained on are read as well as others; a clip is read by
/// convolutions over time and space.
/// # Shapes
/// - clips `[n, 3, t, h, w]` in −1..1; tokens `[m, l]` (int64, 0–2 are marks); logits `[n, m]`
#[derive(Debug)]
pub struct ClipReader {
    frame_conv: (Conv2d, GroupNorm),
    clip_convs: Vec<(Tensor, Tensor, GroupNorm, [i64; 3])>,
    clip_out: nn::Linear,
    words: Tensor,
    text_out: nn::Linear,
    scale: Tensor,
    shift: Tensor,
}

impl ClipReader {
    /// Fresh weights under `vs`, for a vocabulary of `vocabulary` tokens.
    pub fn new(vs: &nn::Path<'_>, cfg: EvaluatorConfig, vocabulary: i64) -> Self {
        let width = cfg.width;
        let plan = [
            (width, 2 * width, [1, 2, 2]),
            (2 * width, 3 * width, [2, 1, 1]),
            (3 * width, 4 * width, [2, 2, 2]),
        ];
        let convs = plan.iter().enumerate().map(|(i, &(inputs, outputs, stride))| {
            let vs = vs / "clip" / i;
            let weight = vs.var("weight", &[outputs, inputs, 3, 3, 3], nn::init::DEFAULT_KAIMING_UNIFORM);
            (
                weight,
                vs.zeros("bias", &[outputs]),
                group_norm(&vs / "norm", 8, outputs, RESNET_EPS),
                stride,
            )
        });
        let frame = vs / "frame";
        Self {
            frame_conv: (
                conv2d(&frame / "conv", 3, width, 3, 2),
                group_norm(&frame / "norm", 8, width, RESNET_EPS),
            ),
            clip_convs: convs.collect(),
            clip_out: linear(vs / "clip_out", 8 * width, cfg.embedding, true, Start::Random),
            words: vs.var(
                "words",
                &[vocabulary, cfg.embedding],
                nn::Init::Randn { mean: 0.0, stdev: 0.2 },
            ),
            text_out: linear(vs / "text_out", cfg.embedding, cfg.embedding, false, Start::Random),
            scale: vs.var("scale", &[1], nn::Init::Const(10.0)),
            shift: vs.var("shift", &[1], nn::Init::Const(-5.0)),
        }
    }

    /// Unit vectors of clips.
    pub fn embed_clips(&self, clips: &Tensor) -> Tensor {
        let (n, t) = (clips.size()[0], clips.size()[2]);
        let frames = clips
            .transpose(1, 2)
            .flatten(0, 1)
            .avg_pool2d([2, 2], [2, 2], [0, 0], false, true, None);
        let frames = frames.apply(&self.frame_conv.0).apply(&self.frame_conv.1).silu(); // [n*t, width, h/4, w/4]
        let mut xs = frames.unflatten(0, [n, t]).transpose(1, 2).contiguous();
        for (weight, bias, norm, stride) in &self.clip_convs {
            xs = xs
                .conv3d(weight, Some(bias), stride, [1, 1, 1], [1, 1, 1], 1)
                .apply(norm)
                .silu();
        }
        let dims = [2i64, 3, 4];
        let features = Tensor::cat(&[xs.mean_dim(dims.as_slice(), false, None), xs.amax(dims, false)], 1);
        unit(&features.apply(&self.clip_out))
    }

    /// Unit vectors of captions: marks of beginning, end and unknown words count nothing.
    pub fn embed_captions(&self, tokens: &Tensor) -> Tensor {
        let known = tokens.ge(3).to_kind(Kind::Float).unsqueeze(-1);
        let words = Tensor::embedding(&self.words, tokens, -1, false, false) * known;
        unit(
            &words
                .sum_dim_intlist([1i64].as_slice(), false, None)
                .apply(&self.text_out),
        )
    }

    /// Logits of every clip with every caption.
    pub fn logits(&self, clips: &Tensor, captions: &Tensor) -> Tensor {
        clips.matmul(&captions.transpose(0, 1)) * &self.scale + &self.shift
    }
}

fn unit(xs: &Tensor) -> Tensor {
    xs / (xs.square().sum_dim_intlist([-1i64].as_slice(), true, None) + 1e-8).sqrt()
}

/// Frames a detection counts in: the winning class is the object and its probability is at least this.
const DETECTED: f64 = 0.5;

/// Both trained evaluators with the words they know.
#[derive(Debug)]
pub struct Evaluators {
    frames: FrameReader,
    clips: ClipReader,
    tokenizer: Tokenizer,
    tokens: i64,
    vocabulary: Vocabulary,
}

/// What the evaluators say of one clip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    /// Probability that the prompt describes the clip, its motion included.
    pub overall_consistency: f64,
    /// Share of frames in which the prompt's object is detected.
    pub object_class: f64,
    /// Frames with the object in the prompt's colour over frames with the object in any colour; `None` without such a
    /// frame, the clip then counts nothing (as VBench skips it).
    pub color: Option<f64>,
}

impl Evaluators {
    /// Puts the parts together; `tokens` is the length captions are cut to.
    #[must_use]
    pub fn new(
        frames: FrameReader,
        clips: ClipReader,
        tokenizer: Tokenizer,
        tokens: i64,
        vocabulary: Vocabulary,
    ) -> Self {
        Self {
            frames,
            clips,
            tokenizer,
            tokens,
            vocabulary,
        }
    }

    /// The names of what can be seen.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Reads one clip.
    ///
    /// # Shapes
    /// - `clip`: `[1, 3, t, h, w]` in −1..1
    #[must_use]
    pub fn read(&self, clip: &Tensor, prompt: &Prompt) -> Reading {
        tch::no_grad(|| {
            let tokens = self.tokenizer.encode_all(&[&prompt.caption], self.tokens);
            let tokens = tokens.to_device(clip.device());
            let logit = self
                .clips
                .logits(&self.clips.embed_clips(clip), &self.clips.embed_captions(&tokens));
            let (object_class, color) = self.read_frames(&clip.get(0).transpose(0, 1), prompt);
            Reading {
                overall_consistency: logit.sigmoid().double_value(&[0, 0]),
                object_class,
                color,
            }
        })
    }

    fn read_frames(&self, frames: &Tensor, prompt: &Prompt) -> (f64, Option<f64>) {
        let (objects, colors) = self.frames.forward(frames);
        let (probability, object) = objects.softmax(-1, Kind::Float).max_dim(-1, false);
        let wanted = object
            .eq(prompt.attributes.object as i64)
            .logical_and(&probability.ge(DETECTED));
        let color = colors.argmax(-1, false);
        let none = self.vocabulary.colors.len() as i64;
        let count = |mask: &Tensor| mask.to_kind(Kind::Float).sum(Kind::Float).double_value(&[]);
        let colored = wanted.logical_and(&color.ne(none));
        let right = colored.logical_and(&color.eq(prompt.attributes.color as i64));
        let share = (count(&colored) > 0.0).then(|| count(&right) / count(&colored));
        (count(&wanted) / frames.size()[0] as f64, share)
    }
}
