//! Captioned clips of one moving coloured shape, drawn from a seed.
//!
//! A clip shows an object of a colour that crosses the frame at constant speed; its caption names object, colour
//! and motion. A quarter of the combinations is never trained on: those with
//! `(object + color + motion) mod 4 = 0`, so that every attribute is still seen, and every pair of attributes too.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Attributes, CHANNELS, Clip, ClipSource, DataError, FRAMES, Prompt, SIDE, Split, Vocabulary};
use crate::models::seeded::generator;

/// Counts changes in what is drawn.
const VERSION: u32 = 2;
const OBJECTS: [&str; 4] = ["circle", "square", "triangle", "star"];
const COLORS: [(&str, [u8; 3]); 6] = [
    ("red", [220, 50, 47]),
    ("green", [60, 180, 75]),
    ("blue", [50, 100, 230]),
    ("yellow", [240, 215, 60]),
    ("purple", [160, 60, 200]),
    ("white", [240, 240, 240]),
];
const MOTIONS: [(&str, [f64; 2]); 4] = [
    ("left", [-1.0, 0.0]),
    ("right", [1.0, 0.0]),
    ("up", [0.0, -1.0]),
    ("down", [0.0, 1.0]),
];
const BACKGROUND: [u8; 3] = [26, 28, 36];
/// Radii of the circle around the shape, in pixels.
const RADIUS: (f64, f64) = (10.0, 13.0);
/// Way from the first frame to the last, in pixels.
const TRAVEL: (f64, f64) = (26.0, 32.0);

/// The shapes dataset: how many clips of each combination, and the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shapes {
    /// Clips of each trained combination.
    pub clips_per_combination: usize,
    /// Clips of each held-out combination; they measure the evaluators.
    pub held_out_per_combination: usize,
    /// Seed of sizes, places and speeds.
    pub seed: u64,
}

impl Default for Shapes {
    fn default() -> Self {
        Self {
            clips_per_combination: 8,
            held_out_per_combination: 4,
            seed: 1,
        }
    }
}

impl Shapes {
    fn combinations(split: Split) -> Vec<Attributes> {
        let all = (0..OBJECTS.len()).flat_map(|object| {
            (0..COLORS.len()).flat_map(move |color| {
                (0..MOTIONS.len()).map(move |motion| Attributes {
                    object,
                    color,
                    motion: Some(motion),
                })
            })
        });
        all.filter(|a| split_of(*a) == split).collect()
    }

    fn per_combination(&self, split: Split) -> usize {
        match split {
            Split::Train => self.clips_per_combination,
            Split::HeldOut => self.held_out_per_combination,
        }
    }
}

fn split_of(attributes: Attributes) -> Split {
    let sum = attributes.object + attributes.color + attributes.motion.unwrap_or(0);
    if sum.is_multiple_of(4) {
        Split::HeldOut
    } else {
        Split::Train
    }
}

fn caption(attributes: Attributes) -> String {
    let (color, object) = (COLORS[attributes.color].0, OBJECTS[attributes.object]);
    let motion = attributes
        .motion
        .map_or(String::new(), |m| format!(" moving {}", MOTIONS[m].0));
    format!("a {color} {object}{motion}")
}

impl ClipSource for Shapes {
    fn settings(&self) -> serde_json::Value {
        serde_json::json!({ "shapes": self, "version": VERSION, "frames": FRAMES, "side": SIDE })
    }

    fn vocabulary(&self) -> Vocabulary {
        Vocabulary {
            objects: OBJECTS.map(String::from).to_vec(),
            colors: COLORS.map(|(name, _)| name.to_owned()).to_vec(),
            motions: MOTIONS.map(|(name, _)| name.to_owned()).to_vec(),
        }
    }

    fn len(&self, split: Split) -> usize {
        Self::combinations(split).len() * self.per_combination(split)
    }

    fn attributes(&self, split: Split, index: usize) -> Prompt {
        let attributes = Self::combinations(split)[index / self.per_combination(split).max(1)];
        Prompt {
            caption: caption(attributes),
            attributes,
        }
    }

    fn clip(&self, split: Split, index: usize) -> Result<Clip, DataError> {
        let prompt = self.attributes(split, index);
        let mut rng = generator(self.seed, (index as u64) * 2 + u64::from(split == Split::HeldOut));
        let frames = render(prompt.attributes, &mut rng);
        Ok(Clip { prompt, frames })
    }

    fn prompts(&self, split: Split) -> Vec<Prompt> {
        Self::combinations(split)
            .into_iter()
            .map(|a| Prompt {
                caption: caption(a),
                attributes: a,
            })
            .collect()
    }
}

/// Draws a clip: `FRAMES × SIDE × SIDE × 3` bytes, row by row.
fn render(attributes: Attributes, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let side = SIDE as f64;
    let mut between = |(low, high): (f64, f64)| low + (high - low) * rng.random::<f64>();
    let radius = between(RADIUS);
    let direction = attributes.motion.map_or([0.0, 0.0], |m| MOTIONS[m].1);
    let travel = between(TRAVEL);
    // The middle of the way: where the whole of it stays inside the frame.
    let centre: [f64; 2] = std::array::from_fn(|axis| {
        let margin = radius + 1.0 + travel / 2.0 * f64::abs(direction[axis]);
        between((margin, side - margin))
    });
    let color = COLORS[attributes.color].1;
    (0..FRAMES)
        .flat_map(|frame| {
            let way = (frame as f64 / (FRAMES - 1) as f64 - 0.5) * travel;
            let place = [centre[0] + way * direction[0], centre[1] + way * direction[1]];
            draw_frame(attributes.object, color, place, radius)
        })
        .collect()
}

fn draw_frame(object: usize, color: [u8; 3], centre: [f64; 2], radius: f64) -> Vec<u8> {
    let corners = corners(object, radius);
    let mut frame = Vec::with_capacity(SIDE * SIDE * CHANNELS);
    for y in 0..SIDE {
        for x in 0..SIDE {
            let point = [x as f64 + 0.5 - centre[0], y as f64 + 0.5 - centre[1]];
            let distance = match corners.as_slice() {
                [] => point[0].hypot(point[1]) - radius,
                corners => distance_to_polygon(point, corners),
            };
            // Half a pixel inside is full, half a pixel outside is empty.
            let cover = (0.5 - distance).clamp(0.0, 1.0);
            frame.extend(
                (0..CHANNELS)
                    .map(|c| (f64::from(BACKGROUND[c]) * (1.0 - cover) + f64::from(color[c]) * cover).round() as u8),
            );
        }
    }
    frame
}

/// Corners around the origin; none for the circle. The square is a little smaller and the star a little larger than
/// the circle around them, so that areas are alike.
fn corners(object: usize, radius: f64) -> Vec<[f64; 2]> {
    let ring = |count: usize, turn: f64, radius: &dyn Fn(usize) -> f64| {
        let corner = |i: usize| {
            let angle = std::f64::consts::TAU * (i as f64 / count as f64 + turn);
            [radius(i) * angle.sin(), -radius(i) * angle.cos()]
        };
        (0..count).map(corner).collect()
    };
    match OBJECTS[object] {
        "square" => ring(4, 0.125, &|_| radius * 1.2),
        "triangle" => ring(3, 0.0, &|_| radius * 1.25),
        "star" => ring(10, 0.0, &|i| if i % 2 == 0 { radius * 1.25 } else { radius * 0.5 }),
        _ => Vec::new(),
    }
}

/// Signed distance to a polygon, negative inside.
fn distance_to_polygon(point: [f64; 2], corners: &[[f64; 2]]) -> f64 {
    let mut nearest = f64::INFINITY;
    let mut inside = false;
    for (i, &a) in corners.iter().enumerate() {
        let b = corners[(i + 1) % corners.len()];
        let (edge, to_point) = ([b[0] - a[0], b[1] - a[1]], [point[0] - a[0], point[1] - a[1]]);
        let along = (to_point[0] * edge[0] + to_point[1] * edge[1]) / (edge[0] * edge[0] + edge[1] * edge[1]);
        let along = along.clamp(0.0, 1.0);
        nearest = nearest.min((to_point[0] - along * edge[0]).hypot(to_point[1] - along * edge[1]));
        if (a[1] > point[1]) != (b[1] > point[1]) && point[0] < a[0] + edge[0] * to_point[1] / edge[1] {
            inside = !inside;
        }
    }
    if inside { -nearest } else { nearest }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPES: Shapes = Shapes {
        clips_per_combination: 2,
        held_out_per_combination: 1,
        seed: 7,
    };

    fn mean_place(frame: &[u8]) -> [f64; 2] {
        let mut sum = [0.0; 3];
        for (i, pixel) in frame.chunks(3).enumerate() {
            let weight = (0..3).map(|c| f64::from(pixel[c].abs_diff(BACKGROUND[c]))).sum::<f64>();
            sum = [
                sum[0] + weight * (i % SIDE) as f64,
                sum[1] + weight * (i / SIDE) as f64,
                sum[2] + weight,
            ];
        }
        [sum[0] / sum[2], sum[1] / sum[2]]
    }

    #[test]
    fn the_same_seed_draws_the_same_bytes_and_another_seed_others() {
        let first = SHAPES.clip(Split::Train, 5).expect("a clip");
        assert_eq!(first, SHAPES.clip(Split::Train, 5).expect("a clip"));
        assert_ne!(
            first.frames,
            Shapes { seed: 8, ..SHAPES }
                .clip(Split::Train, 5)
                .expect("a clip")
                .frames
        );
    }

    #[test]
    fn the_shape_moves_the_way_the_caption_says() {
        for index in 0..SHAPES.len(Split::Train) {
            let clip = SHAPES.clip(Split::Train, index).expect("a clip");
            let size = SIDE * SIDE * CHANNELS;
            let (from, to) = (
                mean_place(&clip.frames[..size]),
                mean_place(&clip.frames[size * (FRAMES - 1)..]),
            );
            let (dx, dy) = (to[0] - from[0], to[1] - from[1]);
            let word = match (dx.abs() > dy.abs(), dx > 0.0, dy > 0.0) {
                (true, true, _) => "right",
                (true, false, _) => "left",
                (false, _, true) => "down",
                (false, _, false) => "up",
            };
            assert!(
                clip.prompt.caption.ends_with(word),
                "{} moved {dx} {dy}",
                clip.prompt.caption
            );
            assert!((TRAVEL.0 - 1.0..TRAVEL.1 + 1.0).contains(&dx.hypot(dy)));
        }
    }

    #[test]
    fn held_out_prompts_are_never_trained_on_but_their_attributes_are() {
        let set = |split| {
            SHAPES
                .prompts(split)
                .into_iter()
                .map(|p| p.caption)
                .collect::<BTreeSet<_>>()
        };
        let (train, held_out) = (set(Split::Train), set(Split::HeldOut));
        assert!(train.is_disjoint(&held_out));
        assert_eq!((train.len(), held_out.len()), (72, 24));
        let words = |set: &BTreeSet<String>| -> BTreeSet<String> {
            set.iter()
                .flat_map(|c| c.split(' ').map(String::from).collect::<Vec<_>>())
                .collect()
        };
        assert_eq!(words(&train), words(&held_out));
    }

    #[test]
    fn the_shape_stays_inside_the_frame() {
        for index in 0..SHAPES.len(Split::HeldOut) {
            let clip = SHAPES.clip(Split::HeldOut, index).expect("a clip");
            for frame in clip.frames.chunks(SIDE * SIDE * CHANNELS) {
                let corner = &frame[..3];
                assert_eq!(corner, BACKGROUND);
            }
        }
    }
}
