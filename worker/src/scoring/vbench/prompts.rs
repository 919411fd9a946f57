//! The package's own list of prompts, what a run takes of it, and the names of the videos.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use search_spaces::vbench::Dimension;
use serde::{Deserialize, Serialize};

use super::VBenchError;

/// Videos of a prompt that the package looks at.
pub const MOST_VIDEOS: usize = 5;
/// Bytes of a file's name.
const LONGEST_NAME: usize = 255;

/// A prompt with the dimensions it is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The prompt.
    pub prompt_en: String,
    /// Names of dimensions.
    pub dimension: Vec<String>,
    /// What a dimension needs beside it, such as the object that must be seen.
    #[serde(flatten)]
    rest: serde_json::Map<String, serde_json::Value>,
}

/// What a run takes of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct Selection {
    /// The entries, each with those of its dimensions that it was taken for.
    pub entries: Vec<Entry>,
    /// Their prompts in order, each once: a few stand in two entries and share their videos.
    pub prompts: Vec<String>,
}

/// Reads the list.
///
/// # Errors
/// Where the file cannot be read or holds something else.
pub fn read(path: &Path) -> Result<Vec<Entry>, VBenchError> {
    let broken = |problem: String| VBenchError::File {
        path: path.to_owned(),
        problem,
    };
    let text = std::fs::read(path).map_err(|error| broken(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| broken(format!("is no list of prompts: {error}")))
}

/// The entries of these dimensions, at most `most` of each and then spread over all of them.
#[must_use]
pub fn select(list: &[Entry], dimensions: &[Dimension], most: usize) -> Selection {
    let mut taken: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for dimension in dimensions {
        let has = |entry: &Entry| entry.dimension.iter().any(|name| name == dimension.name());
        let all: Vec<usize> = (0..list.len()).filter(|i| has(&list[*i])).collect();
        let count = most.min(all.len());
        for i in (0..count).map(|i| all[i * all.len() / count]) {
            taken.entry(i).or_default().push(dimension.name().to_owned());
        }
    }
    let entries: Vec<Entry> = taken
        .into_iter()
        .map(|(i, dimension)| Entry {
            dimension,
            ..list[i].clone()
        })
        .collect();
    let mut seen = BTreeSet::new();
    let prompts = entries.iter().map(|entry| entry.prompt_en.clone());
    Selection {
        prompts: prompts.filter(|prompt| seen.insert(prompt.clone())).collect(),
        entries,
    }
}

/// The name that the package looks a video up by.
///
/// # Errors
/// Where it cannot be the name of a file.
pub fn video_name(prompt: &str, video: usize) -> Result<String, VBenchError> {
    let name = format!("{prompt}-{video}.mp4");
    let problem = if name.contains(['/', '\0']) {
        "holds a character that no file's name can".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!("has {} bytes, a file's name at most {LONGEST_NAME}", name.len())
    } else {
        return Ok(name);
    };
    Err(VBenchError::Name { name, problem })
}

/// Two prompts that differ in case alone, which a disk that takes no notice of case cannot tell apart.
#[must_use]
pub fn alike(prompts: &[String]) -> Option<(&str, &str)> {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    prompts
        .iter()
        .find_map(|prompt| Some((seen.insert(prompt.to_lowercase(), prompt)?, prompt.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use search_spaces::vbench::Dimension::{AppearanceStyle, Color, OverallConsistency, Scene};

    fn list() -> Vec<Entry> {
        let text = r#"[
            {"prompt_en": "a red car", "dimension": ["color"], "auxiliary_info": {"color": {"color": "red"}}},
            {"prompt_en": "The bund", "dimension": ["appearance_style"]},
            {"prompt_en": "The bund", "dimension": ["overall_consistency", "aesthetic_quality"]},
            {"prompt_en": "A fantasy", "dimension": ["overall_consistency"]},
            {"prompt_en": "a fantasy", "dimension": ["overall_consistency"]}
        ]"#;
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_prompt_in_two_entries_is_sampled_once() {
        let selection = select(&list(), &[AppearanceStyle, OverallConsistency], 100);
        assert_eq!(selection.entries.len(), 4);
        assert_eq!(selection.prompts, ["The bund", "A fantasy", "a fantasy"]);
        assert_eq!(
            selection.entries[1].dimension,
            ["overall_consistency"],
            "and not aesthetics"
        );
        assert_eq!(alike(&selection.prompts), Some(("A fantasy", "a fantasy")));
        assert_eq!(alike(&selection.prompts[..2]), None);
    }

    #[test]
    fn few_prompts_are_spread_and_keep_what_belongs_to_them() {
        let selection = select(&list(), &[Color, OverallConsistency, Scene], 1);
        assert_eq!(selection.prompts, ["a red car", "The bund"]);
        let written = serde_json::to_value(&selection.entries).unwrap();
        assert_eq!(written[0]["auxiliary_info"]["color"]["color"], "red");
    }

    #[test]
    fn names_are_the_packages_or_refused() {
        assert_eq!(video_name("a red car", 4).unwrap(), "a red car-4.mp4");
        let error = video_name("either/or", 0).unwrap_err().to_string();
        assert!(error.contains("`either/or-0.mp4` holds a character"), "{error}");
        let error = video_name(&"é".repeat(125), 0).unwrap_err().to_string();
        assert!(error.contains("has 256 bytes, a file's name at most 255"), "{error}");
        assert!(video_name(&"é".repeat(124), 0).is_ok());
    }
}
