//! The `[search]` section.

use super::parse::architecture_of;
use super::read::{Node, Section};
use super::{
    ActionMode, ActionsSettings, Direction, Nsga2Settings, Objective, SearchSettings, Space, Start, StrategySettings,
};

#[derive(Clone, Copy, PartialEq)]
enum Name {
    Actions,
    Nsga2,
    Random,
}

/// `space` lacks what is still to be read; it is absent where its positions are wrong. So many `references` are
/// evaluated before the search itself starts.
pub(super) fn search(
    section: Section,
    space: Option<&Space>,
    objectives: Option<&[Objective]>,
    references: usize,
) -> Option<SearchSettings> {
    let strategy = section.get("strategy").map_or(Some(Name::Actions), |node| {
        node.one_of([
            ("actions", Name::Actions),
            ("nsga2", Name::Nsga2),
            ("random", Name::Random),
        ])
    });
    let seed = section.integer_or("seed", 0, 0..=i64::MAX as u64);
    let small = |value: u64| u32::try_from(value).ok();
    let width = section.integer_or("width", 1, 1..=1024).and_then(small);
    let max_evaluations = section.need_integer("max_evaluations", 1..=10_000_000).and_then(small);
    if let Some(max) = max_evaluations.filter(|max| (*max as usize) <= references) {
        let allowed = format!(
            "at least {}, as the {references} references are evaluated before the search starts",
            references + 1
        );
        section.report("max_evaluations", max.to_string(), allowed);
    }
    let max_device_hours = section
        .get("max_device_hours")
        .map_or(Some(None), |node| node.number(0.0..=1e9).map(Some));
    let stall_evaluations = section
        .get("stall_evaluations")
        .map_or(Some(None), |node| node.integer(1..=10_000_000).map(small));
    let finalists = section.integer_or("finalists", 3, 0..=1000).and_then(small);
    let actions = settings(section.get("actions"), |node| actions(node, space))
        .unwrap_or_else(|| Some(ActionsSettings::default()));
    let nsga2 = settings(section.get("nsga2"), nsga2).unwrap_or_else(|| Some(Nsga2Settings::default()));
    if strategy == Some(Name::Actions) {
        check_actions(&section, space, objectives, actions.as_ref());
    }
    section.finish();
    Some(SearchSettings {
        strategy: match strategy? {
            Name::Actions => StrategySettings::Actions(actions?),
            Name::Nsga2 => StrategySettings::Nsga2(nsga2?),
            Name::Random => StrategySettings::Random,
        },
        seed: seed?,
        width: width?,
        max_evaluations: max_evaluations?,
        max_device_hours: max_device_hours?,
        stall_evaluations: stall_evaluations?,
        finalists: finalists?,
    })
}

/// `None` where the section is absent, `Some(None)` where it is wrong.
fn settings<T>(node: Option<Node>, read: impl FnOnce(Section) -> Option<T>) -> Option<Option<T>> {
    node.map(|node| node.section("a section").and_then(read))
}

fn actions(section: Section, space: Option<&Space>) -> Option<ActionsSettings> {
    let defaults = ActionsSettings::default();
    let mode = section.get("mode").map_or(Some(defaults.mode), |node| {
        node.one_of([("paper", ActionMode::Paper), ("front", ActionMode::Front)])
    });
    let start = section
        .get("start")
        .map_or(Some(defaults.start), |node| start(&node, space));
    let parents = section
        .integer_or("parents", defaults.parents.into(), 1..=64)
        .and_then(|value| u32::try_from(value).ok());
    let tries = section.get("tries").map_or(Some(None), |node| {
        node.integer(1..=100_000).map(|value| u32::try_from(value).ok())
    });
    if let (Some(ActionMode::Paper), Some(Some(tries))) = (mode, tries) {
        section.report(
            "tries",
            tries.to_string(),
            "nothing with mode = \"paper\", which tries every addition and removal",
        );
    }
    section.finish();
    Some(ActionsSettings {
        mode: mode?,
        start: start?,
        parents: parents?,
        tries: tries?,
    })
}

fn start(node: &Node, space: Option<&Space>) -> Option<Start> {
    match node.text("backbone, filled, or an architecture")? {
        "backbone" => Some(Start::Backbone),
        "filled" => Some(Start::Filled),
        _ => architecture_of(node, space?, "backbone, filled, or ").map(Start::Given),
    }
}

fn nsga2(section: Section) -> Option<Nsga2Settings> {
    let defaults = Nsga2Settings::default();
    let population = section
        .integer_or("population", defaults.population.into(), 2..=10_000)
        .and_then(|value| u32::try_from(value).ok());
    let crossover = section.number_or("crossover", defaults.crossover, 0.0..=1.0);
    let mutation = section
        .get("mutation")
        .map_or(Some(None), |node| node.number(0.0..=1.0).map(Some));
    section.finish();
    Some(Nsga2Settings {
        population: population?,
        crossover: crossover?,
        mutation: mutation?,
    })
}

fn check_actions(
    section: &Section,
    space: Option<&Space>,
    objectives: Option<&[Objective]>,
    actions: Option<&ActionsSettings>,
) {
    if let Some(objectives) = objectives {
        let maximised = objectives
            .iter()
            .filter(|objective| objective.direction == Direction::Maximise)
            .count();
        if maximised != 1 {
            let found = format!("actions with {maximised} maximised objectives");
            section.report(
                "strategy",
                found,
                "exactly one maximised objective, the others minimised; or another strategy",
            );
        }
    }
    let from_backbone = actions.is_some_and(|actions| actions.start == Start::Backbone);
    if from_backbone && space.is_some_and(|space| space.backbone().is_none()) {
        let allowed = "filled or an architecture, as not every position has the null choice of [structure]";
        section.report("actions", "start = backbone", allowed);
    }
}
