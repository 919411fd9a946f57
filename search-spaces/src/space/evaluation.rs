//! The `[evaluation]` and `[pipeline]` sections.

use std::collections::BTreeMap;

use super::parse::name_of;
use super::read::{Node, Section, all};
use super::training::training;
use super::{Evaluation, Pipeline};

/// Dimensions that the built-in evaluator scores.
const DIMENSIONS: [&str; 5] = [
    "overall_consistency",
    "object_class",
    "color",
    "temporal_flickering",
    "dynamic_degree",
];

pub(super) fn evaluation(section: Section) -> Option<Evaluation> {
    let evaluator = section
        .get("evaluator")
        .map_or(Some("built-in"), |node| node.one_of([("built-in", "built-in")]));
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
    let (prompts, videos_per_prompt) = (count("prompts", 100_000), count("videos_per_prompt", 1000));
    let sample_steps = section
        .integer_or("sample_steps", 25, 1..=10_000)
        .and_then(|value| u32::try_from(value).ok());
    let guidance = section.number_or("guidance", 7.0, 0.0..=100.0);
    let dimensions = section
        .need("dimensions", "a table of dimensions with weights")
        .and_then(|node| dimensions(&node));
    let seed = |key| section.integer_or(key, 0, 0..=i64::MAX as u64);
    let (train_seed, score_seed) = (seed("train_seed"), seed("score_seed"));
    section.finish();
    Some(Evaluation {
        evaluator: evaluator?.to_owned(),
        dataset: dataset?.to_owned(),
        training: training?,
        inherit: inherit?,
        prompts: prompts?,
        videos_per_prompt: videos_per_prompt?,
        sample_steps: sample_steps?,
        guidance: guidance?,
        dimensions: dimensions?,
        train_seed: train_seed?,
        score_seed: score_seed?,
    })
}

fn dimensions(node: &Node) -> Option<BTreeMap<String, f64>> {
    let section = node.section("a table of dimensions with weights")?;
    let weight = |(name, node): (&str, Node)| {
        if !DIMENSIONS.contains(&name) {
            return node.refuse(format!("weights of {}", DIMENSIONS.join(", ")));
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
