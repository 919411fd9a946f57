//! Measured costs of building blocks, and what whole architectures are predicted to cost from them.
//!
//! A [`Lut`] holds the entries of one device, runtime with version and number type, because nothing transfers
//! between those. It keeps raw samples and answers with their median and its standard error; between measured
//! shapes it interpolates in the operator's own work and says how well that predicts left-out entries.
//! Everything here is pure: text and values in, text and values out.

mod accuracy;
mod calibration;
mod composition;
mod elimination;
mod entry;
mod figure;
pub mod formats;
mod interpolation;
mod runtime;
mod samples;
mod table;
#[cfg(test)]
mod testing;

pub use accuracy::Accuracy;
pub use calibration::{Calibration, Pair};
pub use composition::{ArchitectureCost, CompositionError, LutCosts, compose};
pub use elimination::{Elimination, MARGIN, Reason, Removed, Undecided, eliminate};
pub use entry::{Entry, EntryState, LutKey, Measurement};
pub use figure::{FIGURE_3_FRAMES, FigurePoint, figure3, figure3_blocks};
pub use formats::{ImportError, ImportErrors};
pub use interpolation::{Axis, ErrorSummary, LeaveOut};
pub use runtime::{Policy, Runtime, RuntimeError};
pub use samples::{LARGEST_SAMPLE, SampleError, Samples};
pub use table::{Cost, Extrapolation, Lookup, Lut, Missing};
