use proptest::prelude::*;

use search_spaces::{Dtype, work};

use super::*;
use crate::testing::{eager, measured, out_of_memory};

fn video(operator: &str, c: u64, t: u64, size: u64) -> Block {
    let shape = Shape::new([("b", 1), ("t", t), ("h", size), ("w", size), ("c", c)]);
    let shape = if operator.starts_with("conv") {
        shape.with("groups", 8)
    } else {
        shape.with("heads", 4)
    };
    Block {
        operator: operator.into(),
        shape,
    }
}

fn work_of(block: &Block) -> Work {
    work(block, Dtype::F32).expect("a temporal operator")
}

/// A table of one operator at some sizes, whose cost follows a law.
fn table(operator: &str, sizes: &[u64], latency: impl Fn(&Block) -> f64, memory: impl Fn(&Block) -> f64) -> Lut {
    let mut lut = eager();
    for &size in sizes {
        let block = video(operator, 64, 12, size);
        let state = measured(&[latency(&block)], &[memory(&block)]);
        lut.insert(block, state);
    }
    lut
}

fn interpolated(lookup: Lookup) -> Cost {
    match lookup {
        Lookup::Interpolated(cost, _) => cost,
        other => panic!("not interpolated: {other:?}"),
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * b.abs().max(1.0)
}

#[test]
fn attention_over_space_and_time_is_predicted_by_its_work_and_not_by_its_area() {
    let latency = |block: &Block| 0.3 + work_of(block).macs as f64 / 1e9;
    let memory = |block: &Block| work_of(block).activation_bytes as f64;
    let lut = table("self_attention3d", &[4, 8, 16, 32, 64], latency, memory);
    let between = video("self_attention3d", 64, 12, 24);
    let cost = interpolated(lut.get(&between));
    assert!(close(cost.latency_ms.value, latency(&between)));
    assert!(close(cost.peak_memory_bytes.expect("measured").value, memory(&between)));
    // A line over the area between 16² and 32² would be off by half.
    let (low, high) = (
        latency(&video("self_attention3d", 64, 12, 16)),
        latency(&video("self_attention3d", 64, 12, 32)),
    );
    let by_area = low + (high - low) * (576.0 - 256.0) / (1024.0 - 256.0);
    assert!(
        by_area > 1.3 * latency(&between),
        "{by_area} against {}",
        latency(&between)
    );
}

#[test]
fn the_axis_is_the_one_that_predicts_left_out_entries() {
    let by_bytes = |block: &Block| 0.1 + work_of(block).bytes_moved as f64 / 1e8;
    let lut = table("self_attention3d", &[4, 8, 16, 32], by_bytes, |_| 1.0);
    let errors = lut.leave_out_errors();
    assert_eq!(errors.len(), 1);
    assert_eq!((errors[0].latency_axis, errors[0].latency.cases), (Axis::BytesMoved, 2));
    assert_eq!(errors[0].over, ["h", "w"]);
    assert!(errors[0].latency.p95 < 1e-9);
    let between = video("self_attention3d", 64, 12, 12);
    assert!(close(
        interpolated(lut.get(&between)).latency_ms.value,
        by_bytes(&between)
    ));
}

#[test]
fn left_out_entries_give_the_uncertainty() {
    // Work is the product here: sizes 1 to 5, costs 10, 20, 33, 40, 50. Left out, 2, 3 and 4 are predicted as
    // 21.5, 30 and 41.5: errors of 7.5 %, 1/11 and 3.75 %.
    let at = |size: u64| Block::new("own", Shape::new([("n", size * 100)]));
    let mut lut = eager();
    for (size, cost) in [(1, 10.0), (2, 20.0), (3, 33.0), (4, 40.0), (5, 50.0)] {
        lut.insert(at(size), measured(&[cost], &[]));
    }
    let errors = lut.leave_out_errors();
    let summary = errors[0].latency;
    assert_eq!(
        (errors[0].operator.as_str(), errors[0].latency_axis, summary.cases),
        ("own", Axis::Product, 3)
    );
    assert!(close(summary.p50, 0.075) && close(summary.mean, (0.075 + 1.0 / 11.0 + 0.0375) / 3.0));
    assert!(close(summary.p95, 0.075 + (1.0 / 11.0 - 0.075) * 0.9) && close(summary.within_10_percent, 1.0));
    let Lookup::Interpolated(cost, error) = lut.get(&Block::new("own", Shape::new([("n", 450)]))) else {
        panic!("not interpolated")
    };
    assert_eq!(error, Some(summary));
    assert!(close(cost.latency_ms.value, 45.0));
    assert!(close(cost.latency_ms.standard_error, 45.0 * summary.p95 / 1.96));
    assert_eq!(cost.peak_memory_bytes, None);
}

#[test]
fn where_nothing_can_be_left_out_the_value_may_lie_anywhere_between_the_neighbours() {
    let lut = table("conv3d", &[8, 16], |block| work_of(block).macs as f64 / 1e8, |_| 7.0);
    let Lookup::Interpolated(cost, error) = lut.get(&video("conv3d", 64, 12, 12)) else {
        panic!("not interpolated")
    };
    let step = (work_of(&video("conv3d", 64, 12, 16)).macs - work_of(&video("conv3d", 64, 12, 8)).macs) as f64 / 1e8;
    assert_eq!(error, None);
    assert!(close(cost.latency_ms.standard_error, step / 12.0_f64.sqrt()));
    assert_eq!(
        cost.peak_memory_bytes,
        Some(Estimate {
            value: 7.0,
            standard_error: 0.0
        })
    );
}

#[test]
fn the_same_layer_on_another_input_is_nearer_than_another_layer() {
    let mut lut = eager();
    for (c, size, cost) in [(64, 8, 1.0), (64, 16, 3.0), (32, 12, 50.0), (128, 12, 70.0)] {
        lut.insert(video("conv1d", c, 12, size), measured(&[cost], &[]));
    }
    let value = interpolated(lut.get(&video("conv1d", 64, 12, 12))).latency_ms.value;
    assert!((1.0..=3.0).contains(&value), "{value}");
}

#[test]
fn nothing_is_said_beyond_what_was_measured_unless_asked_for() {
    let law = |block: &Block| 0.5 + work_of(block).macs as f64 / 1e8;
    let lut = table("conv3d", &[8, 16, 24], law, |_| 1.0);
    for size in [4, 32] {
        let outside = video("conv3d", 64, 12, size);
        let Lookup::Missing(missing @ Missing::Outside { .. }) = lut.get(&outside) else {
            panic!("an answer")
        };
        assert!(missing.to_string().contains("outside what was measured"), "{missing}");
        assert!(missing.to_string().contains("none"), "{missing}");
        let Lookup::Extrapolated(cost) = lut.lookup(&outside, Extrapolation::Allowed) else {
            panic!("no answer")
        };
        assert!(close(cost.latency_ms.value, law(&outside)));
        let nearest = law(&video("conv3d", 64, 12, if size == 4 { 8 } else { 24 }));
        assert!(cost.latency_ms.standard_error >= 0.999 * (cost.latency_ms.value - nearest).abs());
    }
    let alone = table("conv3d", &[8], law, |_| 1.0);
    let answer = alone.lookup(&video("conv3d", 64, 12, 9), Extrapolation::Allowed);
    assert!(
        matches!(answer, Lookup::Missing(Missing::TooFewNeighbours { .. })),
        "{answer:?}"
    );
}

#[test]
fn an_operator_that_was_never_measured_is_missing_by_name() {
    let Lookup::Missing(missing) = eager().get(&video("conv3d", 64, 12, 8)) else {
        panic!("an answer")
    };
    assert_eq!(
        missing.to_string(),
        "no entry of operator \"conv3d\" on desk, libtorch-cpu-1t 2.11.0, f32"
    );
}

#[test]
fn what_ran_out_of_memory_when_smaller_runs_out_when_larger() {
    let mut lut = table("self_attention3d", &[8, 16], |_| 1.0, |_| 1.0);
    lut.insert(video("self_attention3d", 64, 12, 32), out_of_memory());
    let Lookup::OutOfMemory { detail } = lut.get(&video("self_attention3d", 64, 12, 64)) else {
        panic!("an answer")
    };
    assert!(detail.contains("h=32"), "{detail}");
    let Lookup::Missing(missing) = lut.get(&video("self_attention3d", 64, 12, 24)) else {
        panic!("an answer")
    };
    assert!(
        missing.to_string().contains("h=32 heads=4 t=12 w=32 ran out of memory"),
        "{missing}"
    );
    assert_eq!(
        lut.get(&video("self_attention3d", 64, 12, 32)),
        Lookup::OutOfMemory {
            detail: "tried to allocate 8 GiB".into()
        }
    );
}

#[test]
fn a_larger_shape_that_ran_outweighs_a_smaller_one_that_did_not() {
    let mut lut = table("self_attention3d", &[8, 32], |_| 1.0, |_| 1.0);
    lut.insert(video("self_attention3d", 64, 12, 16), out_of_memory());
    assert!(matches!(
        lut.get(&video("self_attention3d", 64, 12, 24)),
        Lookup::Interpolated(..)
    ));
}

#[test]
fn an_unknown_operator_is_interpolated_over_two_dimensions_and_not_over_three() {
    let at = |a: u64, b: u64, c: u64| Block::new("own", Shape::new([("a", a), ("b", b), ("c", c)]));
    let mut lut = eager();
    lut.insert(at(2, 2, 5), measured(&[4.0], &[]));
    lut.insert(at(6, 6, 5), measured(&[36.0], &[]));
    lut.insert(at(2, 2, 2), measured(&[1.0], &[]));
    lut.insert(at(6, 6, 6), measured(&[1.0], &[]));
    assert!(close(interpolated(lut.get(&at(4, 4, 5))).latency_ms.value, 16.0));
    assert!(matches!(
        lut.get(&at(4, 4, 4)),
        Lookup::Missing(Missing::Outside { .. })
    ));
}

#[test]
fn a_shape_that_is_larger_here_and_smaller_there_is_no_neighbour() {
    let at = |h: u64, w: u64| Block::new("own", Shape::new([("h", h), ("w", w)]));
    let mut lut = eager();
    lut.insert(at(2, 64), measured(&[1.0], &[]));
    lut.insert(at(64, 4), measured(&[2.0], &[]));
    assert!(matches!(lut.get(&at(13, 13)), Lookup::Missing(_)));
}

proptest! {
    #[test]
    fn measured_points_are_exact_and_all_others_lie_between_their_neighbours(
        costs in prop::collection::vec(0.01..100.0_f64, 4),
        size in 4_u64..=32,
        operator in prop::sample::select(vec!["conv1d", "conv3d", "self_attention1d", "self_attention3d", "own"]),
    ) {
        let sizes = [4, 8, 16, 32];
        let mut lut = eager();
        for (&size, &cost) in sizes.iter().zip(&costs) {
            lut.insert(video(operator, 64, 12, size), measured(&[cost], &[cost]));
        }
        match (lut.get(&video(operator, 64, 12, size)), sizes.iter().position(|at| *at == size)) {
            (Lookup::Measured(cost), Some(i)) => prop_assert_eq!(cost.latency_ms.value, costs[i]),
            (Lookup::Interpolated(cost, _), None) => {
                let above = sizes.iter().position(|at| *at > size).expect("within");
                let (low, high) = (costs[above - 1].min(costs[above]), costs[above - 1].max(costs[above]));
                let memory = cost.peak_memory_bytes.expect("measured").value;
                for value in [cost.latency_ms.value, memory] {
                    prop_assert!(low - 1e-9 <= value && value <= high + 1e-9);
                }
                prop_assert!(cost.latency_ms.standard_error >= 0.0);
            }
            (other, _) => prop_assert!(false, "{other:?}"),
        }
    }
}
