//! The blocks of the spatial UNet, laid out as in Stable Diffusion's, so that its published parameter
//! count is a check. Spatial attention runs per frame; text is projected once a clip.

use super::{Count, Tally, dimension, n};
use crate::Shape;

pub(super) fn tally(operator: &str, shape: &Shape) -> Option<Tally> {
    let get = |name| dimension(shape, name);
    if operator == "unet.time_embedding" {
        let (b, c_in, c_out) = (get("b")?, get("c_in")?, get("c_out")?);
        return Some(linear(c_in, c_out, b).then(linear(c_out, c_out, b)));
    }
    if !operator.starts_with("unet.") {
        return None;
    }
    let plane = Plane {
        clips: get("b")?,
        frames: get("b")? * get("t")?,
        area: get("h")? * get("w")?,
    };
    Some(match operator {
        "unet.conv_in" => convolution(get("c_in")?, get("c_out")?, plane.tokens()),
        "unet.down" => {
            let (c_in, c_out) = (get("c_in")?, get("c_out")?);
            resnet(c_in, c_out, get("temb")?, &plane).then(optional_attention(shape, c_out, &plane)?)
        }
        "unet.mid" => {
            let (c, temb) = (get("c")?, get("temb")?);
            let resnet = resnet(c, c, temb, &plane);
            resnet.then(attention(shape, c, &plane)?).then(resnet)
        }
        "unet.up" => {
            let (c_in, c_out) = (get("c_in")? + get("skip")?, get("c_out")?);
            let mut layer = resnet(c_in, c_out, get("temb")?, &plane).then(optional_attention(shape, c_out, &plane)?);
            layer.moved += n(2) * c_in * plane.tokens(); // the concatenation
            layer
        }
        "unet.downsample" => {
            let c = get("c")?;
            let halved = |name| get(name).map(|size| (size + n(1)) / n(2));
            let outputs = plane.frames * halved("h")? * halved("w")?;
            Tally {
                alive: c * (plane.tokens() + outputs),
                ..convolution(c, c, outputs)
            }
        }
        "unet.upsample" => {
            let c = get("c")?;
            let size = |to, from| get(to).or_else(|| Some(n(2) * get(from)?));
            let outputs = plane.frames * size("h_out", "h")? * size("w_out", "w")?;
            Tally {
                alive: c * n(2) * outputs,
                ..convolution(c, c, outputs)
            }
        }
        "unet.conv_out" => {
            let (c_in, c_out) = (get("c_in")?, get("c_out")?);
            let norm = Tally {
                parameters: n(2) * c_in,
                moved: n(4) * c_in * plane.tokens(),
                alive: n(2) * c_in * plane.tokens(),
                ..Tally::default()
            };
            norm.then(convolution(c_in, c_out, plane.tokens()))
        }
        _ => return None,
    })
}

/// Frames of all clips and the pixels of one.
struct Plane {
    clips: Count,
    frames: Count,
    area: Count,
}

impl Plane {
    fn tokens(&self) -> Count {
        self.frames * self.area
    }
}

/// Linear layer with bias on `rows` rows.
fn linear(c_in: Count, c_out: Count, rows: Count) -> Tally {
    Tally {
        parameters: c_in * c_out + c_out,
        macs: c_in * c_out * rows,
        moved: (c_in + c_out) * rows,
        alive: (c_in + c_out) * rows,
    }
}

/// 3×3 convolution with bias.
fn convolution(c_in: Count, c_out: Count, outputs: Count) -> Tally {
    Tally {
        parameters: n(9) * c_in * c_out + c_out,
        macs: n(9) * c_in * c_out * outputs,
        moved: (c_in + c_out) * outputs,
        alive: (c_in + c_out) * outputs,
    }
}

/// GroupNorm, SiLU, conv, time embedding, GroupNorm, SiLU, conv, shortcut of 1×1 where widths differ.
fn resnet(c_in: Count, c: Count, temb: Count, plane: &Plane) -> Tally {
    let tokens = plane.tokens();
    let reshaped = c_in != c;
    let norms = n(2) * c_in + n(2) * c;
    let shortcut = if reshaped { c_in * c + c } else { n(0) };
    Tally {
        parameters: norms + n(9) * c_in * c + c + temb * c + c + n(9) * c * c + c + shortcut,
        macs: (n(9) * c_in * c + n(9) * c * c) * tokens
            + temb * c * plane.clips
            + if reshaped { c_in * c * tokens } else { n(0) },
        moved: (n(5) * c_in + n(12) * c + if reshaped { c_in + c } else { n(0) }) * tokens,
        alive: (n(2) * c_in + c).max(c_in + n(3) * c) * tokens,
    }
}

fn optional_attention(shape: &Shape, c: Count, plane: &Plane) -> Option<Tally> {
    match shape.get("attention")? {
        0 => Some(Tally::default()),
        _ => attention(shape, c, plane),
    }
}

/// GroupNorm, 1×1, self-attention per frame, cross-attention to text, GEGLU feed-forward, 1×1, residual.
fn attention(shape: &Shape, c: Count, plane: &Plane) -> Option<Tally> {
    let get = |name| dimension(shape, name);
    let (l, d, ff) = (get("l")?, get("d")?, get("ff")?);
    let heads = get("heads").filter(|heads| heads.0 > 0)?;
    let qk_norm = if shape.get("qk_norm")? == 0 {
        n(0)
    } else {
        n(2) * (c / heads)
    };
    // The turn reads and writes queries and keys of the self-attention.
    let rope = if shape.get("rope").unwrap_or(0) == 0 {
        n(0)
    } else {
        n(4)
    };
    let tokens = plane.tokens();
    let inner = ff * c;
    let self_scores = heads * tokens * plane.area;
    let text_scores = heads * tokens * l;

    let projections = n(2) * c + n(2) * (c * c + c);
    let self_attention = n(2) * c + n(4) * c * c + c + qk_norm;
    let cross_attention = n(2) * c + n(2) * c * c + n(2) * d * c + c + qk_norm;
    let feed_forward = n(2) * c + n(2) * (inner * c + inner) + inner * c + c;
    Some(Tally {
        parameters: projections + self_attention + cross_attention + feed_forward,
        macs: (n(8) * c * c + n(3) * inner * c) * tokens
            + n(2) * c * tokens * plane.area
            + n(2) * l * c * d * plane.clips
            + n(2) * l * c * tokens,
        moved: (n(9) * c + (n(17) + rope) * c + n(13) * c + n(6) * c + n(6) * inner) * tokens
            + n(6) * l * c * plane.clips
            + n(4) * (self_scores + text_scores),
        // The residual of the wrapper and that of the sub-layer stay beside what the sub-layer makes.
        alive: (n(6) * c * tokens + self_scores)
            .max(n(5) * c * tokens + n(2) * l * c * plane.clips + text_scores)
            .max((n(3) * c + n(3) * inner) * tokens),
    })
}
