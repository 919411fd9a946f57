//! What was measured around a block.

use std::collections::{BTreeMap, BTreeSet};

use search_spaces::{Block, Dtype, Shape, Work, work};

use super::Bracket;
use crate::{Cost, EntryState, Lut};

/// Dimensions of the input that grow without changing the layer. They are interpolated over first: the same
/// weights on more data are a nearer relative than other weights.
const EXTENTS: [&str; 5] = ["h", "w", "t", "l", "b"];

/// Most dimensions in which neighbours may differ when the operator's work is known, and when it is not.
const VARYING_WITH_WORK: u32 = 3;
const VARYING_WITHOUT_WORK: u32 = 2;

/// A measured relative of a block: nowhere larger, or nowhere smaller.
pub(super) struct Relative<'a> {
    pub(super) shape: &'a Shape,
    pub(super) cost: Cost,
    pub(super) work: Option<Work>,
    /// Bit i: dimension i of the block differs.
    differs: u32,
}

/// What was measured around a block.
pub(super) struct Around<'a> {
    block: &'a Block,
    dtype: Dtype,
    work: Option<Work>,
    below: Vec<Relative<'a>>,
    pub(super) above: Vec<Relative<'a>>,
    /// A shape, nowhere larger than the block's, that ran out of memory.
    pub(super) full_below: Option<&'a Shape>,
    /// A shape, nowhere smaller, that did.
    full_above: Option<&'a Shape>,
}

enum Side {
    Below,
    Above,
}

impl<'a> Around<'a> {
    pub(super) fn of(lut: &Lut, shapes: &'a BTreeMap<Shape, EntryState>, block: &'a Block) -> Self {
        let dtype = lut.dtype();
        let own_work = work(block, dtype);
        let most = if own_work.is_some() {
            VARYING_WITH_WORK
        } else {
            VARYING_WITHOUT_WORK
        };
        let (below, above) = (Vec::new(), Vec::new());
        let mut around = Self {
            block,
            dtype,
            work: own_work,
            below,
            above,
            full_below: None,
            full_above: None,
        };
        for (shape, state) in shapes {
            let Some((side, differs)) = compare(shape, &block.shape, most) else {
                continue;
            };
            match (state, side) {
                (EntryState::Measured(measurement), side) => {
                    let Some(cost) = lut.cost(measurement) else { continue };
                    let work = own_work.and_then(|_| around.work_at(shape));
                    let relatives = match side {
                        Side::Below => &mut around.below,
                        Side::Above => &mut around.above,
                    };
                    relatives.push(Relative {
                        shape,
                        cost,
                        work,
                        differs,
                    });
                }
                (EntryState::OutOfMemory { .. }, Side::Below) => around.full_below = Some(shape),
                (EntryState::OutOfMemory { .. }, Side::Above) => around.full_above = Some(shape),
                (EntryState::Unsupported { .. }, _) => {}
            }
        }
        around
    }

    fn work_at(&self, shape: &Shape) -> Option<Work> {
        work(
            &Block {
                operator: self.block.operator.clone(),
                shape: shape.clone(),
            },
            self.dtype,
        )
    }

    /// The nearest enclosing pair over the most closely related dimensions.
    pub(super) fn bracket(&self) -> Option<Bracket<'_>> {
        let (below, above) = (differences(&self.below), differences(&self.above));
        let unions: BTreeSet<u32> = below.iter().flat_map(|b| above.iter().map(move |a| a | b)).collect();
        let over = unions
            .into_iter()
            .filter(|over| over.count_ones() <= self.most())
            .min_by_key(|&over| self.distance(over))?;
        let size = |relative: &&Relative<'_>| self.size(relative, over);
        let nearest_below = self
            .below
            .iter()
            .filter(|r| r.differs & !over == 0)
            .max_by(|a, b| size(a).total_cmp(&size(b)))?;
        let nearest_above = self
            .above
            .iter()
            .filter(|r| r.differs & !over == 0)
            .min_by(|a, b| size(a).total_cmp(&size(b)))?;
        Some(Bracket {
            block: self.block,
            work: self.work,
            below: nearest_below,
            above: nearest_above,
            over: self.names(over),
            mask: over,
        })
    }

    /// The line through the two nearest shapes on one side, wherever two stand in the same dimensions.
    pub(super) fn extrapolate(&self) -> Option<Cost> {
        let of_side = |relatives: &'_ [Relative<'_>], nearest_is_largest: bool| {
            let mut sets: Vec<u32> = differences(relatives).into_iter().collect();
            sets.sort_by_key(|&over| self.distance(over));
            sets.into_iter().find_map(|over| {
                let mut within: Vec<&Relative<'_>> = relatives.iter().filter(|r| r.differs & !over == 0).collect();
                within.sort_by(|a, b| self.size(a, over).total_cmp(&self.size(b, over)));
                if nearest_is_largest {
                    within.reverse();
                }
                let near = within.first()?;
                let far = within.iter().find(|r| self.size(r, over) != self.size(near, over))?;
                let bracket = Bracket {
                    block: self.block,
                    work: self.work,
                    below: far,
                    above: near,
                    over: self.names(over),
                    mask: over,
                };
                Some(bracket.beyond())
            })
        };
        of_side(&self.below, true).or_else(|| of_side(&self.above, false))
    }

    fn most(&self) -> u32 {
        if self.work.is_some() {
            VARYING_WITH_WORK
        } else {
            VARYING_WITHOUT_WORK
        }
    }

    /// Order of preference between sets of varying dimensions: fewest that change the layer, then fewest.
    fn distance(&self, over: u32) -> (usize, u32, u32) {
        let names = self.names(over);
        (
            names.iter().filter(|name| !EXTENTS.contains(&name.as_str())).count(),
            over.count_ones(),
            over,
        )
    }

    fn names(&self, over: u32) -> Vec<String> {
        self.block
            .shape
            .iter()
            .enumerate()
            .filter(|(i, _)| over >> i & 1 == 1)
            .map(|(_, (name, _))| name.to_string())
            .collect()
    }

    fn size(&self, relative: &Relative<'_>, over: u32) -> f64 {
        relative
            .work
            .map_or_else(|| product(relative.shape, over), |work| work.macs as f64)
    }

    pub(super) fn describe(&self) -> String {
        let side = |relatives: &[Relative<'_>], full: Option<&Shape>| match (relatives, full) {
            ([], Some(shape)) => format!("{shape} ran out of memory"),
            ([], None) => "none".to_owned(),
            (relatives, _) => {
                let nearest = relatives.iter().min_by_key(|relative| self.distance(relative.differs));
                nearest.map_or_else(String::new, |nearest| nearest.shape.to_string())
            }
        };
        format!(
            "smaller: {}; larger: {}",
            side(&self.below, self.full_below),
            side(&self.above, self.full_above)
        )
    }
}

fn differences(relatives: &[Relative<'_>]) -> BTreeSet<u32> {
    relatives.iter().map(|relative| relative.differs).collect()
}

/// On which side of `block` a shape stands and where it differs; none when it is larger here and smaller
/// there, has other dimensions, is the same, or differs in more than `most` dimensions.
fn compare(shape: &Shape, block: &Shape, most: u32) -> Option<(Side, u32)> {
    let (mut smaller, mut larger) = (0_u32, 0_u32);
    let (mut ours, mut theirs) = (block.iter(), shape.iter());
    for i in 0.. {
        match (ours.next(), theirs.next()) {
            (None, None) => break,
            (Some((name, size)), Some((other, found))) if name == other && i < u32::BITS => {
                smaller |= u32::from(found < size) << i;
                larger |= u32::from(found > size) << i;
            }
            _ => return None,
        }
        if smaller.count_ones() + larger.count_ones() > most || (smaller != 0 && larger != 0) {
            return None;
        }
    }
    match (smaller, larger) {
        (0, 0) => None,
        (smaller, 0) => Some((Side::Below, smaller)),
        (_, larger) => Some((Side::Above, larger)),
    }
}

/// Product of the dimensions in a set.
pub(super) fn product(shape: &Shape, over: u32) -> f64 {
    shape
        .iter()
        .enumerate()
        .filter(|(i, _)| over >> i & 1 == 1)
        .map(|(_, (_, size))| size as f64)
        .product()
}
