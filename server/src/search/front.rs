//! The front as it is shown.

use protocol::{SearchId, searches::FrontView};

use super::{SearchError, proposing::Candidates, views};
use crate::app::App;

/// Front, references and history of a search.
///
/// # Errors
/// When there is no such search, or a store fails.
pub async fn front(app: &App, id: SearchId) -> Result<FrontView, SearchError> {
    let search = app.store.search(id).await?.ok_or(SearchError::NotFound(id))?;
    let space = app.searches.space(&search).await?;
    let calibration = search
        .calibration
        .as_ref()
        .map_or(&[][..], |calibration| calibration.0.as_slice());
    let rows = Candidates::of(app.store.candidates(id, None, None).await?, &space)?.rows;
    let mut points: Vec<_> = rows
        .iter()
        .filter(|row| row.on_front)
        .map(|row| views::front_point(row, &space, calibration))
        .collect();
    // The first objective leads: it is quality wherever there is one.
    if let Some(first) = space.objectives.first() {
        let sign = if first.direction == search_spaces::Direction::Maximise {
            -1.0
        } else {
            1.0
        };
        let key = |point: &protocol::searches::FrontPoint| {
            point
                .metrics
                .get(&first.metric)
                .map_or(f64::INFINITY, |figure| sign * figure.value)
        };
        points.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.number.cmp(&b.number)));
    }
    let references = rows.into_iter().filter(|row| row.reference.is_some());
    Ok(FrontView {
        search_id: id,
        objectives: views::objectives(&space, search.ranges.as_ref().map(|ranges| ranges.0.as_slice())),
        limits: views::limits(&space),
        points,
        references: references.map(|row| views::candidate(row, calibration)).collect(),
        history: app.store.history(id).await?,
    })
}
