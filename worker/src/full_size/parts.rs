//! Parameters of each part of the model.

use std::collections::BTreeMap;

use search_spaces::UnetConfig;
use tch::{Device, Tensor, nn};

use crate::models::published::open_sora_vae;
use crate::models::text::{TextConfig, TextEncoder};
use crate::models::unet::{is_temporal, temporal_path};
use crate::models::vae::Vae;

/// Tokens that CLIP's vocabulary knows.
const VOCABULARY: i64 = 49_408;

/// Prints the parameters of the UNet's blocks, backbone first, then temporal layers by position.
pub(super) fn of_the_unet(vs: &nn::VarStore, config: &UnetConfig) {
    let variables = vs.variables();
    let count = |is_wanted: &dyn Fn(&str) -> bool| -> usize {
        let wanted = variables.iter().filter(|(name, _)| is_wanted(name));
        wanted.map(|(_, tensor)| tensor.numel()).sum()
    };
    say("unet", count(&|_| true));
    say("  backbone", count(&|name| !is_temporal(name)));
    let mut blocks: BTreeMap<(usize, String), usize> = BTreeMap::new();
    for (name, tensor) in variables.iter().filter(|(name, _)| !is_temporal(name)) {
        *blocks.entry(block_of(name)).or_default() += tensor.numel();
    }
    for ((_, block), parameters) in blocks {
        say(&format!("    {block}"), parameters);
    }
    say("  temporal", count(&is_temporal));
    for place in config.positions() {
        let prefix = format!("{}.", temporal_path(&place.name));
        say(&format!("    {}", place.name), count(&|name| name.starts_with(&prefix)));
    }
}

/// The block of the backbone that a weight belongs to, with its place in the forward pass.
fn block_of(name: &str) -> (usize, String) {
    const ORDER: [&str; 7] = [
        "conv_in",
        "time_embedding",
        "down_blocks",
        "mid_block",
        "up_blocks",
        "conv_norm_out",
        "conv_out",
    ];
    let mut pieces = name.split('.');
    let first = pieces.next().unwrap_or_default();
    let place = ORDER.iter().position(|block| *block == first).unwrap_or(ORDER.len());
    match first {
        "down_blocks" | "up_blocks" => (place, format!("{first}.{}", pieces.next().unwrap_or_default())),
        other => (place, other.to_owned()),
    }
}

/// Prints the parameters of CLIP's text encoder and of Open-Sora's VAE, each built once for counting.
pub(super) fn beside_the_unet() {
    let store = || nn::VarStore::new(Device::Cpu);
    let all = |vs: &nn::VarStore| -> BTreeMap<String, Tensor> { vs.variables().into_iter().collect() };
    let total = |tensors: &BTreeMap<String, Tensor>, prefix: &str| -> usize {
        let under = tensors.iter().filter(|(name, _)| name.starts_with(prefix));
        under.map(|(_, tensor)| tensor.numel()).sum()
    };

    let vs = store();
    let clip = TextConfig {
        tokens: 77,
        width: 768,
        heads: 12,
        layers: 12,
    };
    let _text = TextEncoder::new(&vs.root(), &clip, VOCABULARY);
    say("text encoder", total(&all(&vs), ""));

    let vs = store();
    let _vae = Vae::new(&vs.root(), &open_sora_vae());
    let vae = all(&vs);
    say("vae, spatial", total(&vae, "spatial_vae."));
    say("vae, temporal", total(&vae, "temporal_vae."));
}

fn say(part: &str, parameters: usize) {
    println!(
        "parameters    {part:<22} {:>9.3} M  ({parameters})",
        parameters as f64 / 1e6
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_of_the_backbone_has_its_block() {
        for (name, block) in [
            ("down_blocks.1.attentions.0.norm.weight", "down_blocks.1"),
            ("up_blocks.2.resnets.0.conv1.bias", "up_blocks.2"),
            ("mid_block.resnets.1.conv2.bias", "mid_block"),
            ("conv_norm_out.weight", "conv_norm_out"),
        ] {
            assert_eq!(block_of(name).1, block);
        }
        assert!(block_of("conv_in.weight") < block_of("time_embedding.linear_1.bias"));
        assert!(
            block_of("mid_block.a") < block_of("up_blocks.0.a") && block_of("up_blocks.2.a") < block_of("conv_out.a")
        );
    }
}
