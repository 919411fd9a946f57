//! How names in published files differ from one another, as data.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::WeightsError;

/// What a file may call or shape differently.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    /// Runs of whole parts of a name, old and new, within names that hold `within`.
    renamed: &'static [(&'static str, &'static str)],
    /// Where old names and 1×1 convolutions instead of matrices are met.
    within: &'static str,
    /// Ends of names that are no weights.
    ignored: &'static [&'static str],
}

impl Layout {
    /// Exactly the model's names: the UNet of Stable Diffusion, and whatever this project saved.
    pub const PLAIN: Self = Self {
        renamed: &[],
        within: "",
        ignored: &[],
    };

    /// CLIP's text encoder. Old files hold the numbers of the positions too (spec section 1.2).
    pub const CLIP_TEXT: Self = Self {
        ignored: &["embeddings.position_ids"],
        ..Self::PLAIN
    };

    /// Both towers of CLIP; the temperature of its training stands beside them.
    pub const CLIP: Self = Self {
        ignored: &["embeddings.position_ids", "logit_scale"],
        ..Self::PLAIN
    };

    /// VAEs of diffusers and Open-Sora: the attention in the middle once had other names, and its matrices were
    /// 1×1 convolutions (spec section 1.2).
    pub const VAE: Self = Self {
        renamed: &[
            ("query", "to_q"),
            ("key", "to_k"),
            ("value", "to_v"),
            ("proj_attn", "to_out.0"),
        ],
        within: "mid_block.attentions.0.",
        ..Self::PLAIN
    };

    pub(super) fn ignores(&self, name: &str) -> bool {
        let ends = |end: &str| {
            name.strip_suffix(end)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.ignored.iter().any(|end| ends(end))
    }

    /// The name as published today.
    pub(super) fn published(&self, name: &str) -> String {
        let old = || {
            let at = name.find(self.within)? + self.within.len();
            let (before, after) = name.split_at(at);
            let (part, rest) = after.split_once('.')?;
            let (_, new) = self.renamed.iter().find(|(old, _)| *old == part)?;
            Some(format!("{before}{new}.{rest}"))
        };
        old().unwrap_or_else(|| name.to_owned())
    }

    /// Whether a matrix and a 1×1 convolution stand for each other.
    pub(super) fn same_numbers(&self, name: &str, found: &[i64], expected: &[i64]) -> bool {
        let matrix = |shape: &[i64]| match shape {
            [outputs, inputs] | [outputs, inputs, 1, 1] => Some((*outputs, *inputs)),
            _ => None,
        };
        !self.within.is_empty()
            && name.contains(self.within)
            && matrix(found).is_some()
            && matrix(found) == matrix(expected)
    }
}

/// What stands before the model's names in a file, such as `unet.`: empty unless more than half of the model's tensors
/// are found behind one beginning.
pub(super) fn common_prefix<'a>(
    path: &Path,
    names: impl Iterator<Item = &'a str>,
    expected: &BTreeMap<String, Vec<i64>>,
) -> Result<String, WeightsError> {
    let mut found: HashMap<&str, usize> = HashMap::new();
    for name in names {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(at, _)| at + 1));
        for at in starts.filter(|&at| expected.contains_key(&name[at..])) {
            *found.entry(&name[..at]).or_default() += 1;
        }
    }
    let mut likely: Vec<String> = found
        .into_iter()
        .filter(|(_, count)| 2 * count > expected.len())
        .map(|(prefix, _)| prefix.to_owned())
        .collect();
    likely.sort();
    if likely.len() > 1 {
        return Err(WeightsError::Ambiguous {
            path: path.to_owned(),
            found: likely,
        });
    }
    Ok(likely.pop().unwrap_or_default())
}

/// The candidate that takes the fewest edits of single characters, where that is at most half of the name.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a String>) -> Option<String> {
    let best = candidates.map(|candidate| (edits(name, candidate), candidate)).min()?;
    (2 * best.0 <= name.chars().count()).then(|| best.1.clone())
}

/// Insertions, deletions and replacements between two names (Levenshtein 1966).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        for (from, to, count) in [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("to_q", "to_k", 1),
        ] {
            assert_eq!(edits(from, to), count, "{from} {to}");
        }
    }

    #[test]
    fn old_names_of_the_middle_attention_are_renamed_and_no_others() {
        let layout = Layout::VAE;
        for (old, new) in [
            (
                "encoder.mid_block.attentions.0.query.weight",
                "encoder.mid_block.attentions.0.to_q.weight",
            ),
            (
                "decoder.mid_block.attentions.0.proj_attn.bias",
                "decoder.mid_block.attentions.0.to_out.0.bias",
            ),
            (
                "decoder.mid_block.attentions.0.to_out.0.bias",
                "decoder.mid_block.attentions.0.to_out.0.bias",
            ),
            (
                "decoder.mid_block.resnets.0.query.weight",
                "decoder.mid_block.resnets.0.query.weight",
            ),
        ] {
            assert_eq!(layout.published(old), new);
        }
        assert_eq!(Layout::PLAIN.published("query.weight"), "query.weight");
    }

    #[test]
    fn only_whole_parts_of_a_name_are_ignored() {
        assert!(Layout::CLIP_TEXT.ignores("text_model.embeddings.position_ids"));
        assert!(!Layout::CLIP_TEXT.ignores("text_model.other_embeddings.position_ids"));
        assert!(!Layout::PLAIN.ignores("text_model.embeddings.position_ids"));
    }
}
