//! Clips from files: animated WebP and GIF, folders of frames, and video through ffmpeg.
//!
//! Every picture is laid over [`BACKGROUND`]. [`read_clip`] fits it into the square without changing its proportions,
//! and of all pictures takes those that are seen at evenly spaced instants.

use std::fs::File;
use std::io::BufReader;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use image::codecs::{gif::GifDecoder, webp::WebPDecoder};
use image::imageops::{self, FilterType};
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageReader, Rgb, RgbImage, Rgba, RgbaImage};

use super::video;
use crate::data::{DataError, FRAMES, SIDE};

/// What transparent pixels show, and what surrounds a picture that is no square.
pub const BACKGROUND: [u8; 3] = [240, 240, 240];
/// Pictures of one clip.
pub(super) const MOST_PICTURES: usize = 4000;
/// Height and width of a picture in pixels.
const LARGEST: u32 = 4096;
/// A picture without a duration is shown as long as browsers show it.
const NO_DURATION_MS: u64 = 100;

/// How a clip is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Media {
    WebP,
    Gif,
    /// A folder of PNG or WebP files, in the order of their names.
    Frames,
    Video,
    /// One picture.
    Still,
}

impl Media {
    pub(super) const ALLOWED: &str =
        "animated .webp or .gif, a folder of .png or .webp frames, video (.mp4, .m4v, .mov, .mkv, .webm, .avi, .mpg)";

    /// How a file or folder is read.
    pub(super) fn named(path: &Path) -> Result<Self, DataError> {
        Self::of(path).ok_or_else(|| DataError::content(path.display(), format!("no clip; allowed: {}", Self::ALLOWED)))
    }

    pub(super) fn of(path: &Path) -> Option<Self> {
        if path.is_dir() {
            return Some(Self::Frames);
        }
        match extension(path).as_str() {
            "webp" => Some(Self::WebP),
            "gif" => Some(Self::Gif),
            "mp4" | "m4v" | "mov" | "mkv" | "webm" | "avi" | "mpg" => Some(Self::Video),
            "png" | "jpg" | "jpeg" => Some(Self::Still),
            _ => None,
        }
    }
}

fn extension(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

/// A picture of a clip.
#[derive(Debug)]
pub(super) struct Picture {
    pub shown_ms: u64,
    /// `SIDE × SIDE × 3` bytes.
    pub pixels: Vec<u8>,
}

/// Reads a clip.
///
/// # Shapes
/// - output: `FRAMES × SIDE × SIDE × 3` bytes
///
/// # Errors
/// Where the file is damaged, holds fewer than two pictures, or takes a program that is not there.
pub fn read_clip(path: &Path) -> Result<Vec<u8>, DataError> {
    let pictures = match Media::named(path)? {
        Media::Video => video::read(path, &video::program())?,
        media => fitted_pictures(path, media)?,
    };
    if pictures.len() < 2 {
        let problem = format!("holds {} pictures; a clip has at least 2", pictures.len());
        return Err(DataError::content(path.display(), problem));
    }
    Ok(evenly(&pictures))
}

fn fitted_pictures(path: &Path, media: Media) -> Result<Vec<Picture>, DataError> {
    let mut pictures = Vec::new();
    each_picture(path, media, &mut |shown_ms, picture| {
        pictures.push(Picture {
            shown_ms,
            pixels: fitted(picture),
        });
        few_enough(path, pictures.len())?;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(pictures)
}

/// What is done with each picture: how long it is shown in milliseconds, and the picture.
pub(super) type Visit<'a> = dyn FnMut(u64, &RgbaImage) -> Result<ControlFlow<()>, DataError> + 'a;

/// Decodes the pictures of anything but a video one after the other, until `visit` has seen enough.
pub(super) fn each_picture(path: &Path, media: Media, visit: &mut Visit<'_>) -> Result<(), DataError> {
    match media {
        Media::WebP => each_of_webp(path, visit),
        Media::Gif => each_of_gif(path, visit),
        Media::Frames => each_of_folder(path, visit),
        Media::Still => visit(NO_DURATION_MS, &read_picture(path)?).map(drop),
        Media::Video => Err(DataError::content(path.display(), "a video is read through ffmpeg")),
    }
}

/// Runs a decoder; one that panics over a damaged file has found it damaged.
pub(super) fn guarded<T>(path: &Path, decode: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    let gave_up = |_| Err(DataError::content(path.display(), "damaged: its decoder gave up"));
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(gave_up)
}

/// The pictures seen in the middle of each of `FRAMES` equal parts of the whole time.
fn evenly(pictures: &[Picture]) -> Vec<u8> {
    let whole: u64 = pictures.iter().map(|picture| picture.shown_ms).sum();
    let parts = 2 * FRAMES as u64;
    let (mut at, mut end) = (0, pictures[0].shown_ms);
    (0..FRAMES as u64)
        .flat_map(|i| {
            let instant = (2 * i + 1) * whole; // in units of 1 / parts
            while end * parts <= instant && at + 1 < pictures.len() {
                at += 1;
                end += pictures[at].shown_ms;
            }
            pictures[at].pixels.iter().copied()
        })
        .collect()
}

fn each_of_webp(path: &Path, visit: &mut Visit<'_>) -> Result<(), DataError> {
    let decoder = guarded(path, || {
        let mut decoder = WebPDecoder::new(open(path)?).map_err(damaged(path))?;
        decoder.set_limits(limits()).map_err(damaged(path))?;
        if decoder.has_animation() {
            // Without a colour the decoder leaves what a picture should clear before the next.
            decoder.set_background_color(Rgba([0; 4])).map_err(damaged(path))?;
        }
        Ok(decoder)
    })?;
    if decoder.has_animation() {
        each_of_animation(path, decoder, visit)
    } else {
        visit(NO_DURATION_MS, &read_picture(path)?).map(drop)
    }
}

fn each_of_gif(path: &Path, visit: &mut Visit<'_>) -> Result<(), DataError> {
    let decoder = guarded(path, || {
        let mut decoder = GifDecoder::new(open(path)?).map_err(damaged(path))?;
        decoder.set_limits(limits()).map_err(damaged(path))?;
        Ok(decoder)
    })?;
    each_of_animation(path, decoder, visit)
}

fn each_of_animation<'a>(
    path: &Path,
    decoder: impl AnimationDecoder<'a>,
    visit: &mut Visit<'_>,
) -> Result<(), DataError> {
    let mut frames = decoder.into_frames();
    while let Some(frame) = guarded(path, || frames.next().transpose().map_err(damaged(path)))? {
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        let shown_ms = match u64::from(numerator) / u64::from(denominator.max(1)) {
            0 => NO_DURATION_MS,
            shown => shown,
        };
        if visit(shown_ms, frame.buffer())?.is_break() {
            break;
        }
    }
    Ok(())
}

fn each_of_folder(folder: &Path, visit: &mut Visit<'_>) -> Result<(), DataError> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DataError::file(folder))? {
        let path = entry.map_err(DataError::file(folder))?.path();
        if matches!(extension(&path).as_str(), "png" | "webp") {
            files.push(path);
        }
    }
    files.sort();
    for path in &files {
        if visit(NO_DURATION_MS, &read_picture(path)?)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn read_picture(path: &Path) -> Result<RgbaImage, DataError> {
    let mut reader = ImageReader::new(open(path)?)
        .with_guessed_format()
        .map_err(DataError::file(path))?;
    reader.limits(limits());
    guarded(path, || {
        let mut decoder = reader.into_decoder().map_err(damaged(path))?;
        // Cameras note how they were held.
        let orientation = decoder.orientation().map_err(damaged(path))?;
        let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged(path))?;
        picture.apply_orientation(orientation);
        Ok(picture.into_rgba8())
    })
}

pub(super) fn few_enough(path: &Path, found: usize) -> Result<(), DataError> {
    if found > MOST_PICTURES {
        let problem = format!("holds more than {MOST_PICTURES} pictures, which is the most a clip may have");
        return Err(DataError::content(path.display(), problem));
    }
    Ok(())
}

fn open(path: &Path) -> Result<BufReader<File>, DataError> {
    Ok(BufReader::new(File::open(path).map_err(DataError::file(path))?))
}

fn limits() -> image::Limits {
    let mut limits = image::Limits::default();
    limits.max_image_width = Some(LARGEST);
    limits.max_image_height = Some(LARGEST);
    limits
}

fn damaged(path: &Path) -> impl FnOnce(image::ImageError) -> DataError {
    let path = path.display().to_string();
    move |error| DataError::content(path, error.to_string())
}

/// Over the background.
pub(super) fn opaque(picture: &RgbaImage) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let [red, green, blue, alpha] = picture.get_pixel(x, y).0;
        let over = |color: u8, behind: u8| {
            let sum = u32::from(color) * u32::from(alpha) + u32::from(behind) * (255 - u32::from(alpha));
            ((sum + 127) / 255) as u8
        };
        Rgb([
            over(red, BACKGROUND[0]),
            over(green, BACKGROUND[1]),
            over(blue, BACKGROUND[2]),
        ])
    })
}

/// Over the background, into the square.
fn fitted(picture: &RgbaImage) -> Vec<u8> {
    let (width, height) = picture.dimensions();
    let side = SIDE as u32;
    let longest = width.max(height).max(1);
    let scaled = |length: u32| ((u64::from(length) * u64::from(side)) / u64::from(longest)).max(1) as u32;
    let small = imageops::resize(&opaque(picture), scaled(width), scaled(height), FilterType::Triangle);
    if small.dimensions() == (side, side) {
        return small.into_raw();
    }
    let mut square = RgbImage::from_pixel(side, side, Rgb(BACKGROUND));
    let (left, top) = ((side - small.width()) / 2, (side - small.height()) / 2);
    imageops::replace(&mut square, &small, left.into(), top.into());
    square.into_raw()
}
