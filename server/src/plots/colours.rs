//! The plots' colours.

use plotters::style::RGBColor;

pub(super) const INK: RGBColor = RGBColor(31, 36, 48);
pub(super) const FAINT_INK: RGBColor = RGBColor(107, 114, 128);
pub(super) const GRID: RGBColor = RGBColor(232, 234, 239);
pub(super) const AXIS: RGBColor = RGBColor(156, 163, 175);
pub(super) const LIMIT: RGBColor = RGBColor(200, 55, 60);
pub(super) const REFERENCE: RGBColor = RGBColor(140, 147, 160);
pub(super) const MAIN: RGBColor = RGBColor(37, 99, 175);

/// From little to much, evenly in lightness: readable in grey and by the colour-blind.
const SCALE: [(u8, u8, u8); 5] = [
    (253, 202, 80),
    (243, 130, 94),
    (203, 71, 119),
    (133, 44, 141),
    (50, 24, 122),
];

/// A colour of the scale, `share` from 0 to 1.
pub(super) fn on_scale(share: f64) -> RGBColor {
    let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
    let position = share * (SCALE.len() - 1) as f64;
    let below = (position.floor() as usize).min(SCALE.len() - 2);
    let part = position - below as f64;
    let mix = |from: u8, to: u8| (f64::from(from) + part * (f64::from(to) - f64::from(from))).round() as u8;
    let (from, to) = (SCALE[below], SCALE[below + 1]);
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_runs_from_end_to_end() {
        assert_eq!(on_scale(0.0), RGBColor(253, 202, 80));
        assert_eq!(on_scale(1.0), RGBColor(50, 24, 122));
        assert_eq!(on_scale(7.0), on_scale(1.0));
        assert_eq!(
            on_scale(f64::NAN),
            on_scale(0.0),
            "a missing figure is no reason to fail"
        );
    }
}
