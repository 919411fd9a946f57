//! What a look-up table measures and a schedule is made of.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::Shape;

/// An operator at one shape: the unit that a device measures.
///
/// | operator | dimensions |
/// |---|---|
/// | `conv1d`, `conv3d` | `b t h w c groups` |
/// | `self_attention1d`, `self_attention3d` | `b t h w c heads` |
/// | `cross_attention1d`, `cross_attention3d` | `b t h w c heads l d` |
/// | `unet.time_embedding` | `b c_in c_out` |
/// | `unet.conv_in` | `b t h w c_in c_out` |
/// | `unet.down` | `b t h w c_in c_out temb groups attention`, with attention also `heads l d ff qk_norm` |
/// | `unet.downsample` | `b t h w c`, sizes of the input |
/// | `unet.upsample` | the same, and `h_out`, `w_out` where rows or columns that come out are not twice those that go in |
/// | `unet.mid` | `b t h w c temb groups heads l d ff qk_norm` |
/// | `unet.up` | as `unet.down`, and `skip`: channels of the skip tensor concatenated to `c_in` |
/// | `unet.conv_out` | `b t h w c_in c_out groups` |
/// | `text_encoder` | `b l d` |
/// | `vae.decode` | `b t h w c` |
///
/// `b` clips of `t` frames, `h`×`w` latent pixels, `c` channels, `l` text tokens of width `d`, `temb`
/// width of the time embedding, `ff` multiplier of the feed-forward, `attention` and `qk_norm` 0 or 1. Blocks whose
/// self-attention has a rotary term also have `rope`, which is 1.
/// `unet.down` and `unet.up` are one ResNet with its attention, not a whole level, so that levels of
/// different depth share their entries and every skip tensor's life is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Block {
    /// Name of the operator.
    pub operator: String,
    /// Its dimensions.
    pub shape: Shape,
}

impl Block {
    /// An operator at a shape.
    #[must_use]
    pub fn new(operator: &str, shape: Shape) -> Self {
        Self {
            operator: operator.to_owned(),
            shape,
        }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operator, self.shape)
    }
}
