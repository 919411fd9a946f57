//! The UNet against published parameter counts and a schedule worked out by hand.

use search_spaces::{Dtype, Operator, TemporalLayer, UnetConfig, work};

/// Stable Diffusion 1.5 on a latent of 64×64.
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

/// Two levels of 32 and 64 channels on an 8×8 latent, without attention: small enough for paper.
fn by_hand() -> UnetConfig {
    UnetConfig {
        height: 8,
        width: 8,
        channels: vec![32, 64],
        layers_per_block: 1,
        attention: vec![false, false],
        text_tokens: 2,
        text_width: 5,
        ..stable_diffusion()
    }
}

#[test]
fn parameters_are_those_of_the_published_models() {
    let sd = stable_diffusion();
    assert_eq!(sd.parameters(&[]), 859_520_964);
    let base = UnetConfig {
        layers_per_block: 1,
        ..sd
    };
    assert_eq!(base.parameters(&[]), 579_384_964, "BK-SDM-Base");
    let small = UnetConfig { middle: false, ..base };
    assert_eq!(small.parameters(&[]), 482_346_884, "BK-SDM-Small");
    let tiny = UnetConfig {
        channels: vec![320, 640, 1280],
        attention: vec![true; 3],
        ..small
    };
    assert_eq!(tiny.parameters(&[]), 323_384_964, "BK-SDM-Tiny");
}

/// In units of 10⁹ as published, with one decimal; the attention products count, norms do not.
#[test]
fn multiply_accumulates_are_those_of_the_published_models() {
    let sd = stable_diffusion();
    let base = UnetConfig {
        layers_per_block: 1,
        ..sd.clone()
    };
    let small = UnetConfig {
        middle: false,
        ..base.clone()
    };
    let tiny = UnetConfig {
        channels: vec![320, 640, 1280],
        attention: vec![true; 3],
        ..small.clone()
    };
    let top_free = UnetConfig {
        attention: vec![false, true, true, false],
        ..sd.clone()
    };
    let narrow = UnetConfig {
        channels: vec![320, 640, 1024],
        attention: vec![false, true, true],
        ..base.clone()
    };
    for (unet, published) in [
        (sd, 401.6),
        (base, 261.5),
        (small, 255.5),
        (tiny, 242.8),
        (top_free, 304.8),
        (narrow, 174.2),
    ] {
        let found = unet.macs(&[]) as f64 / 1e9;
        assert!(
            (found - published).abs() < 0.06,
            "{:?}: {found} against {published}",
            unet.channels
        );
    }
}

#[test]
fn every_level_has_a_position_and_the_middle_where_there_is_one() {
    let names = |unet: &UnetConfig| {
        unet.positions()
            .into_iter()
            .map(|p| format!("{} {}×{}", p.name, p.channels, p.height))
            .collect::<Vec<_>>()
    };
    let mut unet = by_hand();
    assert_eq!(
        names(&unet),
        ["down.0 32×8", "down.1 64×4", "mid 64×4", "up.0 64×4", "up.1 32×8"]
    );
    unet.middle = false;
    assert_eq!(names(&unet), ["down.0 32×8", "down.1 64×4", "up.0 64×4", "up.1 32×8"]);
}

/// Text 10 and time embedding 128 elements are alive throughout; skip tensors are 2048 after `conv_in`
/// and the first layer, 512 after the downsampler and 1024 after the second layer.
#[test]
fn what_is_alive_at_each_step_is_what_was_worked_out_by_hand() {
    let steps = by_hand().schedule(&[]);
    let found: Vec<(&str, u64, u64, u64)> = steps
        .iter()
        .map(|step| {
            (
                step.block.operator.as_str(),
                step.input_elements,
                step.output_elements,
                step.held_elements,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            ("unet.time_embedding", 32, 128, 10 + 256),
            ("unet.conv_in", 256, 2048, 138),
            ("unet.down", 2048, 2048, 138),
            ("unet.downsample", 2048, 512, 138 + 2048),
            ("unet.down", 512, 1024, 138 + 2 * 2048),
            ("unet.mid", 1024, 1024, 138 + 2 * 2048 + 512),
            ("unet.up", 1024 + 1024, 1024, 138 + 2 * 2048 + 512),
            ("unet.up", 1024 + 512, 1024, 138 + 2 * 2048),
            ("unet.upsample", 1024, 4096, 138 + 2 * 2048),
            ("unet.up", 4096 + 2048, 2048, 138 + 2048),
            ("unet.up", 2048 + 2048, 2048, 138),
            ("unet.conv_out", 2048, 256, 138),
        ]
    );
}

/// Three rows of the inner level become five, not six: a level of five was halved upwards.
#[test]
fn an_upsampler_ends_at_the_size_of_the_level_it_goes_to() {
    let unet = UnetConfig { height: 5, ..by_hand() };
    let steps = unet.schedule(&[]);
    let step = steps.iter().find(|step| step.block.operator == "unet.upsample");
    let step = step.expect("two levels have one");
    assert_eq!(step.block.shape.to_string(), "b=1 c=64 h=3 h_out=5 t=1 w=4");
    assert_eq!(step.output_elements, 64 * 5 * 8);
    let work = work(&step.block, unet.dtype).expect("every block of a UNet has a closed form");
    assert_eq!(work.macs, 9 * 64 * 64 * 5 * 8);
}

/// The running tensor is also the newest skip tensor when the up path begins; it is there only once.
#[test]
fn without_a_middle_the_first_up_layer_reads_one_tensor_twice() {
    let unet = UnetConfig {
        middle: false,
        ..by_hand()
    };
    let steps = unet.schedule(&[]);
    let up = steps.iter().find(|step| step.block.operator == "unet.up").unwrap();
    assert_eq!((up.input_elements, up.held_elements), (1024, 138 + 2 * 2048 + 512));
    assert_eq!(up.block.shape.get("skip"), Some(64));
}

#[test]
fn temporal_layers_stand_behind_their_block_and_add_their_own_parameters() {
    let unet = UnetConfig { frames: 5, ..by_hand() };
    let two = Some(TemporalLayer {
        operator: Operator::SelfAttention1d,
        depth: 2,
    });
    let layers = [None, two, two, None, two];
    let steps = unet.schedule(&layers);
    let around = |position: usize| {
        let i = steps.iter().position(|step| step.position == Some(position)).unwrap();
        (
            steps[i - 1].block.operator.as_str(),
            steps[i + 1].block.operator.as_str(),
            steps[i].repeat,
        )
    };
    assert_eq!(around(1), ("unet.down", "unet.mid", 2));
    assert_eq!(around(2), ("unet.mid", "unet.up", 2));
    assert_eq!(around(4), ("unet.up", "unet.conv_out", 2));
    let one = |position| {
        work(
            &unet.temporal_block(position, Operator::SelfAttention1d).unwrap(),
            Dtype::F32,
        )
        .unwrap()
        .parameters
    };
    assert_eq!(
        unet.parameters(&layers) - unet.parameters(&[]),
        2 * (one(1) + one(2) + one(4))
    );
    assert_eq!(unet.temporal_block(5, Operator::Conv1d), None);
}

#[test]
fn a_single_frame_skips_the_temporal_layers() {
    let layers = [Some(TemporalLayer {
        operator: Operator::Conv3d,
        depth: 1,
    }); 5];
    assert_eq!(by_hand().schedule(&layers), by_hand().schedule(&[]));
}

#[test]
fn parts_are_contiguous_and_no_cut_makes_the_largest_smaller() {
    for parts in 1..=5 {
        let unet = UnetConfig {
            parts,
            ..stable_diffusion()
        };
        let steps = unet.schedule(&[]);
        assert!(
            steps
                .windows(2)
                .all(|pair| pair[0].part == pair[1].part || pair[0].part + 1 == pair[1].part)
        );
        assert_eq!(steps.last().map(|step| step.part + 1), Some(parts));
        let sizes: Vec<u64> = steps.iter().map(|step| step.parameters).collect();
        let largest = (0..parts)
            .map(|part| {
                steps
                    .iter()
                    .filter(|s| s.part == part)
                    .map(|s| s.parameters)
                    .sum::<u64>()
            })
            .max();
        assert_eq!(largest, Some(smallest_largest(&sizes, parts as usize)));
    }
}

/// The largest part of the best partition, by trying every cut.
fn smallest_largest(sizes: &[u64], parts: usize) -> u64 {
    if parts == 1 || sizes.is_empty() {
        return sizes.iter().sum();
    }
    (1..=sizes.len())
        .map(|cut| {
            sizes[..cut]
                .iter()
                .sum::<u64>()
                .max(smallest_largest(&sizes[cut..], parts - 1))
        })
        .min()
        .expect("at least one cut")
}
