//! Which clips each step of a training takes.
//!
//! The clips of a bucket go round in passes; in each pass they are in another order. Batches are cut from the bucket's
//! endless row of passes, so that each is whole and of one bucket, and each clip comes once in each pass. A cycle holds
//! of each bucket as many batches as are due to it (as many as its clips fill, times its weight), those of all buckets
//! shuffled, anew in each cycle.
//!
//! Everything is a function of (seed, step): nothing is remembered, and a training that goes on at a step takes the
//! clips it would have taken. Orders are permutations by a Feistel network with cycle walking (Black and Rogaway 2002),
//! which give any place of an order without making the whole.

use std::ops::Range;

use search_spaces::Mix;

use super::Bucket;
use super::index::Index;
use crate::models::seeded::stream_of;

/// Rounds of the network; four make it a pseudo-random permutation (Luby and Rackoff 1988), small domains take more.
const ROUNDS: u64 = 8;

/// Says which clips a step takes.
#[derive(Debug, Clone)]
pub struct Sampler {
    buckets: Vec<Share>,
    /// Batches of a cycle.
    cycle: u64,
    batch: u64,
    seed: u64,
}

/// A bucket's share of a cycle.
#[derive(Debug, Clone)]
struct Share {
    bucket: usize,
    /// Number of its first clip in the index.
    first: usize,
    clips: u64,
    /// Batches of a cycle.
    batches: u64,
}

/// What a step takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draw {
    /// The bucket.
    pub bucket: usize,
    /// Numbers of clips in the index.
    pub clips: Vec<usize>,
}

/// Why nothing can be drawn.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum SamplerError {
    /// A setting is not allowed.
    #[error("`{field}` is {found}; allowed: {allowed}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// What was asked for.
        found: String,
        /// What may be.
        allowed: String,
    },
    /// There is nothing to draw from.
    #[error("no clips with a weight above 0")]
    Empty,
}

impl Sampler {
    /// Over clips of whom those of each bucket follow each other, `batch` of them a step. With a weight of 1 for each bucket a cycle is one pass over
    /// all clips, as far as they fill whole batches.
    ///
    /// # Errors
    /// Where `batch` is 0, `weights` are not one a bucket and none negative, or there is nothing to draw from.
    pub fn new(clips_by_bucket: &[Range<usize>], weights: &[f64], batch: u64, seed: u64) -> Result<Self, SamplerError> {
        let wrong = |field, found: String, allowed: String| SamplerError::Setting { field, found, allowed };
        if batch == 0 {
            return Err(wrong("batch", "0".to_owned(), "1 or more".to_owned()));
        }
        let sensible = |weight: &f64| (0.0..=1e6).contains(weight);
        if weights.len() != clips_by_bucket.len() || !weights.iter().all(sensible) {
            let allowed = format!("{} numbers from 0 to 1000000, one a bucket", clips_by_bucket.len());
            return Err(wrong("weights", format!("{weights:?}"), allowed));
        }
        let buckets: Vec<Share> = clips_by_bucket
            .iter()
            .zip(weights)
            .enumerate()
            .filter(|(_, (clips, weight))| !clips.is_empty() && **weight > 0.0)
            .map(|(bucket, (clips, weight))| Share {
                bucket,
                first: clips.start,
                clips: clips.len() as u64,
                batches: ((weight * clips.len() as f64 / batch as f64).round() as u64).max(1),
            })
            .collect();
        if buckets.is_empty() {
            return Err(SamplerError::Empty);
        }
        Ok(Self {
            cycle: buckets.iter().map(|share| share.batches).sum(),
            buckets,
            batch,
            seed,
        })
    }

    /// Weights with which the batches of a cycle are mixed as a recipe asks for.
    ///
    /// # Errors
    /// Where it asks for a bucket, a frame rate or a kind of clips that is not there.
    pub fn weights_for(index: &Index, mix: &Mix) -> Result<Vec<f64>, SamplerError> {
        let buckets = &index.made_by.settings.buckets;
        let counts: Vec<f64> = index.clips_by_bucket().iter().map(|clips| clips.len() as f64).collect();
        let named = named_shares(mix, buckets)?;
        let shares_of = |still: bool| -> Vec<f64> {
            let fits = |bucket: &Bucket| still || mix.frame_rate_hz.is_none_or(|rate| same_rate(rate, bucket));
            let any_named = buckets
                .iter()
                .zip(&named)
                .any(|(bucket, share)| bucket.is_still() == still && share.is_some());
            let share = |((bucket, named), count): ((&Bucket, &Option<f64>), &f64)| {
                if bucket.is_still() != still || !fits(bucket) || *count == 0.0 {
                    0.0
                } else if any_named {
                    named.unwrap_or(0.0)
                } else {
                    *count
                }
            };
            let raw: Vec<f64> = buckets.iter().zip(&named).zip(&counts).map(share).collect();
            let total: f64 = raw.iter().sum();
            raw.iter()
                .map(|share| if total > 0.0 { share / total } else { 0.0 })
                .collect()
        };
        let (stills, moving) = (shares_of(true), shares_of(false));
        let there = |shares: &[f64]| shares.iter().any(|share| *share > 0.0);
        if mix.image_share < 1.0 && !there(&moving) {
            let rates: Vec<String> = buckets
                .iter()
                .filter(|b| !b.is_still())
                .map(|b| b.frame_rate_hz.to_string())
                .collect();
            return Err(match mix.frame_rate_hz {
                Some(rate) if !rates.is_empty() => setting("frame_rate_hz", &rate, rates.join(", ")),
                _ => setting(
                    "image_share",
                    &mix.image_share,
                    "1, as there are no clips to draw".to_owned(),
                ),
            });
        }
        if mix.image_share > 0.0 && !there(&stills) {
            let allowed = "0, as there are no images to draw".to_owned();
            return Err(setting("image_share", &mix.image_share, allowed));
        }
        let all: f64 = counts.iter().sum();
        let weight = |((still, moving), count): ((&f64, &f64), &f64)| {
            let share = mix.image_share * still + (1.0 - mix.image_share) * moving;
            if share > 0.0 { share * all / count } else { 0.0 }
        };
        Ok(stills.iter().zip(&moving).zip(&counts).map(weight).collect())
    }

    /// Steps of a cycle.
    #[must_use]
    pub const fn steps_of_cycle(&self) -> u64 {
        self.cycle
    }

    /// What a step takes, over all ranks.
    #[must_use]
    pub fn draw(&self, step: u64) -> Draw {
        let (cycle, slot) = (step / self.cycle, step % self.cycle);
        let mut number = self.order("batches", 0, cycle).at(slot, self.cycle);
        let mut shares = self.buckets.iter();
        // The numbers of a cycle's batches run through the buckets.
        let share = loop {
            match shares.next() {
                Some(share) if number >= share.batches => number -= share.batches,
                Some(share) => break share,
                None => {
                    return Draw {
                        bucket: 0,
                        clips: Vec::new(),
                    };
                }
            }
        };
        let begin = (cycle * share.batches + number) * self.batch;
        let clip = |place: u64| {
            let order = self.order("clips", share.bucket as u64, place / share.clips);
            share.first + order.at(place % share.clips, share.clips) as usize
        };
        Draw {
            bucket: share.bucket,
            clips: (begin..begin + self.batch).map(clip).collect(),
        }
    }

    /// The part of a step's batch that belongs to a rank: ranks take equal parts, in their order.
    ///
    /// # Errors
    /// Where `ranks` does not divide the batch, or there is no such rank.
    pub fn part(&self, rank: u64, ranks: u64) -> Result<Range<usize>, SamplerError> {
        if ranks == 0 || !self.batch.is_multiple_of(ranks) {
            return Err(SamplerError::Setting {
                field: "ranks",
                found: ranks.to_string(),
                allowed: format!("a divisor of the batch of {}", self.batch),
            });
        }
        if rank >= ranks {
            return Err(SamplerError::Setting {
                field: "rank",
                found: rank.to_string(),
                allowed: format!("0 to {}", ranks - 1),
            });
        }
        let size = (self.batch / ranks) as usize;
        Ok(rank as usize * size..(rank as usize + 1) * size)
    }

    fn order(&self, what: &str, which: u64, round: u64) -> Order {
        Order {
            key: mix(mix(mix(self.seed ^ stream_of(what)) ^ which) ^ round),
        }
    }
}

fn setting(field: &'static str, found: &dyn std::fmt::Display, allowed: String) -> SamplerError {
    SamplerError::Setting {
        field,
        found: found.to_string(),
        allowed,
    }
}

fn same_rate(rate_hz: f64, bucket: &Bucket) -> bool {
    (bucket.frame_rate_hz - rate_hz).abs() < 1e-6
}

/// The shares that a mix names, by bucket.
fn named_shares(mix: &Mix, buckets: &[Bucket]) -> Result<Vec<Option<f64>>, SamplerError> {
    let mut shares = vec![None; buckets.len()];
    for (name, share) in &mix.bucket_shares {
        let named: Option<Bucket> = name.parse().ok();
        let place = named.and_then(|named| {
            buckets.iter().position(|bucket| {
                let sizes = |bucket: &Bucket| (bucket.frames, bucket.height, bucket.width);
                sizes(bucket) == sizes(&named) && (named.is_still() || same_rate(named.frame_rate_hz, bucket))
            })
        });
        let Some(place) = place else {
            let there: Vec<String> = buckets.iter().map(ToString::to_string).collect();
            return Err(setting("bucket_shares", name, there.join(", ")));
        };
        shares[place] = Some(*share);
    }
    Ok(shares)
}

/// An order of any number of things.
struct Order {
    key: u64,
}

impl Order {
    /// The thing at a place, both below `count`.
    fn at(&self, place: u64, count: u64) -> u64 {
        // Halves of equal width, together at least as wide as `count`.
        let bits = (u64::BITS - count.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
        let mask = (1 << bits) - 1;
        let mut value = place;
        // What falls outside is sent on until it falls inside: a walk along a cycle that began inside.
        loop {
            let (mut left, mut right) = (value >> bits, value & mask);
            for round in 0..ROUNDS {
                (left, right) = (right, left ^ (mix(self.key ^ mix(right ^ (round << 48))) & mask));
            }
            value = left << bits | right;
            if value < count {
                return value;
            }
        }
    }
}

/// The finalizer of SplitMix64 (Steele, Lea and Flood 2014).
const fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests;
