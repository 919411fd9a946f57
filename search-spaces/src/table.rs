//! A table of finished evaluations: the rows that a table space is looked up in.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::search::point;
use crate::{Architecture, Costs, Estimate, Infeasible, Ranges, RangesError, Space, SpaceKind};

/// The rows of a table space, by architecture.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    columns: Vec<String>,
    known: Vec<usize>,
    rows: HashMap<Architecture, Box<[f64]>>,
    size: u128,
}

/// One thing that is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableProblem {
    /// Line of the CSV text, from 1.
    pub line: u64,
    /// Column of the table.
    pub column: String,
    /// What stands there.
    pub found: String,
    /// What may stand there.
    pub allowed: String,
}

impl fmt::Display for TableProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, {}: found {}; allowed: {}",
            self.line, self.column, self.found, self.allowed
        )
    }
}

/// A table that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TableError {
    /// The space is of another kind.
    #[error("space {0} is no table space")]
    NoTableSpace(String),
    /// The text is no CSV.
    #[error("no CSV: {0}")]
    NoCsv(String),
    /// Rows or columns are wrong; the first hundred problems.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Problems(Vec<TableProblem>),
    /// There is no row.
    #[error("the table has no row")]
    Empty,
}

const MOST_PROBLEMS: usize = 100;

impl Table {
    /// Reads CSV with a header line. The key column is text, so leading zeros stay; the columns of
    /// objectives and limits and the known columns must be finite numbers; others are ignored. Rows may
    /// be missing: such an architecture is infeasible.
    ///
    /// # Errors
    /// Missing columns, keys that are no architecture, repeated keys and cells that are no number, each
    /// with its line.
    pub fn parse(space: &Space, csv: &[u8]) -> Result<Self, TableError> {
        let SpaceKind::Table(settings) = &space.kind else {
            return Err(TableError::NoTableSpace(space.name.clone()));
        };
        let mut reader = csv::ReaderBuilder::new().from_reader(csv);
        let broken = |error: csv::Error| TableError::NoCsv(error.to_string());
        let header = reader.headers().map_err(broken)?.clone();
        let mut columns: Vec<String> = space
            .objectives
            .iter()
            .map(|objective| objective.metric.clone())
            .collect();
        let others = settings
            .known
            .iter()
            .map(String::as_str)
            .chain(space.limits.iter().map(|(metric, _)| metric));
        for name in others {
            if !columns.iter().any(|column| column == name) {
                columns.push(name.to_owned());
            }
        }
        let mut problems = Vec::new();
        let mut place = |name: &str| {
            let place = header.iter().position(|column| column == name);
            if place.is_none() {
                problems.push(TableProblem {
                    line: 1,
                    column: name.to_owned(),
                    found: "no such column".into(),
                    allowed: format!(
                        "a column of this name; the table has {}",
                        header.iter().collect::<Vec<_>>().join(", ")
                    ),
                });
            }
            place.unwrap_or(0)
        };
        let key_place = place(&settings.key);
        let places: Vec<usize> = columns.iter().map(|column| place(column)).collect();
        if !problems.is_empty() {
            return Err(TableError::Problems(problems));
        }

        let mut rows: HashMap<Architecture, Box<[f64]>> = HashMap::new();
        for record in reader.records() {
            let record = record.map_err(broken)?;
            let line = record.position().map_or(0, csv::Position::line);
            let problem = |column: &str, found: &str, allowed: String| TableProblem {
                line,
                column: column.to_owned(),
                found: format!("`{found}`"),
                allowed,
            };
            let cell = |place: usize| record.get(place).unwrap_or_default();
            let key = cell(key_place);
            let before = problems.len();
            let mut values = Vec::with_capacity(columns.len());
            for (column, &place) in columns.iter().zip(&places) {
                match cell(place).trim().parse::<f64>() {
                    Ok(value) if value.is_finite() => values.push(value),
                    _ => problems.push(problem(column, cell(place), "a finite number".into())),
                }
            }
            match space.architecture(key) {
                Err(error) => problems.push(problem(
                    &settings.key,
                    key,
                    format!("an architecture of the space: {error}"),
                )),
                Ok(architecture) if rows.contains_key(&architecture) => {
                    problems.push(problem(&settings.key, key, "each architecture once".into()));
                }
                Ok(architecture) if problems.len() == before => drop(rows.insert(architecture, values.into())),
                Ok(_) => {}
            }
            if problems.len() >= MOST_PROBLEMS {
                problems.truncate(MOST_PROBLEMS);
                break;
            }
        }
        if !problems.is_empty() {
            return Err(TableError::Problems(problems));
        }
        if rows.is_empty() {
            return Err(TableError::Empty);
        }
        let known = (0..columns.len())
            .filter(|&i| settings.known.contains(&columns[i]))
            .collect();
        Ok(Self {
            columns,
            known,
            rows,
            size: space.size(),
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row; a parsed table has one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Architectures of the space without a row.
    #[must_use]
    pub fn missing(&self) -> u128 {
        self.size.saturating_sub(self.rows.len() as u128)
    }

    /// The evaluation of an architecture: every column that the space names.
    #[must_use]
    pub fn look_up(&self, architecture: &Architecture) -> Option<BTreeMap<String, Estimate>> {
        let row = self.rows.get(architecture)?;
        Some(
            self.columns
                .iter()
                .zip(row)
                .map(|(name, value)| (name.clone(), Estimate::exact(*value)))
                .collect(),
        )
    }

    /// The hypervolume's box: an objective's own range, else least and greatest value of its column.
    ///
    /// # Errors
    /// [`RangesError::Empty`] for a column that is constant.
    pub fn ranges(&self, space: &Space) -> Result<Ranges, RangesError> {
        let range = |(i, objective): (usize, &crate::Objective)| {
            let values = || self.rows.values().map(|row| row[i]);
            let low = values().fold(f64::INFINITY, f64::min);
            let high = values().fold(f64::NEG_INFINITY, f64::max);
            match objective.range {
                Some(range) => Ok(range),
                None if low < high => Ok((low, high)),
                None => Err(RangesError::Empty {
                    metric: objective.metric.clone(),
                    low,
                    high,
                }),
            }
        };
        space
            .objectives
            .iter()
            .enumerate()
            .map(range)
            .collect::<Result<_, _>>()
            .map(Ranges::new)
    }

    /// The table's own front within the limits, sorted by architecture.
    #[must_use]
    pub fn front(&self, space: &Space, ranges: &Ranges) -> Vec<Architecture> {
        let (architectures, points) = self.points(space, ranges);
        crate::pareto::front(&points)
            .into_iter()
            .map(|i| architectures[i].clone())
            .collect()
    }

    /// The hypervolume of the table's own front: what a search can reach at most.
    #[must_use]
    pub fn hypervolume(&self, space: &Space, ranges: &Ranges) -> f64 {
        crate::hypervolume::hypervolume(&self.points(space, ranges).1)
    }

    fn points(&self, space: &Space, ranges: &Ranges) -> (Vec<Architecture>, Vec<Vec<f64>>) {
        let mut architectures: Vec<&Architecture> = self.rows.keys().collect();
        architectures.sort_unstable();
        let admitted = architectures.into_iter().filter_map(|architecture| {
            let metrics = self.look_up(architecture)?;
            let admitted = space.limits.broken(&metrics).is_empty();
            Some((architecture.clone(), point(space, ranges, &metrics)?)).filter(|_| admitted)
        });
        admitted.unzip()
    }
}

/// The known columns.
impl Costs for Table {
    fn costs(&self, architecture: &Architecture) -> Result<BTreeMap<String, Estimate>, Infeasible> {
        let row = self.rows.get(architecture).ok_or_else(|| Infeasible {
            reason: "the table has no row for it".into(),
        })?;
        Ok(self
            .known
            .iter()
            .map(|&i| (self.columns[i].clone(), Estimate::exact(row[i])))
            .collect())
    }
}
