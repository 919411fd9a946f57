use std::path::Path;

use search_spaces::{Block, Dtype as BlockDtype, Operator, Shape, Space, TemporalLayer, UnetConfig};
use tch::{Device, Kind, Tensor, nn};

use super::*;
use crate::models::UNet;
use crate::models::seeded::{normal, seed_all_weights};
use crate::models::unet::PassSizes;
use crate::profile::Subject;

const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::F16];

fn runtime() -> Runtime {
    Runtime::find(None).expect("run `make setup` once")
}

fn space() -> Space {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../search-spaces/spaces/shapes-tiny.toml");
    Space::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Draws that are numbers of the format, so that rounding of inputs is no part of what is compared.
fn drawn(shape: &[i64], seed: u64, precision: Precision) -> Tensor {
    normal(shape, seed, Device::Cpu)
        .to_kind(Dtype::of(precision).kind())
        .to_kind(Kind::Float)
}

/// Sizes at which nothing is a multiple of anything: odd rows and columns, two clips, queries with and without norm.
fn odd() -> UnetConfig {
    UnetConfig {
        latent_channels: 4,
        frames: 3,
        height: 7,
        width: 10,
        channels: vec![16, 24, 32],
        layers_per_block: 1,
        attention: vec![true, false, true],
        middle: true,
        heads: 2,
        text_tokens: 5,
        text_width: 12,
        norm_groups: 8,
        ff_multiplier: 2,
        qk_norm: false,
        rope: true,
        dtype: BlockDtype::F32,
        parts: 1,
    }
}

fn plain() -> UnetConfig {
    UnetConfig {
        height: 6,
        channels: vec![16, 24],
        attention: vec![false, true],
        qk_norm: true,
        rope: false,
        middle: false,
        ..odd()
    }
}

fn all_operators(config: &UnetConfig) -> Vec<Option<TemporalLayer>> {
    let operators = Operator::ALL.into_iter().cycle();
    let layers = operators.enumerate().map(|(i, operator)| {
        Some(TemporalLayer {
            operator,
            depth: 1 + u8::from(i == 2),
        })
    });
    layers.take(config.positions().len()).collect()
}

fn checked(block: &Block, precision: Precision, folder: &Path) -> f64 {
    let subject = Subject::drawn(&space(), block, 5).unwrap();
    let graph = subject.export("block", precision).unwrap();
    let written = graph.write(folder, INLINE_BYTES).unwrap();
    let inputs = subject.inputs().unwrap();
    let again = inputs.again();
    let expected = tch::no_grad(|| subject.forward(inputs));
    let verified = runtime().verify(
        &written,
        &again.named(),
        &[("ys", &expected)],
        Tolerance::of(precision),
        1,
    );
    verified.unwrap_or_else(|error| panic!("{block} in {precision:?}: {error}"))
}

/// All blocks of two backbones, the six temporal operators at two sizes, text encoder and decoder.
#[test]
fn every_block_is_in_onnx_runtime_what_it_is_in_libtorch() {
    let folder = tempfile::tempdir().unwrap();
    let mut blocks: Vec<Block> = Vec::new();
    for config in [odd(), plain()] {
        let schedule = config.schedule(&all_operators(&config));
        blocks.extend(schedule.into_iter().map(|step| step.block));
    }
    for (b, t, c, h, w) in [(2, 3, 24, 4, 3), (1, 5, 64, 8, 8), (1, 1, 16, 2, 2)] {
        let sizes = [
            ("b", b),
            ("t", t),
            ("h", h),
            ("w", w),
            ("c", c),
            ("heads", 4),
            ("l", 6),
            ("d", 12),
            ("groups", 4),
        ];
        blocks.extend(Operator::ALL.map(|operator| Block::new(operator.as_str(), Shape::new(sizes))));
    }
    let recipe = crate::assets::Recipe::of("shapes").unwrap();
    let width = recipe.text.width as u64;
    blocks.push(Block::new(
        "text_encoder",
        Shape::new([("b", 2), ("l", 7), ("d", width)]),
    ));
    blocks.push(Block::new(
        "vae.decode",
        Shape::new([("b", 1), ("c", 4), ("t", 6), ("h", 2), ("w", 3)]),
    ));
    blocks.sort_by_key(ToString::to_string);
    blocks.dedup();
    let operators: std::collections::BTreeSet<&str> = blocks.iter().map(|block| block.operator.as_str()).collect();
    assert_eq!(operators.len(), 16, "{operators:?}");
    for precision in PRECISIONS {
        let errors = blocks
            .iter()
            .map(|block| (checked(block, precision, folder.path()), block));
        let (worst, block) = errors.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
        println!(
            "{precision:?}: the worst of {} blocks is off by {worst:.1e}: {block}",
            blocks.len()
        );
        // Binary16 that is as good as binary32 is none.
        assert!(precision == Precision::F32 || worst > 1e-4);
    }
}

struct Sample {
    unet: UNet,
    sizes: PassSizes,
    latents: Tensor,
    time: Tensor,
    text: Tensor,
}

fn sample(config: &UnetConfig, batch: i64, precision: Precision) -> Sample {
    let vs = nn::VarStore::new(Device::Cpu);
    let unet = UNet::new(&vs.root(), config, &all_operators(config));
    seed_all_weights(&vs, 3);
    let sizes = PassSizes::of(config, batch);
    let times = Tensor::linspace(0.2, 0.9, batch, (Kind::Float, Device::Cpu));
    Sample {
        latents: drawn(&sizes.latents, 1, precision),
        text: drawn(&[batch, sizes.text_tokens, sizes.text_width], 2, precision),
        time: unet
            .embed(&times)
            .to_kind(Dtype::of(precision).kind())
            .to_kind(Kind::Float),
        unet,
        sizes,
    }
}

#[test]
fn a_whole_unet_in_any_number_of_parts_is_the_unet() {
    let folder = tempfile::tempdir().unwrap();
    for (config, batch, parts) in [(odd(), 2, 1), (odd(), 1, 2), (odd(), 2, 3), (plain(), 1, 2)] {
        for precision in PRECISIONS {
            let Sample {
                unet,
                sizes,
                latents,
                time,
                text,
            } = sample(&config, batch, precision);
            let graphs = unet.export(sizes, precision, parts).unwrap();
            assert_eq!(graphs.graphs.len(), parts as usize);
            let expected = tch::no_grad(|| unet.forward(&latents, crate::models::unet::Moment::Embedded(&time), &text));
            let carried = tch::no_grad(|| unet.carried(&graphs, &latents, &time, &text));
            assert_eq!(carried["velocity"], expected);
            // Each part on what libtorch hands it, and all of them on what they hand each other.
            let mut known = vec![
                ("latents".to_owned(), latents),
                ("time_embedding".to_owned(), time),
                ("text".to_owned(), text),
            ];
            let mut passed: Vec<_> = known
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
                .collect();
            known.extend(
                carried
                    .iter()
                    .map(|(name, tensor)| (name.clone(), tensor.shallow_clone())),
            );
            let by_name: Vec<(&str, &Tensor)> = known.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            for graph in &graphs.graphs {
                let written = graph.write(folder.path(), INLINE_BYTES).unwrap();
                let tolerance = Tolerance::of(precision);
                runtime().verify(&written, &by_name, &by_name, tolerance, 1).unwrap();
                let given = written.inputs.iter().map(|spec| {
                    let (_, tensor) = passed.iter().find(|(name, _)| *name == spec.name).unwrap();
                    (spec.name.clone(), tensor.to_kind(Dtype::of(precision).kind()))
                });
                let given: Vec<_> = given.collect();
                let made = runtime().session(&written, 1).unwrap().run(&given).unwrap();
                passed.extend(written.outputs.iter().map(|spec| spec.name.clone()).zip(made));
            }
            let (name, velocity) = passed.last().unwrap();
            assert_eq!(name, "velocity");
            let error = relative_error(velocity, &expected);
            let allowed = if precision == Precision::F32 { 1e-3 } else { 1e-2 };
            assert!(error < allowed, "{parts} parts in {precision:?}: {error}");
        }
    }
}

#[test]
fn parts_of_a_unet_cost_about_the_same_and_hold_all_of_it() {
    let config = odd();
    let Sample { unet, sizes, .. } = sample(&config, 1, Precision::F32);
    let sum = |graphs: &[Graph], of: fn(&Graph) -> u64| graphs.iter().map(of).sum::<u64>();
    let whole = unet.export(sizes, Precision::F32, 1).unwrap().graphs;
    // The embedding of the time is no part of the graph.
    let steps = config.schedule(&all_operators(&config));
    let others = steps.iter().filter(|step| step.block.operator != "unet.time_embedding");
    let (mut macs, mut parameters) = (0, 0);
    for step in others {
        macs += search_spaces::work(&step.block, config.dtype).unwrap().macs * u64::from(step.repeat);
        parameters += step.parameters;
    }
    assert_eq!(
        (sum(&whole, Graph::macs), sum(&whole, Graph::parameters)),
        (macs, parameters)
    );
    let halves = unet.export(sizes, Precision::F32, 2).unwrap().graphs;
    assert_eq!(
        (sum(&halves, Graph::macs), sum(&halves, Graph::parameters)),
        (macs, parameters)
    );
    assert!(
        halves.iter().all(|half| half.macs() * 3 > macs),
        "each has a third at least"
    );
    let inputs: Vec<String> = halves[1].input_specs().into_iter().map(|spec| spec.name).collect();
    let outputs: Vec<String> = halves[0].output_specs().into_iter().map(|spec| spec.name).collect();
    assert!(
        inputs
            .iter()
            .all(|name| outputs.contains(name) || ["time_embedding", "text"].contains(&name.as_str()))
    );
    assert!(!inputs.contains(&"latents".to_owned()) && inputs.contains(&"skip.0".to_owned()));

    let refused = unet.export(sizes, Precision::F32, 99).unwrap_err();
    assert!(
        refused.starts_with("`unet_parts` is 99; allowed are 1 to "),
        "{refused}"
    );
    assert!(
        unet.export(sizes, Precision::F32, 0)
            .unwrap_err()
            .starts_with("`unet_parts` is 0")
    );
}

#[test]
fn large_weights_stand_in_a_file_of_their_own_and_give_the_same() {
    let block = Block::new(
        "conv3d",
        Shape::new([("b", 1), ("t", 3), ("h", 4), ("w", 4), ("c", 16), ("groups", 4)]),
    );
    let subject = Subject::drawn(&space(), &block, 5).unwrap();
    let inputs = subject.inputs().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut outputs = Vec::new();
    for inline in [INLINE_BYTES, 4000] {
        let written = subject
            .export("block", Precision::F32)
            .unwrap()
            .write(folder.path(), inline)
            .unwrap();
        let given = [("xs".to_owned(), inputs.named()[0].1.shallow_clone())];
        outputs.extend(runtime().session(&written, 1).unwrap().run(&given).unwrap());
        let sizes: Vec<u64> = written.files().map(|file| file.metadata().unwrap().len()).collect();
        if inline == INLINE_BYTES {
            assert_eq!(sizes.len(), 1);
            assert!(sizes[0] > 27 * 16 * 16 * 4);
        } else {
            assert_eq!(
                written.weights.as_deref(),
                Some(folder.path().join("block.onnx.data").as_path())
            );
            assert!(sizes[0] < 8000 && sizes[1] == 27 * 16 * 16 * 4, "{sizes:?}");
        }
        assert_eq!(written.parameters, 27 * 16 * 16 + 3 * 16);
    }
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn what_does_not_fit_is_told_with_its_place_when_the_graph_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new("bad", Precision::F32);
    let (a, b) = (graph.input("a", &[2, 3]), graph.input("b", &[2, 4]));
    let sum = graph.within("layer", |graph| graph.add(&a, &b));
    let ys = graph.matmul(&sum, &sum);
    graph.output("ys", &ys);
    let error = graph.write(folder.path(), INLINE_BYTES).unwrap_err().to_string();
    assert_eq!(error, "graph `bad`: layer/: Add of shapes [2, 3] and [2, 4]");

    let mut graph = Graph::new("large", Precision::F16);
    let xs = graph.input("xs", &[2]);
    let weight = graph.weight(&Tensor::from_slice(&[1.0f32, 70_000.0]));
    let ys = graph.mul(&xs, &weight);
    graph.output("ys", &ys);
    let error = graph.write(folder.path(), INLINE_BYTES).unwrap_err().to_string();
    assert_eq!(
        error,
        "graph `large`: `weight_0` of shape [2] has numbers that are not finite in f16"
    );
}

#[test]
fn a_graph_that_computes_something_else_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut graph = Graph::new("twice", Precision::F32);
    let xs = graph.input("xs", &[3]);
    let ys = graph.scale(&xs, 2.0);
    graph.output("ys", &ys);
    graph.output("same", &xs);
    let written = graph.write(folder.path(), INLINE_BYTES).unwrap();
    let xs = Tensor::from_slice(&[1.0f32, 2.0, 4.0]);
    let verify = |ys: &Tensor| {
        let expected = [("ys", ys), ("same", &xs)];
        runtime().verify(&written, &[("xs", &xs)], &expected, Tolerance::of(Precision::F32), 1)
    };
    assert!(verify(&(&xs * 2.0)).unwrap() < 1e-6);
    let error = verify(&(&xs * 2.1)).unwrap_err().to_string();
    assert_eq!(
        error,
        "graph `twice`: output `ys` is off by 4.76e-2 of its largest value, allowed is 1e-3"
    );
    assert!(verify(&(&xs * f64::NAN)).is_err());
    let error = runtime()
        .verify(&written, &[], &[], Tolerance::of(Precision::F32), 1)
        .unwrap_err();
    assert_eq!(error.to_string(), "graph `twice`: no input `xs` was given");
}

/// The operators whose ONNX form differs most from libtorch's, one by one.
#[test]
fn single_operators_are_libtorchs() {
    let folder = tempfile::tempdir().unwrap();
    let xs = normal(&[2, 6, 5, 4], 1, Device::Cpu);
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Graph, &Value) -> Value, Tensor);
    let weight = normal(&[6, 1, 3, 3], 2, Device::Cpu);
    let cases: [Case<'_>; 7] = [
        ("gelu", &|g, x| g.gelu(x), xs.gelu("none")),
        ("quick_gelu", &|g, x| g.quick_gelu(x), &xs * (&xs * 1.702).sigmoid()),
        (
            "nearest",
            &|g, x| g.resize_nearest(x, [9, 7]),
            xs.upsample_nearest2d([9, 7], None, None),
        ),
        (
            "repeat",
            &|g, x| g.repeat_each(x, 3),
            xs.repeat_interleave_self_int(3, 0, None),
        ),
        ("narrow", &|g, x| g.narrow(x, -1, 1, 2), xs.narrow(-1, 1, 2)),
        (
            "depthwise",
            &|g, x| g.conv(x, &weight, None, &Geometry::new([1, 2], [1, 1]).grouped(6)),
            xs.conv2d(&weight, None::<Tensor>, [1, 2], [1, 1], [1, 1], 6),
        ),
        ("softmax", &|g, x| g.softmax(x), xs.softmax(-1, Kind::Float)),
    ];
    for (name, build, expected) in cases {
        let mut graph = Graph::new(name, Precision::F32);
        let input = graph.input("xs", &xs.size());
        let ys = build(&mut graph, &input);
        assert_eq!(ys.shape(), expected.size(), "{name}");
        graph.output("ys", &ys);
        let written = graph.write(folder.path(), INLINE_BYTES).unwrap();
        let error = runtime().verify(
            &written,
            &[("xs", &xs)],
            &[("ys", &expected)],
            Tolerance::of(Precision::F32),
            1,
        );
        assert!(error.unwrap() < 1e-5, "{name}");
    }
}
