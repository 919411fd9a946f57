//! Blocks of a space for the device's table, each from its graph.

use job_client::JobError;
use protocol::artifacts::ArtifactRole;
use protocol::jobs::{ExportedGraph, GraphOutcome, GraphProfile, JobResult, Outcome, ProfileInput, ProfileOutcome};
use protocol::luts::{Block, EntryOutcome, EntryUpload, SampleUpload, batch_id};
use search_spaces::{Dtype, Space};

use super::{Bench, profile_of};
use crate::journal::Measured;
use crate::measure::{Finding, Plan};

pub(super) fn run(bench: &Bench<'_>, input: &ProfileInput) -> Result<JobResult, JobError> {
    let dtype = check(input)?;
    let job = bench.attempt.job.job_id;
    let journal = &bench.agent.journal;
    let (mut entries, mut profiles) = (Vec::new(), Vec::new());
    for (at, (block, graph)) in input.blocks.iter().zip(&input.graphs).enumerate() {
        bench.progress(at, input.blocks.len(), &graph.name)?;
        let id = batch_id(job, block);
        let measured = match journal.finding::<Measured>(job, &id.to_string()) {
            Some(measured) => measured,
            None => {
                let finding = bench.measure(graph, Plan::block())?;
                let measured = Measured {
                    device: bench.agent.device.clone(),
                    upload: SampleUpload {
                        batch_id: id,
                        runtime: bench.agent.runtime.clone(),
                        entries: vec![entry(block, dtype, &finding)],
                    },
                    profile: profile_of(graph, finding.outcome),
                };
                let kept = journal.keep(job, &id.to_string(), &measured, false);
                kept.map_err(JobError::attempt)?;
                measured
            }
        };
        if let Err(error) = bench.tokio.block_on(journal.send(&bench.attempt.client, job)) {
            tracing::warn!(%error, "samples wait on disk");
        }
        entries.extend(measured.upload.entries);
        profiles.push(measured.profile);
    }
    let outcome = ProfileOutcome {
        runtime: bench.agent.runtime.clone(),
        entries,
    };
    let report = report(bench, &profiles)?;
    Ok(bench.result(Outcome::Profile(outcome), vec![report]))
}

/// Every block needs its graph, in the space's number format.
fn check(input: &ProfileInput) -> Result<Dtype, JobError> {
    let space = Space::parse(&input.space).map_err(|error| JobError::Input(format!("the space: {error}")))?;
    let dtype = space.unet().map_or(Dtype::F32, |unet| unet.dtype);
    if input.graphs.len() != input.blocks.len() {
        let (blocks, graphs) = (input.blocks.len(), input.graphs.len());
        return Err(JobError::Input(format!(
            "{graphs} graphs for {blocks} blocks; each needs one"
        )));
    }
    for (block, graph) in input.blocks.iter().zip(&input.graphs) {
        let problem = match &graph.block {
            Some(found) if found != block => Some(format!("is of another block: {}", found.operator)),
            _ => other_format(graph, dtype).map(|found| format!("takes {found}; the space runs in {dtype}")),
        };
        if let Some(problem) = problem {
            return Err(JobError::Input(format!("graph `{}` {problem}", graph.name)));
        }
    }
    Ok(dtype)
}

fn other_format(graph: &ExportedGraph, dtype: Dtype) -> Option<&str> {
    let formats = graph.inputs.iter().map(|input| input.dtype.as_str());
    formats
        .into_iter()
        .find(|format| format.starts_with(['f', 'b']) && *format != dtype.as_str())
}

fn entry(block: &Block, dtype: Dtype, finding: &Finding) -> EntryUpload {
    let outcome = match &finding.outcome {
        GraphOutcome::Measured(figures) => EntryOutcome::Measured {
            latency_ms: figures.warm_ms.clone(),
            peak_memory_bytes: finding.run_peak_bytes.into_iter().collect(),
        },
        GraphOutcome::OutOfMemory { detail } => EntryOutcome::OutOfMemory { detail: detail.clone() },
        GraphOutcome::Unsupported { detail } => EntryOutcome::Unsupported { detail: detail.clone() },
    };
    EntryUpload {
        block: block.clone(),
        dtype: dtype.as_str().to_owned(),
        outcome,
    }
}

/// All that a table does not hold: load, first run, nodes, heat.
fn report(bench: &Bench<'_>, profiles: &[GraphProfile]) -> Result<protocol::artifacts::ArtifactRef, JobError> {
    let text = serde_json::to_vec_pretty(profiles).map_err(JobError::attempt)?;
    let kept = bench
        .attempt
        .client
        .keep(ArtifactRole::Report, "profiles.json", "application/json", &text);
    kept.map_err(JobError::attempt)
}

#[cfg(test)]
mod tests {
    use protocol::jobs::TensorSpec;

    use super::*;

    fn input(dtype: &str) -> ProfileInput {
        let block = Block {
            operator: "conv1d".to_owned(),
            shape: [("c".to_owned(), 8)].into(),
        };
        let spec = |dtype: &str| TensorSpec {
            name: "x".to_owned(),
            dtype: dtype.to_owned(),
            shape: vec![1],
        };
        ProfileInput {
            space: include_str!("../../../search-spaces/spaces/shapes-tiny.toml").to_owned(),
            graphs: vec![ExportedGraph {
                name: "conv1d".to_owned(),
                block: Some(block.clone()),
                inputs: vec![spec("i64"), spec(dtype)],
                outputs: vec![],
                files: vec![],
                parameters: 0,
                runs: 1,
                largest_relative_error: 0.0,
            }],
            blocks: vec![block],
        }
    }

    #[test]
    fn a_block_needs_its_own_graph_in_the_format_of_the_space() {
        assert_eq!(check(&input("f32")).unwrap(), Dtype::F32);
        let told = |input: &ProfileInput| check(input).unwrap_err().to_string();
        assert_eq!(told(&input("f16")), "graph `conv1d` takes f16; the space runs in f32");
        let mut none = input("f32");
        none.graphs.clear();
        assert_eq!(told(&none), "0 graphs for 1 blocks; each needs one");
        let mut other = input("f32");
        other.blocks[0].shape.insert("c".to_owned(), 9);
        assert_eq!(told(&other), "graph `conv1d` is of another block: conv1d");
    }
}
