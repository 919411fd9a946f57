//! What becomes of each file of a folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::assign::assign;
use super::index::{Clip, Content, Index, MadeBy, Shard, Skipped, Source};
use super::share::{add_file, hexadecimal, hold_or_wait, nanoseconds};
use super::{Encoders, Settings, ShardError, WORK};
use crate::data::DataError;
use crate::data::clips::Listing;
use crate::data::clips::footage::Footage;

/// The file of what was found when sources were looked through: a line each, the last of a file counts.
const SEEN: &str = "sources.jsonl";

/// Which clips a folder gives, in which shards, and what of it is left out. Equal folders, encoders and settings give
/// equal plans.
#[derive(Debug)]
pub struct Plan {
    /// An index that stores nothing yet.
    pub(super) index: Index,
    /// Of each source of the index.
    pub(super) footage: Vec<Footage>,
    pub(super) folder: PathBuf,
    pub(super) notes: PathBuf,
}

impl Plan {
    /// Looks through `folder`. What was seen of each file is kept in `notes`, so that it is looked through once;
    /// `progress` is told the share of files and says whether to go on.
    ///
    /// # Errors
    /// Where a setting is not allowed or too much for the encoders, the folder has no list of captions, or nothing in
    /// it can be used.
    pub fn of(
        folder: &Path,
        notes: &Path,
        encoders: &dyn Encoders,
        settings: &Settings,
        progress: &mut dyn FnMut(f64) -> Result<(), ShardError>,
    ) -> Result<Self, ShardError> {
        let mut index = Index::new(MadeBy::of(encoders, settings)?);
        let (taken, skipped) = look_through(folder, notes, settings, progress)?;
        if taken.is_empty() {
            let reasons = skipped.iter().map(|s| format!("{}: {}", s.file, s.reason)).collect();
            return Err(ShardError::NothingLeft {
                folder: folder.to_owned(),
                reasons,
            });
        }
        index.skipped = skipped;
        index.captions = taken.iter().map(|taken| taken.caption.clone()).collect();
        index.captions.push(String::new());
        index.captions.sort();
        index.captions.dedup();
        let mut footage = Vec::new();
        for (source, taken) in taken.into_iter().enumerate() {
            let caption = index.captions.binary_search(&taken.caption);
            let caption = caption.unwrap_or_default(); // every caption is among those it was made of
            let (bucket, frames) = (taken.bucket, settings.buckets[taken.bucket].frames);
            index.clips.extend((0..taken.clips(settings)).map(|clip| Clip {
                source,
                caption,
                bucket,
                start_frame: clip * u64::from(frames),
            }));
            index.sources.push(taken.source);
            footage.push(taken.footage);
        }
        index.clips.sort_by_key(|clip| clip.bucket); // stable: by source and time within
        index.shards = shards(&index);
        Ok(Self {
            index,
            footage,
            folder: folder.to_owned(),
            notes: notes.to_owned(),
        })
    }

    /// What will be made, as an index that stores nothing yet.
    #[must_use]
    pub const fn index(&self) -> &Index {
        &self.index
    }

    pub(super) const fn settings(&self) -> &Settings {
        &self.index.made_by.settings
    }

    /// Names it: the same for every index made by it, at every stage of the making.
    #[must_use]
    pub fn digest(&self) -> String {
        self.index.plan_digest()
    }
}

/// A file that clips are taken from.
struct Taken {
    bucket: usize,
    source: Source,
    footage: Footage,
    caption: String,
}

impl Taken {
    /// How many clips it gives.
    fn clips(&self, settings: &Settings) -> u64 {
        let size = settings.buckets[self.bucket];
        let clips = if size.is_still() {
            1
        } else {
            self.footage.frames(size.frame_rate_hz) / u64::from(size.frames)
        };
        settings.clips_per_file.map_or(clips, |most| clips.min(most))
    }
}

/// The files of a folder that have a bucket, and those that have none.
fn look_through(
    folder: &Path,
    notes: &Path,
    settings: &Settings,
    progress: &mut dyn FnMut(f64) -> Result<(), ShardError>,
) -> Result<(Vec<Taken>, Vec<Skipped>), ShardError> {
    let Listing { files, unusable } = Listing::of(folder)?;
    let mut skipped: Vec<Skipped> = unusable
        .into_iter()
        .map(|(file, reason)| Skipped { file, reason })
        .collect();
    // Processes that share the folder look through it one at a time: the second finds all that the first has seen.
    let _lock = hold_or_wait(notes, "plan", &mut || progress(0.0))?;
    let mut seen = Seen::open(notes)?;
    let mut taken = Vec::new();
    for (i, listed) in files.iter().enumerate() {
        progress(i as f64 / files.len() as f64)?;
        if listed.split.is_some_and(|split| split != settings.split) {
            continue;
        }
        let Sight { source, found, .. } = seen.look(folder, &listed.file)?;
        let assigned = match found {
            Found::Footage(footage) => assign(&listed.file, &footage, settings).map(|bucket| (bucket, footage)),
            Found::Problem(problem) => Err(problem),
        };
        match assigned {
            Ok((bucket, footage)) => taken.push(Taken {
                bucket,
                source,
                footage,
                caption: listed.caption.clone(),
            }),
            Err(reason) => skipped.push(Skipped {
                file: listed.file.clone(),
                reason,
            }),
        }
    }
    skipped.sort_by(|a, b| a.file.cmp(&b.file));
    Ok((taken, skipped))
}

/// Texts first, then latents by bucket, each as large as the settings allow.
fn shards(index: &Index) -> Vec<Shard> {
    let settings = &index.made_by.settings;
    let fitting = |numbers: i64| {
        let bytes = numbers.max(1) as u64 * settings.precision.bytes();
        usize::try_from(settings.shard_bytes / bytes)
            .unwrap_or(usize::MAX)
            .max(1)
    };
    let cut = |range: std::ops::Range<usize>, size: usize, content: Content| {
        range
            .clone()
            .step_by(size)
            .enumerate()
            .map(move |(number, first)| Shard {
                file: match content {
                    Content::Texts => format!("texts-{number:05}.safetensors"),
                    Content::Latents { bucket } => format!("latents-{bucket:02}-{number:05}.safetensors"),
                },
                content,
                first,
                count: size.min(range.end - first),
                stored: None,
            })
    };
    let texts = cut(
        0..index.captions.len(),
        fitting(index.made_by.text.numbers()),
        Content::Texts,
    );
    let latents = index
        .clips_by_bucket()
        .into_iter()
        .enumerate()
        .flat_map(|(bucket, clips)| {
            cut(
                clips,
                fitting(index.latent_shape(bucket).iter().product()),
                Content::Latents { bucket },
            )
        });
    texts.chain(latents).collect()
}

/// What was seen of the files of a folder; a file that has not changed since is not looked through again.
pub(super) struct Seen {
    path: PathBuf,
    sights: BTreeMap<String, Sight>,
}

/// What was seen of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sight {
    pub source: Source,
    modified_ns: Option<u64>,
    found: Found,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Found {
    Footage(Footage),
    Problem(String),
}

impl Seen {
    pub(super) fn open(notes: &Path) -> Result<Self, ShardError> {
        let path = notes.join(WORK).join(SEEN);
        let text = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(ShardError::file(&path)(error)),
        };
        // A killed process may have left half a line.
        let lines = text.split(|&byte| byte == b'\n');
        let sights = lines.filter_map(|line| serde_json::from_slice::<Sight>(line).ok());
        Ok(Self {
            path,
            sights: sights.map(|sight| (sight.source.file.clone(), sight)).collect(),
        })
    }

    /// Looks through a file, unless it is as it was when that was done before.
    pub(super) fn look(&mut self, folder: &Path, file: &str) -> Result<Sight, ShardError> {
        let path = folder.join(file);
        let stamp = Stamp::of(&path)?;
        if let Some(known) = self.sights.get(file)
            && known.source.bytes == stamp.bytes
            && known.modified_ns.is_some()
            && known.modified_ns == stamp.modified_ns
        {
            return Ok(known.clone());
        }
        let sight = Sight {
            source: Source {
                file: file.to_owned(),
                bytes: stamp.bytes,
                sha256: stamp.digest()?,
            },
            modified_ns: stamp.modified_ns,
            found: match Footage::probe(&path) {
                Ok(footage) => Found::Footage(footage),
                // What is no fault of the file is not remembered of it.
                Err(error) if error.is_passing() => return Err(error.into()),
                Err(DataError::Program { problem, .. }) => {
                    Found::Problem(format!("ffmpeg: {}", without_place(&problem, &path)))
                }
                Err(error) => Found::Problem(without_place(&error.to_string(), &path)),
            },
        };
        self.note(&sight)?;
        self.sights.insert(file.to_owned(), sight.clone());
        Ok(sight)
    }

    fn note(&self, sight: &Sight) -> Result<(), ShardError> {
        let failed = |error| ShardError::file(&self.path)(error);
        // It begins with an end of line, in case half a line stands before.
        let line = serde_json::to_string(sight).unwrap_or_default();
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .map_err(failed)?;
        file.write_all(format!("\n{line}\n").as_bytes()).map_err(failed)
    }
}

/// A reason without the paths of this machine: an index is the same wherever the folder lies.
fn without_place(reason: &str, path: &Path) -> String {
    reason
        .replace(&format!("{}: ", path.display()), "")
        .replace(&path.display().to_string(), "it")
}

/// Size and time of change of a file, or of all files of a folder of frames.
struct Stamp {
    files: Vec<PathBuf>,
    bytes: u64,
    modified_ns: Option<u64>,
}

impl Stamp {
    fn of(path: &Path) -> Result<Self, ShardError> {
        let mut files = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path).map_err(ShardError::file(path))? {
                let path = entry.map_err(ShardError::file(path))?.path();
                if path.is_file() {
                    files.push(path);
                }
            }
            files.sort();
        } else {
            files.push(path.to_owned());
        }
        let (mut bytes, mut modified_ns) = (0, Some(0));
        for file in &files {
            let metadata = std::fs::metadata(file).map_err(ShardError::file(file))?;
            bytes += metadata.len();
            modified_ns = modified_ns
                .zip(nanoseconds(&metadata))
                .map(|(one, other)| one.max(other));
        }
        Ok(Self {
            files,
            bytes,
            modified_ns,
        })
    }

    /// Of the bytes of a file; of names and bytes of several.
    fn digest(&self) -> Result<String, ShardError> {
        let mut digest = Sha256::new();
        for file in &self.files {
            if self.files.len() > 1 {
                digest.update(file.file_name().unwrap_or_default().as_encoded_bytes());
            }
            add_file(file, &mut digest)?;
        }
        Ok(hexadecimal(&digest.finalize()))
    }
}
