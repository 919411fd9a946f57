//! The text encoder in CLIP's layout and keys (spec section 1.2).
//!
//! The tiny configuration is trained together with the backbone. Its vocabulary is the words of the training captions.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn};

use super::encoder_layer::{EncoderLayer, Sees};
use super::norm::layer_norm;
use super::tokenizer::Tokenizer;
use crate::onnx::{Graph, Value};

/// Sizes of a [`TextEncoder`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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

impl TextConfig {
    /// Looks whether an encoder of these sizes can be built.
    ///
    /// # Errors
    /// The size that cannot be, what it is and what is allowed.
    pub fn check(&self) -> Result<(), String> {
        let least = |name: &str, found: i64, least: i64| match found {
            found if (least..=LARGEST).contains(&found) => Ok(()),
            found => Err(format!("text.{name} is {found}; allowed is {least} to {LARGEST}")),
        };
        least("tokens", self.tokens, 2)?;
        least("width", self.width, 1)?;
        least("layers", self.layers, 1)?;
        least("heads", self.heads, 1)?;
        if self.width % self.heads != 0 {
            let (found, width) = (self.heads, self.width);
            return Err(format!(
                "text.heads is {found}; allowed are divisors of the width {width}"
            ));
        }
        Ok(())
    }
}

/// The largest size of any dimension that is asked for in a file.
pub(crate) const LARGEST: i64 = 1 << 16;

/// A causal transformer over tokens: pre-norm, quick GELU, the last hidden states after the final norm.
///
/// # Shapes
/// - tokens `[b, tokens]` → `[b, tokens, width]`
#[derive(Debug)]
pub struct TextEncoder {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
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
                .map(|i| EncoderLayer::new(&(&vs / "encoder" / "layers" / i), cfg.width, cfg.heads, Sees::Earlier))
                .collect(),
            final_layer_norm: layer_norm(&vs / "final_layer_norm", cfg.width),
        }
    }

    /// The last hidden states.
    pub fn forward(&self, tokens: &Tensor) -> Tensor {
        let length = tokens.size()[1];
        let mut xs = Tensor::embedding(&self.token_embedding, tokens, -1, false, false)
            + self.position_embedding.narrow(0, 0, length);
        for layer in &self.layers {
            xs = layer.forward(&xs);
        }
        xs.apply(&self.final_layer_norm)
    }

    /// [`Self::forward`] as part of a graph; `tokens` are integers.
    pub fn export(&self, graph: &mut Graph, tokens: &Value) -> Value {
        let length = tokens.size(1);
        let table = graph.weight(&self.token_embedding);
        let places = graph.weight(&self.position_embedding.narrow(0, 0, length));
        let embedded = graph.rows(&table, tokens);
        let mut xs = graph.add(&embedded, &places);
        // What may not be seen: far below any score, and a number in binary16 too.
        let later = Tensor::full([length, length], -30_000.0, (Kind::Float, Device::Cpu)).triu(1);
        let later = graph.table(&later);
        for (i, layer) in self.layers.iter().enumerate() {
            xs = graph.within(i, |graph| layer.export(graph, &xs, Some(&later)));
        }
        xs.through(graph, &self.final_layer_norm)
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

    /// The encoder alone.
    #[must_use]
    pub const fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// Tokens of a caption, and how many the tokenizer knows.
    #[must_use]
    pub fn sizes(&self) -> (i64, i64) {
        (self.tokens, self.tokenizer.size())
    }

    /// Embeddings of captions by token; the empty caption is the null text of guidance.
    ///
    /// # Shapes
    /// - output: `[captions, tokens, width]`
    pub fn embed(&self, captions: &[&str]) -> Tensor {
        self.embed_both(captions).tokens
    }

    /// Embeddings of captions by token and as a whole. Ask once for each caption and keep them.
    pub fn embed_both(&self, captions: &[&str]) -> Embedded {
        let _guard = tch::no_grad_guard();
        let some = captions.chunks(CAPTIONS_AT_ONCE).map(|captions| {
            let numbers = self.tokenizer.encode_all(captions, self.tokens).to_device(self.device);
            let tokens = self.encoder.forward(&numbers);
            (pooled(&tokens, &numbers, self.tokenizer.end()), tokens)
        });
        let (pooled, tokens): (Vec<Tensor>, Vec<Tensor>) = some.unzip();
        Embedded {
            tokens: Tensor::cat(&tokens, 0),
            pooled: Tensor::cat(&pooled, 0),
        }
    }
}

/// Captions that go through the encoder together.
const CAPTIONS_AT_ONCE: usize = 64;

/// What the text encoder makes of captions.
#[derive(Debug)]
pub struct Embedded {
    /// `[captions, tokens, width]`: the last hidden states.
    pub tokens: Tensor,
    /// `[captions, width]`: the state of the first end mark, which has seen the whole caption.
    pub pooled: Tensor,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::seeded::seed_weights;

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
    #[test]
    fn the_pooled_output_is_the_state_of_the_first_end_mark() {
        let cfg = TextConfig {
            tokens: 6,
            width: 8,
            heads: 2,
            layers: 1,
        };
        let tokenizer = Tokenizer::from_captions(["a red circle"]);
        let vs = nn::VarStore::new(Device::Cpu);
        let encoder = TextEncoder::new(&vs.root(), &cfg, tokenizer.size());
        seed_weights(&vs, 4);
        let text = Text::new(encoder, tokenizer, &cfg, Device::Cpu);
        // More captions than go through together.
        let captions = ["", "a", "a red circle", "a red circle a red circle"].repeat(20);
        let Embedded { tokens, pooled } = text.embed_both(&captions);
        assert_eq!((tokens.size(), pooled.size()), (vec![80, 6, 8], vec![80, 8]));
        for (i, end) in [1, 2, 4, 5].into_iter().cycle().enumerate().take(80) {
            assert_eq!(pooled.get(i as i64), tokens.get(i as i64).get(end), "caption {i}");
        }
        assert!(tokens.narrow(0, 0, 1).allclose(&text.embed(&[""]), 1e-5, 1e-6, false));
    }
}
