//! What an export brings: graphs of blocks are kept for whoever measures them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use protocol::{
    jobs::{ExportInput, ExportOutcome, ExportSubject, ExportedGraph},
    luts::Block,
};

use super::{DispatchError, at_fault, figures, report};
use crate::{
    samples, search,
    store::{
        Tx, graphs,
        jobs::{self, JobRow},
    },
};

/// Takes the graphs of an export in; those of blocks that someone wants measured are handed to the device.
///
/// # Errors
/// When a figure is none, a block that was asked for has no graph, or the store fails.
pub(super) async fn store(
    tx: &mut Tx,
    job: &JobRow,
    input: &ExportInput,
    outcome: &ExportOutcome,
    now: DateTime<Utc>,
) -> Result<(), DispatchError> {
    figures::require_figures(job.id, &outcome.metrics)?;
    let ExportSubject::Blocks {
        space,
        blocks,
        profile_on,
    } = &input.subject
    else {
        return Ok(());
    };
    if outcome.manifest.precision != input.precision {
        let message = "is not the number format that was asked for";
        return Err(at_fault(job.id, "result.outcome.manifest.precision", message));
    }
    let dtype = search::profiled_dtype(&report::space(job, space).await?);
    let exported = by_block(&outcome.manifest.graphs);
    let mut ordered = Vec::with_capacity(blocks.len());
    for block in blocks {
        let Some(graph) = exported.get(block).filter(|graph| !graph.files.is_empty()) else {
            let message = format!("no graph with files for {}", samples::lut_block(block));
            return Err(at_fault(job.id, "result.outcome.manifest.graphs", message));
        };
        graphs::keep(tx, dtype.as_str(), block, &outcome.manifest.exporter, graph, now).await?;
        ordered.push((block.clone(), Some((*graph).clone())));
    }
    // A search asks for its own jobs as it moves on.
    if let Some(target) = profile_on.as_ref().filter(|_| job.search_id.is_none()) {
        let asker = search::Asker {
            search: None,
            space,
            device: &target.device,
            runtime: &target.runtime,
        };
        for job in asker.profile_jobs(ordered) {
            jobs::insert(tx, &job, now).await?;
        }
    }
    Ok(())
}

fn by_block(graphs: &[ExportedGraph]) -> BTreeMap<&Block, &ExportedGraph> {
    let pairs = graphs.iter().filter_map(|graph| Some((graph.block.as_ref()?, graph)));
    pairs.collect()
}
