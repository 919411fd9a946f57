use search_spaces::{Dtype, Space, UnetConfig};
use tch::Kind;

use super::*;
use crate::models::UNet;
use crate::models::seeded::{distance, normal, seed_weights};
use crate::models::unet::{Activations, Moment};

/// Stable Diffusion 1.5 (spec section 1.1).
fn stable_diffusion() -> UnetConfig {
    UnetConfig {
        latent_channels: 4,
        frames: 1,
        height: 64,
        width: 64,
        channels: vec![320, 640, 1280, 1280],
        layers_per_block: 2,
        attention: vec![true, true, true, false],
        middle: true,
        heads: 8,
        text_tokens: 77,
        text_width: 768,
        norm_groups: 32,
        ff_multiplier: 4,
        qk_norm: false,
        rope: false,
        dtype: Dtype::F32,
        parts: 1,
    }
}

fn snapgen_v() -> UnetConfig {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/snapgen-v.toml");
    let space = Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
    space.unet().unwrap().clone()
}

/// Three levels of two layers: every kind of block, small.
fn small() -> UnetConfig {
    UnetConfig {
        height: 4,
        width: 4,
        channels: vec![8, 16, 16],
        attention: vec![false, true, true],
        heads: 2,
        text_tokens: 3,
        text_width: 6,
        norm_groups: 4,
        ff_multiplier: 2,
        ..stable_diffusion()
    }
}

fn built(config: &UnetConfig, seed: u64) -> (nn::VarStore, UNet) {
    let mut vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), config, &[]);
    seed_weights(&vs, seed);
    vs.freeze();
    // Norms and biases too: with ones and zeros a mistaken place would not show.
    for (name, mut variable) in vs.variables() {
        if variable.dim() == 1 {
            let start = crate::models::seeded::stream_of(&name);
            tch::no_grad(|| variable.copy_(&(normal(&variable.size(), seed ^ start, Device::Cpu) * 0.3 + 0.7)));
        }
    }
    (vs, unet)
}

fn inputs(config: &UnetConfig) -> (Tensor, Tensor, Tensor) {
    let [c, h, w] = [config.latent_channels, config.height, config.width].map(|size| size as i64);
    let text = [2, config.text_tokens as i64, config.text_width as i64];
    (
        normal(&[2, c, 1, h, w], 1, Device::Cpu),
        Tensor::from_slice(&[0.2f32, 0.8]),
        normal(&text, 2, Device::Cpu),
    )
}

#[test]
fn the_layout_is_that_of_the_network() {
    let headless = UnetConfig {
        middle: false,
        layers_per_block: 1,
        qk_norm: true,
        rope: false,
        channels: vec![8, 8],
        attention: vec![true, false],
        ..small()
    };
    for config in [small(), headless] {
        let vs = nn::VarStore::new(Device::Cpu);
        let _unet = UNet::new(&vs.root(), &config, &[]);
        let built: BTreeMap<String, Vec<i64>> = vs.variables().into_iter().map(|(name, w)| (name, w.size())).collect();
        let written = weights(&config);
        assert_eq!(written.len(), built.len());
        let written: BTreeMap<String, Vec<i64>> = written.iter().map(|w| (w.name(), w.shape())).collect();
        assert_eq!(written, built);
    }
}

/// 686 tensors and 859,520,964 parameters (spec section 1.1).
#[test]
fn the_layout_of_stable_diffusion_has_the_published_size() {
    let all = weights(&stable_diffusion());
    assert_eq!(all.len(), 686);
    let parameters: i64 = all.iter().map(|w| w.shape().iter().product::<i64>()).sum();
    assert_eq!(parameters, 859_520_964);
}

#[test]
fn every_weight_of_the_papers_backbone_comes_from_stable_diffusion_but_the_norms_it_lacks() {
    let (full, pruned) = (stable_diffusion(), snapgen_v());
    let map = CopyMap::new(&full, &pruned).unwrap();
    let known: BTreeMap<String, Vec<i64>> = weights(&full).iter().map(|w| (w.name(), w.shape())).collect();
    let mut parameters = 0;
    for weight in weights(&pruned) {
        let name = weight.name();
        match &map.starts[&name].0 {
            Start::Copied { from, picks } => {
                let after: Vec<i64> = known[from]
                    .iter()
                    .zip(picks)
                    .map(|(&size, pick)| pick.as_ref().map_or(size, |pick| pick.len() as i64))
                    .collect();
                assert_eq!(after, weight.shape(), "{name}");
                for (pick, &size) in picks.iter().zip(&known[from]) {
                    let pick = pick.as_deref().unwrap_or_default();
                    assert!(
                        pick.is_sorted_by(|a, b| a < b) && pick.iter().all(|&i| i < size),
                        "{name}"
                    );
                }
            }
            Start::One => assert!(name.contains("attn") && name.contains(".norm_"), "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        parameters += weight.shape().iter().product::<i64>() as u64;
    }
    assert_eq!(parameters, pruned.parameters(&[]));

    for (name, source) in [
        ("conv_in.weight", "conv_in.weight"),
        (
            "down_blocks.2.resnets.0.conv1.weight",
            "down_blocks.2.resnets.0.conv1.weight",
        ),
        ("mid_block.resnets.1.conv2.bias", "mid_block.resnets.1.conv2.bias"),
        (
            "up_blocks.0.resnets.0.conv1.weight",
            "up_blocks.1.resnets.0.conv1.weight",
        ),
        (
            "up_blocks.0.resnets.1.conv1.weight",
            "up_blocks.1.resnets.2.conv1.weight",
        ),
        (
            "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_q.weight",
            "up_blocks.2.attentions.2.transformer_blocks.0.attn2.to_q.weight",
        ),
        (
            "up_blocks.1.upsamplers.0.conv.weight",
            "up_blocks.2.upsamplers.0.conv.weight",
        ),
        (
            "up_blocks.2.resnets.1.conv_shortcut.weight",
            "up_blocks.3.resnets.2.conv_shortcut.weight",
        ),
    ] {
        assert!(
            matches!(&map.starts[name].0, Start::Copied { from, .. } if from == source),
            "{name}"
        );
    }
}

/// 1280 channels become 1088: 34 of the 40 of each of 32 groups, 136 of the 160 of each of 8 heads, 4352 of the 5120 of
/// each half; a skip tensor's channels begin behind all 1280 of the tensor it is joined to.
#[test]
fn narrow_layers_keep_the_leading_channels_of_every_group_head_and_half() {
    let map = CopyMap::new(&stable_diffusion(), &snapgen_v()).unwrap();
    let picks = |name: &str| match &map.starts[name].0 {
        Start::Copied { picks, .. } => picks.clone(),
        other => panic!("{name}: {other:?}"),
    };
    let leading = |parts: i64, kept: i64, of: i64| (0..parts).flat_map(|i| i * of..i * of + kept).collect::<Vec<_>>();

    let to_q = picks("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight");
    assert_eq!(to_q, [Some(leading(8, 136, 160)), Some(leading(32, 34, 40))]);
    let to_k = picks("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight");
    assert_eq!(to_k, [Some(leading(8, 136, 160)), None]);
    let gated = picks("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.bias");
    assert_eq!(gated, [Some(leading(2, 4352, 5120))]);
    let joined = picks("up_blocks.0.resnets.1.norm1.weight");
    let mut expected = leading(32, 34, 40);
    expected.extend(1280..1280 + 640);
    assert_eq!(joined, [Some(expected)]);
    assert_eq!(picks("up_blocks.2.resnets.0.conv1.weight"), [const { None }; 4]);
}

#[test]
fn a_network_of_the_same_sizes_starts_as_a_copy() {
    let config = small();
    let map = CopyMap::new(&config, &config).unwrap();
    for (name, start) in map.starts() {
        let Start::Copied { from, picks } = start else {
            panic!("{name}: {start:?}")
        };
        assert_eq!(from, name);
        assert!(picks.iter().all(Option::is_none), "{name}");
    }
    let ((full, _), (pruned, _)) = (built(&config, 1), built(&config, 2));
    map.copy(&full.variables(), &pruned).unwrap();
    let copies = pruned.variables();
    assert!(full.variables().into_iter().all(|(name, w)| copies[&name] == w));
}

/// Turns a residual block and its attention into `x`, or into the first half of what is joined.
fn make_identity(weights: &HashMap<String, Tensor>, block: &str, index: usize) {
    let set = |name: &str, value: Option<Tensor>| {
        if let Some(variable) = weights.get(name) {
            let value = value.unwrap_or_else(|| variable.zeros_like());
            tch::no_grad(|| variable.shallow_clone().copy_(&value));
        }
    };
    for end in ["weight", "bias"] {
        set(&format!("{block}.resnets.{index}.conv2.{end}"), None);
        set(&format!("{block}.attentions.{index}.proj_out.{end}"), None);
    }
    let shortcut = format!("{block}.resnets.{index}.conv_shortcut.weight");
    if let Some(weight) = weights.get(&shortcut) {
        let (rows, columns) = (weight.size()[0], weight.size()[1]);
        let first = Tensor::eye_m(rows, columns, (Kind::Float, Device::Cpu));
        set(&shortcut, Some(first.unsqueeze(-1).unsqueeze(-1)));
        set(&format!("{block}.resnets.{index}.conv_shortcut.bias"), None);
    }
}

/// A convolution of one pixel, which sees nothing but its centre.
fn make_centre(weights: &HashMap<String, Tensor>, conv: &str) {
    let mut weight = weights[&format!("{conv}.weight")].shallow_clone();
    let mut bias = weights[&format!("{conv}.bias")].shallow_clone();
    let centre = Tensor::zeros_like(&weight);
    let unit = Tensor::eye(weight.size()[0], (Kind::Float, Device::Cpu));
    centre.select(2, 1).select(2, 1).copy_(&unit);
    tch::no_grad(|| {
        weight.copy_(&centre);
        let _ = bias.zero_();
    });
}

/// What pruning drops is made to do nothing, so the copy must compute what the original computes, everywhere.
#[test]
fn where_the_dropped_layers_do_nothing_the_copy_is_the_network() {
    let full_config = UnetConfig {
        channels: vec![8, 16, 16, 16],
        attention: vec![false, true, true, false],
        ..small()
    };
    let pruned_config = UnetConfig {
        layers_per_block: 1,
        ..small()
    };
    let ((vs, full), (copy, pruned)) = (built(&full_config, 1), built(&pruned_config, 2));
    let weights = vs.variables();
    for level in 0..4 {
        make_identity(&weights, &format!("down_blocks.{level}"), 1);
        make_identity(&weights, &format!("up_blocks.{level}"), 1);
    }
    // The innermost level is one pixel, as the level above it.
    make_centre(&weights, "down_blocks.2.downsamplers.0.conv");
    make_identity(&weights, "down_blocks.3", 0);
    make_identity(&weights, "up_blocks.0", 0);
    make_identity(&weights, "up_blocks.0", 2);
    make_centre(&weights, "up_blocks.0.upsamplers.0.conv");

    CopyMap::new(&full_config, &pruned_config)
        .unwrap()
        .copy(&weights, &copy)
        .unwrap();
    let (xs, time, text) = inputs(&full_config);
    let pass = |unet: &UNet| {
        let mut seen = Vec::new();
        let mut observe = |_: usize, hidden: &Tensor| seen.push(hidden.shallow_clone());
        let out = unet.observed(&xs, Moment::Time(&time), &text, Activations::Kept, &mut observe);
        (out, seen)
    };
    let ((full_out, full_seen), (out, seen)) = (pass(&full), pass(&pruned));
    let shared = shared_positions(&full_config, &pruned_config).unwrap();
    let names = |config: &UnetConfig| config.positions().into_iter().map(|p| p.name).collect::<Vec<_>>();
    let (full_names, pruned_names) = (names(&full_config), names(&pruned_config));
    let pairs: Vec<_> = shared
        .iter()
        .map(|at| format!("{} {}", full_names[at.full], pruned_names[at.pruned]))
        .collect();
    assert_eq!(
        pairs,
        [
            "down.0 down.0",
            "down.1 down.1",
            "down.2 down.2",
            "up.1 up.0",
            "up.2 up.1",
            "up.3 up.2"
        ]
    );
    for at in &shared {
        let apart = distance(&full_seen[at.full], &seen[at.pruned]);
        assert!(apart < 1e-4, "{}: {apart}", full_names[at.full]);
    }
    assert!(out.abs().max().double_value(&[]) > 0.1);
    assert!(distance(&full_out, &out) < 1e-4);
}

/// Which place of a narrow axis each place of one twice as wide repeats, and whether it is the one that is kept: every
/// part (a group, a head, a half, a whole) comes as itself and then once more.
fn repeated(parts: &[i64]) -> Vec<(i64, bool)> {
    let mut places = Vec::new();
    let mut start = 0;
    for &part in parts {
        places.extend((0..2 * part).map(|i| (start + i % part, i < part)));
        start += part;
    }
    places
}

/// A weight of the narrow network as one of a network twice as wide that computes the same on every channel twice:
/// rows repeat, the columns of repeated channels are zero.
fn widened(name: &str, narrow: &Tensor) -> Tensor {
    let size = narrow.size();
    let has = |ends: &[&str]| ends.iter().any(|end| name.contains(end));
    let even = |count: i64, parts: i64| vec![count / parts; parts as usize];
    // Two tensors of 8 channels, in 4 groups each.
    let joined =
        name.starts_with("up_blocks") && has(&["resnets"]) && has(&["norm1", "conv1.weight", "shortcut.weight"]);
    let rows = match () {
        () if has(&["conv_out"]) && narrow.size()[0] == 4 => None,
        () if has(&["to_q", "to_k", "to_v"]) => Some(even(size[0], 2)),
        () if has(&["net.0"]) => Some(even(size[0], 2)),
        () if has(&["time_embedding"]) => Some(even(size[0], 1)),
        () if joined && size.len() == 1 => Some(even(size[0], 8)),
        () => Some(even(size[0], 4)),
    };
    let mut wide = match rows {
        Some(parts) => {
            let places: Vec<i64> = repeated(&parts).iter().map(|(place, _)| *place).collect();
            narrow.index_select(0, &Tensor::from_slice(&places))
        }
        None => narrow.shallow_clone(),
    };
    if size.len() == 1 {
        return wide;
    }
    let columns = match () {
        () if has(&["conv_in", "attn2.to_k", "attn2.to_v"]) => return wide,
        // Frequencies of twice as many channels: every second is one of the narrow network's.
        () if has(&["linear_1"]) => (0..2 * size[1]).map(|i| (i / 2, i % 2 == 0)).collect(),
        () if has(&["to_out"]) => repeated(&even(size[1], 2)),
        () if has(&["net.2", "time_emb"]) => repeated(&even(size[1], 1)),
        () if joined => repeated(&even(size[1], 8)),
        () => repeated(&even(size[1], 4)),
    };
    let places: Vec<i64> = columns.iter().map(|(place, _)| *place).collect();
    let kept: Vec<f32> = columns.iter().map(|(_, kept)| f32::from(u8::from(*kept))).collect();
    let mut shape = vec![1; size.len()];
    shape[1] = -1;
    wide = wide.index_select(1, &Tensor::from_slice(&places));
    wide * Tensor::from_slice(&kept).reshape(&shape)
}

/// A network is made twice as wide without changing what it computes; its pruned copy must be the network it was made
/// from. Means and variances of groups and layers are over channels that all come twice.
#[test]
fn a_network_that_was_widened_is_found_again() {
    let narrow_config = UnetConfig {
        channels: vec![8, 8],
        attention: vec![true, true],
        layers_per_block: 1,
        ..small()
    };
    let wide_config = UnetConfig {
        channels: vec![16, 16],
        ..narrow_config.clone()
    };
    let ((vs, narrow), (wide_vs, wide)) = (built(&narrow_config, 1), built(&wide_config, 2));
    let originals = vs.variables();
    for (name, variable) in &originals {
        // Wider heads divide their products by more: equal attention to everything does not depend on it.
        if name.contains("to_q") {
            let _ = tch::no_grad(|| variable.shallow_clone().zero_());
        }
    }
    for (name, mut variable) in wide_vs.variables() {
        tch::no_grad(|| variable.copy_(&widened(&name, &originals[&name])));
    }
    let (xs, time, text) = inputs(&narrow_config);
    let expected = narrow.forward(&xs, &time, &text);
    let apart = distance(&expected, &wide.forward(&xs, &time, &text));
    assert!(apart < 1e-4, "widening changed the network by {apart}");

    let (copy_vs, copy) = built(&narrow_config, 3);
    let map = CopyMap::new(&wide_config, &narrow_config).unwrap();
    map.copy(&wide_vs.variables(), &copy_vs).unwrap();
    for (name, weight) in copy_vs.variables() {
        assert_eq!(weight, originals[&name], "{name}");
    }
    assert_eq!(distance(&copy.forward(&xs, &time, &text), &expected), 0.0);
}

#[test]
fn a_shortcut_that_only_the_narrow_network_needs_passes_its_input_on() {
    let full = UnetConfig {
        channels: vec![8, 16, 16],
        ..small()
    };
    let pruned = UnetConfig {
        channels: vec![8, 16, 8],
        ..small()
    };
    let ((full_vs, _), (vs, _)) = (built(&full, 1), built(&pruned, 2));
    CopyMap::new(&full, &pruned)
        .unwrap()
        .copy(&full_vs.variables(), &vs)
        .unwrap();
    let weights = vs.variables();
    let shortcut = |end: &str| weights[&format!("down_blocks.2.resnets.0.conv_shortcut.{end}")].shallow_clone();
    let xs = normal(&[1, 16, 1, 1], 5, Device::Cpu);
    let ys = xs.conv2d(&shortcut("weight"), Some(shortcut("bias")), 1, 0, 1, 1);
    // Two of the four channels of each of four groups.
    let kept = Tensor::from_slice(&[0i64, 1, 4, 5, 8, 9, 12, 13]);
    assert_eq!(ys, xs.index_select(1, &kept));
}

#[test]
fn what_the_full_network_lacks_is_said() {
    let full = UnetConfig {
        middle: false,
        attention: vec![false, false, true],
        ..small()
    };
    let map = CopyMap::new(&full, &small()).unwrap();
    let lacking = |name: &str| match &map.starts[name].0 {
        Start::Fresh { lacking } => *lacking,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(lacking("mid_block.resnets.0.conv1.weight"), "this block");
    assert_eq!(
        lacking("down_blocks.1.attentions.0.proj_in.weight"),
        "attention at this level"
    );
}

#[test]
fn what_does_not_fit_is_named() {
    let error = |pruned: UnetConfig| CopyMap::new(&small(), &pruned).unwrap_err().to_string();
    assert_eq!(
        error(UnetConfig { heads: 4, ..small() }),
        "the pruned UNet has `heads` 4, the full one 2; allowed: the same"
    );
    assert_eq!(
        error(UnetConfig {
            layers_per_block: 3,
            ..small()
        }),
        "the pruned UNet has `layers_per_block` 3, the full one 2; allowed: no more"
    );
    let wider = error(UnetConfig {
        channels: vec![16, 16, 16],
        ..small()
    });
    assert!(
        wider.starts_with("`conv_in.weight` is [16, 4, 3, 3] in the pruned UNet and [8, 4, 3, 3]"),
        "{wider}"
    );

    let map = CopyMap::new(&small(), &small()).unwrap();
    let ((full, _), (pruned, _)) = (built(&small(), 1), built(&small(), 2));
    let mut tensors = full.variables();
    tensors.insert("conv_in.bias".to_owned(), normal(&[7], 1, Device::Cpu));
    let error = map.copy(&tensors, &pruned).unwrap_err().to_string();
    assert_eq!(error, "`conv_in.bias` is [7]; expected is [8]");
    tensors.remove("conv_in.bias");
    let error = map.copy(&tensors, &pruned).unwrap_err().to_string();
    assert_eq!(error, "`conv_in.bias` is missing; expected is [8]");
}
