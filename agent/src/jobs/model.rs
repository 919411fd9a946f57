//! A whole exported model: every graph by itself, and what a clip takes from text to pixels.

use job_client::JobError;
use lut::Samples;
use protocol::jobs::{
    ExportManifest, GraphFigures, GraphOutcome, GraphProfile, JobResult, Outcome, ProfileModelInput,
    ProfileModelOutcome,
};
use protocol::{Figure, Metrics};

use super::{Bench, profile_of};
use crate::measure::Plan;

/// Runs of a graph that may be asked for.
const MOST_RUNS: u32 = 10_000;
/// Seconds without a pause that may be asked for: an hour.
const MOST_SUSTAINED_SECONDS: f64 = 3600.0;

pub(super) fn run(bench: &Bench<'_>, input: &ProfileModelInput) -> Result<JobResult, JobError> {
    if input.manifest.graphs.is_empty() {
        return Err(JobError::Input("the manifest names no graph".to_owned()));
    }
    if !(1..=MOST_RUNS).contains(&input.runs) {
        return Err(JobError::Input(format!(
            "runs is {}; allowed: 1 to {MOST_RUNS}",
            input.runs
        )));
    }
    if !(0.0..=MOST_SUSTAINED_SECONDS).contains(&input.sustained_seconds) {
        let found = input.sustained_seconds;
        return Err(JobError::Input(format!(
            "sustained_seconds is {found}; allowed: 0 to {MOST_SUSTAINED_SECONDS}"
        )));
    }
    let job = bench.attempt.job.job_id;
    let parts = input
        .manifest
        .graphs
        .iter()
        .filter(|graph| role(&graph.name) == Role::Unet)
        .count();
    let mut graphs = Vec::new();
    for (at, graph) in input.manifest.graphs.iter().enumerate() {
        bench.progress(at, input.manifest.graphs.len(), &graph.name)?;
        let name = format!("graph-{at}");
        let profile = match bench.agent.journal.finding(job, &name) {
            Some(profile) => profile,
            None => {
                // The parts run one after the other, so each has its share of the time.
                let sustained = match role(&graph.name) {
                    Role::Unet => input.sustained_seconds / parts.max(1) as f64,
                    _ => 0.0,
                };
                let finding = bench.measure(graph, Plan::model(input.runs, sustained))?;
                let profile = profile_of(graph, finding.outcome);
                bench
                    .agent
                    .journal
                    .keep(job, &name, &profile, true)
                    .map_err(JobError::attempt)?;
                profile
            }
        };
        graphs.push(profile);
    }
    let outcome = ProfileModelOutcome {
        runtime: bench.agent.runtime.clone(),
        metrics: metrics(&input.manifest, &graphs),
        graphs,
    };
    Ok(bench.result(Outcome::ProfileModel(outcome), Vec::new()))
}

/// What a graph does in the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Text,
    Unet,
    Decoder,
    Other,
}

fn role(name: &str) -> Role {
    let is_unet = name
        .strip_prefix("unet")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    match name {
        _ if is_unet => Role::Unet,
        _ if name.starts_with("text_encoder") => Role::Text,
        _ if name.contains("decoder") => Role::Decoder,
        _ => Role::Other,
    }
}

/// Sums over the graphs of a role, each as often as a batch of clips runs it, but for one pass of the UNet; those of
/// which one is not known are left out.
fn metrics(manifest: &ExportManifest, graphs: &[GraphProfile]) -> Metrics {
    let runs = |profile: &GraphProfile| {
        let graph = manifest.graphs.iter().find(|graph| graph.name == profile.name);
        graph.map_or(1, |graph| graph.runs)
    };
    let text = sum(graphs, Role::Text, &runs);
    let pass = sum(graphs, Role::Unet, &|_| 1);
    let decoder = sum(graphs, Role::Decoder, &runs);
    let steps = sum(graphs, Role::Unet, &runs).filter(|_| manifest.sampler.is_some());
    let pipeline = text.zip(steps).zip(decoder);
    let pipeline = pipeline.map(|((text, steps), decoder)| plus(plus(text, steps), decoder));
    let all = |of: fn(&GraphFigures) -> Option<Figure>| -> Option<Vec<Figure>> {
        graphs.iter().map(|graph| of(figures(graph)?)).collect()
    };
    let exact = |value| Figure {
        value,
        standard_error: 0.0,
    };
    let peak = all(|graph| {
        Some(Figure {
            value: graph.peak_memory_bytes?,
            standard_error: 0.0,
        })
    });
    let peak = peak.map(|all| exact(all.iter().map(|one| one.value).fold(0.0, f64::max)));
    let load = all(|graph| {
        Some(Figure {
            value: graph.load_ms,
            standard_error: 0.0,
        })
    });
    let load = load.map(|all| exact(all.iter().map(|one| one.value).sum()));
    let named = [
        ("latency_ms", pass),
        ("text_latency_ms", text),
        ("decode_latency_ms", decoder),
        ("pipeline_latency_ms", pipeline),
        ("peak_memory_bytes", peak),
        ("load_ms", load),
    ];
    named
        .into_iter()
        .filter_map(|(name, figure)| Some((name.to_owned(), figure?)))
        .collect()
}

fn sum(graphs: &[GraphProfile], of: Role, runs: &dyn Fn(&GraphProfile) -> u32) -> Option<Figure> {
    let mut those = graphs.iter().filter(|graph| role(&graph.name) == of).peekable();
    those.peek()?;
    those.try_fold(
        Figure {
            value: 0.0,
            standard_error: 0.0,
        },
        |all, graph| {
            let (once, runs) = (warm(figures(graph)?)?, f64::from(runs(graph)));
            let often = Figure {
                value: runs * once.value,
                standard_error: runs * once.standard_error,
            };
            Some(plus(all, often))
        },
    )
}

fn figures(graph: &GraphProfile) -> Option<&GraphFigures> {
    match &graph.outcome {
        GraphOutcome::Measured(figures) => Some(figures),
        GraphOutcome::OutOfMemory { .. } | GraphOutcome::Unsupported { .. } => None,
    }
}

fn warm(figures: &GraphFigures) -> Option<Figure> {
    let samples = Samples::new(figures.warm_ms.clone()).ok()?;
    Some(Figure {
        value: samples.median()?,
        standard_error: samples.standard_error().unwrap_or(0.0),
    })
}

/// Errors of measurements by themselves add in squares.
fn plus(a: Figure, b: Figure) -> Figure {
    Figure {
        value: a.value + b.value,
        standard_error: a.standard_error.hypot(b.standard_error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(name: &str, warm_ms: &[f64], peak: f64) -> GraphProfile {
        GraphProfile {
            name: name.to_owned(),
            file_bytes: 0,
            outcome: GraphOutcome::Measured(GraphFigures {
                load_ms: 5.0,
                warm_ms: warm_ms.to_vec(),
                peak_memory_bytes: Some(peak),
                ..GraphFigures::default()
            }),
        }
    }

    /// Two slices for the spatial decoder; with guidance each step passes the clip with its text and without.
    fn manifest(steps: usize, guidance: f64) -> ExportManifest {
        let digest = "0".repeat(64);
        let passes = if guidance == 1.0 { steps } else { 2 * steps };
        let graph = |name: &str, runs: usize| {
            serde_json::json!({
                "name": name, "runs": runs, "inputs": [], "outputs": [], "files": [], "parameters": 1,
                "largest_relative_error": 0.0
            })
        };
        let graphs = [
            graph("text_encoder", 1),
            graph("unet.0", passes),
            graph("unet.1", passes),
            graph("temporal_decoder", 1),
            graph("spatial_decoder", 2),
        ];
        serde_json::from_value(serde_json::json!({
            "opset": 17, "precision": "f32", "graphs": graphs,
            "sampler": { "times": vec![0.5; steps], "guidance": guidance, "embeddings": {
                "role": "graph", "digest": digest, "name": "t", "media_type": "application/octet-stream", "bytes": 1 } }
        }))
        .unwrap()
    }

    #[test]
    fn a_clip_takes_the_text_the_steps_of_all_parts_and_the_decoders() {
        let graphs = [
            graph("text_encoder", &[10.0], 3.0),
            graph("unet.0", &[100.0], 9.0),
            graph("unet.1", &[50.0], 7.0),
            graph("temporal_decoder", &[20.0], 1.0),
            graph("spatial_decoder", &[30.0], 2.0),
        ];
        let told = |steps, guidance| metrics(&manifest(steps, guidance), &graphs);
        let distilled = told(4, 1.0);
        assert_eq!(distilled["latency_ms"].value, 150.0);
        assert_eq!(distilled["decode_latency_ms"].value, 80.0);
        assert_eq!(distilled["pipeline_latency_ms"].value, 10.0 + 4.0 * 150.0 + 80.0);
        assert_eq!(
            (distilled["peak_memory_bytes"].value, distilled["load_ms"].value),
            (9.0, 25.0)
        );
        let guided = told(25, 7.5);
        assert_eq!(guided["pipeline_latency_ms"].value, 10.0 + 50.0 * 150.0 + 80.0);
    }

    #[test]
    fn what_needs_a_graph_that_did_not_run_is_not_told() {
        let failed = GraphProfile {
            outcome: GraphOutcome::OutOfMemory { detail: String::new() },
            ..graph("unet.1", &[], 0.0)
        };
        let graphs = [
            graph("text_encoder", &[10.0], 3.0),
            graph("unet.0", &[100.0], 9.0),
            failed,
        ];
        let told = metrics(&manifest(4, 1.0), &graphs);
        assert_eq!(told.keys().collect::<Vec<_>>(), ["text_latency_ms"]);
    }

    #[test]
    fn graphs_are_known_by_their_names() {
        assert_eq!(role("unet.12"), Role::Unet);
        assert_eq!(role("unet_like"), Role::Other);
        assert_eq!(role("temporal_decoder"), Role::Decoder);
    }
}
