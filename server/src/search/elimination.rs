//! The coarse step, and all that is fixed when searching starts: the table, the box of the hypervolume, the
//! reference architectures.

use std::collections::BTreeSet;

use lut::{Lut, LutCosts};
use protocol::{
    CandidateId, Metrics,
    searches::{EliminatedChoice, EliminationView, SearchState},
};
use search_spaces::{Costs, NoCosts, Ranges, Reference, Space, Table, metric};

use super::{SearchError, advance::Move, profiling, proposing, views};
use crate::store::{candidates::NewCandidate, devices, searches};

/// Eliminates, fixes what stays fixed, inserts the references, and goes on to searching.
pub(super) async fn step(step: &mut Move<'_>) -> Result<bool, SearchError> {
    let space = step.caches.space(step.search).await?;
    let table = step.caches.table(step.artifacts, step.search, &space).await?;
    let lut = match profiling::target(step.search, &space) {
        Some((device, runtime)) => Some(profiling::table(step, &space, &device, &runtime).await?),
        None => None,
    };
    let elimination = match &lut {
        Some(lut) => match eliminate(lut, &space) {
            Ok(view) => view,
            Err(reason) => {
                step.go(SearchState::Failed, Some(&reason)).await?;
                return Ok(false);
            }
        },
        None => untouched(&space),
    };
    let costs: Box<dyn Costs + Send + Sync> = match (&lut, &table) {
        (Some(lut), _) => Box::new(LutCosts::new(lut, &space)),
        (None, Some(table)) => Box::new(Table::clone(table)),
        (None, None) => Box::new(NoCosts),
    };
    let ranges = match &table {
        Some(table) => table.ranges(&space),
        None => Ranges::fix(&space, costs.as_ref()),
    };
    let ranges = match ranges {
        Ok(ranges) => ranges,
        Err(error) => {
            step.go(SearchState::Failed, Some(&error.to_string())).await?;
            return Ok(false);
        }
    };
    let id = step.search.id;
    searches::set_elimination(step.tx, id, &elimination).await?;
    searches::set_ranges(step.tx, id, ranges.as_slice()).await?;
    if let Some(lut) = &lut {
        searches::keep_lut(step.tx, id, &lut::formats::json::export(lut.entries())).await?;
    }
    step.go(SearchState::Searching, None).await?;
    insert_references(step, &space, costs.as_ref()).await?;
    Ok(true)
}

/// Which choices leave, or why nothing is left.
fn eliminate(lut: &Lut, space: &Space) -> Result<EliminationView, String> {
    let outcome = lut::eliminate(&LutCosts::new(lut, space));
    if let Some(reason) = outcome.backbone {
        return Err(format!("no architecture of the space can be feasible: {reason}"));
    }
    if outcome.after == 0 {
        let gone = outcome
            .removed
            .iter()
            .map(|gone| format!("{} at {}: {}", gone.choice_name, gone.position_name, gone.reason));
        return Err(format!(
            "every choice of a position left the space: {}",
            gone.collect::<Vec<_>>().join("; ")
        ));
    }
    let removed = outcome.removed.into_iter().map(|gone| EliminatedChoice {
        position: gone.position_name,
        choice: gone.choice_name,
        reason: gone.reason.to_string(),
    });
    let undecided = outcome.undecided.into_iter().filter_map(|unknown| {
        let position = space.positions.get(unknown.position)?;
        Some(EliminatedChoice {
            position: position.name.clone(),
            choice: position.choices.get(usize::from(unknown.choice))?.name.clone(),
            reason: unknown.missing,
        })
    });
    Ok(EliminationView {
        removed: removed.collect(),
        undecided: undecided.collect(),
        architectures_before: outcome.before.to_string(),
        architectures_after: outcome.after.to_string(),
    })
}

/// A space without a table of measured blocks keeps every choice.
fn untouched(space: &Space) -> EliminationView {
    let size = space.size().to_string();
    EliminationView {
        removed: Vec::new(),
        undecided: Vec::new(),
        architectures_before: size.clone(),
        architectures_after: size,
    }
}

async fn insert_references(
    step: &mut Move<'_>,
    space: &Space,
    costs: &(dyn Costs + Send + Sync),
) -> Result<(), SearchError> {
    let memory = match &step.search.device {
        Some(device) => devices::memory(step.tx.connection(), device).await?,
        None => None,
    };
    let mut seen = BTreeSet::new();
    let distinct = space
        .references
        .iter()
        .filter(|reference| seen.insert(reference.architecture.clone()));
    for (number, Reference { name, architecture }) in distinct.enumerate() {
        let (predicted, infeasible) = match costs.costs(architecture) {
            Ok(costs) => {
                let predicted = views::metrics(&costs);
                let reason = too_large(space, &predicted, memory);
                (predicted, reason)
            }
            Err(infeasible) => (Metrics::new(), Some(infeasible.reason)),
        };
        let new = NewCandidate {
            id: CandidateId::new(),
            search_id: step.search.id,
            number: number as u64,
            architecture: &space.print(architecture),
            layers: &views::layers(space, architecture),
            infeasible: infeasible.as_deref(),
            reference: Some(name),
            parent: None,
            action: None,
            why: None,
            predicted: &predicted,
        };
        proposing::insert_with_job(step, space, &new, None).await?;
    }
    Ok(())
}

/// Why a reference cannot run within the memory that there is. A reference that is merely slower than the limit
/// is evaluated all the same: it is there to be compared with.
fn too_large(space: &Space, predicted: &Metrics, device_memory: Option<u64>) -> Option<String> {
    let peak = predicted.get(metric::PEAK_MEMORY_BYTES)?.value;
    let limit = space.limits.get(metric::PEAK_MEMORY_BYTES);
    let device = device_memory.map(|bytes| bytes as f64);
    let most = limit.into_iter().chain(device).reduce(f64::min)?;
    let mebibytes = |bytes: f64| bytes / f64::from(1 << 20);
    (peak > most).then(|| {
        format!(
            "out of memory: it needs {:.1} MiB, there are {:.1} MiB",
            mebibytes(peak),
            mebibytes(most)
        )
    })
}

#[cfg(test)]
mod tests {
    use lut::Runtime;

    use super::*;
    use crate::shipped;

    #[test]
    fn choices_of_which_nothing_is_known_stay_and_are_named() {
        let space = Space::parse(shipped::space("shapes-tiny").unwrap()).unwrap();
        let empty = Lut::new("x", Runtime::new("rt", "1"), profiling::dtype(&space));
        let view = eliminate(&empty, &space).unwrap();
        assert!(view.removed.is_empty());
        assert_eq!(view.architectures_before, view.architectures_after);
        let choices = space.positions.iter().map(|position| position.choices.len());
        assert_eq!(view.undecided.len(), choices.sum::<usize>());
        assert_eq!(view.undecided[0].position, "down.0");
        assert!(
            view.undecided[0].reason.contains("no entry of operator"),
            "{:?}",
            view.undecided[0]
        );
    }
}
