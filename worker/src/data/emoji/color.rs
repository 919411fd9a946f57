//! The colour that a clip shows most of, by name.

use crate::data::CHANNELS;
use crate::data::clips::BACKGROUND;

/// Channels that differ from the background by less are background.
const NEAR: u8 = 24;

const NAMES: [&str; 11] = [
    "white", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "gray", "black",
];

/// The name of most pixels that are not background; white where all are, as of fog.
pub(super) fn dominant(frames: &[u8]) -> &'static str {
    let mut counts = [0usize; NAMES.len()];
    for pixel in frames.chunks_exact(CHANNELS) {
        let is_background = pixel
            .iter()
            .zip(BACKGROUND)
            .all(|(&found, behind)| found.abs_diff(behind) < NEAR);
        if !is_background {
            let name = name_of([pixel[0], pixel[1], pixel[2]]);
            counts[NAMES.iter().position(|known| *known == name).unwrap_or_default()] += 1;
        }
    }
    let most = (0..NAMES.len()).rev().max_by_key(|&i| counts[i]).unwrap_or_default();
    NAMES[most]
}

/// The name of a colour, by hue, saturation and value.
fn name_of(pixel: [u8; CHANNELS]) -> &'static str {
    let [red, green, blue] = pixel.map(|channel| f64::from(channel) / 255.0);
    let (most, least) = (red.max(green).max(blue), red.min(green).min(blue));
    let spread = most - least;
    let saturation = if most > 0.0 { spread / most } else { 0.0 };
    if most < 0.3 {
        return "black";
    }
    if saturation < 0.2 {
        return if most > 0.8 { "white" } else { "gray" };
    }
    let hue = 60.0
        * if most == red {
            ((green - blue) / spread).rem_euclid(6.0)
        } else if most == green {
            (blue - red) / spread + 2.0
        } else {
            (red - green) / spread + 4.0
        };
    let is_brown = most < 0.7 && !(40.0..345.0).contains(&hue);
    match hue {
        _ if is_brown => "brown",
        h if !(14.0..340.0).contains(&h) => {
            if saturation < 0.5 {
                "pink"
            } else {
                "red"
            }
        }
        h if h < 36.0 => "orange",
        h if h < 68.0 => "yellow",
        h if h < 165.0 => "green",
        h if h < 245.0 => "blue",
        h if h < 300.0 => "purple",
        _ => "pink",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_have_their_everyday_names() {
        for (pixel, name) in [
            ([220, 40, 40], "red"),
            ([250, 150, 30], "orange"),
            ([250, 215, 60], "yellow"),
            ([70, 170, 70], "green"),
            ([60, 120, 230], "blue"),
            ([150, 70, 220], "purple"),
            ([250, 140, 170], "pink"),
            ([130, 85, 50], "brown"),
            ([120, 120, 125], "gray"),
            ([10, 10, 12], "black"),
            ([250, 250, 250], "white"),
        ] {
            assert_eq!(name_of(pixel), name, "{pixel:?}");
        }
    }

    #[test]
    fn the_background_counts_nothing() {
        let mut frames = BACKGROUND.repeat(90);
        frames.extend([60, 120, 230].repeat(6));
        frames.extend([220, 40, 40].repeat(4));
        assert_eq!(dominant(&frames), "blue");
        assert_eq!(dominant(&BACKGROUND.repeat(9)), "white");
    }
}
