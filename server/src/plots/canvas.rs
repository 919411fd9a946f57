//! From a picture to the bytes of a file.

use std::{fmt, str::FromStr, sync::Once};

use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::png::PngEncoder, imageops};
use plotters::{
    coord::Shift,
    drawing::DrawingAreaErrorKind,
    prelude::{BitMapBackend, DrawingArea, DrawingBackend, IntoDrawingArea, SVGBackend},
    style::{FontStyle, IntoFont, RGBColor, TextStyle, WHITE, register_font},
};

use super::colours::INK;

/// Pixels of a PNG per unit of the picture, for screens of today.
const PNG_SCALE: u32 = 2;

/// A PNG is drawn this much larger and averaged, so that edges are smooth.
const SMOOTHING: u32 = 2;

/// What a plot is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Scalable.
    Svg,
    /// Pixels.
    Png,
}

impl Format {
    /// Its media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Svg => "image/svg+xml",
            Self::Png => "image/png",
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "svg" => Ok(Self::Svg),
            "png" => Ok(Self::Png),
            _ => Err(format!("`{text}` is no format of a plot; allowed: svg, png")),
        }
    }
}

/// Why a plot was not made.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// The drawing failed.
    #[error("the plot could not be drawn: {0}")]
    Draw(String),
    /// The picture could not be written.
    #[error("the plot could not be written as PNG")]
    Encode(#[from] image::ImageError),
}

/// Something that can be drawn on any backend.
pub(super) trait Picture {
    /// Width and height in units.
    fn size(&self) -> (u32, u32);

    /// Draws it; every length goes through `pen`.
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB>;
}

/// What drawing on a backend ends with.
pub(super) type Outcome<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

/// Turns units into the backend's pixels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pen(u32);

impl Pen {
    pub(super) fn px(self, units: i32) -> i32 {
        units * self.0 as i32
    }

    pub(super) fn size(self, units: u32) -> u32 {
        units * self.0
    }

    pub(super) fn text(self, units: u32, colour: RGBColor) -> TextStyle<'static> {
        ("sans-serif", f64::from(units * self.0)).into_font().color(&colour)
    }

    pub(super) fn heading(self, units: u32) -> TextStyle<'static> {
        ("sans-serif", f64::from(units * self.0))
            .into_font()
            .style(FontStyle::Bold)
            .color(&INK)
    }
}

/// Draws a picture into the bytes of a file.
pub(super) fn render(picture: &impl Picture, format: Format) -> Result<Vec<u8>, PlotError> {
    load_fonts();
    let (width, height) = picture.size();
    match format {
        Format::Svg => {
            let mut text = String::new();
            {
                let area = SVGBackend::with_string(&mut text, (width, height)).into_drawing_area();
                paint(picture, &area, Pen(1))?;
            }
            Ok(text.into_bytes())
        }
        Format::Png => {
            let scale = PNG_SCALE * SMOOTHING;
            let (wide, high) = (width * scale, height * scale);
            let mut pixels = RgbImage::new(wide, high);
            {
                let area = BitMapBackend::with_buffer(&mut pixels, (wide, high)).into_drawing_area();
                paint(picture, &area, Pen(scale))?;
            }
            let (wide, high) = (width * PNG_SCALE, height * PNG_SCALE);
            let smooth = imageops::resize(&pixels, wide, high, imageops::FilterType::Triangle);
            let mut bytes = Vec::new();
            PngEncoder::new(&mut bytes).write_image(&smooth, wide, high, ExtendedColorType::Rgb8)?;
            Ok(bytes)
        }
    }
}

fn paint<DB: DrawingBackend>(picture: &impl Picture, area: &DrawingArea<DB, Shift>, pen: Pen) -> Result<(), PlotError> {
    let fail = |error: &dyn fmt::Display| PlotError::Draw(error.to_string());
    area.fill(&WHITE).map_err(|error| fail(&error))?;
    picture.draw(area, pen).map_err(|error| fail(&error))?;
    area.present().map_err(|error| fail(&error))
}

fn load_fonts() {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        let fonts: [(FontStyle, &'static [u8]); 2] = [
            (
                FontStyle::Normal,
                include_bytes!("../../../assets/fonts/Inter-Regular.ttf"),
            ),
            (
                FontStyle::Bold,
                include_bytes!("../../../assets/fonts/Inter-SemiBold.ttf"),
            ),
        ];
        for (style, bytes) in fonts {
            if register_font("sans-serif", style, bytes).is_err() {
                tracing::error!("the font of the plots cannot be read");
            }
        }
    });
}
