//! The `[unet]` section.

use super::read::{Section, all};
use crate::{Dtype, UnetConfig};

/// The largest size of any dimension: far beyond real models, small enough that products stay meaningful.
const LARGEST: u64 = 1 << 20;

pub(super) fn unet(section: Section) -> Option<UnetConfig> {
    let size = |key| section.need_integer(key, 1..=LARGEST);
    let latent_channels = size("latent_channels");
    let (frames, height, width) = (size("frames"), size("height"), size("width"));
    let channels = channels(&section);
    let layers_per_block = section.need_integer("layers_per_block", 1..=16);
    let attention = attention(&section, channels.as_ref().map(Vec::len));
    let middle = section.boolean_or("middle", true);
    let heads = size("heads");
    let (text_tokens, text_width) = (size("text_tokens"), size("text_width"));
    let norm_groups = size("norm_groups");
    let ff_multiplier = section.integer_or("ff_multiplier", 4, 1..=64);
    let qk_norm = section.boolean_or("qk_norm", true);
    let rope = section.boolean_or("rope", false);
    let dtype = section.get("dtype").map_or(Some(Dtype::F32), |node| {
        node.one_of(Dtype::ALL.map(|d| (d.as_str(), d)))
    });
    let parts = section.integer_or("parts", 1, 1..=64);

    if let Some(channels) = &channels {
        fit(&section, channels, heads, norm_groups, height, width);
    }
    section.finish();
    Some(UnetConfig {
        latent_channels: latent_channels?,
        frames: frames?,
        height: height?,
        width: width?,
        channels: channels?,
        layers_per_block: layers_per_block?,
        attention: attention?,
        middle: middle?,
        heads: heads?,
        text_tokens: text_tokens?,
        text_width: text_width?,
        norm_groups: norm_groups?,
        ff_multiplier: ff_multiplier?,
        qk_norm: qk_norm?,
        rope: rope?,
        dtype: dtype?,
        parts: parts?,
    })
}

fn channels(section: &Section) -> Option<Vec<u64>> {
    let allowed = "1 to 8 channel counts, highest resolution first";
    let nodes = section.need("channels", allowed)?.list(allowed, 1..=8)?;
    all(nodes.iter().map(|node| node.integer(1..=LARGEST)))
}

fn attention(section: &Section, levels: Option<usize>) -> Option<Vec<bool>> {
    let levels = levels.map_or(1..=8, |levels| levels..=levels);
    let allowed = format!("true or false for each of the {} levels of `channels`", levels.end());
    let nodes = section.need("attention", &allowed)?.list(&allowed, levels)?;
    all(nodes.iter().map(|node| node.boolean()))
}

/// Heads and groups divide the channels, heads are of even width for the rotary term, every level halves.
fn fit(
    section: &Section,
    channels: &[u64],
    heads: Option<u64>,
    groups: Option<u64>,
    height: Option<u64>,
    width: Option<u64>,
) {
    if let Some(heads) = heads
        && let Some(c) = channels.iter().find(|c| **c % (2 * heads) != 0)
    {
        section.report(
            "heads",
            heads.to_string(),
            format!("a number whose double divides all channels, also {c}"),
        );
    }
    if let Some(groups) = groups
        && let Some(c) = channels.iter().find(|c| **c % groups != 0)
    {
        section.report(
            "norm_groups",
            groups.to_string(),
            format!("a divisor of all channels, also {c}"),
        );
    }
    let divisor = 1 << (channels.len() - 1);
    for (key, size) in [("height", height), ("width", width)] {
        if let Some(size) = size.filter(|size| size % divisor != 0) {
            let allowed = format!("a multiple of {divisor}, as {} levels halve it", channels.len());
            section.report(key, size.to_string(), allowed);
        }
    }
}
