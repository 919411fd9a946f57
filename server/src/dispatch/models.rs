//! What the profile of an exported model brings to its candidate.

use protocol::{
    Metrics,
    jobs::{ExportPrecision, GraphOutcome, ProfileModelInput, ProfileModelOutcome},
};
use search_spaces::{Dtype, metric};

use super::{DispatchError, at_fault, figures, report, tell_candidate};
use crate::{
    search,
    store::{Tx, candidates, jobs::JobRow, searches},
};

/// Metrics that a table predicts, so that a measurement can stand beside the prediction.
const PREDICTED: [&str; 2] = [metric::LATENCY_MS, metric::PEAK_MEMORY_BYTES];

/// The beginning of the names of the UNet's graphs.
const UNET: &str = "unet";

/// Takes a model's figures in. They verify the candidate where they were measured as its search predicts them: on its
/// device, with its runtime, in its number format. Elsewhere they belong to the job alone.
///
/// # Errors
/// When a figure is none, a graph was forgotten, or the store fails.
pub(super) async fn store(
    tx: &mut Tx,
    job: &JobRow,
    input: &ProfileModelInput,
    outcome: &ProfileModelOutcome,
) -> Result<(), DispatchError> {
    figures::require_figures(job.id, &outcome.metrics)?;
    for (index, graph) in outcome.graphs.iter().enumerate() {
        if let GraphOutcome::Measured(found) = &graph.outcome {
            let field = format!("result.outcome.graphs[{index}].warm_ms");
            figures::require_samples(job.id, &found.warm_ms, &field)?;
        }
    }
    let forgotten = input
        .manifest
        .graphs
        .iter()
        .find(|asked| !outcome.graphs.iter().any(|found| found.name == asked.name));
    if let Some(forgotten) = forgotten {
        let message = format!("nothing is said of the graph `{}`", forgotten.name);
        return Err(at_fault(job.id, "result.outcome.graphs", message));
    }
    let Some(id) = input.candidate_id else { return Ok(()) };
    let Some(candidate) = candidates::get(tx.connection(), id).await? else {
        return Ok(());
    };
    let Some(of_search) = searches::get(tx.connection(), candidate.search_id).await? else {
        return Ok(());
    };
    let dtype = search::profiled_dtype(&report::space(job, &of_search.space).await?);
    let is_predicted = of_search.device == job.device
        && of_search.runtime().is_some_and(|runtime| runtime == outcome.runtime)
        && dtype == self::dtype(input.manifest.precision);
    if !is_predicted {
        return Ok(());
    }
    let too_large = outcome.graphs.iter().find_map(|graph| match &graph.outcome {
        GraphOutcome::OutOfMemory { detail } if graph.name.starts_with(UNET) => Some((&graph.name, detail)),
        _ => None,
    });
    if let Some((name, detail)) = too_large {
        let detail = format!("{name}: {detail}");
        candidates::set_out_of_memory(tx, id, &report::storable(report::tail(&detail))).await?;
    } else {
        let mut verified: Metrics = candidate.verified.0;
        let measured = outcome
            .metrics
            .iter()
            .filter(|(name, _)| PREDICTED.contains(&name.as_str()));
        let before = verified.clone();
        verified.extend(measured.map(|(name, figure)| (name.clone(), *figure)));
        if verified != before {
            // The whole pipeline's is worked out anew from the UNet's.
            verified.remove(metric::PIPELINE_LATENCY_MS);
            candidates::set_verified(tx, id, &verified, &[]).await?;
        }
    }
    Ok(tell_candidate(tx, Some(candidate.search_id), id).await?)
}

fn dtype(precision: ExportPrecision) -> Dtype {
    match precision {
        ExportPrecision::F32 => Dtype::F32,
        ExportPrecision::F16 => Dtype::F16,
    }
}
