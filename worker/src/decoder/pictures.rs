//! Clips and pictures in pixels: those that a dataset draws or holds, or a folder of footage of any size.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};
use tch::{Kind, Tensor};

use crate::data::clips::Listing;
use crate::data::clips::footage::{self, Footage};
use crate::data::{ClipSource, DataError, FRAME_BYTES, FRAMES, Split, frames_to_tensor, to_tensor};
use crate::models::vae::CHUNK_FRAMES;

/// Where no line of a folder names a split: one file of so many is kept apart.
const HELD_OUT_EVERY: usize = 10;

/// What a decoder is trained and measured on.
pub trait Pictures: std::fmt::Debug {
    /// What tells these from others.
    fn settings(&self) -> serde_json::Value;

    /// Number of clips of a split.
    fn clips(&self, split: Split) -> usize;

    /// A clip of 17 frames. Where there is a choice of frames, `rng` makes it; without one they are the first.
    ///
    /// # Shapes
    /// - output: `[1, 3, 17, h, w]` in −1..1, on the processor
    ///
    /// # Errors
    /// Where its file cannot be read.
    fn clip(&self, split: Split, index: usize, rng: Option<&mut ChaCha8Rng>) -> Result<Tensor, DataError>;

    /// One picture to train on, drawn by `rng`.
    ///
    /// # Shapes
    /// - output: `[1, 3, h, w]` in −1..1, on the processor
    ///
    /// # Errors
    /// Where its file cannot be read.
    fn picture(&self, rng: &mut ChaCha8Rng) -> Result<Tensor, DataError>;
}

/// The clips of a dataset; its pictures are their frames. What was read once stays in memory.
pub struct Dataset {
    source: Box<dyn ClipSource>,
    read: RefCell<HashMap<usize, Rc<Vec<u8>>>>,
}

impl Dataset {
    /// Reads clips when they are asked for.
    #[must_use]
    pub fn new(source: Box<dyn ClipSource>) -> Self {
        Self {
            source,
            read: RefCell::default(),
        }
    }

    fn trained(&self, index: usize) -> Result<Rc<Vec<u8>>, DataError> {
        if let Some(known) = self.read.borrow().get(&index) {
            return Ok(known.clone());
        }
        let frames = Rc::new(self.source.clip(Split::Train, index)?.frames);
        self.read.borrow_mut().insert(index, frames.clone());
        Ok(frames)
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dataset({})", self.source.settings())
    }
}

impl Pictures for Dataset {
    fn settings(&self) -> serde_json::Value {
        self.source.settings()
    }

    fn clips(&self, split: Split) -> usize {
        self.source.len(split)
    }

    fn clip(&self, split: Split, index: usize, _: Option<&mut ChaCha8Rng>) -> Result<Tensor, DataError> {
        Ok(match split {
            Split::Train => to_tensor(&[self.trained(index)?.as_slice()]),
            Split::HeldOut => to_tensor(&[self.source.clip(split, index)?.frames.as_slice()]),
        })
    }

    fn picture(&self, rng: &mut ChaCha8Rng) -> Result<Tensor, DataError> {
        let clip = self.trained(rng.random_range(0..self.clips(Split::Train).max(1)))?;
        let frame = rng.random_range(0..FRAMES);
        Ok(frames_to_tensor(&[&clip[frame * FRAME_BYTES..][..FRAME_BYTES]]))
    }
}

/// A folder of captioned clips and pictures, read at one size and frame rate. Videos that are too short for a clip are
/// left out; where there are no single pictures, frames of the videos stand for them.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    size: (u32, u32),
    frame_rate_hz: f64,
    train: Vec<Item>,
    held_out: Vec<Item>,
    stills: Vec<Item>,
    digest: String,
}

#[derive(Debug)]
struct Item {
    file: String,
    footage: Footage,
}

impl Folder {
    /// Looks through the folder's files once.
    ///
    /// # Errors
    /// Where it has no list, or gives no clip to train on or none to keep apart.
    pub fn open(path: &Path, size: [u32; 2], frame_rate_hz: f64) -> Result<Self, DataError> {
        let (mut train, mut held_out, mut stills) = (Vec::new(), Vec::new(), Vec::new());
        let mut digest = Sha256::new();
        for listed in Listing::of(path)?.files {
            let footage = Footage::probe(&path.join(&listed.file))?;
            let is_still = footage.pictures() == 1;
            if !is_still && footage.frames(frame_rate_hz) < CHUNK_FRAMES.unsigned_abs() {
                continue;
            }
            digest.update(format!("{} {footage:?}\n", listed.file));
            let item = Item {
                file: listed.file,
                footage,
            };
            let place = match (is_still, listed.split) {
                (true, Some(Split::HeldOut)) => continue,
                (true, _) => &mut stills,
                (false, Some(Split::HeldOut)) => &mut held_out,
                (false, None) if (train.len() + held_out.len()) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 => &mut held_out,
                (false, _) => &mut train,
            };
            place.push(item);
        }
        // A folder of few files keeps its last apart.
        if held_out.is_empty() && train.len() > 1 {
            held_out.extend(train.pop());
        }
        if train.is_empty() || held_out.is_empty() {
            let problem = format!(
                "gives {} clips of {CHUNK_FRAMES} frames at {frame_rate_hz} Hz to train on and {} to keep apart; \
                 allowed: at least one of each",
                train.len(),
                held_out.len()
            );
            return Err(DataError::content(path.display(), problem));
        }
        Ok(Self {
            path: path.to_owned(),
            size: (size[0], size[1]),
            frame_rate_hz,
            train,
            held_out,
            stills,
            digest: digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// `count` frames from a place that `rng` draws, as bytes, one after another.
    fn frames(&self, item: &Item, count: u64, rng: Option<&mut ChaCha8Rng>) -> Result<Vec<u8>, DataError> {
        let last = item.footage.frames(self.frame_rate_hz).saturating_sub(count);
        let first = rng.map_or(0, |rng| rng.random_range(0..=last));
        let wanted = item.footage.wanted(first, count, self.frame_rate_hz);
        let mut bytes = Vec::new();
        let path = self.path.join(&item.file);
        footage::read(&path, &item.footage, &wanted, self.size, &mut |pixels| {
            bytes.extend_from_slice(pixels);
            ControlFlow::Continue(())
        })?;
        Ok(bytes)
    }

    /// `[count, 3, h, w]`
    fn tensor(&self, bytes: &[u8]) -> Tensor {
        let (height, width) = (i64::from(self.size.0), i64::from(self.size.1));
        let pixels = Tensor::from_slice(bytes).reshape([-1, height, width, 3]);
        pixels.permute([0, 3, 1, 2]).to_kind(Kind::Float).contiguous() / 127.5 - 1.0
    }
}

impl Pictures for Folder {
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({ "folder": self.digest, "size": self.size, "frame_rate_hz": self.frame_rate_hz })
    }

    fn clips(&self, split: Split) -> usize {
        match split {
            Split::Train => self.train.len(),
            Split::HeldOut => self.held_out.len(),
        }
    }

    fn clip(&self, split: Split, index: usize, rng: Option<&mut ChaCha8Rng>) -> Result<Tensor, DataError> {
        let item = match split {
            Split::Train => &self.train[index],
            Split::HeldOut => &self.held_out[index],
        };
        let bytes = self.frames(item, CHUNK_FRAMES.unsigned_abs(), rng)?;
        Ok(self.tensor(&bytes).transpose(0, 1).unsqueeze(0).contiguous())
    }

    fn picture(&self, rng: &mut ChaCha8Rng) -> Result<Tensor, DataError> {
        let of = if self.stills.is_empty() {
            &self.train
        } else {
            &self.stills
        };
        let item = &of[rng.random_range(0..of.len())];
        let bytes = self.frames(item, 1, Some(rng))?;
        Ok(self.tensor(&bytes))
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;
    use crate::data::shapes::Shapes;
    use crate::decoder::tests::{FOOTAGE_HZ, footage};
    use crate::models::seeded::generator;

    #[test]
    fn a_folder_gives_clips_and_pictures_at_the_size_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        footage(folder, &[("a", 30), ("b", 17), ("short", 9)]);
        RgbImage::from_pixel(40, 40, image::Rgb([255; 3]))
            .save(folder.join("white.png"))
            .unwrap();
        let line = "{\"file\": \"white.png\", \"caption\": \"white\"}\n";
        let list = std::fs::read_to_string(folder.join("captions.jsonl")).unwrap();
        std::fs::write(folder.join("captions.jsonl"), list + line).unwrap();
        let found = Folder::open(folder, [8, 16], FOOTAGE_HZ).unwrap();
        assert_eq!((found.clips(Split::Train), found.clips(Split::HeldOut)), (1, 1));
        let clip = found.clip(Split::HeldOut, 0, None).unwrap();
        assert_eq!(clip.size(), [1, 3, 17, 8, 16]);
        let level = |frame: i64| (clip.double_value(&[0, 1, frame, 3, 3]) + 1.0) * 127.5;
        assert!((level(0) - 0.0).abs() < 1e-3 && (level(16) - 64.0).abs() < 1e-3);
        let mut rng = generator(1, 0);
        let starts: Vec<i64> = (0..20)
            .map(|_| {
                let clip = found.clip(Split::Train, 0, Some(&mut rng)).unwrap();
                ((clip.double_value(&[0, 0, 0, 0, 0]) + 1.0) * 127.5).round() as i64
            })
            .collect();
        assert!(starts.iter().any(|level| *level != starts[0]), "{starts:?}");
        let picture = found.picture(&mut rng).unwrap();
        assert_eq!(picture.size(), [1, 3, 8, 16]);
        assert_eq!(picture.double_value(&[0, 0, 0, 0]), 1.0, "the single picture is white");

        footage(folder, &[("short", 9)]);
        let error = Folder::open(folder, [8, 16], FOOTAGE_HZ).unwrap_err().to_string();
        assert!(error.contains("gives 0 clips of 17 frames at 10 Hz"), "{error}");
    }

    #[test]
    fn the_pictures_of_a_dataset_are_frames_of_its_clips() {
        let shapes = Shapes {
            clips_per_combination: 1,
            held_out_per_combination: 1,
            ..Shapes::default()
        };
        let found = Dataset::new(Box::new(shapes));
        let mut rng = generator(3, 0);
        let picture = found.picture(&mut rng).unwrap().squeeze_dim(0);
        let mut rng = generator(3, 0);
        let clip = rng.random_range(0..found.clips(Split::Train));
        let frame = rng.random_range(0..FRAMES) as i64;
        let clip = found.clip(Split::Train, clip, None).unwrap();
        assert_eq!(clip.get(0).select(1, frame), picture);
    }
}
