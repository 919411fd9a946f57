//! Captions to token numbers: whole words in the small worlds, CLIP's byte pairs for its text encoder.

mod clip;
mod words;

use serde::{Deserialize, Serialize};
use tch::Tensor;

pub use clip::{Clip, TokenizerError};
pub use words::Words;
pub(crate) use words::words;

/// Captions to `begin tokens… end end…`. In JSON a list of words, or CLIP's merges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub enum Tokenizer {
    /// A token a word.
    Words(Words),
    /// CLIP's byte pairs.
    Clip(Clip),
}

impl Tokenizer {
    /// Knows the words of these captions.
    pub fn from_captions<'a>(captions: impl IntoIterator<Item = &'a str>) -> Self {
        Self::Words(Words::of(captions))
    }

    /// Number of tokens, with the marks.
    #[must_use]
    pub fn size(&self) -> i64 {
        match self {
            Self::Words(words) => words.size(),
            Self::Clip(clip) => clip.size(),
        }
    }

    /// The mark that ends a caption, and fills the rest.
    #[must_use]
    pub fn end(&self) -> i64 {
        match self {
            Self::Words(_) => Words::END,
            Self::Clip(clip) => clip.end(),
        }
    }

    /// The tokens of a caption, `length` of them; what is longer is cut, its end mark stays.
    #[must_use]
    pub fn encode(&self, caption: &str, length: i64) -> Vec<i64> {
        let (begin, inside) = match self {
            Self::Words(words) => (Words::BEGIN, words.encode(caption)),
            Self::Clip(clip) => (clip.begin(), clip.encode(caption)),
        };
        let inside = inside.into_iter().take(length.max(2) as usize - 2);
        let mut tokens: Vec<i64> = std::iter::once(begin).chain(inside).collect();
        tokens.resize(length as usize, self.end());
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

/// How a tokenizer stands in a manifest.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Stored {
    Words(Vec<String>),
    Clip {
        /// `a b`, one a line, in order of rank; the vocabulary follows from them.
        clip_merges: String,
    },
}

impl TryFrom<Stored> for Tokenizer {
    type Error = TokenizerError;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        Ok(match stored {
            Stored::Words(words) => Self::Words(Words::from_sorted(words)?),
            Stored::Clip { clip_merges } => Self::Clip(Clip::from_merges(clip_merges.lines())?),
        })
    }
}

impl From<Tokenizer> for Stored {
    fn from(tokenizer: Tokenizer) -> Self {
        match tokenizer {
            Tokenizer::Words(words) => Self::Words(words.into_list()),
            Tokenizer::Clip(clip) => Self::Clip {
                clip_merges: clip.merges(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
