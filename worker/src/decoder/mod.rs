//! Compression of the VAE's decoder (the paper's Appendix B): the encoder stays as it is, and a decoder of separable
//! convolutions learns to decode what it encodes: over time from clips, from the latents of frames to pixels from
//! pictures.
//!
//! Any decoder for a frozen encoder is trained by this code: of which widths, and with which convolutions, says the
//! recipe. What it can take over from the original's weights it begins with (see [`start`]).

mod check;
mod command;
pub mod comparison;
pub mod loss;
pub mod material;
pub mod pictures;
pub mod plan;
pub mod start;
pub mod training;

pub use check::{DecoderCheckArgs, command as check_command};
pub use command::{DecoderArgs, command};

/// One of the two decoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// From latents to the latents of all frames.
    Temporal,
    /// From the latents of a frame to its pixels.
    Spatial,
}

impl Part {
    /// Its name in figures, checkpoints and logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Temporal => "temporal",
            Self::Spatial => "spatial",
        }
    }

    /// The decoder that a weight of a VAE belongs to; none where it is the encoder's or a statistic.
    #[must_use]
    pub fn of(weight: &str) -> Option<Self> {
        let decodes = weight
            .split('.')
            .any(|part| matches!(part, "decoder" | "post_quant_conv"));
        let part = if weight.starts_with("temporal_vae.") {
            Self::Temporal
        } else {
            Self::Spatial
        };
        decodes.then_some(part)
    }
}

#[cfg(test)]
pub(crate) mod tests;
