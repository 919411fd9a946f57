//! Plots as SVG and PNG: the front, the hypervolume over time, and the paper's Figures 3 and 6.
//!
//! Pure functions of what REST shows. Text is measured and, in PNG, drawn with a font that the program
//! carries (Inter, SIL Open Font License, in `assets/fonts`), so nothing depends on the machine's fonts.

mod axis;
mod canvas;
mod colours;
mod figure3;
mod front;
mod hypervolume;
mod radar;

pub use canvas::{Format, PlotError};
pub use figure3::figure3;
pub use front::front;
pub use hypervolume::hypervolume;
pub use radar::radar;
