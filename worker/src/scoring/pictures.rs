//! Sampled clips as files: an animation, and a sheet with one clip a row.

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, ExtendedColorType, Frame, ImageEncoder, RgbImage, codecs::png::PngEncoder};
use tch::Tensor;

use super::ScoringError;
use crate::data::to_bytes;

/// Milliseconds of a frame.
const DELAY: u32 = 80;
/// Pixels between clips.
const GAP: u32 = 2;
/// Frames of a clip on a sheet.
const SHEET_FRAMES: i64 = 9;

/// A GIF with the clips side by side in `columns` columns.
///
/// # Shapes
/// - `clips`: `[n, 3, t, h, w]` in −1..1
///
/// # Errors
/// Where the encoder fails.
pub fn animation(clips: &Tensor, columns: u32) -> Result<Vec<u8>, ScoringError> {
    let (count, frames) = (clips.size()[0] as u32, clips.size()[2]);
    let mut file = Vec::new();
    {
        let mut encoder = GifEncoder::new_with_speed(&mut file, 10);
        encoder.set_repeat(Repeat::Infinite)?;
        for at in 0..frames {
            let pictures: Vec<Tensor> = (0..count).map(|i| clips.get(i64::from(i)).narrow(1, at, 1)).collect();
            let picture = image::DynamicImage::from(grid(&pictures, columns)).into_rgba8();
            encoder.encode_frame(Frame::from_parts(picture, 0, 0, Delay::from_numer_denom_ms(DELAY, 1)))?;
        }
    }
    Ok(file)
}

/// A PNG with one clip a row, nine of its frames from first to last.
///
/// # Shapes
/// - `clips`: `[n, 3, t, h, w]` in −1..1
///
/// # Errors
/// Where the encoder fails.
pub fn sheet(clips: &Tensor) -> Result<Vec<u8>, ScoringError> {
    let (count, frames) = (clips.size()[0], clips.size()[2]);
    let shown = SHEET_FRAMES.min(frames);
    let place = |i: i64| i * (frames - 1) / (shown - 1).max(1);
    let pictures: Vec<Tensor> = (0..count)
        .flat_map(|clip| (0..shown).map(move |i| (clip, place(i))))
        .map(|(c, at)| clips.get(c).narrow(1, at, 1))
        .collect();
    let picture = grid(&pictures, shown as u32);
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&picture, picture.width(), picture.height(), ExtendedColorType::Rgb8)?;
    Ok(file)
}

/// Single frames `[3, 1, h, w]` in rows of `columns`.
fn grid(pictures: &[Tensor], columns: u32) -> RgbImage {
    let Some(first) = pictures.first() else {
        return RgbImage::new(1, 1);
    };
    let (height, width) = (first.size()[2] as u32, first.size()[3] as u32);
    let columns = columns.clamp(1, pictures.len() as u32);
    let rows = (pictures.len() as u32).div_ceil(columns);
    let mut grid = RgbImage::new(columns * (width + GAP) - GAP, rows * (height + GAP) - GAP);
    for (i, picture) in pictures.iter().enumerate() {
        let (left, top) = (i as u32 % columns * (width + GAP), i as u32 / columns * (height + GAP));
        for (at, pixel) in to_bytes(picture).chunks_exact(3).enumerate() {
            let at = at as u32;
            grid.put_pixel(
                left + at % width,
                top + at / width,
                image::Rgb([pixel[0], pixel[1], pixel[2]]),
            );
        }
    }
    grid
}
