//! Parameters, multiply-accumulates, bytes moved and activation memory in closed form.
//!
//! The temporal operators follow the paper's section 3.2 with these layers, `C` channels, `N = T·H·W`
//! tokens a clip, `h` heads of width `d = C/h`, text of `L` tokens of width `D`, `y = x + f(x)`:
//!
//! | operator | `f` | parameters | MACs |
//! |---|---|---|---|
//! | Conv1D, Conv3D | GroupNorm, SiLU, Conv3d of k = 3 or 27 taps with bias | kC² + C + 2C | kC²N |
//! | SelfAttention1D | LayerNorm; q, k, v without bias; QK-norm; rotary; Linear with bias | 4C² + C + 2C + 2d | 4C²N + 2CTN |
//! | SelfAttention3D | the same over all tokens | the same | 4C²N + 2CN² |
//! | CrossAttention1D | queries from x, keys and values from text at every location | 2C² + 2DC + C + 2C + 2d | 2C²N + 2LCD·HW + 2LCN |
//! | CrossAttention3D | the same, keys and values shared | the same | 2C²N + 2LCD + 2LCN |
//!
//! MACs count convolutions, linear layers and the two products of attention; norms, activations and the
//! softmax are bytes, not MACs. Activation memory is that of an implementation that writes its attention
//! scores out: input, output and what is alive between them at the widest moment. All results
//! saturate instead of overflowing.

mod backbone;
mod temporal;

use std::num::Saturating;

use serde::{Deserialize, Serialize};

use crate::{Block, Dtype, Operator, Shape};

/// What one block costs, before any device is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Trainable scalars.
    pub parameters: u64,
    /// Multiply-accumulate operations of one forward pass.
    pub macs: u64,
    /// Bytes read and written: every weight once, every intermediate tensor when it is made and when it
    /// is used.
    pub bytes_moved: u64,
    /// Activations alive at the widest moment, input and output included, weights not.
    pub activation_bytes: u64,
}

/// The work of one layer of a block; `None` for an operator that has no closed form here, or where the
/// shape lacks a dimension.
#[must_use]
pub fn work(block: &Block, dtype: Dtype) -> Option<Work> {
    let tally = match block.operator.parse::<Operator>() {
        Ok(operator) => temporal::tally(operator, &block.shape)?,
        Err(_) => backbone::tally(&block.operator, &block.shape)?,
    };
    let size = Saturating(dtype.bytes());
    Some(Work {
        parameters: tally.parameters.0,
        macs: tally.macs.0,
        bytes_moved: ((tally.parameters + tally.moved) * size).0,
        activation_bytes: (tally.alive * size).0,
    })
}

type Count = Saturating<u64>;

const fn n(value: u64) -> Count {
    Saturating(value)
}

/// Work in elements, before the number format is known.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    parameters: Count,
    macs: Count,
    /// Activation elements read and written.
    moved: Count,
    /// Activation elements alive at the widest moment.
    alive: Count,
}

impl Tally {
    /// One after the other: work adds up, the widest moment is the wider of the two.
    fn then(self, next: Self) -> Self {
        Self {
            parameters: self.parameters + next.parameters,
            macs: self.macs + next.macs,
            moved: self.moved + next.moved,
            alive: self.alive.max(next.alive),
        }
    }
}

fn dimension(shape: &Shape, name: &str) -> Option<Count> {
    shape.get(name).map(Saturating)
}
