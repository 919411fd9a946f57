//! What a folder holds for whoever takes what can be used and says what cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::captions::{CAPTIONS, read_what_can_be};
use super::decode::Media;
use crate::data::{DataError, Split};

/// A file with its caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Relative to the folder.
    pub file: String,
    /// What it shows.
    pub caption: String,
    /// Where its line names one.
    pub split: Option<Split>,
}

/// The clips and pictures of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// What can be used, in the order of the names.
    pub files: Vec<Listed>,
    /// Files, or lines of the list, that cannot be used, with the reason.
    pub unusable: Vec<(String, String)>,
}

impl Listing {
    /// Reads the folder's list, and looks for clips and pictures that it does not name.
    ///
    /// # Errors
    /// Where there is no list or the folder cannot be read.
    pub fn of(folder: &Path) -> Result<Self, DataError> {
        let (lines, problems) = read_what_can_be(folder)?;
        let mut unusable: Vec<(String, String)> = Vec::new();
        let mut files: BTreeMap<String, Listed> = BTreeMap::new();
        for line in lines {
            let name = format!("{CAPTIONS}:{}", line.number);
            match files.entry(line.file.clone()) {
                std::collections::btree_map::Entry::Vacant(place) => {
                    place.insert(Listed {
                        file: line.file,
                        caption: line.caption,
                        split: line.split,
                    });
                }
                std::collections::btree_map::Entry::Occupied(_) => {
                    unusable.push((name, format!("`file` is {:?}, which an earlier line names", line.file)));
                }
            }
        }
        for (number, problem) in problems.by_line() {
            unusable.push((format!("{CAPTIONS}:{number}"), problem));
        }
        let mut found = BTreeSet::new();
        walk(folder, "", &files, &mut found)?;
        unusable.extend(
            found
                .into_iter()
                .map(|file| (file, format!("no usable line of {CAPTIONS} names it"))),
        );
        Ok(Self {
            files: files.into_values().collect(),
            unusable,
        })
    }
}

/// Clips and pictures below `folder/below` that are not listed, nor in a listed folder of frames.
fn walk(
    folder: &Path,
    below: &str,
    listed: &BTreeMap<String, Listed>,
    found: &mut BTreeSet<String>,
) -> Result<(), DataError> {
    let here = folder.join(below);
    for entry in std::fs::read_dir(&here).map_err(DataError::file(&here))? {
        let entry = entry.map_err(DataError::file(&here))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = if below.is_empty() {
            name.clone()
        } else {
            format!("{below}/{name}")
        };
        if name.starts_with('.') || listed.contains_key(&file) {
            continue;
        }
        if entry.path().is_dir() {
            // A link may lead back to where it lies.
            if !entry.path().is_symlink() {
                walk(folder, &file, listed, found)?;
            }
        } else if Media::of(&entry.path()).is_some() {
            found.insert(file);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_a_circle_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("more")).unwrap();
        for file in ["a.gif", "more/b.gif"] {
            std::fs::write(folder.path().join(file), "GIF89a").unwrap();
        }
        for link in ["round", "and-round"] {
            std::os::unix::fs::symlink(folder.path(), folder.path().join("more").join(link)).unwrap();
        }
        std::fs::write(folder.path().join(CAPTIONS), r#"{"file": "a.gif", "caption": "a sea"}"#).unwrap();
        let listing = Listing::of(folder.path()).unwrap();
        assert_eq!(listing.files.len(), 1);
        let unusable: Vec<&str> = listing.unusable.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(unusable, ["more/b.gif"]);
    }
}
