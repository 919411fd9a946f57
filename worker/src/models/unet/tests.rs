use search_spaces::{Dtype, Operator, TemporalLayer, UnetConfig, work};
use tch::{Device, Kind, Tensor, nn};

use super::{Activations, Moment, UNet, freeze_spatial, is_temporal, place_in_pass};
use crate::models::published;
use crate::models::seeded::{distance, normal, seed_weights};
use crate::shim::count_macs;

fn tiny() -> UnetConfig {
    UnetConfig {
        latent_channels: 4,
        frames: 3,
        height: 8,
        width: 8,
        channels: vec![16, 24],
        layers_per_block: 1,
        attention: vec![false, true],
        middle: true,
        heads: 2,
        text_tokens: 5,
        text_width: 12,
        norm_groups: 8,
        ff_multiplier: 2,
        qk_norm: true,
        rope: false,
        dtype: Dtype::F32,
        parts: 1,
    }
}

fn configs() -> [UnetConfig; 4] {
    let deep = UnetConfig {
        channels: vec![8, 16, 24],
        layers_per_block: 2,
        attention: vec![true, false, true],
        heads: 4,
        norm_groups: 4,
        qk_norm: false,
        rope: true,
        ff_multiplier: 4,
        ..tiny()
    };
    let headless = UnetConfig {
        middle: false,
        height: 6,
        width: 10,
        ..tiny()
    };
    // Every upsampler ends a row or a column short of the double.
    let odd = UnetConfig {
        height: 7,
        width: 9,
        ..deep.clone()
    };
    [tiny(), deep, headless, odd]
}

/// Every operator somewhere, at least one position empty and one two deep.
fn some_layers(config: &UnetConfig) -> Vec<Option<TemporalLayer>> {
    let mut operators = Operator::ALL.into_iter().cycle();
    (0..config.positions().len())
        .map(|i| {
            (i != 1).then(|| TemporalLayer {
                operator: operators.next().unwrap(),
                depth: 1 + u8::from(i == 2),
            })
        })
        .collect()
}

fn inputs(config: &UnetConfig, batch: i64, frames: i64) -> (Tensor, Tensor, Tensor) {
    let [c, h, w] = [config.latent_channels, config.height, config.width].map(|size| size as i64);
    let xs = normal(&[batch, c, frames, h, w], 1, Device::Cpu);
    let time = Tensor::linspace(0.2, 0.9, batch, (Kind::Float, Device::Cpu));
    (
        xs,
        time,
        normal(
            &[batch, config.text_tokens as i64, config.text_width as i64],
            2,
            Device::Cpu,
        ),
    )
}

#[test]
fn parameters_are_those_of_the_schedule() {
    for config in configs() {
        for layers in [vec![], some_layers(&config)] {
            let vs = nn::VarStore::new(Device::Cpu);
            let _unet = UNet::new(&vs.root(), &config, &layers);
            let found: usize = vs.variables().values().map(Tensor::numel).sum();
            assert_eq!(found as u64, config.parameters(&layers), "{config:?}");
        }
    }
}

#[test]
fn macs_seen_in_forward_are_those_of_the_schedule() {
    for config in configs() {
        let layers = some_layers(&config);
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &config, &layers);
        let (xs, time, text) = inputs(&config, 1, config.frames as i64);
        let (ys, macs) = count_macs(|| tch::no_grad(|| unet.forward(&xs, &time, &text)));
        assert_eq!(ys.size(), xs.size());
        let of = |step: &search_spaces::Step| work(&step.block, config.dtype).unwrap().macs * u64::from(step.repeat);
        assert_eq!(macs, config.schedule(&layers).iter().map(of).sum::<u64>(), "{config:?}");
    }
}

/// Some of the published keys of Stable Diffusion 1.5's UNet (spec section 1.1).
#[test]
fn the_large_configuration_has_the_published_keys() {
    // The same code at a tenth of the width: 686 tensors whatever their size.
    let narrow = UnetConfig {
        channels: vec![32, 64, 128, 128],
        text_width: 16,
        ..published::stable_diffusion()
    };
    let vs = nn::VarStore::new(Device::Cpu);
    let _unet = UNet::new(&vs.root(), &narrow, &[]);
    let variables = vs.variables();
    assert_eq!(variables.len(), 686);
    for (key, shape) in [
        (
            "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight",
            vec![128, 16],
        ),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", vec![64, 32, 1, 1]),
        ("up_blocks.1.resnets.2.conv1.weight", vec![128, 192, 3, 3]),
        (
            "up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.bias",
            vec![256],
        ),
        (
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0.bias",
            vec![128],
        ),
        ("down_blocks.0.downsamplers.0.conv.weight", vec![32, 32, 3, 3]),
        ("time_embedding.linear_2.weight", vec![128, 128]),
        ("conv_norm_out.weight", vec![32]),
    ] {
        assert_eq!(variables.get(key).map(Tensor::size), Some(shape), "{key}");
    }
}

#[test]
fn fresh_temporal_layers_leave_the_backbone_as_it_is() {
    let config = tiny();
    let (xs, time, text) = inputs(&config, 2, 3);
    let [plain, inflated] = [vec![], some_layers(&config)].map(|layers| {
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &config, &layers);
        seed_weights(&vs, 4);
        unet.forward(&xs, &time, &text)
    });
    assert_eq!(distance(&plain, &inflated), 0.0);
}

/// Swapping two columns of the input swaps them in the output, unless attention knows its places or a convolution sees
/// its neighbours: here all convolutions of 3×3 are pointwise.
#[test]
fn spatial_attention_knows_places_only_with_the_rotary_term() {
    for rope in [false, true] {
        let config = UnetConfig {
            channels: vec![16],
            attention: vec![true],
            middle: false,
            rope,
            ..tiny()
        };
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &config, &[]);
        seed_weights(&vs, 4);
        for (_, weight) in vs.variables() {
            if weight.size().ends_with(&[3, 3]) {
                tch::no_grad(|| {
                    let centre = weight.slice(2, 1, 2, 1).slice(3, 1, 2, 1).copy();
                    let _ = weight.shallow_clone().zero_();
                    weight.slice(2, 1, 2, 1).slice(3, 1, 2, 1).copy_(&centre);
                });
            }
        }
        let (xs, time, text) = inputs(&config, 1, 2);
        let swap = |x: &Tensor| x.flip([4]);
        let there_and_back = swap(&unet.forward(&swap(&xs), &time, &text));
        let moved = distance(&unet.forward(&xs, &time, &text), &there_and_back);
        // A mirrored row has the same distances, but the other way round: the turn sees it.
        assert_eq!(moved > 1e-3, rope, "rope {rope}: {moved}");
    }
}

#[test]
fn without_temporal_layers_frames_do_not_meet() {
    let config = tiny();
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &[]);
    seed_weights(&vs, 4);
    let (xs, time, text) = inputs(&config, 1, 3);
    let clip = unet.forward(&xs, &time, &text);
    for i in 0..3 {
        let frame = unet.forward(&xs.narrow(2, i, 1), &time, &text);
        assert!(distance(&clip.narrow(2, i, 1), &frame) < 1e-5);
    }
}

#[test]
fn clips_of_a_batch_do_not_meet() {
    let config = tiny();
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
    seed_weights(&vs, 4);
    let (xs, time, text) = inputs(&config, 2, 3);
    let both = unet.forward(&xs, &time, &text);
    let second = unet.forward(&xs.narrow(0, 1, 1), &time.narrow(0, 1, 1), &text.narrow(0, 1, 1));
    assert!(distance(&both.narrow(0, 1, 1), &second) < 1e-5);
}

#[test]
fn time_and_text_matter() {
    let config = tiny();
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &[]);
    seed_weights(&vs, 4);
    let (xs, time, text) = inputs(&config, 1, 3);
    let base = unet.forward(&xs, &time, &text);
    assert!(distance(&base, &unet.forward(&xs, &(&time + 0.5), &text)) > 1e-4);
    assert!(distance(&base, &unet.forward(&xs, &time, &(&text * -1.0))) > 1e-4);
}

#[test]
fn only_temporal_weights_are_trained() {
    let config = tiny();
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
    seed_weights(&vs, 4);
    freeze_spatial(&vs);
    let (xs, time, text) = inputs(&config, 1, 3);
    unet.forward(&xs, &time, &text).square().mean(Kind::Float).backward();
    for (name, variable) in vs.variables() {
        assert_eq!(variable.requires_grad(), is_temporal(&name), "{name}");
        assert_eq!(variable.grad().defined(), is_temporal(&name), "{name}");
    }
}

/// 54 rows halve to 27 and 14, as those of the paper's 432×768 clips do.
#[test]
fn odd_sizes_come_back_as_they_went_in() {
    let config = UnetConfig {
        channels: vec![8, 8, 16],
        attention: vec![false, true, true],
        norm_groups: 4,
        ..tiny()
    };
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
    seed_weights(&vs, 4);
    for (h, w) in [(54, 6), (5, 7), (6, 10)] {
        let (_, time, text) = inputs(&config, 1, 2);
        let xs = normal(&[1, 4, 2, h, w], 1, Device::Cpu);
        assert_eq!(tch::no_grad(|| unet.forward(&xs, &time, &text)).size(), xs.size());
    }
}

#[test]
fn a_time_embedded_beforehand_is_that_time() {
    let config = tiny();
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
    seed_weights(&vs, 4);
    let (xs, time, text) = inputs(&config, 2, 3);
    let embedded = unet.embed(&time);
    let (at, with) = (
        unet.forward(&xs, &time, &text),
        unet.forward(&xs, Moment::Embedded(&embedded), &text),
    );
    assert_eq!(distance(&at, &with), 0.0);
}

#[test]
fn recomputed_activations_give_the_same_gradients() {
    for config in configs() {
        let gradients = |activations: Activations| {
            let vs = nn::VarStore::new(Device::Cpu);
            let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
            seed_weights(&vs, 4);
            let (xs, time, text) = inputs(&config, 2, 3);
            let xs = xs.set_requires_grad(true);
            let ys = unet.pass(&xs, Moment::Time(&time), &text, activations);
            ys.square().mean(Kind::Float).backward();
            let mut all: Vec<_> = vs.variables().into_iter().map(|(name, w)| (name, w.grad())).collect();
            all.extend([("the clip".to_owned(), xs.grad()), ("velocity".to_owned(), ys.detach())]);
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        let (kept, recomputed) = (gradients(Activations::Kept), gradients(Activations::Recomputed));
        for ((name, kept), (_, recomputed)) in kept.iter().zip(&recomputed) {
            // A tensor that several blocks read sums its gradients in another order.
            let off = distance(kept, recomputed) / kept.abs().max().double_value(&[]).max(1e-12);
            assert!(off < 1e-4, "{name}: {off}");
        }
        assert_eq!(
            kept[kept.len() - 1],
            recomputed[kept.len() - 1],
            "the pass itself is the same"
        );
    }
}

/// Weights in bfloat16: the clip goes in and the velocity comes out in float32, off by bfloat16's eight bits.
#[test]
fn a_pass_runs_in_the_format_of_its_weights() {
    let config = tiny();
    let mut vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
    seed_weights(&vs, 4);
    let (xs, time, text) = inputs(&config, 2, 3);
    let wide = tch::no_grad(|| unet.forward(&xs, &time, &text));
    vs.set_kind(Kind::BFloat16);
    let narrow = tch::no_grad(|| unet.forward(&xs, &time, &text));
    assert_eq!(narrow.kind(), Kind::Float);
    let off = distance(&wide, &narrow) / wide.abs().max().double_value(&[]);
    assert!(off > 0.0 && off < 0.05, "{off}");
}

#[test]
fn weights_are_placed_in_the_order_of_their_use() {
    let names = [
        "time_embedding.linear_1.weight",
        "down_blocks.0.resnets.0.conv1.weight",
        "temporal.down_0.0.conv.weight",
        "down_blocks.1.attentions.0.norm.weight",
        "temporal.down_1.0.norm.bias",
        "mid_block.resnets.0.conv1.weight",
        "temporal.mid.0.norm.bias",
        "up_blocks.0.resnets.0.conv1.weight",
        "temporal.up_0.0.conv.weight",
        "up_blocks.1.resnets.0.conv1.weight",
        "conv_out.bias",
    ];
    let places = names.map(place_in_pass);
    assert!(places.is_sorted_by(|a, b| a < b), "{places:?}");
}

#[test]
fn a_pass_shows_the_tensor_at_every_position_and_is_the_same_pass() {
    for config in configs() {
        let vs = nn::VarStore::new(Device::Cpu);
        let unet = UNet::new(&vs.root(), &config, &some_layers(&config));
        seed_weights(&vs, 4);
        let (xs, time, text) = inputs(&config, 2, 3);
        let mut shown = Vec::new();
        let mut observe = |i: usize, hidden: &Tensor| shown.push((i, hidden.size()));
        let observed = unet.observed(&xs, Moment::Time(&time), &text, Activations::Recomputed, &mut observe);
        assert_eq!(observed, unet.forward(&xs, &time, &text));
        let expected = config.positions().into_iter().enumerate();
        let expected: Vec<_> = expected
            .map(|(i, at)| (i, vec![6, at.channels as i64, at.height as i64, at.width as i64]))
            .collect();
        assert_eq!(shown, expected);
    }
}
