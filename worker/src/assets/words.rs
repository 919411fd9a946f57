//! Which words of the captions the text encoder and the evaluators know.

use std::collections::{BTreeMap, BTreeSet};

use crate::data::{Prompt, Vocabulary};
use crate::models::tokenizer::{Tokenizer, words};

/// Knows the names of what can be seen and every word of two captions that differ in more than colour.
///
/// The words of a single design stay unknown: they say nothing of designs kept apart, whose own words are unknown too.
/// So the mark of unknown words is trained where it will be needed.
pub(super) fn tokenizer(prompts: &[Prompt], vocabulary: &Vocabulary) -> Tokenizer {
    let Vocabulary {
        objects,
        colors,
        motions,
    } = vocabulary;
    let mut known: BTreeSet<String> = [objects, colors, motions]
        .into_iter()
        .flatten()
        .flat_map(|name| words(name))
        .collect();
    let mut seen_in: BTreeMap<String, BTreeSet<Vec<String>>> = BTreeMap::new();
    for prompt in prompts {
        let color: Vec<String> = colors
            .get(prompt.attributes.color)
            .into_iter()
            .flat_map(|name| words(name))
            .collect();
        let rest: Vec<String> = words(&prompt.caption).filter(|word| !color.contains(word)).collect();
        for word in &rest {
            seen_in.entry(word.clone()).or_default().insert(rest.clone());
        }
    }
    known.extend(
        seen_in
            .into_iter()
            .filter(|(_, captions)| captions.len() > 1)
            .map(|(word, _)| word),
    );
    Tokenizer::from_captions(known.iter().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Attributes;

    #[test]
    fn the_words_of_a_single_design_stay_unknown() {
        let vocabulary = Vocabulary {
            objects: vec!["mammal".to_owned(), "person".to_owned()],
            colors: vec!["dark".to_owned(), "gray".to_owned(), "light".to_owned()],
            motions: Vec::new(),
        };
        let prompt = |object, color, caption: &str| Prompt {
            caption: caption.to_owned(),
            attributes: Attributes {
                object,
                color,
                motion: None,
            },
        };
        let prompts = [
            prompt(1, 0, "a dark person: man astronaut"),
            prompt(1, 2, "a light person: man astronaut"),
            prompt(1, 2, "a light person: man farmer"),
            prompt(0, 1, "a gray mammal: wolf"),
        ];
        let found = tokenizer(&prompts, &vocabulary);
        let expected = Tokenizer::from_captions(["a man person mammal dark gray light"]);
        assert_eq!(found, expected);
    }
}
