//! A token a word.

use std::collections::BTreeSet;

use super::TokenizerError;

const UNKNOWN: i64 = 2;
const FIRST_WORD: i64 = 3;

/// Known words in alphabetical order, after three marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(Vec<String>);

impl Words {
    pub(super) const BEGIN: i64 = 0;
    /// End of the caption, and what fills the rest, as in CLIP.
    pub(super) const END: i64 = 1;

    pub(super) fn of<'a>(captions: impl IntoIterator<Item = &'a str>) -> Self {
        let words: BTreeSet<String> = captions.into_iter().flat_map(words).collect();
        Self(words.into_iter().collect())
    }

    /// Words in another order than the alphabetical could not be found.
    pub(super) fn from_sorted(words: Vec<String>) -> Result<Self, TokenizerError> {
        match words.windows(2).find(|pair| pair[0] >= pair[1]) {
            None => Ok(Self(words)),
            Some(pair) => Err(TokenizerError::Order {
                before: pair[0].clone(),
                word: pair[1].clone(),
            }),
        }
    }

    pub(super) fn into_list(self) -> Vec<String> {
        self.0
    }

    pub(super) fn size(&self) -> i64 {
        self.0.len() as i64 + FIRST_WORD
    }

    /// Without marks; a word that is not known has a mark of its own.
    pub(super) fn encode(&self, caption: &str) -> Vec<i64> {
        let known = |word: String| self.0.binary_search(&word).map_or(UNKNOWN, |i| i as i64 + FIRST_WORD);
        words(caption).map(known).collect()
    }
}

/// The words of a caption, in lower case.
pub(crate) fn words(caption: &str) -> impl Iterator<Item = String> {
    caption
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}
