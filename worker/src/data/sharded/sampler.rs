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

    /// Weights with which the share of pictures among all clips of a cycle is `pictures`, from 0 to 1, where there are
    /// both.
    #[must_use]
    pub fn weights_for(index: &Index, pictures: f64) -> Vec<f64> {
        let settings = &index.made_by.settings;
        let ranges = index.clips_by_bucket();
        let count = |still: bool| -> f64 {
            let of = settings
                .buckets
                .iter()
                .zip(&ranges)
                .filter(|(bucket, _)| bucket.is_still() == still);
            of.map(|(_, clips)| clips.len() as f64).sum()
        };
        let (stills, moving) = (count(true), count(false));
        if stills == 0.0 || moving == 0.0 {
            return vec![1.0; ranges.len()];
        }
        let all = stills + moving;
        let weight = |still| {
            if still {
                pictures * all / stills
            } else {
                (1.0 - pictures) * all / moving
            }
        };
        settings
            .buckets
            .iter()
            .map(|bucket| weight(bucket.is_still()))
            .collect()
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
