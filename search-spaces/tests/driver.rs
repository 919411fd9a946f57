//! The driver and the strategies on small tables that the tests make themselves.

use std::collections::BTreeMap;

use proptest::prelude::*;
use search_spaces::search::{Advance, Evaluated, Outcome, Proposal, StopReason, front, propose_next, should_stop};
use search_spaces::strategies::AnyStrategy;
use search_spaces::{
    Action, ActionMode, ActionsSettings, Architecture, Costs, Estimate, Infeasible, NoCosts, Nsga2Settings, Ranges,
    Space, Start, StrategySettings,
};

/// Four ordered positions of three sizes; what a table says is in [`Made`].
fn space(extra: &str) -> Space {
    let text = format!(
        r#"
name = "made"
kind = "categorical"
positions = ["a", "b", "c", "d"]
choices = [{{ name = "none", code = "0" }}, {{ name = "small", code = "1" }}, {{ name = "large", code = "2" }}]
structure = {{ ordered = true, null = "0" }}
objectives = [
  {{ metric = "quality", direction = "maximise", range = [0, 20] }},
  {{ metric = "latency_ms", direction = "minimise", range = [0, 25] }},
]
search = {{ strategy = "random", max_evaluations = 81, width = 1 }}
{extra}
"#
    );
    Space::parse(&text).unwrap_or_else(|error| panic!("{error}"))
}

/// Each layer costs its size times its weight; quality has diminishing returns, and a layer at `c` is
/// worth more where one stands at `b`.
struct Made;

const WEIGHTS: [f64; 4] = [1.0, 2.0, 3.0, 4.0];

fn quality(architecture: &Architecture) -> f64 {
    let sizes: Vec<f64> = architecture.choices().iter().map(|&size| f64::from(size)).collect();
    let alone: f64 = sizes
        .iter()
        .zip([3.0, 2.5, 1.0, 0.5])
        .map(|(size, gain)| gain * size.sqrt())
        .sum();
    alone + sizes[1].min(sizes[2])
}

impl Costs for Made {
    fn costs(&self, architecture: &Architecture) -> Result<BTreeMap<String, Estimate>, Infeasible> {
        let latency: f64 = architecture
            .choices()
            .iter()
            .zip(WEIGHTS)
            .map(|(&size, weight)| f64::from(size) * weight)
            .sum();
        Ok(BTreeMap::from([("latency_ms".to_owned(), Estimate::exact(latency))]))
    }
}

fn evaluate(number: u64, architecture: &Architecture) -> Evaluated {
    let mut metrics = Made.costs(architecture).expect("always known");
    metrics.insert("quality".into(), Estimate::exact(quality(architecture)));
    Evaluated {
        number,
        architecture: architecture.clone(),
        outcome: Outcome::Metrics(metrics),
    }
}

fn ranges() -> Ranges {
    Ranges::new(vec![(0.0, 20.0), (0.0, 25.0)])
}

/// A search by `workers` workers that finish in the order that `order` draws; every `failing`-th
/// candidate fails.
fn run(space: &Space, workers: usize, failing: u64, order: &mut dyn FnMut(usize) -> usize) -> Vec<Proposal> {
    let strategy = AnyStrategy::new(&space.search);
    let (mut finished, mut running) = (BTreeMap::new(), Vec::new());
    let mut candidates: Vec<(u64, Architecture)> = Vec::new();
    let mut proposals = Vec::new();
    for reference in &space.references {
        let number = candidates.len() as u64;
        candidates.push((number, reference.architecture.clone()));
        running.push(number);
    }
    loop {
        let more = candidates.len() < space.search.max_evaluations as usize && running.len() < workers;
        let advance = match more {
            true => propose_next(
                &strategy,
                space,
                &Made,
                &ranges(),
                &finished,
                &candidates,
                space.search.width,
            ),
            false => Advance::Blocked,
        };
        match advance {
            Advance::Propose(proposal) => {
                let number = candidates.len() as u64;
                assert!(
                    candidates.iter().all(|(_, other)| *other != proposal.architecture),
                    "proposed twice"
                );
                candidates.push((number, proposal.architecture.clone()));
                proposals.push(proposal);
                running.push(number);
            }
            Advance::Blocked | Advance::Exhausted if running.is_empty() => return proposals,
            Advance::Blocked | Advance::Exhausted => {
                let number = running.swap_remove(order(running.len()));
                let mut result = evaluate(number, &candidates[number as usize].1);
                if failing > 0 && number % failing == failing - 1 {
                    result.outcome = Outcome::Failed;
                }
                finished.insert(number, result);
            }
        }
    }
}

fn strategies() -> impl Strategy<Value = StrategySettings> {
    let actions = |mode, start, tries| {
        StrategySettings::Actions(ActionsSettings {
            mode,
            start,
            parents: 2,
            tries,
        })
    };
    prop_oneof![
        Just(StrategySettings::Random),
        Just(StrategySettings::Nsga2(Nsga2Settings {
            population: 6,
            ..Nsga2Settings::default()
        })),
        Just(actions(ActionMode::Front, Start::Filled, None)),
        Just(actions(ActionMode::Front, Start::Backbone, Some(3))),
        Just(actions(ActionMode::Paper, Start::Backbone, None)),
        Just(actions(ActionMode::Paper, Start::Filled, None)),
    ]
}

const REFERENCES: &str = r#"
limits = { latency_ms = 15 }
references = [{ name = "nothing", architecture = "0000" }, { name = "middle", architecture = "1111" }]
"#;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn proposals_do_not_depend_on_workers_nor_on_the_order_of_results(
        settings in strategies(), width in prop::sample::select(vec![1_u32, 4, 8]), seed in any::<u32>(), failing in 0_u64..8,
        draws in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        let mut space = space(REFERENCES);
        space.search.strategy = settings;
        space.search.width = width;
        space.search.seed = seed.into();
        space.search.max_evaluations = 40;
        let alone = run(&space, 1, failing, &mut |_| 0);
        for workers in [2, 4, 8, 16] {
            let mut draw = draws.iter().cycle();
            let many = run(&space, workers, failing, &mut |running| draw.next().expect("a cycle").index(running));
            prop_assert_eq!(&many, &alone);
        }
    }

    #[test]
    fn what_the_limits_forbid_is_never_proposed(settings in strategies(), seed in any::<u32>()) {
        let mut space = space(REFERENCES);
        space.search.strategy = settings;
        space.search.seed = seed.into();
        for proposal in run(&space, 1, 0, &mut |_| 0) {
            prop_assert!(Made.costs(&proposal.architecture).expect("known")["latency_ms"].value <= 15.0);
        }
    }
}

fn with_actions(space: &mut Space, mode: ActionMode, start: Start) {
    space.search.strategy = StrategySettings::Actions(ActionsSettings {
        mode,
        start,
        parents: 2,
        tries: None,
    });
}

#[test]
fn random_walks_through_the_whole_space_and_then_ends() {
    let proposals = run(&space(""), 1, 0, &mut |_| 0);
    assert_eq!(proposals.len(), 81);
}

#[test]
fn the_paper_mode_adds_and_removes_from_one_incumbent_only() {
    let mut space = space("");
    with_actions(&mut space, ActionMode::Paper, Start::Backbone);
    space.search.max_evaluations = 30;
    let proposals = run(&space, 1, 0, &mut |_| 0);
    assert_eq!(space.print(&proposals[0].architecture), "0000");
    // Eight additions are tried before one is carried out.
    assert!(
        proposals[1..9]
            .iter()
            .all(|p| p.parent == Some(0) && matches!(p.action, Some(Action::Add { .. })))
    );
    assert!(proposals.iter().all(|p| !matches!(p.action, Some(Action::Swap { .. }))));
    // The small layer at `a` gains 3 for 1 ms, more than any other: the next parent.
    let parent = proposals[9].parent.expect("a parent") as usize;
    assert_eq!(space.print(&proposals[parent].architecture), "1000");
}

#[test]
fn the_paper_mode_tries_all_actions_and_ends_where_its_start_fails() {
    let mut space = space("");
    space.search.strategy = StrategySettings::Actions(ActionsSettings {
        mode: ActionMode::Paper,
        start: Start::Backbone,
        parents: 2,
        tries: Some(1),
    });
    space.search.max_evaluations = 30;
    let proposals = run(&space, 1, 0, &mut |_| 0);
    assert!(proposals[1..9].iter().all(|p| p.parent == Some(0)), "none is left out");
    // Every candidate fails, the start first of all.
    assert_eq!(run(&space, 1, 1, &mut |_| 0).len(), 1);
    // References with results are no incumbents either: 0000 and 1111 are evaluated, the start fails.
    let mut space = self::space(REFERENCES);
    with_actions(
        &mut space,
        ActionMode::Paper,
        Start::Given(Architecture::new(vec![1, 0, 0, 0])),
    );
    assert_eq!(run(&space, 1, 3, &mut |_| 0).len(), 1);
}

#[test]
fn the_first_sweep_takes_the_cheapest_loss_and_the_front_is_the_true_one_in_the_end() {
    let mut space = space("");
    with_actions(&mut space, ActionMode::Front, Start::Filled);
    let proposals = run(&space, 1, 0, &mut |_| 0);
    assert_eq!(space.print(&proposals[0].architecture), "2222");
    // A smaller layer at `d` loses 0.5·(√2 − 1) for 4 ms, less per unit than anything else.
    let taken = proposals[9].parent.expect("a parent") as usize;
    assert_eq!(space.print(&proposals[taken].architecture), "2221");
    let all = run(&self::space(""), 1, 0, &mut |_| 0);
    let numbered = |proposals: &[Proposal]| -> Vec<Evaluated> {
        (0..)
            .zip(proposals)
            .map(|(number, p)| evaluate(number, &p.architecture))
            .collect()
    };
    let points = |proposals: &[Proposal]| {
        let evaluated = numbered(proposals);
        let mut front: Vec<String> = front(&space, &ranges(), &evaluated)
            .into_iter()
            .map(|n| space.print(&evaluated[n as usize].architecture))
            .collect();
        front.sort();
        front
    };
    let true_front = points(&all);
    let found = points(&proposals);
    assert!(
        true_front.iter().all(|member| found.contains(member)),
        "{found:?} lacks some of {true_front:?}"
    );
}

#[test]
fn a_filled_start_is_reduced_by_known_costs_until_the_limits_admit_it() {
    let mut space = space(REFERENCES);
    with_actions(&mut space, ActionMode::Front, Start::Filled);
    let first = &run(&space, 1, 0, &mut |_| 0)[0];
    // 2222 costs 20 ms; without `c` it costs 14, the most that one change leaves within 15.
    assert_eq!(space.print(&first.architecture), "2202");
}

#[test]
fn a_gain_within_the_noise_is_no_gain() {
    let mut space = space("");
    with_actions(&mut space, ActionMode::Paper, Start::Backbone);
    let strategy = AnyStrategy::new(&space.search);
    let (mut finished, mut candidates) = (BTreeMap::new(), Vec::new());
    // No score differs by more than its error, so after the first round nothing is carried out.
    while let Advance::Propose(proposal) = propose_next(&strategy, &space, &Made, &ranges(), &finished, &candidates, 1)
    {
        let number = candidates.len() as u64;
        let mut result = evaluate(number, &proposal.architecture);
        if let Outcome::Metrics(metrics) = &mut result.outcome {
            metrics.insert(
                "quality".into(),
                Estimate {
                    value: number as f64 / 100.0,
                    standard_error: 1.0,
                },
            );
        }
        finished.insert(number, result);
        candidates.push((number, proposal.architecture));
    }
    assert_eq!(candidates.len(), 9);
}

#[test]
fn a_search_stops_at_its_budget_and_when_the_front_stands_still() {
    let mut space = space("");
    space.search.max_evaluations = 5;
    space.search.max_device_hours = Some(2.0);
    space.search.stall_evaluations = Some(3);
    let grown = |sizes: &[&str]| -> BTreeMap<u64, Evaluated> {
        let architectures = sizes
            .iter()
            .map(|text| space.architecture(text).expect("an architecture"));
        (0..)
            .zip(architectures)
            .map(|(number, a)| (number, evaluate(number, &a)))
            .collect()
    };
    let stop = |finished: &BTreeMap<u64, Evaluated>, candidates, hours| {
        should_stop(&space, &ranges(), finished, candidates, 0, hours)
    };
    assert_eq!(stop(&grown(&[]), 0, 0.0), None);
    assert_eq!(stop(&grown(&[]), 5, 0.0), Some(StopReason::MaxEvaluations));
    assert_eq!(stop(&grown(&[]), 1, 2.0), Some(StopReason::MaxDeviceHours));
    let with_infeasible = |infeasible| should_stop(&space, &ranges(), &grown(&[]), 6, infeasible, 0.0);
    assert_eq!(with_infeasible(1), Some(StopReason::MaxEvaluations));
    assert_eq!(with_infeasible(2), None, "what cannot run is no evaluation");
    // 1000 dominates what follows: better and cheaper than 0001, cheaper than 0002 and 0011.
    assert_eq!(stop(&grown(&["1000", "0001", "0002"]), 3, 0.0), None);
    assert_eq!(
        stop(&grown(&["1000", "0001", "0002", "0010"]), 4, 0.0),
        Some(StopReason::Stalled)
    );
    assert_eq!(stop(&grown(&["1000", "0001", "0002", "2000"]), 4, 0.0), None);
}

#[test]
fn ranges_come_from_costs_and_limits_where_the_file_names_none() {
    let mut space = space("limits = { latency_ms = 15 }");
    space.objectives[1].range = None;
    let ranges = Ranges::fix(&space, &Made).expect("known costs");
    assert_eq!(ranges.as_slice(), [(0.0, 20.0), (0.0, 15.0)]);
    assert!(
        Ranges::fix(&space, &NoCosts)
            .unwrap_err()
            .to_string()
            .contains("latency_ms")
    );
}
