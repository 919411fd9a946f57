//! The list of clips in a folder: `captions.jsonl`, one JSON object a line.
//!
//! ```json
//! {"file": "runner.webp", "caption": "a red robot running", "object": "robot", "color": "red", "split": "train"}
//! ```
//!
//! `file` and `caption` must be there; `object`, `color`, `motion` and `split` may be.

use std::path::{Component, Path};

use serde_json::{Map, Value};

use super::decode::Media;
use crate::data::{DataError, Split};

/// The name of the list.
pub(crate) const CAPTIONS: &str = "captions.jsonl";
const FIELDS: [&str; 6] = ["file", "caption", "object", "color", "motion", "split"];
/// Bytes of a caption.
const LONGEST_CAPTION: usize = 500;
/// Problems that an error shows.
const SHOWN: usize = 20;

/// A line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// The clip, relative to the folder.
    pub file: String,
    pub caption: String,
    pub object: Option<String>,
    pub color: Option<String>,
    pub motion: Option<String>,
    pub split: Option<Split>,
}

/// What is wrong, by line and field.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<(usize, String)>);

impl Problems {
    pub(super) fn add(&mut self, line: usize, problem: impl std::fmt::Display) {
        self.0.push((line, problem.to_string()));
    }

    /// The number of each line with what is wrong with it.
    pub(super) fn by_line(self) -> Vec<(usize, String)> {
        self.0
    }

    /// `value`, or every problem at once.
    pub(super) fn or<T>(self, value: T, list: &Path) -> Result<T, DataError> {
        if self.0.is_empty() {
            return Ok(value);
        }
        let mut lines: Vec<String> = self
            .0
            .iter()
            .take(SHOWN)
            .map(|(line, problem)| format!("{}:{line}: {problem}", list.display()))
            .collect();
        if self.0.len() > SHOWN {
            lines.push(format!("and {} problems more", self.0.len() - SHOWN));
        }
        Err(DataError::Captions { problems: lines })
    }
}

/// Reads the lines of `folder`'s list and checks each; empty lines are passed over.
pub(super) fn read(folder: &Path) -> Result<Vec<Line>, DataError> {
    let (lines, problems) = read_what_can_be(folder)?;
    problems.or(lines, &folder.join(CAPTIONS))
}

/// Reads the lines that can be used, and says what is wrong with the others.
pub(super) fn read_what_can_be(folder: &Path) -> Result<(Vec<Line>, Problems), DataError> {
    let list = folder.join(CAPTIONS);
    let bytes = std::fs::read(&list).map_err(DataError::file(&list))?;
    let mut problems = Problems::default();
    let mut lines = Vec::new();
    for (i, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            lines.extend(read_line(folder, i + 1, line, &mut problems));
        }
    }
    if lines.is_empty() && problems.0.is_empty() {
        problems.add(1, "there is no line; at least one clip is needed");
    }
    Ok((lines, problems))
}

fn read_line(folder: &Path, number: usize, bytes: &[u8], problems: &mut Problems) -> Option<Line> {
    let fields = match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => fields,
        Ok(found) => {
            problems.add(
                number,
                format!("found {}; allowed: an object with `file` and `caption`", kind(&found)),
            );
            return None;
        }
        Err(error) => {
            problems.add(
                number,
                format!("no JSON: {error}; allowed: an object with `file` and `caption`"),
            );
            return None;
        }
    };
    let mut reader = Fields {
        fields: &fields,
        number,
        problems,
    };
    for unknown in fields.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
        reader.add(format!("`{unknown}` is no field; allowed: {}", FIELDS.join(", ")));
    }
    let file = reader.needed("file").filter(|file| reader.is_clip(folder, file));
    let caption = reader.needed("caption");
    let [object, color, motion] = ["object", "color", "motion"].map(|name| reader.text(name));
    let split = reader.split();
    Some(Line {
        number,
        file: file?,
        caption: caption?,
        object,
        color,
        motion,
        split,
    })
}

/// The fields of one line.
struct Fields<'a> {
    fields: &'a Map<String, Value>,
    number: usize,
    problems: &'a mut Problems,
}

impl Fields<'_> {
    fn add(&mut self, problem: String) {
        self.problems.add(self.number, problem);
    }

    fn needed(&mut self, name: &str) -> Option<String> {
        if !self.fields.contains_key(name) {
            self.add(format!("`{name}` is missing"));
        }
        self.text(name)
    }

    /// A field with at least one letter or digit.
    fn text(&mut self, name: &str) -> Option<String> {
        match self.fields.get(name)? {
            Value::String(text) if text.len() > LONGEST_CAPTION => {
                self.add(format!(
                    "`{name}` has {} bytes; allowed: at most {LONGEST_CAPTION}",
                    text.len()
                ));
                None
            }
            Value::String(text) if text.chars().any(char::is_alphanumeric) => Some(text.trim().to_owned()),
            found => {
                self.add(format!(
                    "`{name}` is {}; allowed: text with at least one word",
                    kind(found)
                ));
                None
            }
        }
    }

    fn split(&mut self) -> Option<Split> {
        match self.fields.get("split")? {
            Value::String(text) if text == "train" => Some(Split::Train),
            Value::String(text) if text == "held_out" => Some(Split::HeldOut),
            found => {
                self.add(format!("`split` is {}; allowed: \"train\", \"held_out\"", kind(found)));
                None
            }
        }
    }

    fn is_clip(&mut self, folder: &Path, file: &str) -> bool {
        let inside = Path::new(file)
            .components()
            .all(|part| matches!(part, Component::Normal(_)));
        let problem = if !inside {
            Some("allowed: a path below the folder".to_owned())
        } else if !folder.join(file).exists() {
            Some("which is not in the folder".to_owned())
        } else if Media::of(&folder.join(file)).is_none() {
            Some(format!("allowed: {}", Media::ALLOWED))
        } else {
            None
        };
        if let Some(problem) = &problem {
            self.add(format!("`file` is {file:?}; {problem}"));
        }
        problem.is_none()
    }
}

/// A value, shortened.
fn kind(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() > 60 {
        text.chars().take(60).chain("…".chars()).collect()
    } else {
        text
    }
}
