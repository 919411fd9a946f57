//! Real captioned clips: animated emoji.
//!
//! The animations are those of the npm package `@lobehub/fluent-emoji-anim-1`, named by code point; names, groups and
//! subgroups come from CLDR through the npm package `emojibase-data`. `make data-emoji` fetches both. From them a
//! folder of captioned clips is made once, which [`super::clips`] reads.
//!
//! **Object**: the CLDR subgroup. Of the 27 subgroups with animations most hold one to eight designs, too few to learn
//! a class from and keep some apart; so near subgroups are joined until each class has ten or more ([`CLASSES`]). What
//! is left, 29 designs as different as flags, drinks and a ferris wheel, is not used.
//!
//! **Colour**: of people the skin tone, the five joined to three because neighbours differ less than the light on a
//! face, and yellow where the design has none; of all else the colour of most pixels.
//!
//! **Split**: by design, so that all skin tones of a design are on one side; about every fourth design of a class is
//! kept apart.

mod color;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::clips::{CAPTIONS, ClipFolder, read_clip};
use super::{Clip, ClipSource, DataError, FRAME_BYTES, FRAMES, Prompt, SIDE, Split, Vocabulary, default_cache};
use color::dominant;
use names::{Name, Tone, bare, read_names, tone};

/// Counts changes in what is made of the packages.
const VERSION: u32 = 1;
const PACKAGE: &str = "emoji-1.0.0";
const SOURCES: [&str; 2] = ["@lobehub/fluent-emoji-anim-1 1.0.0", "emojibase-data 17.0.0"];
/// Classes and the CLDR subgroups they hold.
const CLASSES: [(&str, &[&str]); 7] = [
    ("person", &["person", "person-role", "person-fantasy"]),
    ("activity", &["person-activity", "person-sport"]),
    ("family", &["family"]),
    (
        "hand",
        &[
            "hand-fingers-open",
            "hand-fingers-partial",
            "hand-single-finger",
            "hand-fingers-closed",
            "hands",
        ],
    ),
    ("mammal", &["animal-mammal"]),
    (
        "animal",
        &[
            "animal-bird",
            "animal-amphibian",
            "animal-reptile",
            "animal-marine",
            "animal-bug",
        ],
    ),
    ("sky", &["sky-weather"]),
];
/// Of so many designs of a class one is kept apart.
const HELD_OUT_EVERY: usize = 4;

/// The emoji dataset.
#[derive(Debug)]
pub struct Emoji(ClipFolder);

impl Emoji {
    /// Opens the clips, made on the first call from the packages under `cache` or, where they are not there, under
    /// [`default_cache`].
    ///
    /// # Errors
    /// Where the packages were not fetched or a file is damaged.
    pub fn open(cache: &Path) -> Result<Self, DataError> {
        let package = [cache.join(PACKAGE), default_cache().join(PACKAGE)]
            .into_iter()
            .find(|folder| folder.join("NOTICE").is_file())
            .ok_or_else(|| DataError::NotFetched {
                folder: cache.to_owned(),
                what: "the animated emoji",
                command: "make data-emoji",
            })?;
        let folder = package.with_file_name(format!("{PACKAGE}-clips-{VERSION}"));
        if !folder.join(CAPTIONS).exists() {
            make(&package, &folder)?;
        }
        let settings = serde_json::json!({ "emoji": SOURCES, "version": VERSION, "frames": FRAMES, "side": SIDE });
        Ok(Self(ClipFolder::known(&folder, settings)?))
    }
}

impl ClipSource for Emoji {
    fn settings(&self) -> serde_json::Value {
        self.0.settings()
    }

    fn vocabulary(&self) -> Vocabulary {
        self.0.vocabulary()
    }

    fn len(&self, split: Split) -> usize {
        self.0.len(split)
    }

    fn attributes(&self, split: Split, index: usize) -> Prompt {
        self.0.attributes(split, index)
    }

    fn clip(&self, split: Split, index: usize) -> Result<Clip, DataError> {
        self.0.clip(split, index)
    }

    fn prompts(&self, split: Split) -> Vec<Prompt> {
        self.0.prompts(split)
    }
}

/// An animation that belongs to a class.
#[derive(Debug)]
struct Animation {
    /// The file's name without its ending: code points.
    code: String,
    /// The code points without skin tones.
    design: String,
    name: String,
    class: usize,
    color: String,
}

/// Makes the folder of captioned clips; its list is written last, so an interrupted run goes on with the next clip.
fn make(package: &Path, folder: &Path) -> Result<(), DataError> {
    fs::create_dir_all(folder).map_err(DataError::file(folder))?;
    let lock = folder.join(".lock");
    let lock = fs::File::create(&lock).map_err(DataError::file(&lock))?;
    lock.lock().map_err(DataError::file(folder))?;
    let list = folder.join(CAPTIONS);
    if list.exists() {
        return Ok(()); // another process was faster
    }
    let names = read_names(package)?;
    let codes = animated(&package.join("clips"))?;
    let mut animations = Vec::new();
    for (i, code) in codes.iter().enumerate() {
        if let Some((class, name)) = class_of(code, &names) {
            let frames = frames_of(package, folder, code)?;
            animations.push(Animation {
                code: code.clone(),
                design: bare(code),
                name: name.label.clone(),
                class,
                color: color_of(code, name, &frames),
            });
        }
        if (i + 1).is_multiple_of(50) || i + 1 == codes.len() {
            tracing::info!(done = i + 1, of = codes.len(), "decoding animated emoji, once");
        }
    }
    let splits = splits(&animations);
    let lines: Vec<String> = animations.iter().map(|animation| line(animation, &splits)).collect();
    write_whole(&list, (lines.join("\n") + "\n").as_bytes())
}

/// Code points of the animations of a folder, in order.
fn animated(folder: &Path) -> Result<Vec<String>, DataError> {
    let mut codes = Vec::new();
    for entry in fs::read_dir(folder).map_err(DataError::file(folder))? {
        let path = entry.map_err(DataError::file(folder))?.path();
        let bytes = fs::read(&path).map_err(DataError::file(&path))?;
        // The extended header of WebP with its flag of animation.
        let moves = bytes.get(12..16) == Some(b"VP8X") && bytes.get(20).is_some_and(|flags| flags & 2 != 0);
        if let Some(stem) = path.file_stem().filter(|_| moves) {
            codes.push(stem.to_string_lossy().into_owned());
        }
    }
    codes.sort();
    Ok(codes)
}

fn class_of<'a>(code: &str, names: &'a BTreeMap<String, Name>) -> Option<(usize, &'a Name)> {
    let name = names.get(&bare(code))?;
    let class = CLASSES
        .iter()
        .position(|(_, subgroups)| subgroups.contains(&&*name.subgroup))?;
    Some((class, name))
}

fn color_of(code: &str, name: &Name, frames: &[u8]) -> String {
    match tone(code) {
        Some(Tone::Light) => "light".to_owned(),
        Some(Tone::Medium) => "medium".to_owned(),
        Some(Tone::Dark) => "dark".to_owned(),
        None if name.group == "people-body" => "yellow".to_owned(),
        None => dominant(frames).to_owned(),
    }
}

/// The frames of an animation, from the folder where they were written before.
fn frames_of(package: &Path, folder: &Path, code: &str) -> Result<Vec<u8>, DataError> {
    let kept = folder.join(code);
    if kept.is_dir() {
        return read_clip(&kept);
    }
    let frames = read_clip(&package.join("clips").join(format!("{code}.webp")))?;
    let partial = folder.join(format!(".{code}"));
    fs::create_dir_all(&partial).map_err(DataError::file(&partial))?;
    for (i, frame) in frames.chunks(FRAME_BYTES).enumerate() {
        let path = partial.join(format!("{i:02}.png"));
        let side = SIDE as u32;
        image::save_buffer(&path, frame, side, side, image::ExtendedColorType::Rgb8)
            .map_err(|error| DataError::content(path.display(), error.to_string()))?;
    }
    fs::rename(&partial, &kept).map_err(DataError::file(&kept))?;
    Ok(frames)
}

/// The split of each design: every fourth of a class is kept apart, unless nothing trained shows its colour.
fn splits(animations: &[Animation]) -> BTreeMap<&str, Split> {
    let mut splits: BTreeMap<&str, Split> = BTreeMap::new();
    for class in 0..CLASSES.len() {
        let of_class = animations.iter().filter(|animation| animation.class == class);
        let designs: BTreeSet<&str> = of_class.map(|animation| &*animation.design).collect();
        for (i, design) in designs.into_iter().enumerate() {
            let apart = i % HELD_OUT_EVERY == HELD_OUT_EVERY / 2;
            splits.insert(design, if apart { Split::HeldOut } else { Split::Train });
        }
    }
    let is_trained = |splits: &BTreeMap<&str, Split>, color: &str| {
        animations
            .iter()
            .any(|a| a.color == color && splits.get(&*a.design) == Some(&Split::Train))
    };
    for animation in animations {
        if !is_trained(&splits, &animation.color) {
            splits.insert(&animation.design, Split::Train);
        }
    }
    splits
}

fn line(animation: &Animation, splits: &BTreeMap<&str, Split>) -> String {
    let (class, color) = (CLASSES[animation.class].0, &animation.color);
    serde_json::json!({
        "file": animation.code,
        "caption": format!("a {color} {class}: {}", animation.name),
        "object": class,
        "color": color,
        "split": splits.get(&*animation.design).copied().unwrap_or(Split::Train),
    })
    .to_string()
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let partial: PathBuf = path.with_extension("partial");
    fs::write(&partial, bytes).map_err(DataError::file(&partial))?;
    fs::rename(&partial, path).map_err(DataError::file(path))
}
