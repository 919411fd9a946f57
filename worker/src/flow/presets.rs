//! The paper's two sizes of a clip.

use crate::models::vae::latent_frames;

/// Pixels of a latent's pixel, along one axis.
const PIXELS: i64 = 8;

/// A size of clips with its frame rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// What it is asked for by.
    pub name: &'static str,
    /// Frames of a clip.
    pub frames: i64,
    /// Rows of pixels.
    pub height: i64,
    /// Columns of pixels.
    pub width: i64,
    /// Frames a second.
    pub frame_rate: u32,
}

/// The clips of the paper's Table 2 and Figure 5, and those of its demo on a phone (Appendix F).
pub const PRESETS: [Preset; 2] = [
    Preset {
        name: "paper-eval",
        frames: 120,
        height: 432,
        width: 768,
        frame_rate: 24,
    },
    Preset {
        name: "paper-demo",
        frames: 51,
        height: 512,
        width: 512,
        frame_rate: 10,
    },
];

impl Preset {
    /// The preset of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        PRESETS.into_iter().find(|preset| preset.name == name)
    }

    /// Shape of the latents of `batch` clips: `[batch, channels, t, h, w]`.
    #[must_use]
    pub fn latent_shape(&self, batch: i64, channels: i64) -> [i64; 5] {
        let frames = latent_frames(self.frames);
        [batch, channels, frames, self.height / PIXELS, self.width / PIXELS]
    }

    /// Seconds of a clip.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.frames as f64 / f64::from(self.frame_rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_papers_latents() {
        let of = |name: &str| Preset::named(name).unwrap();
        assert_eq!(of("paper-eval").latent_shape(1, 4), [1, 4, 36, 54, 96]);
        assert_eq!(of("paper-demo").latent_shape(2, 4), [2, 4, 15, 64, 64]);
        assert_eq!(of("paper-eval").seconds(), 5.0);
        assert!((of("paper-demo").seconds() - 5.1).abs() < 1e-12);
        assert_eq!(Preset::named("paper"), None);
    }
}
