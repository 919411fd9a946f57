//! Names, groups and subgroups of emoji by code point, from the files of `emojibase-data`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::data::DataError;

/// What CLDR says of a design.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub label: String,
    pub group: String,
    pub subgroup: String,
}

/// Skin tones, neighbours of CLDR's five joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// Light and medium-light.
    Light,
    Medium,
    /// Medium-dark and dark.
    Dark,
}

#[derive(Deserialize)]
struct Entry {
    label: String,
    hexcode: String,
    group: Option<u32>,
    subgroup: Option<u32>,
}

#[derive(Deserialize)]
struct Groups {
    groups: BTreeMap<u32, String>,
    subgroups: BTreeMap<u32, String>,
}

/// The designs of a package's folder, by [`bare`] code points.
pub(super) fn read_names(package: &Path) -> Result<BTreeMap<String, Name>, DataError> {
    let entries: Vec<Entry> = read(&package.join("names.json"))?;
    let Groups { groups, subgroups } = read(&package.join("groups.json"))?;
    let named = entries.into_iter().filter_map(|entry| {
        let name = Name {
            group: groups.get(&entry.group?)?.clone(),
            subgroup: subgroups.get(&entry.subgroup?)?.clone(),
            label: entry.label,
        };
        Some((bare(&entry.hexcode), name))
    });
    Ok(named.collect())
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, DataError> {
    let bytes = fs::read(path).map_err(DataError::file(path))?;
    serde_json::from_slice(&bytes).map_err(|error| DataError::content(path.display(), error.to_string()))
}

/// Code points of a design: without skin tones and the sign that asks for a picture.
pub(super) fn bare(code: &str) -> String {
    let code = code.to_lowercase();
    let parts = code
        .split('-')
        .filter(|part| *part != "fe0f" && tone_of(part).is_none());
    parts.collect::<Vec<_>>().join("-")
}

/// The first skin tone among the code points.
pub(super) fn tone(code: &str) -> Option<Tone> {
    code.split('-').find_map(tone_of)
}

fn tone_of(part: &str) -> Option<Tone> {
    match part {
        "1f3fb" | "1f3fc" => Some(Tone::Light),
        "1f3fd" => Some(Tone::Medium),
        "1f3fe" | "1f3ff" => Some(Tone::Dark),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tones_and_the_picture_sign_are_no_part_of_a_design() {
        assert_eq!(bare("1f3c3-1f3fd-200d-2640-fe0f"), "1f3c3-200d-2640");
        assert_eq!(bare("1F44B"), "1f44b");
        assert_eq!(tone("1f3c3-1f3fd-200d-2640-fe0f"), Some(Tone::Medium));
        assert_eq!(tone("1f468-1f3ff"), Some(Tone::Dark));
        assert_eq!(tone("1f43b"), None);
    }
}
