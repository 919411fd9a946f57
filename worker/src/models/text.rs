//! The text encoder in CLIP's layout and keys (spec section 1.2), with a tokenizer of whole words.
//!
//! The tiny configuration is trained together with the backbone. Its vocabulary is the words of the training captions.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use super::norm::{Start, layer_norm, linear};

/// Sizes of a [`TextEncoder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextConfig {
    /// Tokens of a caption with its marks of beginning and end; longer ones are cut.
    pub tokens: i64,
    /// Width of a token's embedding.
    pub width: i64,
    /// Attention heads; divides `width`.
    pub heads: i64,
    /// Layers.
    pub layers: i64,
}

const BEGIN: i64 = 0;
/// End of the caption, and what fills the rest, as in CLIP.
const END: i64 = 1;
const UNKNOWN: i64 = 2;
const FIRST_WORD: i64 = 3;

/// Words to numbers: `begin words… end end…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tokenizer {
    words: Vec<String>,
}

impl Tokenizer {
    /// The words of these captions, in alphabetical order.
    pub fn from_captions<'a>(captions: impl IntoIterator<Item = &'a str>) -> Self {
        let words: BTreeSet<String> = captions.into_iter().flat_map(words).collect();
        Self {
            words: words.into_iter().collect(),
        }
    }

    /// Number of tokens, with the three marks.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.words.len() as i64 + FIRST_WORD
    }

    /// The tokens of a caption, `length` of them; a word that is not known has a mark of its own.
    #[must_use]
    pub fn encode(&self, caption: &str, length: i64) -> Vec<i64> {
        let known = |word: String| {
            self.words
                .binary_search(&word)
                .map_or(UNKNOWN, |i| i as i64 + FIRST_WORD)
        };
        let inside = words(caption).map(known).take(length.max(2) as usize - 2);
        let mut tokens: Vec<i64> = std::iter::once(BEGIN).chain(inside).collect();
        tokens.resize(length as usize, END);
        tokens
    }

    /// Tokens of several captions.
    ///
    /// # Shapes
    /// - output: `[captions, length]`, int64
    pub fn encode_all(&self, captions: &[&str], length: i64) -> Tensor {
        let tokens: Vec<i64> = captions
            .iter()
            .flat_map(|caption| self.encode(caption, length))
            .collect();
        Tensor::from_slice(&tokens).reshape([captions.len() as i64, length])
    }
}

/// The words of a caption, in lower case.
pub(crate) fn words(caption: &str) -> impl Iterator<Item = String> {
    caption
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// A causal transformer over tokens: pre-norm, quick GELU, the last hidden states after the final norm.
///
/// # Shapes
/// - tokens `[b, tokens]` → `[b, tokens, width]`
#[derive(Debug)]
pub struct TextEncoder {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<Layer>,
    final_layer_norm: nn::LayerNorm,
}

impl TextEncoder {
    /// Fresh weights under `vs` for `vocabulary` tokens.
    pub fn new(vs: &nn::Path<'_>, cfg: &TextConfig, vocabulary: i64) -> Self {
        let vs = vs / "text_model";
        let embeddings = &vs / "embeddings";
        let normal = nn::Init::Randn { mean: 0.0, stdev: 0.02 };
        let embedding = |name, count| (&embeddings / name).var("weight", &[count, cfg.width], normal);
        Self {
            token_embedding: embedding("token_embedding", vocabulary),
            position_embedding: embedding("position_embedding", cfg.tokens),
            layers: (0..cfg.layers)
                .map(|i| Layer::new(&(&vs / "encoder" / "layers" / i), cfg))
                .collect(),
            final_layer_norm: layer_norm(&vs / "final_layer_norm", cfg.width),
        }
    }

    /// The last hidden states.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        let length = tokens.size()[1];
        let mut xs = Tensor::embedding(&self.token_embedding, tokens, -1, false, false)
            + self.position_embedding.narrow(0, 0, length);
        let later = Tensor::full([length, length], f64::NEG_INFINITY, (Kind::Float, xs.device())).triu(1);
        for layer in &self.layers {
            xs = layer.forward(&xs, &later);
        }
        xs.apply(&self.final_layer_norm)
    }
}

/// The hidden state at each caption's first `end` token.
///
/// # Shapes
/// - `hidden`: `[b, tokens, width]`; `tokens`: `[b, tokens]`, each row with an `end`; output `[b, width]`
pub fn pooled(hidden: &Tensor, tokens: &Tensor, end: i64) -> Tensor {
    let first = tokens.eq(end).to_kind(Kind::Int64).argmax(1, true); // [b, 1], the first of equals
    let index = first.unsqueeze(-1).expand([-1, -1, hidden.size()[2]], false);
    hidden.gather(1, &index, false).squeeze_dim(1)
}

#[derive(Debug)]
struct Layer {
    layer_norm1: nn::LayerNorm,
    q_proj: nn::Linear,
    k_proj: nn::Linear,
    v_proj: nn::Linear,
    out_proj: nn::Linear,
    layer_norm2: nn::LayerNorm,
    fc1: nn::Linear,
    fc2: nn::Linear,
    heads: i64,
}

impl Layer {
    fn new(vs: &nn::Path<'_>, cfg: &TextConfig) -> Self {
        let width = cfg.width;
        let (attention, mlp) = (vs / "self_attn", vs / "mlp");
        let project = |name| linear(&attention / name, width, width, true, Start::Random);
        Self {
            layer_norm1: layer_norm(vs / "layer_norm1", width),
            q_proj: project("q_proj"),
            k_proj: project("k_proj"),
            v_proj: project("v_proj"),
            out_proj: project("out_proj"),
            layer_norm2: layer_norm(vs / "layer_norm2", width),
            fc1: linear(&mlp / "fc1", width, 4 * width, true, Start::Random),
            fc2: linear(&mlp / "fc2", 4 * width, width, true, Start::Random),
            heads: cfg.heads,
        }
    }

    fn forward(&self, xs: &Tensor, later: &Tensor) -> Tensor {
        let xs = xs + self.attend(&xs.apply(&self.layer_norm1), later);
        let hidden = xs.apply(&self.layer_norm2).apply(&self.fc1);
        let quick_gelu = &hidden * (&hidden * 1.702).sigmoid();
        xs + quick_gelu.apply(&self.fc2)
    }

    fn attend(&self, xs: &Tensor, later: &Tensor) -> Tensor {
        let (b, l, width) = (xs.size()[0], xs.size()[1], xs.size()[2]);
        let d = width / self.heads;
        let split = |ys: Tensor| ys.reshape([b, l, self.heads, d]).transpose(1, 2); // [b, heads, l, d]
        let (q, k, v) = (xs.apply(&self.q_proj), xs.apply(&self.k_proj), xs.apply(&self.v_proj));
        let scores = split(q).matmul(&split(k).transpose(2, 3)) / (d as f64).sqrt() + later;
        let mixed = scores.softmax(-1, Kind::Float).matmul(&split(v)); // [b, heads, l, d]
        mixed.transpose(1, 2).reshape([b, l, width]).apply(&self.out_proj)
    }
}

/// A trained text encoder with its tokenizer; weights are fixed.
#[derive(Debug)]
pub struct Text {
    encoder: TextEncoder,
    tokenizer: Tokenizer,
    tokens: i64,
    device: Device,
}

impl Text {
    /// Puts the parts together.
    #[must_use]
    pub fn new(encoder: TextEncoder, tokenizer: Tokenizer, cfg: &TextConfig, device: Device) -> Self {
        Self {
            encoder,
            tokenizer,
            tokens: cfg.tokens,
            device,
        }
    }

    /// Embeddings of captions; the empty caption is the null text of guidance.
    ///
    /// # Shapes
    /// - output: `[captions, tokens, width]`
    pub fn embed(&self, captions: &[&str]) -> Tensor {
        let tokens = self.tokenizer.encode_all(captions, self.tokens).to_device(self.device);
        tch::no_grad(|| self.encoder.forward(&tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::seed_weights;

    #[test]
    fn captions_become_marked_and_filled_tokens() {
        let tokenizer = Tokenizer::from_captions(["a red circle", "a blue star"]);
        assert_eq!(tokenizer.size(), 8);
        // Words in alphabetical order: a 3, blue 4, circle 5, red 6, star 7.
        assert_eq!(tokenizer.encode("A red, star!", 6), [BEGIN, 3, 6, 7, END, END]);
        assert_eq!(tokenizer.encode("a green star", 6), [BEGIN, 3, UNKNOWN, 7, END, END]);
        assert_eq!(tokenizer.encode("a red blue star circle", 4), [BEGIN, 3, 6, END]);
        assert_eq!(tokenizer.encode("", 3), [BEGIN, END, END]);
    }

    /// Counts of CLIP ViT-L/14's text encoder (spec section 1.2).
    #[test]
    fn the_large_configuration_has_the_published_parameters() {
        let vs = nn::VarStore::new(Device::Cpu);
        let cfg = TextConfig {
            tokens: 77,
            width: 768,
            heads: 12,
            layers: 12,
        };
        let _ = TextEncoder::new(&vs.root(), &cfg, 49408);
        assert_eq!(vs.len(), 196);
        assert_eq!(vs.variables().values().map(Tensor::numel).sum::<usize>(), 123_060_480);
    }

    #[test]
    fn the_pooled_state_is_that_of_the_first_end() {
        let hidden = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([2, 3, 2]);
        let tokens = Tensor::from_slice(&[0i64, 9, 9, 0, 3, 9]).reshape([2, 3]);
        let pooled = pooled(&hidden, &tokens, 9);
        assert_eq!(pooled, Tensor::from_slice(&[2.0f32, 3.0, 10.0, 11.0]).reshape([2, 2]));
    }

    #[test]
    fn a_token_does_not_see_later_ones() {
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = TextEncoder::new(
            &vs.root(),
            &TextConfig {
                tokens: 5,
                width: 8,
                heads: 2,
                layers: 2,
            },
            9,
        );
        seed_weights(&vs, 4);
        let out = |tokens: &[i64]| encoder.forward(&Tensor::from_slice(tokens).reshape([1, 5]));
        let (a, b) = (out(&[0, 3, 4, 5, 1]), out(&[0, 3, 4, 8, 1]));
        let differs = |at| (a.get(0).get(at) - b.get(0).get(at)).abs().max().double_value(&[]) > 1e-6;
        assert_eq!(
            (0..5).map(differs).collect::<Vec<_>>(),
            [false, false, false, true, true]
        );
    }
}
