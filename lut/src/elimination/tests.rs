use search_spaces::Block;

use super::*;
use crate::{
    EntryState, LutCosts,
    testing::{eager, flat, full, measured, out_of_memory, space},
};

/// Backbone 60 ms; Conv1d 1 ms, Conv3d 30 ms, SelfAttention3d out of memory.
fn state(block: &Block) -> EntryState {
    match block.operator.as_str() {
        "conv1d" => measured(&[1.0], &[]),
        "conv3d" => measured(&[30.0], &[]),
        "self_attention3d" => out_of_memory(),
        _ => measured(&[10.0], &[]),
    }
}

#[test]
fn a_choice_leaves_for_memory_or_for_a_limit_it_breaks_alone() {
    let space = flat("[limits]\nlatency_ms = 100");
    let lut = full(eager(), &space, state);
    let elimination = eliminate(&LutCosts::new(&lut, &space));
    let left: Vec<_> = elimination
        .removed
        .iter()
        .map(|r| (r.position_name.as_str(), r.choice_name.as_str()))
        .collect();
    let gone = ["conv3d ×2", "self_attention3d", "self_attention3d ×2"];
    assert_eq!(
        left,
        ["down.0", "up.0"].map(|place| gone.map(|name| (place, name))).concat()
    );
    // None, two depths of three operators at two places: 7²; none, Conv1d once and twice, Conv3d once stay: 4².
    assert_eq!((elimination.before, elimination.after), (49, 16));
    assert_eq!(elimination.backbone, None);
    let limit = &elimination.removed[0];
    assert_eq!(
        limit.reason.to_string(),
        "latency_ms would be 120 with the backbone alone; the limit is 100"
    );
    assert!(
        elimination.removed[1]
            .reason
            .to_string()
            .contains("runs out of memory on desk")
    );
    assert!(!elimination.keeps(limit.position, limit.choice) && elimination.keeps(0, 0));
}

#[test]
fn a_broken_limit_is_told_with_two_digits_of_the_error() {
    for (value, standard_error, told) in [
        (
            105.418,
            0.123,
            "latency_ms would be 105.42 ± 0.12 with the backbone alone; the limit is 100",
        ),
        (
            4_927_760.0,
            1234.0,
            "latency_ms would be 4927760 ± 1234 with the backbone alone; the limit is 100",
        ),
    ] {
        let (metric, limit) = ("latency_ms".to_owned(), 100.0);
        let reason = Reason::Limit {
            metric,
            value,
            standard_error,
            limit,
        };
        assert_eq!(reason.to_string(), told);
    }
}

#[test]
fn a_choice_that_may_keep_the_limit_within_its_error_stays() {
    let space = flat("[limits]\nlatency_ms = 95");
    let table = |doubt: f64| {
        full(eager(), &space, |block| match block.operator.as_str() {
            "conv3d" => measured(&[40.0 - doubt, 40.0, 40.0 + doubt], &[]),
            _ => measured(&[10.0, 10.0, 10.0], &[]),
        })
    };
    // 100 ms against 95: with samples 1 apart the median is known to ±1.07, with 4 apart to ±4.3.
    let gone = |lut: &crate::Lut| {
        eliminate(&LutCosts::new(lut, &space))
            .removed
            .iter()
            .any(|r| r.choice_name == "conv3d")
    };
    assert!(gone(&table(1.0)));
    assert!(!gone(&table(4.0)));
}

#[test]
fn what_was_not_measured_stays_and_is_told() {
    let space = flat("[limits]\nlatency_ms = 100");
    let mut lut = eager();
    for block in space.blocks().into_iter().filter(|block| block.operator != "conv3d") {
        let state = state(&block);
        lut.insert(block, state);
    }
    let elimination = eliminate(&LutCosts::new(&lut, &space));
    assert_eq!(elimination.undecided.len(), 4);
    assert!(elimination.undecided[0].missing.contains("conv3d"));
    assert_eq!(elimination.after, 25);
}

#[test]
fn a_backbone_beyond_the_limits_leaves_nothing() {
    let space = flat("[limits]\nlatency_ms = 50");
    let lut = full(eager(), &space, state);
    let elimination = eliminate(&LutCosts::new(&lut, &space));
    assert_eq!((elimination.before, elimination.after), (49, 0));
    assert!(matches!(elimination.backbone, Some(Reason::Limit { .. })));
    assert!(!elimination.keeps(0, 0));
}

#[test]
fn a_choice_without_a_null_beside_it_is_judged_by_its_own_cost() {
    let space = space(
        "name = \"chain\"\nkind = \"block-sequence\"\npositions = [\"first\", \"second\"]\n\
         choices = [{ name = \"a\", code = \"a\", blocks = [{ operator = \"mb\", shape = { c = 1 } }] }, \
         { name = \"b\", code = \"b\", blocks = [{ operator = \"mb\", shape = { c = 9 } }] }]\n[limits]\nlatency_ms = 8\n",
    );
    let lut = full(eager(), &space, |block| {
        measured(&[block.shape.get("c").unwrap_or(0) as f64], &[])
    });
    let elimination = eliminate(&LutCosts::new(&lut, &space));
    assert_eq!(
        (elimination.before, elimination.after, elimination.removed.len()),
        (4, 1, 2)
    );
}
