use proptest::prelude::*;
use search_spaces::{Dtype, Operator, TemporalLayer};

use super::*;
use crate::{
    Calibration, EntryState, Lut,
    testing::{ahead_of_time, eager, flat, full, measured, out_of_memory, space, unet},
};

/// Parameters of `flat` by hand: time embedding 4224 + 16512, conv_in 1184, down layer 22752, two up layers of
/// 34112, conv_out 1220.
const FLAT_PARAMETERS: u64 = 20736 + 1184 + 22752 + 2 * 34112 + 1220;

/// Standard error of the median of v−d, v, v+d, over d: √(π/2) · 1.4826 / √3.
const THREE: f64 = 1.253_314_137 * 1.482_602_219 / 1.732_050_808;

fn latency(block: &Block) -> f64 {
    match block.operator.as_str() {
        "unet.time_embedding" => 1.0,
        "unet.conv_in" => 2.0,
        "unet.down" => 4.0,
        "unet.up" => 8.0,
        "unet.conv_out" => 16.0,
        "conv1d" => 0.25,
        "conv3d" => 32.0,
        "text_encoder" => 10.0,
        "vae.decode" => 100.0,
        _ => 64.0,
    }
}

fn peak(block: &Block) -> f64 {
    match block.operator.as_str() {
        "unet.up" => 1e6,
        "conv3d" => 2e6,
        _ => 1e3,
    }
}

/// Every entry has three samples, a tenth apart.
fn state(block: &Block) -> EntryState {
    let v = latency(block);
    measured(&[0.9 * v, v, 1.1 * v], &[peak(block)])
}

fn near(estimate: Option<Estimate>, value: f64, standard_error: f64) -> bool {
    estimate.is_some_and(|e| (e.value - value).abs() < 1e-6 * value && (e.standard_error - standard_error).abs() < 1e-4)
}

fn cost(lut: &Lut, space: &Space, text: &str) -> ArchitectureCost {
    compose(lut, space, &space.architecture(text).expect("an architecture")).expect("it runs")
}

#[test]
fn latency_is_a_sum_in_which_one_entry_errs_the_same_each_time_it_runs() {
    let space = flat("");
    let lut = full(eager(), &space, state);
    let backbone = cost(&lut, &space, "-.-");
    // 1 + 2 + 4 + 2·8 + 16; the two up layers share an entry, the others are independent.
    assert!(near(
        backbone.latency_ms,
        39.0,
        THREE * 0.1 * f64::sqrt(1.0 + 4.0 + 16.0 + 256.0 + 256.0)
    ));
    // Two layers deep at both places, one entry: 4 · 0.25.
    let filled = cost(&lut, &space, "c1x2.c1x2");
    assert!(near(filled.latency_ms, 40.0, THREE * 0.1 * f64::sqrt(533.0 + 1.0)));
}

#[test]
fn memory_is_the_weights_and_the_highest_moment() {
    let space = flat("");
    let lut = full(eager(), &space, state);
    let backbone = cost(&lut, &space, "-.-");
    assert_eq!(backbone.parameters, Some(FLAT_PARAMETERS));
    // The first up layer: 32 channels on 32 pixels are 1024 elements of input; one more skip tensor, 128 elements
    // of time and 24 of text embedding are held.
    let alive = 4 * (1024 + 1024 + 128 + 24);
    assert!(near(
        backbone.peak_memory_bytes,
        (4 * FLAT_PARAMETERS + alive) as f64 + 1e6,
        0.0
    ));
    // Two Conv3d at down.0 have their weights, 27·32² + 32 + 64 each, and the higher peak, once.
    let weights = 4 * (FLAT_PARAMETERS + 2 * 27_744);
    assert!(near(
        cost(&lut, &space, "c3x2.-").peak_memory_bytes,
        (weights + alive) as f64 + 2e6,
        0.0
    ));
}

#[test]
fn counts_of_absurd_shapes_saturate() {
    let huge = |toml: &str| toml.replace("height = 4\nwidth = 4", "height = 1048576\nwidth = 1048576");
    let space = Space::parse(&huge(&flat("").source)).expect("a space");
    let lut = full(eager(), &space, state);
    let filled = cost(&lut, &space, "s3x2.s3x2");
    assert_eq!(filled.macs, Some(u64::MAX));
    assert!(filled.peak_memory_bytes.is_some_and(|peak| peak.value.is_finite()));
}

#[test]
fn only_the_heaviest_part_is_loaded() {
    let space = flat("parts = 2");
    let lut = full(eager(), &space, state);
    // Cut after the down layer: 44672 and 69444 parameters.
    let backbone = cost(&lut, &space, "-.-");
    assert_eq!(backbone.parameters, Some(FLAT_PARAMETERS));
    assert!(near(backbone.peak_memory_bytes, (4 * 69_444 + 8800) as f64 + 1e6, 0.0));
}

#[test]
fn memory_is_absent_where_a_runtime_cannot_tell() {
    let space = flat("");
    let lut = full(eager(), &space, |block| {
        let known = if block.operator == "unet.down" {
            vec![]
        } else {
            vec![1.0]
        };
        measured(&[1.0], &known)
    });
    let metrics = LutCosts::new(&lut, &space)
        .costs(&space.architecture("-.-").expect("valid"))
        .expect("it runs");
    assert_eq!(metrics.keys().collect::<Vec<_>>(), ["latency_ms", "macs", "parameters"]);
}

#[test]
fn a_clip_takes_text_all_passes_and_decoding() {
    let given = flat("[pipeline]\nsteps = 4\nguidance = true\ntext_latency_ms = 10\ndecode_latency_ms = 100");
    let lut = full(eager(), &given, state);
    let one = cost(&lut, &given, "-.-").latency_ms.expect("known").standard_error;
    assert!(near(
        cost(&lut, &given, "-.-").pipeline_latency_ms,
        10.0 + 8.0 * 39.0 + 100.0,
        8.0 * one
    ));

    let to_measure = flat("[pipeline]\nsteps = 4\nguidance = false");
    let lut = full(eager(), &to_measure, state);
    let whole = 10.0 + 4.0 * 39.0 + 100.0;
    let doubt = (THREE * 1.0).hypot(4.0 * one).hypot(THREE * 10.0);
    assert!(near(cost(&lut, &to_measure, "-.-").pipeline_latency_ms, whole, doubt));

    let lut = full(eager(), &flat(""), state);
    assert_eq!(cost(&lut, &to_measure, "-.-").pipeline_latency_ms, None);
    assert_eq!(cost(&lut, &flat(""), "-.-").pipeline_latency_ms, None);
}

#[test]
fn a_decoder_that_does_not_fit_makes_no_clips() {
    let space = flat("[pipeline]\nsteps = 4\nguidance = false");
    let lut = full(eager(), &space, |block| {
        if block.operator == "vae.decode" {
            out_of_memory()
        } else {
            state(block)
        }
    });
    let error = compose(&lut, &space, &space.architecture("-.-").expect("valid")).expect_err("no room");
    assert!(matches!(error, CompositionError::OutOfMemory { .. }), "{error}");
}

#[test]
fn what_cannot_run_says_why() {
    let space = flat("");
    let lut = full(eager(), &space, |block| match block.operator.as_str() {
        "conv3d" => out_of_memory(),
        "self_attention3d" => EntryState::Unsupported {
            detail: "no kernel".into(),
        },
        _ => state(block),
    });
    let told = |lut: &Lut, text: &str| {
        let architecture = space.architecture(text).expect("valid");
        LutCosts::new(lut, &space)
            .costs(&architecture)
            .expect_err("it cannot run")
            .reason
    };
    assert_eq!(
        told(&lut, "c3.-"),
        "conv3d b=1 c=32 groups=8 h=4 t=2 w=4 runs out of memory on desk: tried to allocate 8 GiB"
    );
    assert_eq!(
        told(&lut, "-.s3"),
        "self_attention3d b=1 c=32 h=4 heads=4 t=2 w=4 is not supported by libtorch-cpu-1t 2.11.0: no kernel"
    );
    let other = Lut::new("desk", lut.runtime().clone(), Dtype::F16);
    assert_eq!(
        told(&other, "-.-"),
        "the table holds f16, the space runs in f32; figures do not transfer"
    );
    assert!(told(&eager(), "-.-").starts_with("the table does not tell: no entry of operator"));
}

#[test]
fn calibration_corrects_the_whole_and_the_passes_of_a_clip() {
    let space = flat("[pipeline]\nsteps = 2\nguidance = false\ntext_latency_ms = 0\ndecode_latency_ms = 0");
    let lut = full(eager(), &space, |block| measured(&[latency(block)], &[1.0]));
    let calibration = Calibration {
        factor: 2.0,
        offset: 1.0,
        residual: 3.0,
    };
    let costs = LutCosts::new(&lut, &space).calibrated(BTreeMap::from([(metric::LATENCY_MS.to_owned(), calibration)]));
    let cost = costs
        .compose(&space.architecture("-.-").expect("valid"))
        .expect("it runs");
    assert!(near(cost.latency_ms, 79.0, 3.0));
    assert!(near(cost.pipeline_latency_ms, 158.0, 6.0));
}

const CELL: &str = "name = \"cell\"\nkind = \"categorical\"\npositions = [\"01\", \"02\", \"12\", \"03\", \"13\", \"23\"]\n\
    choices = [{ name = \"none\", code = \"0\" }, { name = \"conv\", code = \"1\", blocks = [{ operator = \"conv\", shape = { c = 16 } }] }]\n\
    [structure]\nnull = \"0\"\nedges = [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]]\n";

#[test]
fn dead_branches_cost_on_an_eager_runtime_only() {
    let space = space(CELL);
    let table = |lut: Lut| full(lut, &space, |_| measured(&[5.0], &[]));
    let (eager, ahead) = (table(eager()), table(ahead_of_time()));
    let latency = |lut: &Lut, text: &str| cost(lut, &space, text).latency_ms.map(|estimate| estimate.value);
    // 0→1 leads nowhere; 0→3 is the whole cell.
    assert_eq!(
        (latency(&eager, "100100"), latency(&ahead, "100100")),
        (Some(10.0), Some(5.0))
    );
    // Nothing reaches the output: the output does not depend on the input.
    assert_eq!(
        (latency(&eager, "110000"), latency(&ahead, "110000")),
        (Some(10.0), Some(0.0))
    );
    assert_eq!(
        (latency(&eager, "111111"), latency(&ahead, "111111")),
        (Some(30.0), Some(30.0))
    );
}

const CHAIN: &str = "name = \"chain\"\nkind = \"block-sequence\"\npositions = [\"first\", \"second\"]\n\
    choices = [{ name = \"skip\", code = \"0\" }, { name = \"narrow\", code = \"1\", blocks = [{ operator = \"mb\", shape = { c = 16 } }] }, \
    { name = \"wide\", code = \"2\", blocks = [{ operator = \"mb\", shape = { c = 32 } }, { operator = \"mb\", shape = { c = 16 } }] }, \
    { name = \"foreign\", code = \"3\" }]\n[structure]\nnull = \"0\"\n";

#[test]
fn blocks_behind_choices_add_up_in_time_and_not_in_memory() {
    let space = space(CHAIN);
    let lut = full(eager(), &space, |block| {
        let c = block.shape.get("c").unwrap_or(0) as f64;
        measured(&[c], &[1000.0 * c])
    });
    let both = cost(&lut, &space, "12");
    assert!(near(both.latency_ms, 64.0, 0.0));
    assert!(near(both.peak_memory_bytes, 32_000.0, 0.0));
    assert_eq!((both.parameters, both.macs), (None, None));
    assert_eq!(cost(&lut, &space, "00").latency_ms, Some(Estimate::exact(0.0)));
    // Nobody told what runs behind the last choice: absent, not zero.
    assert_eq!(cost(&lut, &space, "13"), ArchitectureCost::default());
}

fn costs_of(space: &Space) -> impl Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0.01..1e3_f64, 1.0..1e7_f64), space.blocks().len())
}

fn table_of(space: &Space, costs: &[(f64, f64)]) -> Lut {
    let mut lut = eager();
    for (block, (latency, memory)) in space.blocks().into_iter().zip(costs) {
        lut.insert(block, measured(&[*latency], &[*memory]));
    }
    lut
}

fn layers() -> impl Strategy<Value = Vec<Option<TemporalLayer>>> {
    let kinds = [Operator::Conv1d, Operator::Conv3d, Operator::SelfAttention3d];
    let layer = (prop::sample::select(kinds.to_vec()), 1_u8..=2);
    prop::collection::vec(
        prop::option::of(layer.prop_map(|(operator, depth)| TemporalLayer { operator, depth })),
        2,
    )
}

fn architecture(space: &Space, layers: &[Option<TemporalLayer>]) -> Architecture {
    let choices: Vec<u16> = space
        .positions
        .iter()
        .zip(layers)
        .map(|(position, layer)| {
            position
                .choices
                .iter()
                .position(|choice| choice.layer == *layer)
                .expect("a choice") as u16
        })
        .collect();
    Architecture::new(choices)
}

proptest! {
    #[test]
    fn the_peak_is_that_of_the_highest_step_and_the_latency_the_sum_of_all(costs in costs_of(&flat("")), layers in layers()) {
        let space = flat("");
        let lut = table_of(&space, &costs);
        let cost = compose(&lut, &space, &architecture(&space, &layers)).expect("it runs");
        let steps = unet(&space).schedule(&layers);
        let weights = 4.0 * unet(&space).parameters(&layers) as f64;
        let (mut latency, mut highest) = (0.0, 0.0_f64);
        for step in &steps {
            let Lookup::Measured(block) = lut.get(&step.block) else { panic!("not measured") };
            let alive = 4.0 * (step.held_elements + step.input_elements) as f64 + block.peak_memory_bytes.expect("known").value;
            let peak = cost.peak_memory_bytes.expect("known").value;
            prop_assert!(peak >= weights + alive - 1e-6);
            highest = highest.max(weights + alive);
            latency += f64::from(step.repeat) * block.latency_ms.value;
        }
        prop_assert!((cost.peak_memory_bytes.expect("known").value - highest).abs() < 1e-6);
        prop_assert!((cost.latency_ms.expect("known").value - latency).abs() < 1e-6);
    }

    #[test]
    fn a_costlier_entry_makes_nothing_cheaper(costs in costs_of(&flat("")), layers in layers(), which in 0_usize..100, more in 0.0..1e6_f64) {
        let space = flat("");
        let mut higher = costs.clone();
        let which = which % higher.len();
        higher[which].0 += more;
        higher[which].1 += more;
        let architecture = architecture(&space, &layers);
        let before = compose(&table_of(&space, &costs), &space, &architecture).expect("it runs");
        let after = compose(&table_of(&space, &higher), &space, &architecture).expect("it runs");
        prop_assert!(after.latency_ms.expect("known").value >= before.latency_ms.expect("known").value);
        prop_assert!(after.peak_memory_bytes.expect("known").value >= before.peak_memory_bytes.expect("known").value);
    }

    #[test]
    fn independent_errors_add_in_squares(terms in prop::collection::vec((0.0..1e3_f64, 0.0..1e2_f64), 1..20)) {
        let blocks: Vec<Block> = (0..terms.len()).map(|i| Block::new(&format!("op{i}"), Default::default())).collect();
        let estimates = terms.iter().map(|&(value, standard_error)| Estimate { value, standard_error });
        let total = sum(blocks.iter().zip(estimates).map(|(block, estimate)| (block, 1, estimate)));
        let squares: f64 = terms.iter().map(|(_, error)| error * error).sum();
        prop_assert!((total.standard_error.powi(2) - squares).abs() <= 1e-9 * squares.max(1.0));
        let largest = terms.iter().map(|(_, error)| *error).fold(0.0, f64::max);
        let plain: f64 = terms.iter().map(|(_, error)| error).sum();
        prop_assert!(largest <= total.standard_error + 1e-9 && total.standard_error <= plain + 1e-9);
    }
}
