//! The `[evaluation]` and `[pipeline]` sections.

use std::collections::BTreeMap;

use super::parse::name_of;
use super::read::{Node, Section, all};
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
    let (steps, batch) = (count("steps", 10_000_000), count("batch", 1 << 16));
    let learning_rate = section.number_or("learning_rate", 5e-5, 0.0..=10.0);
    let weight_decay = section.number_or("weight_decay", 0.01, 0.0..=10.0);
    let text_dropout = section.number_or("text_dropout", 0.1, 0.0..=1.0);
    let noise_mean = section.number_or("noise_mean", 0.0, -10.0..=10.0);
    let noise_std = section.number_or("noise_std", 1.0, 1e-3..=10.0);
    let inherit = section.boolean_or("inherit", false);
    let (prompts, videos_per_prompt) = (count("prompts", 100_000), count("videos_per_prompt", 1000));
    let sample_steps = section
        .integer_or("sample_steps", 25, 1..=10_000)
        .and_then(|value| u32::try_from(value).ok());
    let guidance = section.number_or("guidance", 7.0, 0.0..=100.0);
    let dimensions = section
        .need("dimensions", "a table of dimensions with weights")
        .and_then(|node| dimensions(&node));
    let checkpoint_every = count("checkpoint_every", 10_000_000);
    let seed = |key| section.integer_or(key, 0, 0..=i64::MAX as u64);
    let (train_seed, score_seed) = (seed("train_seed"), seed("score_seed"));
    let ranks = section
        .integer_or("ranks", 1, 1..=1024)
        .and_then(|value| u32::try_from(value).ok());
    section.finish();
    Some(Evaluation {
        evaluator: evaluator?.to_owned(),
        dataset: dataset?.to_owned(),
        steps: steps?,
        batch: batch?,
        learning_rate: learning_rate?,
        weight_decay: weight_decay?,
        text_dropout: text_dropout?,
        noise_mean: noise_mean?,
        noise_std: noise_std?,
        inherit: inherit?,
        prompts: prompts?,
        videos_per_prompt: videos_per_prompt?,
        sample_steps: sample_steps?,
        guidance: guidance?,
        dimensions: dimensions?,
        checkpoint_every: checkpoint_every?,
        train_seed: train_seed?,
        score_seed: score_seed?,
        ranks: ranks?,
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
