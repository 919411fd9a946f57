//! Which bucket a file goes to, after Open-Sora 1.2's rule (spec section 4).
//!
//! Buckets whose areas differ by less than a fifth are of one resolution. Resolutions are tried from the largest down;
//! one is taken if the file has at least 0.8 of its area. Within it, lengths are tried from the longest down; one is
//! taken if the file gives that many frames and a coin keeps it. Of the buckets of that length the one of the nearest
//! aspect ratio is taken. Single pictures go to buckets of one frame, all else to the others.
//!
//! Ours: the coin is drawn from the seed, the file's name and the bucket's resolution and length, so that it falls the
//! same whatever else is in the folder; and a file of less than 0.8 of a bucket's frame rate does not fit, as it would
//! stutter.

use rand::RngExt;

use super::settings::{Bucket, Settings};
use crate::data::clips::footage::Footage;
use crate::models::seeded::{generator, stream_of};

/// The share of a bucket's area, and of its frame rate, that a file has at least.
const ENOUGH: f64 = 0.8;
/// A coin that was not kept does not count as a reason of size.
const NOT_KEPT: &str = "fits, but was not kept by chance";

/// The bucket's number, or why there is none.
pub(super) fn assign(file: &str, footage: &Footage, settings: &Settings) -> Result<usize, String> {
    let mut reasons: Vec<String> = Vec::new();
    let mut tell = |reason: String| {
        if !reasons.contains(&reason) {
            reasons.push(reason);
        }
    };
    let area = f64::from(footage.height) * f64::from(footage.width);
    for class in classes(&settings.buckets) {
        let fits = |bucket: &Bucket| -> Result<(), String> {
            if bucket.is_still() != (footage.pictures() == 1) {
                let kind = if bucket.is_still() { "a clip" } else { "one picture" };
                return Err(format!("{kind} fits no bucket of {} frames", bucket.frames));
            }
            if area < ENOUGH * bucket.area() as f64 {
                return Err(format!("{}x{} pixels are too few", footage.height, footage.width));
            }
            if bucket.is_still() {
                return Ok(());
            }
            if footage.rate_hz() < ENOUGH * bucket.frame_rate_hz {
                return Err(format!("{:.3} frames a second are too few", footage.rate_hz()));
            }
            let frames = footage.frames(bucket.frame_rate_hz);
            if frames < bucket.frames.into() {
                return Err(format!("too short: {frames} frames at {} Hz", bucket.frame_rate_hz));
            }
            Ok(())
        };
        // `classes` orders by length, so that buckets of one length stand together.
        for same in class.chunk_by(|&a, &b| length(&settings.buckets[a]) == length(&settings.buckets[b])) {
            let mut fitting = Vec::new();
            for &number in same {
                match fits(&settings.buckets[number]) {
                    Ok(()) => fitting.push(number),
                    Err(reason) => tell(reason),
                }
            }
            let nearest = fitting.into_iter().min_by(|&a, &b| {
                let off = |number: usize| ratio_off(footage, &settings.buckets[number]);
                off(a).total_cmp(&off(b))
            });
            match nearest {
                Some(number)
                    if keeps(
                        file,
                        &settings.buckets[number],
                        &settings.buckets[class[0]],
                        settings.seed,
                    ) =>
                {
                    return Ok(number);
                }
                Some(_) => tell(NOT_KEPT.to_owned()),
                None => {}
            }
        }
    }
    Err(reasons.join("; "))
}

/// Frames and frame rate: what is the same for all aspect ratios of a bucket.
fn length(bucket: &Bucket) -> (u32, u64) {
    (bucket.frames, bucket.frame_rate_hz.to_bits())
}

/// Numbers of the buckets by resolution, the largest first; within one, the longest first.
fn classes(buckets: &[Bucket]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..buckets.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(buckets[i].area()), i));
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for number in order {
        match classes.last_mut() {
            Some(class) if buckets[number].area() as f64 > ENOUGH * buckets[class[0]].area() as f64 => {
                class.push(number);
            }
            _ => classes.push(vec![number]),
        }
    }
    for class in &mut classes {
        // In time first: 51 frames at 10 Hz are longer than at 24 Hz.
        class.sort_by(|&a, &b| {
            let key = |i: usize| (buckets[i].frames, -buckets[i].frame_rate_hz);
            let ((frames_a, rate_a), (frames_b, rate_b)) = (key(a), key(b));
            frames_b.cmp(&frames_a).then(rate_b.total_cmp(&rate_a)).then(a.cmp(&b))
        });
    }
    classes
}

fn ratio_off(footage: &Footage, bucket: &Bucket) -> f64 {
    let ratio = |height: u32, width: u32| (f64::from(height) / f64::from(width)).ln();
    (ratio(footage.height, footage.width) - ratio(bucket.height, bucket.width)).abs()
}

/// One coin for all aspect ratios of a resolution and length.
fn keeps(file: &str, bucket: &Bucket, largest: &Bucket, seed: u64) -> bool {
    if bucket.keep >= 1.0 {
        return true;
    }
    let coin = format!(
        "keep {file} {} {} {}",
        largest.area(),
        bucket.frames,
        bucket.frame_rate_hz
    );
    generator(seed, stream_of(&coin)).random::<f64>() < bucket.keep
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footage(height: u32, width: u32, pictures: u64, rate_hz: u32) -> Footage {
        let mut footage = Footage::new(width, height, (1, rate_hz));
        for _ in 0..pictures {
            footage.push(1);
        }
        footage
    }

    fn settings(buckets: &[&str]) -> Settings {
        Settings::of(buckets.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn the_largest_area_then_the_longest_then_the_nearest_ratio() {
        let settings = settings(&[
            "51x256x256@24",
            "17x512x512@24",
            "51x432x600@24",
            "17x432x600@24",
            "17x600x432@24",
            "1x512x512",
            "1x128x128",
        ]);
        let goes = |height, width, pictures| assign("a", &footage(height, width, pictures, 24), &settings);
        assert_eq!(goes(1080, 1920, 60), Ok(2), "long and wide");
        assert_eq!(goes(1080, 1920, 50), Ok(3), "too short for 51");
        assert_eq!(goes(1920, 1080, 50), Ok(4), "high");
        assert_eq!(goes(512, 512, 17), Ok(1), "square");
        // 0.8 of 256² is 52,429; of 512² 209,715.
        assert_eq!(goes(256, 256, 51), Ok(0));
        assert_eq!(goes(229, 229, 51), Ok(0));
        assert!(goes(228, 228, 51).unwrap_err().contains("228x228 pixels are too few"));
        assert!(
            goes(256, 256, 50)
                .unwrap_err()
                .contains("too short: 50 frames at 24 Hz")
        );
        assert_eq!(goes(600, 600, 1), Ok(5), "a picture");
        assert_eq!(goes(200, 200, 1), Ok(6));
    }

    #[test]
    fn frame_rates_count_in_time_and_slow_files_do_not_stutter() {
        let settings = settings(&["17x64x64@10"]);
        let goes = |pictures, rate| assign("a", &footage(64, 64, pictures, rate), &settings);
        assert_eq!(goes(51, 30), Ok(0), "1.7 s");
        assert!(goes(50, 30).is_err());
        assert_eq!(goes(17, 8), Ok(0));
        assert!(goes(17, 7).unwrap_err().contains("7.000 frames a second are too few"));
    }

    #[test]
    fn a_coin_falls_the_same_for_a_name_and_as_often_as_asked() {
        let mut settings = settings(&["17x128x128@24:0.3", "17x64x64@24"]);
        let clip = footage(128, 128, 20, 24);
        let kept = |settings: &Settings| {
            (0..2000)
                .map(|i| assign(&format!("{i}.mp4"), &clip, settings).unwrap())
                .collect::<Vec<_>>()
        };
        let first = kept(&settings);
        let share = first.iter().filter(|&&bucket| bucket == 0).count() as f64 / 2000.0;
        assert!((share - 0.3).abs() < 0.035, "{share}"); // 3.4 standard errors
        assert_eq!(kept(&settings), first);
        settings.seed = 1;
        assert_ne!(kept(&settings), first);
    }
}
