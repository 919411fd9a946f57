//! Scores of several models as shares of a baseline's: the paper's Figure 6.

use std::f64::consts::TAU;

use plotters::{
    coord::Shift,
    element::{Circle, PathElement, Polygon, Text},
    prelude::{DrawingArea, DrawingBackend},
    style::{
        Color, RGBColor,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{
    Format, PlotError,
    axis::tick,
    canvas::{Outcome, Pen, Picture, render},
    colours::{AXIS, FAINT_INK, GRID, INK, LIMIT, MAIN},
};
use crate::ablation::Radar;

/// Colours of the rings, the baseline's first.
const COLOURS: [RGBColor; 6] = [
    INK,
    MAIN,
    LIMIT,
    RGBColor(46, 125, 80),
    RGBColor(133, 44, 141),
    RGBColor(196, 120, 20),
];

const CENTRE: (f64, f64) = (385.0, 355.0);
const RADIUS: f64 = 230.0;

/// Draws a radar under a title.
///
/// # Errors
/// When the picture cannot be drawn or written.
pub fn radar(radar: &Radar, title: &str, format: Format) -> Result<Vec<u8>, PlotError> {
    render(
        &RadarPicture {
            title: title.to_owned(),
            radar: radar.clone(),
            range: range(radar),
        },
        format,
    )
}

struct RadarPicture {
    title: String,
    radar: Radar,
    /// Shares at the centre and at the rim.
    range: (f64, f64),
}

/// Shares that show every ring, on round numbers; the baseline's 1 always lies within.
fn range(radar: &Radar) -> (f64, f64) {
    let shares = radar.rings.iter().flat_map(|(_, ring)| ring).flatten();
    let (low, high) = shares
        .filter(|(share, _)| share.is_finite())
        .fold((1.0_f64, 1.0_f64), |(low, high), (share, _)| {
            (low.min(*share), high.max(*share))
        });
    let step = if high - low > 0.5 { 0.25 } else { 0.1 };
    let low = ((low / step).floor() * step - step).max(0.0);
    let high = (high / step - 1e-9).ceil() * step;
    (low, high.max(low + step))
}

impl RadarPicture {
    fn place(&self, axis: usize, share: f64, pen: Pen) -> (i32, i32) {
        let (low, high) = self.range;
        let length = ((share - low) / (high - low)).clamp(0.0, 1.08) * RADIUS;
        self.at(axis, length, pen)
    }

    /// A point of an axis, the first of which points upwards.
    fn at(&self, axis: usize, length: f64, pen: Pen) -> (i32, i32) {
        let angle = TAU * axis as f64 / self.radar.axes.len() as f64;
        let scale = f64::from(pen.px(1));
        let x = (CENTRE.0 + length * angle.sin()) * scale;
        let y = (CENTRE.1 - length * angle.cos()) * scale;
        (x.round() as i32, y.round() as i32)
    }

    fn circle_of(&self, share: f64, pen: Pen) -> Vec<(i32, i32)> {
        let axes = self.radar.axes.len();
        (0..=axes).map(|axis| self.place(axis % axes, share, pen)).collect()
    }

    fn net<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB> {
        let (low, high) = self.range;
        let step = if high - low > 0.6 { 0.25 } else { 0.1 };
        let count = ((high - low) / step).round() as u32;
        for ring in 0..=count {
            let share = low + f64::from(ring) * step;
            let is_whole = (share - 1.0).abs() < 1e-9;
            let colour = if is_whole { AXIS } else { GRID };
            area.draw(&PathElement::new(
                self.circle_of(share, pen),
                colour.stroke_width(pen.size(1)),
            ))?;
            let (x, y) = self.place(0, share, pen);
            let style = pen.text(11, FAINT_INK).pos(Pos::new(HPos::Left, VPos::Bottom));
            area.draw(&Text::new(
                tick((share * 100.0).round() / 100.0),
                (x + pen.px(4), y),
                style,
            ))?;
        }
        for (axis, name) in self.radar.axes.iter().enumerate() {
            let spoke = vec![self.at(axis, 0.0, pen), self.at(axis, RADIUS, pen)];
            area.draw(&PathElement::new(spoke, GRID.stroke_width(pen.size(1))))?;
            let place = self.at(axis, RADIUS + 26.0, pen);
            let middle = self.at(axis, 0.0, pen).0;
            let across = match place.0 - middle {
                near if near.abs() < pen.px(30) => HPos::Center,
                right if right > 0 => HPos::Left,
                _ => HPos::Right,
            };
            let style = pen.text(13, INK).pos(Pos::new(across, VPos::Center));
            area.draw(&Text::new(name.clone(), place, style))?;
        }
        Ok(())
    }
}

impl Picture for RadarPicture {
    fn size(&self) -> (u32, u32) {
        (960, 660)
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, pen: Pen) -> Outcome<DB> {
        area.draw(&Text::new(
            self.title.clone(),
            (pen.px(28), pen.px(22)),
            pen.heading(19),
        ))?;
        if self.radar.axes.len() < 3 {
            let found = format!("{} scores are known; a radar needs three", self.radar.axes.len());
            return area.draw(&Text::new(found, (pen.px(28), pen.px(48)), pen.text(13, FAINT_INK)));
        }
        let subtitle = format!(
            "shares of the first model's scores · scored by {}",
            self.radar.evaluator
        );
        area.draw(&Text::new(subtitle, (pen.px(28), pen.px(48)), pen.text(13, FAINT_INK)))?;
        self.net(area, pen)?;
        for (index, (name, ring)) in self.radar.rings.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let legend = (pen.px(730), pen.px(130 + 28 * index as i32));
            let line = vec![legend, (legend.0 + pen.px(24), legend.1)];
            area.draw(&PathElement::new(line, colour.stroke_width(pen.size(2))))?;
            let is_known = ring.iter().any(Option::is_some);
            let name = if is_known {
                name.clone()
            } else {
                format!("{name} (not known)")
            };
            let style = pen.text(13, INK).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(name, (legend.0 + pen.px(34), legend.1), style))?;
            let points: Vec<Option<(i32, i32)>> = ring
                .iter()
                .enumerate()
                .map(|(axis, share)| share.map(|(share, _)| self.place(axis, share, pen)))
                .collect();
            if let Some(whole) = points.iter().copied().collect::<Option<Vec<_>>>() {
                let mut closed = whole.clone();
                closed.extend(whole.first());
                area.draw(&Polygon::new(whole, colour.mix(0.06).filled()))?;
                area.draw(&PathElement::new(closed, colour.stroke_width(pen.size(2))))?;
            }
            for (axis, (point, share)) in points.iter().zip(ring).enumerate() {
                let (Some(point), Some((share, error))) = (point, share) else {
                    continue;
                };
                let bar = vec![
                    self.place(axis, share - error, pen),
                    self.place(axis, share + error, pen),
                ];
                area.draw(&PathElement::new(bar, colour.mix(0.5).stroke_width(pen.size(1))))?;
                area.draw(&Circle::new(*point, pen.px(3), colour.filled()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Radar {
        let ring = |shares: [f64; 4]| shares.map(|share| Some((share, 0.02))).to_vec();
        Radar {
            axes: ["Quality", "Overall consistency", "Object class", "Color"]
                .map(str::to_owned)
                .to_vec(),
            rings: vec![
                ("all temporal layers".to_owned(), ring([1.0; 4])),
                ("without down".to_owned(), ring([0.95, 0.97, 0.9, 1.02])),
                ("without <up>".to_owned(), ring([0.7, 0.8, 0.75, 0.6])),
            ],
            evaluator: "built-in shapes 1".to_owned(),
        }
    }

    #[test]
    fn a_radar_is_drawn_as_svg_and_png() {
        let svg = String::from_utf8(radar(&sample(), "Figure 6", Format::Svg).unwrap()).unwrap();
        assert!(svg.contains("without down") && svg.contains("Object class"));
        assert!(svg.contains("without &lt;up&gt;"), "names are escaped");
        let png = radar(&sample(), "Figure 6", Format::Png).unwrap();
        assert!(png.starts_with(b"\x89PNG"));
    }

    #[test]
    fn too_few_axes_are_said_not_drawn() {
        let mut few = sample();
        few.axes.truncate(2);
        let svg = String::from_utf8(radar(&few, "Figure 6", Format::Svg).unwrap()).unwrap();
        assert!(svg.contains("a radar needs three"));
        assert!(radar(&Radar::default(), "Figure 6", Format::Svg).is_ok());
    }

    #[test]
    fn every_share_lies_within_the_rings() {
        let (low, high) = range(&sample());
        assert!(low < 0.6 && high >= 1.02, "{low} {high}");
        assert!(range(&Radar::default()).0 < 1.0);
    }
}
