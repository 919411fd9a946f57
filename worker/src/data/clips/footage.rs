//! Clips of any length, size and frame rate from anything that [`super::decode`] and ffmpeg read, one picture at a
//! time.

use std::ops::ControlFlow;
use std::path::Path;

use image::RgbaImage;
use image::imageops::{self, FilterType};
use serde::{Deserialize, Serialize};

use super::decode::{Media, each_picture, opaque};
use super::video;
use crate::data::DataError;

/// Longest edge of a picture in pixels that is read as footage.
const LARGEST: u32 = 16_384;
/// Most that one edge may be of the other: what covers a frame with a strip is as much longer than the frame.
const LONGEST: u32 = 32;

/// Size of what a file shows and how long it shows each picture, without its pixels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footage {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Unit of the runs in seconds, as numerator and denominator.
    tick: (u32, u32),
    /// Pictures that follow each other and are shown equally long: how many, how long in ticks.
    runs: Vec<(u64, u64)>,
}

impl Footage {
    pub(crate) const fn new(width: u32, height: u32, tick: (u32, u32)) -> Self {
        Self {
            width,
            height,
            tick,
            runs: Vec::new(),
        }
    }

    /// Adds a picture.
    pub(crate) fn push(&mut self, ticks: u64) {
        match self.runs.last_mut() {
            Some((count, shown)) if *shown == ticks => *count += 1,
            _ => self.runs.push((1, ticks)),
        }
    }

    /// Looks through a file or folder of frames once.
    ///
    /// # Errors
    /// Where it cannot be read to its end, or is no clip or picture.
    pub fn probe(path: &Path) -> Result<Self, DataError> {
        let media = Media::named(path)?;
        let footage = if media == Media::Video {
            video::probe(path, &video::program())?
        } else {
            let mut footage = Self::new(0, 0, (1, 1000));
            each_picture(path, media, &mut |shown_ms, picture| {
                let size = picture.dimensions();
                check_size(path, size)?;
                if footage.runs.is_empty() {
                    (footage.width, footage.height) = size;
                }
                footage.push(shown_ms);
                Ok(ControlFlow::Continue(()))
            })?;
            footage
        };
        if footage.pictures() == 0 {
            return Err(DataError::content(path.display(), "holds no picture"));
        }
        check_size(path, (footage.width, footage.height))?;
        Ok(footage)
    }

    /// Number of pictures.
    #[must_use]
    pub fn pictures(&self) -> u64 {
        self.runs.iter().map(|(count, _)| count).sum()
    }

    /// Length in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        // As `f64`: the times of a damaged file may be of any size.
        let ticks: f64 = self
            .runs
            .iter()
            .map(|&(count, ticks)| count as f64 * ticks as f64)
            .sum();
        ticks * self.tick_seconds()
    }

    /// Frames that it gives at a frame rate.
    #[must_use]
    pub fn frames(&self, frame_rate_hz: f64) -> u64 {
        // A picture's share less than a thousandth is rounding of the file's clock.
        (self.seconds() * frame_rate_hz + 1e-3) as u64
    }

    /// Pictures a second, on average.
    #[must_use]
    pub fn rate_hz(&self) -> f64 {
        self.pictures() as f64 / self.seconds()
    }

    /// The picture seen in the middle of each of the frames `first..first + count` at a frame rate.
    #[must_use]
    pub fn wanted(&self, first: u64, count: u64, frame_rate_hz: f64) -> Vec<usize> {
        let last = self.pictures().saturating_sub(1) as usize;
        let mut runs = self.runs.iter();
        let (mut picture, mut begins) = (0, 0.0); // of the run at hand
        let mut run = runs.next().copied().unwrap_or((1, 1));
        (first..first + count)
            .map(|frame| {
                let instant = (frame as f64 + 0.5) / frame_rate_hz;
                loop {
                    let (pictures, shown) = (run.0, run.1 as f64 * self.tick_seconds());
                    let ends = begins + pictures as f64 * shown;
                    if instant < ends {
                        let within = ((instant - begins) / shown) as u64;
                        return (picture + within.min(pictures - 1)) as usize;
                    }
                    let Some(next) = runs.next() else { return last };
                    (picture, begins, run) = (picture + pictures, ends, *next);
                }
            })
            .collect()
    }

    fn tick_seconds(&self) -> f64 {
        f64::from(self.tick.0) / f64::from(self.tick.1)
    }
}

/// Looks whether a picture can be scaled to cover a frame in sensible memory.
fn check_size(path: &Path, (width, height): (u32, u32)) -> Result<(), DataError> {
    let (long, short) = (width.max(height), width.min(height));
    if long <= LARGEST && long <= LONGEST.saturating_mul(short) {
        return Ok(());
    }
    let problem = format!(
        "holds a picture of {width}x{height} pixels; allowed: at most {LARGEST}, and at most {LONGEST} times as long \
         as wide"
    );
    Err(DataError::content(path.display(), problem))
}

/// How a picture fills a frame: scaled until it covers it, and what stands out cut off evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cover {
    /// Height and width after scaling.
    pub scaled: (u32, u32),
    pub height: u32,
    pub width: u32,
    pub top: u32,
    pub left: u32,
}

impl Cover {
    pub(super) fn new((from_height, from_width): (u32, u32), (height, width): (u32, u32)) -> Self {
        let (h, w) = (u64::from(from_height.max(1)), u64::from(from_width.max(1)));
        let (to_h, to_w) = (u64::from(height), u64::from(width));
        // Rounded to the nearest, and never below what must be covered.
        let scaled = if to_h * w >= to_w * h {
            (to_h, ((w * to_h + h / 2) / h).max(to_w))
        } else {
            (((h * to_w + w / 2) / w).max(to_h), to_w)
        };
        let scaled = (scaled.0 as u32, scaled.1 as u32);
        Self {
            scaled,
            height,
            width,
            top: (scaled.0 - height) / 2,
            left: (scaled.1 - width) / 2,
        }
    }

    fn apply(&self, picture: &RgbaImage) -> Vec<u8> {
        let picture = opaque(picture);
        let (height, width) = self.scaled;
        let scaled = if picture.dimensions() == (width, height) {
            picture
        } else {
            imageops::resize(&picture, width, height, FilterType::Triangle)
        };
        imageops::crop_imm(&scaled, self.left, self.top, self.width, self.height)
            .to_image()
            .into_raw()
    }
}

/// Reads frames of a file in one pass, holding one at a time, until `take` breaks off.
///
/// # Shapes
/// - `wanted`: numbers of pictures, none lower than the one before it; `take` gets each in turn, as
///   `height × width × 3` bytes
///
/// # Errors
/// Where the file does not hold the pictures that it held when it was probed.
pub fn read(
    path: &Path,
    footage: &Footage,
    wanted: &[usize],
    (height, width): (u32, u32),
    take: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<(), DataError> {
    let (Some(&first), Some(&last)) = (wanted.first(), wanted.last()) else {
        return Ok(());
    };
    let mut left = wanted;
    // The next picture of the file goes out as often as it is wanted.
    let mut hand_out = |number: usize, pixels: &mut dyn FnMut() -> Vec<u8>| {
        let times = left.iter().take_while(|&&wanted| wanted == number).count();
        if times > 0 {
            let pixels = pixels();
            left = &left[times..];
            if (0..times).any(|_| take(&pixels).is_break()) {
                left = &[];
            }
        }
        if left.is_empty() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let media = Media::named(path)?;
    let mut number = 0;
    if media == Media::Video {
        number = first;
        let cover = Cover::new((footage.height, footage.width), (height, width));
        video::stream(path, &video::program(), (first, last), &cover, &mut |pixels| {
            let flow = hand_out(number, &mut || pixels.to_vec());
            number += 1;
            flow
        })?;
    } else {
        each_picture(path, media, &mut |_, picture| {
            // Those of a folder may be of several sizes.
            let (from_width, from_height) = picture.dimensions();
            let cover = Cover::new((from_height, from_width), (height, width));
            let flow = hand_out(number, &mut || cover.apply(picture));
            number += 1;
            Ok(flow)
        })?;
    }
    if left.is_empty() {
        return Ok(());
    }
    let problem = format!("holds {number} pictures where it held {}", footage.pictures());
    Err(DataError::content(path.display(), problem))
}

#[cfg(test)]
mod tests {
    use image::Rgba;

    use super::*;

    fn footage(shown_ms: &[u64]) -> Footage {
        let mut footage = Footage::new(8, 8, (1, 1000));
        for &shown in shown_ms {
            footage.push(shown);
        }
        footage
    }

    #[test]
    fn frames_show_what_is_seen_in_their_middle() {
        let even = footage(&[40; 100]);
        assert_eq!((even.pictures(), even.frames(25.0), even.frames(24.0)), (100, 100, 96));
        assert_eq!(even.wanted(0, 4, 25.0), [0, 1, 2, 3]);
        // Half the rate: the middle of 80 ms lies where the next picture begins.
        assert_eq!(even.wanted(0, 4, 12.5), [1, 3, 5, 7]);
        // Twice the rate: each twice.
        assert_eq!(even.wanted(3, 4, 50.0), [1, 2, 2, 3]);
        assert_eq!(even.wanted(90, 10, 25.0), (90..100).collect::<Vec<_>>());
        let uneven = footage(&[100, 300, 100]);
        assert_eq!(uneven.wanted(0, 5, 10.0), [0, 1, 1, 1, 2]);
        assert_eq!(uneven.wanted(0, 6, 10.0)[5], 2, "the last stays");
    }

    #[test]
    fn times_of_any_size_are_only_too_long() {
        let endless = footage(&[u64::MAX, 40, u64::MAX]);
        assert!(endless.seconds() > 1e16 && endless.rate_hz() < 1e-12);
        assert_eq!(endless.wanted(0, 2, 25.0), [0, 0]);
        assert!(footage(&[0, 0]).rate_hz().is_infinite());
    }

    /// A folder may hold pictures of several sizes: none is distorted.
    #[test]
    fn each_picture_of_a_folder_is_covered_by_its_own_size() {
        let folder = tempfile::tempdir().unwrap();
        let square = RgbaImage::from_pixel(8, 8, Rgba([255; 4]));
        let wide = RgbaImage::from_fn(16, 8, |x, _| {
            let level = if (4..12).contains(&x) { 255 } else { 0 };
            Rgba([level, level, level, 255])
        });
        square.save(folder.path().join("0.png")).unwrap();
        wide.save(folder.path().join("1.png")).unwrap();
        let footage = Footage::probe(folder.path()).unwrap();
        assert_eq!((footage.width, footage.height, footage.pictures()), (8, 8, 2));
        let mut frames = Vec::new();
        read(folder.path(), &footage, &[0, 1], (8, 8), &mut |frame| {
            frames.push(frame.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        assert!(frames.len() == 2 && frames.concat().iter().all(|&level| level == 255));
    }

    #[test]
    fn strips_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.png");
        for (width, height, fits) in [(96, 3, true), (97, 3, false), (1, 33, false)] {
            RgbaImage::from_pixel(width, height, Rgba([9; 4])).save(&path).unwrap();
            for found in [Footage::probe(&path), Footage::probe(folder.path())] {
                match found {
                    Ok(_) => assert!(fits, "{width}x{height}"),
                    Err(error) => {
                        let said = format!("holds a picture of {width}x{height} pixels; allowed: at most 16384");
                        assert!(!fits && error.to_string().contains(&said), "{error}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_frame_is_covered_and_cut_evenly() {
        let cover = |from, to| {
            let Cover { scaled, top, left, .. } = Cover::new(from, to);
            (scaled, top, left)
        };
        assert_eq!(cover((720, 1280), (64, 64)), ((64, 114), 0, 25));
        assert_eq!(cover((1280, 720), (64, 64)), ((114, 64), 25, 0));
        assert_eq!(cover((64, 64), (64, 64)), ((64, 64), 0, 0));
        assert_eq!(cover((10, 10), (32, 64)), ((64, 64), 16, 0));
        let (wide, mut picture) = (
            Cover::new((4, 8), (4, 4)),
            RgbaImage::from_pixel(8, 4, Rgba([9, 9, 9, 255])),
        );
        picture.put_pixel(2, 0, Rgba([70, 0, 0, 255]));
        assert_eq!(wide.apply(&picture)[..3], [70, 0, 0]);
    }
}
