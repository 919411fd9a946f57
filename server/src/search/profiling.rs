//! Measuring what the device's table lacks.

use std::collections::{BTreeMap, BTreeSet};

use lut::Lut;
use protocol::{
    JobId, SearchId,
    devices::RuntimeName,
    jobs::{
        ExportInput, ExportPrecision, ExportSubject, ExportedGraph, JobInput, JobKind, JobState, ProfileInput,
        ProfileTarget,
    },
    luts as wire,
    searches::SearchState,
};
use search_spaces::{Block, Dtype, Space};
use sqlx::PgConnection;

use super::{SearchError, advance::Move};
use crate::{
    dispatch::MAX_ATTEMPTS,
    samples,
    store::{
        StoreError, graphs,
        jobs::{self, Measuring, NewJob},
        luts::{self, LutFilter},
        searches::SearchRow,
    },
};

/// Blocks that one job measures: so much is lost with a killed worker.
const BATCH: usize = 8;

/// Blocks that one job exports: a graph is written in a moment.
const EXPORT_BATCH: usize = 64;

/// Family of the runtimes that run graphs and cannot build blocks themselves.
const GRAPH_RUNTIME: &str = "onnxruntime";

/// Queues profile jobs for what is missing, and first exports where the device's runtime needs graphs; goes on when
/// nothing is missing.
pub(super) async fn step(step: &mut Move<'_>) -> Result<bool, SearchError> {
    let space = step.caches.space(step.search).await?;
    let Some((device, runtime)) = target(step.search, &space) else {
        step.go(SearchState::Eliminating, None).await?;
        return Ok(true);
    };
    let lut = table(step, &space, &device, &runtime).await?;
    let missing = missing(&space, &lut);
    if missing.is_empty() {
        jobs::cancel_open(step.tx, step.search.id, step.now).await?;
        step.go(SearchState::Eliminating, None).await?;
        return Ok(true);
    }
    let asked = jobs::measuring(step.tx.connection(), step.search.id).await?;
    let wanted = |kind: JobKind| -> Vec<Block> {
        let of_kind: BTreeSet<Block> = asked
            .iter()
            .filter(|job| job.kind == kind)
            .flat_map(blocks_of)
            .collect();
        missing
            .iter()
            .filter(|block| !of_kind.contains(block))
            .cloned()
            .collect()
    };
    let supply = match Supply::of(step.tx.connection(), &space, &runtime).await? {
        Ok(supply) => supply,
        Err(reason) => {
            step.go(SearchState::Failed, Some(&reason)).await?;
            return Ok(false);
        }
    };
    let of_search = Asker {
        search: Some(step.search.id),
        space: &step.search.space,
        device: &device,
        runtime: &runtime,
    };
    let mut new = Vec::new();
    let (ready, _) = supply.part(wanted(JobKind::Profile));
    new.extend(of_search.profile_jobs(ready));
    let (_, without_graph) = supply.part(wanted(JobKind::Export));
    new.extend(of_search.export_jobs(without_graph, supply.precision()));
    if new.is_empty() && !asked.iter().any(|job| is_open(job.state)) {
        let reason = dead_end(step, &asked, &missing).await?;
        step.go(SearchState::Failed, Some(&reason)).await?;
    }
    for job in &new {
        jobs::insert(step.tx, job, step.now).await?;
    }
    Ok(false)
}

fn is_open(state: JobState) -> bool {
    matches!(state, JobState::Queued | JobState::Leased)
}

/// Blocks that a job measures or exports.
fn blocks_of(job: &Measuring) -> Vec<Block> {
    let blocks = match &job.input.0 {
        JobInput::Profile(input) => input.blocks.as_slice(),
        JobInput::Export(ExportInput {
            subject: ExportSubject::Blocks { blocks, .. },
            ..
        }) => blocks,
        _ => &[],
    };
    blocks.iter().map(samples::lut_block).collect()
}

/// What a runtime needs of a block before it can measure it.
pub(super) enum Supply {
    /// Nothing: it builds blocks itself.
    Blocks,
    /// Its graph: those that are there, and what new ones are written in.
    Graphs(BTreeMap<(String, String), ExportedGraph>, ExportPrecision),
}

impl Supply {
    /// What a runtime needs; else why it can measure no blocks of the space.
    pub(super) async fn of(
        connection: &mut PgConnection,
        space: &Space,
        runtime: &RuntimeName,
    ) -> Result<Result<Self, String>, StoreError> {
        if !runtime.name.starts_with(GRAPH_RUNTIME) {
            return Ok(Ok(Self::Blocks));
        }
        let dtype = dtype(space);
        let precision = match dtype {
            Dtype::F32 => ExportPrecision::F32,
            Dtype::F16 => ExportPrecision::F16,
            Dtype::Bf16 => {
                return Ok(Err(format!(
                    "{} measures graphs, which are written in f32 or f16; the space runs in bf16",
                    runtime.name
                )));
            }
        };
        let graphs = graphs::newest(connection, dtype.as_str()).await?;
        Ok(Ok(Self::Graphs(graphs, precision)))
    }

    /// Blocks that can be measured, each with what it needs, and those whose graph has to be exported first.
    pub(super) fn part(&self, blocks: Vec<Block>) -> (Vec<(wire::Block, Option<ExportedGraph>)>, Vec<Block>) {
        let (mut ready, mut without_graph) = (Vec::new(), Vec::new());
        for block in blocks {
            let graph = match self {
                Self::Blocks => None,
                Self::Graphs(graphs, _) => {
                    let key = (block.operator.clone(), block.shape.to_string());
                    let Some(graph) = graphs.get(&key) else {
                        without_graph.push(block);
                        continue;
                    };
                    Some(graph.clone())
                }
            };
            ready.push((samples::wire_block(&block), graph));
        }
        (ready, without_graph)
    }

    /// What new graphs are written in.
    pub(super) fn precision(&self) -> ExportPrecision {
        match self {
            Self::Blocks => ExportPrecision::default(),
            Self::Graphs(_, precision) => *precision,
        }
    }
}

/// Device and runtime whose table the space needs; none where it has no blocks to measure.
pub(super) fn target(search: &SearchRow, space: &Space) -> Option<(String, RuntimeName)> {
    let target = search.device.clone().zip(search.runtime());
    target.filter(|_| !space.blocks().is_empty())
}

/// Number format of a space's blocks.
pub(crate) fn dtype(space: &Space) -> Dtype {
    space.unet().map_or(Dtype::F32, |unet| unet.dtype)
}

/// Blocks of a space that the table has no entry for.
pub(super) fn missing(space: &Space, lut: &Lut) -> Vec<Block> {
    space
        .blocks()
        .into_iter()
        .filter(|block| lut.state(block).is_none())
        .collect()
}

/// The device's table in the space's number format, as it stands.
pub(super) async fn table(
    step: &mut Move<'_>,
    space: &Space,
    device: &str,
    runtime: &RuntimeName,
) -> Result<Lut, StoreError> {
    let filter = LutFilter {
        runtime: Some(runtime),
        dtype: Some(dtype(space).as_str()),
        operator: None,
    };
    let entries = luts::entries(step.tx.connection(), device, &filter).await?;
    let mut lut = Lut::new(device, samples::lut_runtime(runtime), dtype(space));
    for entry in entries {
        lut.insert(entry.key.block, entry.state);
    }
    Ok(lut)
}

/// Who wants blocks of a space measured, and where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    /// The search; none where someone asked.
    pub search: Option<SearchId>,
    /// Text of the space file.
    pub space: &'a str,
    /// The device.
    pub device: &'a str,
    /// The runtime.
    pub runtime: &'a RuntimeName,
}

impl Asker<'_> {
    /// Jobs that measure blocks, each with its graph where the runtime needs one.
    pub(crate) fn profile_jobs(&self, blocks: Vec<(wire::Block, Option<ExportedGraph>)>) -> Vec<NewJob> {
        let batches = blocks.chunks(BATCH).map(|batch| {
            let input = ProfileInput {
                space: self.space.to_owned(),
                blocks: batch.iter().map(|(block, _)| block.clone()).collect(),
                graphs: batch.iter().filter_map(|(_, graph)| graph.clone()).collect(),
            };
            NewJob {
                device: Some(self.device.to_owned()),
                runtime: Some(self.runtime.clone()),
                ..self.job(JobInput::Profile(input))
            }
        });
        batches.collect()
    }

    /// Jobs that export blocks for the device, on any worker that can.
    pub(super) fn export_jobs(&self, blocks: Vec<Block>, precision: ExportPrecision) -> Vec<NewJob> {
        let batches = blocks.chunks(EXPORT_BATCH).map(|batch| {
            let subject = ExportSubject::Blocks {
                space: self.space.to_owned(),
                blocks: batch.iter().map(samples::wire_block).collect(),
                profile_on: Some(ProfileTarget {
                    device: self.device.to_owned(),
                    runtime: self.runtime.clone(),
                }),
            };
            self.job(JobInput::Export(ExportInput {
                subject,
                precision,
                formats: Vec::new(),
                seed: 0,
            }))
        });
        batches.collect()
    }

    fn job(&self, input: JobInput) -> NewJob {
        NewJob {
            id: JobId::new(),
            search_id: self.search,
            candidate_id: None,
            input,
            device: None,
            runtime: None,
            ranks: 1,
            evaluator: None,
            memory_bytes: 0,
            max_attempts: MAX_ATTEMPTS,
        }
    }
}

/// Why profiling cannot go on: every job has ended and blocks are still missing.
async fn dead_end(step: &mut Move<'_>, asked: &[Measuring], missing: &[Block]) -> Result<String, StoreError> {
    let blocks = missing
        .iter()
        .take(3)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    let mut reason = format!("{} blocks could not be measured, among them {blocks}", missing.len());
    if let Some(failed) = asked.iter().find(|job| job.state == JobState::Failed) {
        for (attempt, error) in jobs::errors(step.tx.connection(), failed.id).await? {
            reason.push_str(&format!("; job {}, attempt {attempt}: {error}", failed.id));
        }
    }
    Ok(reason)
}
