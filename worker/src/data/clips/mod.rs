//! Any folder of captioned clips.
//!
//! The clips are animated WebP or GIF, folders of frames, or video (and single pictures, where [`footage`] is read); what they show stands in `captions.jsonl` (see
//! [`captions`]). Names of objects, colours and motions are those that occur there. Where no line names a split, every
//! fifth caption is kept apart.

mod captions;
mod decode;
pub mod footage;
mod listing;
#[cfg(test)]
pub(crate) mod tests;
mod video;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{Attributes, Clip, ClipSource, DataError, FRAMES, Prompt, SIDE, Split, Vocabulary};
pub(crate) use captions::CAPTIONS;
use captions::{Line, Problems};
use decode::Media;
pub use decode::{BACKGROUND, read_clip};
pub use listing::{Listed, Listing};
pub(crate) use video::program as ffmpeg;

/// The name of an object or colour that a line leaves out.
const UNNAMED: &str = "unnamed";
/// Where no line names a split: one caption of so many is kept apart.
const HELD_OUT_EVERY: usize = 5;

/// A folder of captioned clips.
#[derive(Debug)]
pub struct ClipFolder {
    train: Vec<Entry>,
    held_out: Vec<Entry>,
    vocabulary: Vocabulary,
    settings: serde_json::Value,
}

#[derive(Debug)]
struct Entry {
    path: PathBuf,
    prompt: Prompt,
}

impl ClipFolder {
    /// Reads the folder's list and the digest of its files; clips are decoded when they are asked for.
    ///
    /// # Errors
    /// Where a line is wrong (all such lines are named at once), a file cannot be read, or a split is empty.
    pub fn open(folder: &Path) -> Result<Self, DataError> {
        let lines = captions::read(folder)?;
        let mut digest = Sha256::new();
        for line in &lines {
            add_files(&folder.join(&line.file), &mut digest)?;
        }
        let list = folder.join(CAPTIONS);
        digest.update(std::fs::read(&list).map_err(DataError::file(&list))?);
        let digest: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Self::of_lines(
            folder,
            &lines,
            serde_json::json!({ "clips": digest, "frames": FRAMES, "side": SIDE }),
        )
    }

    /// The folder with settings that identify its clips, without reading them.
    pub(super) fn known(folder: &Path, settings: serde_json::Value) -> Result<Self, DataError> {
        Self::of_lines(folder, &captions::read(folder)?, settings)
    }

    fn of_lines(folder: &Path, lines: &[Line], settings: serde_json::Value) -> Result<Self, DataError> {
        let list = folder.join(CAPTIONS);
        let mut problems = Problems::default();
        for line in lines {
            if Media::of(&folder.join(&line.file)) == Some(Media::Still) {
                problems.add(
                    line.number,
                    format!("`file` is {:?}, one picture; allowed: {}", line.file, Media::ALLOWED),
                );
            }
        }
        let splits = splits(lines, &mut problems);
        check_splits(lines, &splits, &mut problems);
        let splits = problems.or(splits, &list)?;
        let vocabulary = vocabulary(lines);
        let (mut train, mut held_out) = (Vec::new(), Vec::new());
        for (line, split) in lines.iter().zip(splits) {
            let entry = Entry {
                path: folder.join(&line.file),
                prompt: prompt(line, &vocabulary),
            };
            match split {
                Split::Train => train.push(entry),
                Split::HeldOut => held_out.push(entry),
            }
        }
        Ok(Self {
            train,
            held_out,
            vocabulary,
            settings,
        })
    }

    fn entries(&self, split: Split) -> &[Entry] {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }
}

impl ClipSource for ClipFolder {
    fn settings(&self) -> serde_json::Value {
        self.settings.clone()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.vocabulary.clone()
    }

    fn len(&self, split: Split) -> usize {
        self.entries(split).len()
    }

    fn attributes(&self, split: Split, index: usize) -> Prompt {
        self.entries(split)[index].prompt.clone()
    }

    fn clip(&self, split: Split, index: usize) -> Result<Clip, DataError> {
        let entry = &self.entries(split)[index];
        Ok(Clip {
            prompt: entry.prompt.clone(),
            frames: read_clip(&entry.path)?,
        })
    }

    fn prompts(&self, split: Split) -> Vec<Prompt> {
        let mut seen = BTreeSet::new();
        let first = self
            .entries(split)
            .iter()
            .filter(|entry| seen.insert(&entry.prompt.caption));
        first.map(|entry| entry.prompt.clone()).collect()
    }
}

fn object(line: &Line) -> &str {
    line.object.as_deref().unwrap_or(UNNAMED)
}

fn color(line: &Line) -> &str {
    line.color.as_deref().unwrap_or(UNNAMED)
}

fn vocabulary(lines: &[Line]) -> Vocabulary {
    fn names<'a>(found: impl Iterator<Item = &'a str>) -> Vec<String> {
        let names: BTreeSet<&str> = found.collect();
        names.into_iter().map(str::to_owned).collect()
    }
    Vocabulary {
        objects: names(lines.iter().map(object)),
        colors: names(lines.iter().map(color)),
        motions: names(lines.iter().filter_map(|line| line.motion.as_deref())),
    }
}

fn prompt(line: &Line, vocabulary: &Vocabulary) -> Prompt {
    // Every name of a line is in the vocabulary made of the lines.
    let index = |names: &[String], name: &str| names.iter().position(|known| known == name).unwrap_or_default();
    Prompt {
        caption: line.caption.clone(),
        attributes: Attributes {
            object: index(&vocabulary.objects, object(line)),
            color: index(&vocabulary.colors, color(line)),
            motion: line.motion.as_deref().map(|motion| index(&vocabulary.motions, motion)),
        },
    }
}

/// The split of each line: as named, or every fifth caption that shows nothing new.
fn splits(lines: &[Line], problems: &mut Problems) -> Vec<Split> {
    if let Some(named) = lines.iter().find(|line| line.split.is_some()) {
        for line in lines.iter().filter(|line| line.split.is_none()) {
            let problem = format!(
                "`split` is missing; line {} names it, then every line must",
                named.number
            );
            problems.add(line.number, problem);
        }
        return lines.iter().map(|line| line.split.unwrap_or(Split::Train)).collect();
    }
    let mut seen = BTreeSet::new();
    let captions = lines
        .iter()
        .map(|line| &*line.caption)
        .filter(|caption| seen.insert(*caption));
    let apart: BTreeSet<&str> = captions.skip(HELD_OUT_EVERY - 1).step_by(HELD_OUT_EVERY).collect();
    let is_apart = |line: &&Line| apart.contains(&*line.caption);
    let trained =
        |name: fn(&Line) -> &str| -> BTreeSet<&str> { lines.iter().filter(|line| !is_apart(line)).map(name).collect() };
    let (objects, colors) = (trained(object), trained(color));
    lines
        .iter()
        .map(|line| {
            if is_apart(&line) && objects.contains(object(line)) && colors.contains(color(line)) {
                Split::HeldOut
            } else {
                Split::Train
            }
        })
        .collect()
}

/// Both splits hold clips, no caption is in both, and what is kept apart has a trained object and colour.
fn check_splits(lines: &[Line], splits: &[Split], problems: &mut Problems) {
    let of = |wanted: Split| {
        lines
            .iter()
            .zip(splits)
            .filter(move |(_, split)| **split == wanted)
            .map(|(line, _)| line)
    };
    for (split, name) in [(Split::Train, "train"), (Split::HeldOut, "held_out")] {
        if of(split).next().is_none() {
            let problem = format!("no line is in the split \"{name}\"; name it with `split`, or add captions");
            problems.add(lines.last().map_or(1, |line| line.number), problem);
        }
    }
    let names = |name: fn(&Line) -> &str| -> BTreeSet<&str> { of(Split::Train).map(name).collect() };
    let (objects, colors, captions) = (names(object), names(color), names(|line| &line.caption));
    let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
    for line in of(Split::HeldOut) {
        for (field, found, trained) in [("object", object(line), &objects), ("color", color(line), &colors)] {
            if !trained.contains(found) {
                let allowed = format!("allowed in a held-out line: {}, which are trained", list(trained));
                problems.add(line.number, format!("`{field}` is {found:?}; {allowed}"));
            }
        }
        if captions.contains(&*line.caption) {
            let problem = format!(
                "`caption` is {:?}, which is trained; a held-out one is not",
                line.caption
            );
            problems.add(line.number, problem);
        }
    }
}

/// Adds the bytes of a clip, or of all files of its folder with their names.
fn add_files(path: &Path, digest: &mut Sha256) -> Result<(), DataError> {
    if !path.is_dir() {
        let bytes = std::fs::read(path).map_err(DataError::file(path))?;
        digest.update(Sha256::digest(bytes));
        return Ok(());
    }
    let entries = std::fs::read_dir(path).map_err(DataError::file(path))?;
    let entries: Result<Vec<_>, _> = entries.collect();
    let mut entries = entries.map_err(DataError::file(path))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries.iter().filter(|entry| entry.path().is_file()) {
        digest.update(entry.file_name().as_encoded_bytes());
        add_files(&entry.path(), digest)?;
    }
    Ok(())
}
