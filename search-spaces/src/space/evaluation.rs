//! The `[evaluation]` and `[pipeline]` sections.

use std::collections::BTreeMap;

use super::parse::name_of;
use super::read::{Node, Section, all};
use super::training::training;
use super::{Evaluation, Pipeline};
use crate::vbench::Dimension;

/// Dimensions that the built-in evaluator scores.
pub const BUILT_IN_DIMENSIONS: [&str; 5] = [
    "overall_consistency",
    "object_class",
    "color",
    "temporal_flickering",
    "dynamic_degree",
];

/// The evaluator that runs the published package.
const VBENCH: &str = "vbench";
/// The most videos of a prompt that the package looks at.
const VBENCH_VIDEOS: u64 = 5;
/// Sizes of clips that have a name.
const PRESETS: [&str; 2] = ["paper-eval", "paper-demo"];

pub(super) fn evaluation(section: Section) -> Option<Evaluation> {
    let evaluator = section.get("evaluator").map_or(Some("built-in"), |node| {
        node.one_of([("built-in", "built-in"), (VBENCH, VBENCH)])
    });
    let dataset = section
        .need("dataset", "the name of a dataset, as shapes or emoji")
        .and_then(|node| name_of(&node));
    let count = |key, most| {
        section
            .need_integer(key, 1..=most)
            .and_then(|value| u32::try_from(value).ok())
    };
    let training = training(&section);
    let inherit = section.boolean_or("inherit", false);
    let most_videos = if evaluator == Some(VBENCH) { VBENCH_VIDEOS } else { 1000 };
    let (prompts, videos_per_prompt) = (count("prompts", 100_000), count("videos_per_prompt", most_videos));
    let preset = section.get("preset").map_or(Some(None), |node| {
        node.one_of(PRESETS.map(|name| (name, Some(name.to_owned()))))
    });
    let sample_batch = section.get("sample_batch").map_or(Some(None), |node| {
        node.integer(1..=100_000).map(|value| u32::try_from(value).ok())
    });
    let sample_steps = section
        .integer_or("sample_steps", 25, 1..=10_000)
        .and_then(|value| u32::try_from(value).ok());
    let guidance = section.number_or("guidance", 7.0, 0.0..=100.0);
    let dimensions = section
        .need("dimensions", "a table of dimensions with weights")
        .and_then(|node| dimensions(&node, evaluator == Some(VBENCH)));
    let seed = |key| section.integer_or(key, 0, 0..=i64::MAX as u64);
    let (train_seed, score_seed) = (seed("train_seed"), seed("score_seed"));
    let ranks = section
        .integer_or("ranks", 1, 1..=1024)
        .and_then(|value| u32::try_from(value).ok());
    if let (Some(training), Some(ranks)) = (&training, ranks)
        && !training.batch.is_multiple_of(ranks)
    {
        section.report(
            "ranks",
            ranks.to_string(),
            format!("a divisor of `batch`, {}", training.batch),
        );
    }
    section.finish();
    Some(Evaluation {
        evaluator: evaluator?.to_owned(),
        dataset: dataset?.to_owned(),
        training: training?,
        inherit: inherit?,
        prompts: prompts?,
        videos_per_prompt: videos_per_prompt?,
        preset: preset?,
        sample_batch: sample_batch?,
        sample_steps: sample_steps?,
        guidance: guidance?,
        dimensions: dimensions?,
        train_seed: train_seed?,
        score_seed: score_seed?,
        ranks: ranks?,
    })
}

fn dimensions(node: &Node, vbench: bool) -> Option<BTreeMap<String, f64>> {
    let allowed = if vbench {
        Dimension::ALL.map(Dimension::name).to_vec()
    } else {
        BUILT_IN_DIMENSIONS.to_vec()
    };
    let section = node.section("a table of dimensions with weights")?;
    let weight = |(name, node): (&str, Node)| {
        if !allowed.contains(&name) {
            return node.refuse(format!("weights of {}", allowed.join(", ")));
        }
        Some((name.to_owned(), node.number(0.0..=1e6)?))
    };
    let weights: BTreeMap<String, f64> = all(section.entries().into_iter().map(weight))?;
    if weights.values().sum::<f64>() > 0.0 {
        Some(weights)
    } else {
        node.refuse("at least one dimension with a weight above 0")
    }
}

pub(super) fn pipeline(section: Section) -> Option<Pipeline> {
    let steps = section
        .need_integer("steps", 1..=10_000)
        .and_then(|steps| u32::try_from(steps).ok());
    let guidance = section.need_boolean("guidance");
    let given = |key| {
        section
            .get(key)
            .map_or(Some(None), |node| node.number(0.0..=f64::MAX).map(Some))
    };
    let (text_latency_ms, decode_latency_ms) = (given("text_latency_ms"), given("decode_latency_ms"));
    section.finish();
    Some(Pipeline {
        steps: steps?,
        guidance: guidance?,
        text_latency_ms: text_latency_ms?,
        decode_latency_ms: decode_latency_ms?,
    })
}
