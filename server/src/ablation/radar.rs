//! What Figure 6 draws: each model's scores as shares of the baseline's.

use protocol::ablations::AblationTable;

/// A share of the baseline's score, and its standard error.
pub(crate) type Share = (f64, f64);

/// A radar: one axis a score, one ring a model.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Radar {
    /// Names of the axes.
    pub axes: Vec<String>,
    /// Models by name.
    pub rings: Vec<(String, Vec<Option<Share>>)>,
    /// Who scored.
    pub evaluator: String,
}

/// The radar of a table: the columns that are known of the baseline.
#[must_use]
pub fn radar(table: &AblationTable) -> Radar {
    let Some(baseline) = table.rows.first() else {
        return Radar::default();
    };
    let is_drawn = |index: &usize| {
        let is_score = table.columns[*index].evaluator.is_some();
        let known = baseline.cells.get(*index).and_then(|cell| cell.figure);
        is_score && known.is_some_and(|figure| figure.value > 0.0)
    };
    let drawn: Vec<usize> = (0..table.columns.len()).filter(is_drawn).collect();
    let share = |row: &protocol::ablations::AblationRow, index: usize| {
        let (figure, whole) = (row.cells.get(index)?.figure?, baseline.cells.get(index)?.figure?);
        Some((figure.value / whole.value, figure.standard_error / whole.value))
    };
    Radar {
        axes: drawn.iter().map(|index| table.columns[*index].name.clone()).collect(),
        rings: table
            .rows
            .iter()
            .map(|row| {
                let name = match row.settings.join(", ").as_str() {
                    "none" => "all temporal layers".to_owned(),
                    stage => format!("without {stage}"),
                };
                (name, drawn.iter().map(|index| share(row, *index)).collect())
            })
            .collect(),
        evaluator: drawn
            .first()
            .and_then(|index| table.columns[*index].evaluator.clone())
            .unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use protocol::{
        Figure,
        ablations::{AblationCell, AblationColumn, AblationRow},
    };

    use super::*;

    #[test]
    fn scores_are_shares_of_the_baselines() {
        let cell = |value: Option<f64>| AblationCell {
            figure: value.map(|value| Figure {
                value,
                standard_error: 0.1,
            }),
            ..AblationCell::default()
        };
        let column = |name: &str, evaluator: Option<&str>| AblationColumn {
            name: name.to_owned(),
            metric: name.to_owned(),
            evaluator: evaluator.map(str::to_owned),
            difference: false,
        };
        let row = |name: &str, cells: [Option<f64>; 3]| AblationRow {
            settings: vec![name.to_owned()],
            cells: cells.map(cell).to_vec(),
            paper: Vec::new(),
        };
        let table = AblationTable {
            columns: vec![column("a", Some("e")), column("b", None), column("c", Some("e"))],
            rows: vec![
                row("none", [Some(0.5), None, Some(0.8)]),
                row("down", [Some(0.25), None, None]),
            ],
            ..AblationTable::default()
        };
        let radar = radar(&table);
        assert_eq!(radar.axes, ["a", "c"]);
        assert_eq!(radar.rings[1].0, "without down");
        assert_eq!(radar.rings[1].1, [Some((0.5, 0.2)), None]);
        assert_eq!(radar.rings[0].1[1].unwrap().0, 1.0);
    }
}
