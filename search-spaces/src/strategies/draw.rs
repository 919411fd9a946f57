//! Random draws that depend on the seed and the proposal's number alone.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::search::View;
use crate::{Architecture, Space};

/// Draws before the space is walked through instead.
const TRIES: u32 = 1000;
/// Largest space that is walked through.
const WALKED: u128 = 1 << 18;

/// The generator of one proposal: each number has a stream of its own.
pub(super) fn generator(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

/// Every choice with equal probability.
pub(super) fn uniform(space: &Space, rng: &mut ChaCha8Rng) -> Architecture {
    let choices = space.positions.iter().map(|position| {
        let index = rng.random_range(0..position.choices.len().max(1));
        u16::try_from(index).unwrap_or(0)
    });
    Architecture::new(choices.collect::<Vec<_>>())
}

/// The first draw that was not proposed and that the known costs admit. After many failures a space
/// that is small enough is walked through in order; `None` says that nothing is left, or nothing was
/// found in a space too large to tell.
pub(super) fn fresh(
    view: &View,
    rng: &mut ChaCha8Rng,
    mut draw: impl FnMut(&mut ChaCha8Rng) -> Architecture,
) -> Option<Architecture> {
    let proposed = view.proposed();
    let suits =
        |architecture: &Architecture| !proposed.contains(architecture) && view.admissible(architecture).is_some();
    (0..TRIES)
        .map(|_| draw(rng))
        .find(|architecture| suits(architecture))
        .or_else(|| first_unproposed(view, &proposed))
}

fn first_unproposed(view: &View, proposed: &BTreeSet<&Architecture>) -> Option<Architecture> {
    if view.space.size() > WALKED {
        return None;
    }
    let sizes: Vec<usize> = view
        .space
        .positions
        .iter()
        .map(|position| position.choices.len())
        .collect();
    let at = |mut index: usize| {
        let digit = |size: &usize| {
            let choice = index % size;
            index /= size;
            u16::try_from(choice).unwrap_or(0)
        };
        Architecture::new(sizes.iter().map(digit).collect::<Vec<_>>())
    };
    let size = usize::try_from(view.space.size()).ok()?;
    (0..size)
        .map(at)
        .find(|architecture| !proposed.contains(architecture) && view.admissible(architecture).is_some())
}
