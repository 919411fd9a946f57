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
                    format!("an architecture of the space, {}", error.allowed()),
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space() -> Space {
        let text = r#"
name = "pairs"
kind = "table"
positions = ["a", "b"]
choices = [{ name = "none", code = "0" }, { name = "some", code = "1" }]
table = { key = "arch", known = ["flops"] }
objectives = [{ metric = "accuracy", direction = "maximise" }, { metric = "flops", direction = "minimise" }]
limits = { params = 50 }
search = { strategy = "random", max_evaluations = 4 }
"#;
        Space::parse(text).unwrap_or_else(|error| panic!("{error}"))
    }

    const GOOD: &str = "arch,accuracy,note,flops,params\n00,10,a,1,10\n01,30,b,2,20\n10,20,,3,30\n11,40,c,5,60\n";

    #[test]
    fn keys_keep_their_leading_zeros_and_unused_columns_may_hold_anything() {
        let space = space();
        let table = Table::parse(&space, GOOD.as_bytes()).unwrap();
        let zero_one = space.architecture("01").unwrap();
        let metrics = table.look_up(&zero_one).unwrap();
        assert_eq!(metrics.keys().collect::<Vec<_>>(), ["accuracy", "flops", "params"]);
        assert_eq!(metrics["accuracy"], Estimate::exact(30.0));
        assert_eq!(
            table.costs(&zero_one).unwrap(),
            BTreeMap::from([("flops".into(), Estimate::exact(2.0))])
        );
    }

    #[test]
    fn the_box_spans_the_whole_table_and_the_front_keeps_the_limits() {
        let space = space();
        let table = Table::parse(&space, GOOD.as_bytes()).unwrap();
        let ranges = table.ranges(&space).unwrap();
        assert_eq!(ranges.as_slice(), [(10.0, 40.0), (1.0, 5.0)]);
        let front: Vec<String> = table.front(&space, &ranges).iter().map(|a| space.print(a)).collect();
        // 11 breaks the limit of 50, 10 is dominated by 01.
        assert_eq!(front, ["00", "01"]);
        // 00 lies on the reference; 01 at (1/3, 1/4).
        assert!((table.hypervolume(&space, &ranges) - 2.0 / 3.0 * 3.0 / 4.0).abs() < 1e-12);
    }

    #[test]
    fn an_architecture_without_a_row_is_infeasible_and_counted() {
        let space = space();
        let table = Table::parse(&space, b"arch,accuracy,flops,params\n00,1,2,3\n").unwrap();
        assert_eq!((table.len(), table.missing()), (1, 3));
        assert!(table.costs(&space.architecture("11").unwrap()).is_err());
    }

    #[test]
    fn every_wrong_row_is_named_by_its_line() {
        let csv = "arch,accuracy,flops,params\n00,1,2,3\n00,1,2,3\n02,1,2,3\n0,1,2,3\n11,nan,x,3\n";
        let error = Table::parse(&space(), csv.as_bytes()).unwrap_err();
        insta::assert_snapshot!(error, @r"
        line 3, arch: found `00`; allowed: each architecture once
        line 4, arch: found `02`; allowed: an architecture of the space, at b one of 0, 1
        line 5, arch: found `0`; allowed: an architecture of the space, 2 codes, for a, b
        line 6, accuracy: found `nan`; allowed: a finite number
        line 6, flops: found `x`; allowed: a finite number
        ");
        let error = Table::parse(&space(), b"arch,acc,flops,params\n").unwrap_err();
        assert!(error.to_string().contains("accuracy: found no such column"), "{error}");
        assert!(matches!(
            Table::parse(&space(), b"arch,accuracy,flops,params\n"),
            Err(TableError::Empty)
        ));
        assert!(matches!(
            Table::parse(&space(), b"arch,accuracy,flops,params\n00,1\n"),
            Err(TableError::NoCsv(_))
        ));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..60) {
            let _ = Table::parse(&space(), &bytes);
            let damaged: Vec<u8> = GOOD.as_bytes()[..cut.min(GOOD.len())].iter().copied().chain(bytes).collect();
            let _ = Table::parse(&space(), &damaged);
        }
    }
}
