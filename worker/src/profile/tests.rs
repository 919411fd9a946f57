use search_spaces::{Operator, Shape};

use super::*;

fn space() -> Space {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn settings() -> Settings {
    Settings {
        warmups: 1,
        samples: 3,
        ..Settings::new(Device::Cpu, 1, 1 << 30)
    }
}

fn on(_: f64, _: &str) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn measured(state: &EntryState) -> &Measurement {
    let EntryState::Measured(measurement) = state else {
        panic!("{state:?}")
    };
    measurement
}

fn attention_at(side: u64) -> Block {
    let shape = Shape::new([("b", 1), ("t", 5), ("h", side), ("w", side), ("c", 32), ("heads", 4)]);
    Block::new(Operator::SelfAttention3d.as_str(), shape)
}

#[test]
fn every_block_of_the_shipped_space_is_measured() {
    let space = space();
    let blocks = space.blocks();
    let entries = profile_blocks(&space, &blocks, &settings(), &mut on).unwrap();
    assert_eq!(
        entries.iter().map(|(block, _)| block.clone()).collect::<Vec<_>>(),
        blocks
    );
    for (block, state) in &entries {
        let found = measured(state);
        assert_eq!(found.latency_ms.len(), 3, "{block}");
        assert!(found.latency_ms.values().iter().all(|ms| *ms > 0.0), "{block}");
        assert_eq!(found.peak_memory_bytes.len(), 2, "{block}");
    }
}

/// The shipped space with its UNet in so many parts.
fn in_parts(parts: u64) -> Space {
    let text = space().source;
    assert!(text.contains("\nparts = 1\n"), "the space says how many parts");
    Space::parse(&text.replace("\nparts = 1\n", &format!("\nparts = {parts}\n"))).unwrap()
}

#[test]
fn the_memory_of_a_whole_pass_is_what_the_blocks_predict() {
    the_prediction_holds_for(&space());
}

#[test]
fn in_parts_only_the_heaviest_ones_weights_count() {
    the_prediction_holds_for(&in_parts(2));
    the_prediction_holds_for(&in_parts(3));
}

fn the_prediction_holds_for(space: &Space) {
    let mut table = lut::Lut::new("here", lut::Runtime::new("libtorch-cpu-1t", "2.11.0"), dtype_of(space));
    for (block, state) in profile_blocks(space, &space.blocks(), &settings(), &mut on).unwrap() {
        table.insert(block, state);
    }
    for text in ["-.-.-.-.-", "c1.s1.x1.x3.c3", "s3.s3.s3.s3.s3"] {
        let architecture = space.architecture(text).unwrap();
        let predicted = lut::compose(&table, space, &architecture)
            .unwrap()
            .peak_memory_bytes
            .unwrap()
            .value;
        let whole = measure_whole(space, &architecture, &settings(), &mut on).unwrap();
        let found = measured(&whole).peak_memory_bytes.median().unwrap();
        assert!(
            (predicted / found - 1.0).abs() < 0.02,
            "{text}: {predicted} predicted, {found} found"
        );
    }
}

/// The space of the paper's sizes, with all that its blocks are made of, small enough for a test.
fn scaled_down_snapgen_v() -> Space {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/snapgen-v.toml");
    let mut text = std::fs::read_to_string(path).unwrap();
    let smaller = [
        ("frames = 15", "frames = 5"),
        ("height = 64", "height = 8"),
        ("width = 64", "width = 8"),
        ("channels = [320, 640, 1088]", "channels = [48, 96, 192]"),
        ("norm_groups = 32", "norm_groups = 8"),
        ("text_tokens = 77", "text_tokens = 7"),
        // Half precision is slow, and partly missing, on processors.
        ("dtype = \"f16\"", "dtype = \"f32\""),
    ];
    for (full, small) in smaller {
        assert!(text.contains(&format!("\n{full}\n")), "{full}");
        text = text.replacen(&format!("\n{full}\n"), &format!("\n{small}\n"), 1);
    }
    Space::parse(&text).unwrap()
}

#[test]
fn every_block_of_the_papers_space_can_be_measured_and_a_pipeline_composed() {
    let space = scaled_down_snapgen_v();
    let mut table = lut::Lut::new("here", lut::Runtime::new("libtorch-cpu-1t", "2.11.0"), dtype_of(&space));
    for (block, state) in profile_blocks(&space, &space.blocks(), &settings(), &mut on).unwrap() {
        measured(&state);
        table.insert(block, state);
    }
    for reference in &space.references {
        let costs = lut::compose(&table, &space, &reference.architecture).unwrap();
        let (pass, pipeline) = (
            costs.latency_ms.unwrap().value,
            costs.pipeline_latency_ms.unwrap().value,
        );
        assert!(
            (pipeline - (6.0 + 4.0 * pass + 1620.0)).abs() < 1e-6,
            "{}: {pipeline}",
            reference.name
        );
    }
}

#[test]
fn out_of_memory_is_a_state_and_the_next_block_is_measured() {
    let blocks = [attention_at(64), attention_at(4)];
    let tight = Settings {
        memory_bytes: 8 << 20,
        ..settings()
    };
    let entries = profile_blocks(&space(), &blocks, &tight, &mut on).unwrap();
    let EntryState::OutOfMemory { detail } = &entries[0].1 else {
        panic!("{:?}", entries[0].1)
    };
    assert!(detail.contains("8388608 allowed"), "{detail}");
    measured(&entries[1].1);
}

#[test]
fn a_block_nobody_knows_and_a_shape_without_a_dimension_are_unsupported_with_the_reason() {
    let blocks = [
        Block::new("deformable_attention", Shape::new([("b", 1)])),
        Block::new(
            "conv1d",
            Shape::new([("b", 1), ("t", 5), ("h", 4), ("w", 4), ("c", 32)]),
        ),
        Block::new(
            "conv1d",
            Shape::new([("b", 1), ("t", 5), ("h", 4), ("w", 4), ("c", 30), ("groups", 8)]),
        ),
    ];
    let entries = profile_blocks(&space(), &blocks, &settings(), &mut on).unwrap();
    for ((_, state), reason) in entries
        .iter()
        .zip(["no operator", "no dimension `groups`", "must divide 30"])
    {
        let EntryState::Unsupported { detail } = state else {
            panic!("{state:?}")
        };
        assert!(detail.contains(reason), "{detail}");
    }
}

#[test]
fn a_subject_that_takes_long_gets_fewer_samples() {
    let hasty = Settings {
        seconds_per_subject: 0.0,
        samples: 20,
        ..settings()
    };
    let entries = profile_blocks(&space(), &[attention_at(4)], &hasty, &mut on).unwrap();
    assert_eq!(measured(&entries[0].1).latency_ms.len(), 1);
}

#[test]
fn measuring_can_be_broken_off() {
    let blocks = [attention_at(4)];
    let stopped = profile_blocks(&space(), &blocks, &settings(), &mut |_, _| ControlFlow::Break(()));
    assert_eq!(stopped.unwrap_err(), Interrupted);
}

#[test]
fn text_encoder_and_decoder_of_the_dataset_are_measured() {
    let space = space();
    let unet = space.unet().unwrap();
    let blocks = [unet.text_encoder_block(), unet.decoder_block()];
    for (block, state) in profile_blocks(&space, &blocks, &settings(), &mut on).unwrap() {
        assert!(measured(&state).latency_ms.median().unwrap() > 0.0, "{block}");
    }
}

#[test]
fn an_upload_carries_every_sample_and_every_state() {
    let block = attention_at(4);
    let samples = |values: &[f64]| Samples::new(values.to_vec()).unwrap();
    let states = [
        EntryState::Measured(Measurement {
            latency_ms: samples(&[1.0, 2.0]),
            peak_memory_bytes: samples(&[8.0]),
        }),
        EntryState::OutOfMemory {
            detail: "full".to_owned(),
        },
        EntryState::Unsupported {
            detail: "unknown".to_owned(),
        },
    ];
    let sent = uploads(states.map(|state| (block.clone(), state)).to_vec(), Dtype::F32);
    assert_eq!(sent[0].block.shape["heads"], 4);
    assert_eq!(sent[0].dtype, "f32");
    assert_eq!(
        sent.into_iter().map(|entry| entry.outcome).collect::<Vec<_>>(),
        [
            EntryOutcome::Measured {
                latency_ms: vec![1.0, 2.0],
                peak_memory_bytes: vec![8.0]
            },
            EntryOutcome::OutOfMemory {
                detail: "full".to_owned()
            },
            EntryOutcome::Unsupported {
                detail: "unknown".to_owned()
            },
        ]
    );
}

#[test]
fn a_sample_is_the_fastest_of_its_runs() {
    let mut bench = Bench {
        run: Box::new(|| ()),
        standing_bytes: 0,
        peaks: vec![],
        seconds: 0.0,
        samples: vec![],
    };
    for (i, latency) in [5.0, 3.0, 4.0, 9.0, 7.0, 8.0].into_iter().enumerate() {
        bench.add(latency, i % 3 == 0);
    }
    assert_eq!(bench.samples, [3.0, 7.0]);
}
