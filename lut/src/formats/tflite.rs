//! The log of TensorFlow Lite's `benchmark_model` with its table of operators.
//!
//! A log tells names and times, not shapes: each line of the `Run Order` table becomes one operation in the order
//! of execution, and only the totals can be laid beside a composed prediction.

use search_spaces::{Block, Dtype, Shape};
use serde::{Deserialize, Serialize};

use super::{ImportError, ImportErrors, Imported};
use crate::{Entry, EntryState, LutKey, Measurement, Runtime, Samples};

/// One profiled run of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchmarkLog {
    /// Statistics of the warm-up and of each timed phase, in the order of the log.
    pub phases: Vec<Phase>,
    /// Operations in the order in which they ran.
    pub operations: Vec<Operation>,
}

/// One `count= first= curr= min= max= avg= std=` line; times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Runs.
    pub count: u64,
    /// The first run.
    pub first_ms: f64,
    /// The fastest run.
    pub min_ms: f64,
    /// The slowest run.
    pub max_ms: f64,
    /// Mean.
    pub mean_ms: f64,
    /// Standard deviation.
    pub deviation_ms: f64,
}

/// One operation of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Kernel, such as `CONV_2D`.
    pub kind: String,
    /// Mean time, milliseconds.
    pub mean_ms: f64,
    /// Name of its output in the graph.
    pub name: String,
}

impl BenchmarkLog {
    /// The mean of the timed runs, which follow the warm-up, as the entry of a model.
    pub fn imported(&self, device: &str, model: &str, runtime: Runtime, dtype: Dtype) -> Option<Imported> {
        let timed = self.phases.get(1).or_else(|| self.phases.first())?;
        let sum: f64 = self.operations.iter().map(|operation| operation.mean_ms).sum();
        let measurement = Measurement {
            latency_ms: Samples::new(vec![timed.mean_ms]).ok()?,
            peak_memory_bytes: Samples::default(),
        };
        let (device, block) = (device.to_owned(), Block::new(model, Shape::default()));
        let key = LutKey {
            device,
            runtime,
            dtype,
            block,
        };
        let state = EntryState::Measured(measurement);
        let notes = vec![
            format!(
                "{} runs, {:.3} ms in the mean, deviation {:.3} ms",
                timed.count, timed.mean_ms, timed.deviation_ms
            ),
            format!("{} operations, {sum:.3} ms together", self.operations.len()),
        ];
        Some(Imported {
            entries: vec![Entry { key, state }],
            notes,
        })
    }
}

const MICROSECONDS: f64 = 1e-3;

/// Reads a log; what is neither statistics nor the `Run Order` table is passed over.
///
/// # Errors
/// A log without statistics; every line of statistics or table that is cut short or holds no numbers.
pub fn import(text: &str) -> Result<BenchmarkLog, ImportErrors> {
    let (mut log, mut errors) = (
        BenchmarkLog {
            phases: Vec::new(),
            operations: Vec::new(),
        },
        Vec::new(),
    );
    let mut in_run_order = false;
    for (line, content) in (1..).zip(text.lines()) {
        let words = content.trim();
        if words.starts_with("====") {
            in_run_order = content.contains("Run Order");
        } else if words.starts_with("count=") {
            phase(line, content).map_or_else(|error| errors.push(error), |phase| log.phases.push(phase));
        } else if in_run_order && !words.is_empty() && !words.starts_with("[node type]") {
            operation(line, content)
                .map_or_else(|error| errors.push(error), |operation| log.operations.push(operation));
        }
    }
    if log.phases.is_empty() && errors.is_empty() {
        let message = "no line `count=… first=… avg=…`; allowed: the log of benchmark_model".to_owned();
        errors.push(ImportError::Syntax {
            line: text.lines().count().max(1) as u64,
            column: 1,
            message,
        });
    }
    if errors.is_empty() {
        Ok(log)
    } else {
        Err(ImportErrors(errors))
    }
}

fn phase(line: u64, content: &str) -> Result<Phase, ImportError> {
    let value = |name: &str| {
        let found = content
            .split_whitespace()
            .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = found
            .and_then(|text| text.parse::<f64>().ok())
            .filter(|number| number.is_finite() && *number >= 0.0);
        number.ok_or_else(|| ImportError::Value {
            line,
            column: content.find(name).map_or(1, |at| at as u64 + 1),
            field: name.to_owned(),
            found: found.unwrap_or_default().to_owned(),
            allowed: "a finite number, 0 or more".into(),
        })
    };
    Ok(Phase {
        count: value("count")? as u64,
        first_ms: value("first")? * MICROSECONDS,
        min_ms: value("min")? * MICROSECONDS,
        max_ms: value("max")? * MICROSECONDS,
        mean_ms: value("avg")? * MICROSECONDS,
        deviation_ms: value("std")? * MICROSECONDS,
    })
}

/// `KIND start first avg % cdf% memory times [name]`
fn operation(line: u64, content: &str) -> Result<Operation, ImportError> {
    let refused = |column: usize, field: &str, found: &str, allowed: &str| {
        let (field, found, allowed) = (field.to_owned(), found.to_owned(), allowed.to_owned());
        ImportError::Value {
            line,
            column: column as u64 + 1,
            field,
            found,
            allowed,
        }
    };
    let (figures, name) = content
        .split_once('[')
        .and_then(|(figures, name)| Some((figures, name.trim_end().strip_suffix(']')?)))
        .ok_or_else(|| refused(0, "line", content, "a row that ends with [NAME]"))?;
    let columns: Vec<&str> = figures.split_whitespace().collect();
    let [kind, _, _, mean, ..] = columns[..] else {
        return Err(refused(
            0,
            "line",
            content,
            "node type, start, first, avg, %, cdf%, memory, times called, [NAME]",
        ));
    };
    let mean_ms = mean.parse::<f64>().ok().filter(|mean| mean.is_finite() && *mean >= 0.0);
    let at = content.find(mean).unwrap_or(0);
    Ok(Operation {
        kind: kind.to_owned(),
        mean_ms: mean_ms.ok_or_else(|| refused(at, "avg ms", mean, "a finite number, 0 or more"))?,
        name: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "STARTING!\n\
        count=2 first=3000 curr=2000 min=2000 max=3000 avg=2500 std=500\n\
        ============================== Run Order ==============================\n\
        \x20 [node type]  [start]  [first]  [avg ms]  [%]  [cdf%]  [mem KB]  [times called]  [Name]\n\
        \x20 CONV_2D  0.000  1.000  1.5  60%  60%  0.000  1  [a/Relu6]\n\
        \x20 ADD  1.500  1.000  1.0  40%  100%  0.000  1  [b]\n\
        ============================== Top by Computation Time ==============================\n\
        \x20 CONV_2D  0.000  1.000  1.5  60%  60%  0.000  1  [a/Relu6]\n";

    #[test]
    fn statistics_and_the_order_of_execution_are_read() {
        let log = import(LOG).expect("valid");
        assert_eq!(
            (log.phases.len(), log.phases[0].count, log.phases[0].mean_ms),
            (1, 2, 2.5)
        );
        let operations: Vec<_> = log
            .operations
            .iter()
            .map(|o| (o.kind.as_str(), o.mean_ms, o.name.as_str()))
            .collect();
        assert_eq!(operations, [("CONV_2D", 1.5, "a/Relu6"), ("ADD", 1.0, "b")]);
    }

    #[test]
    fn faults_are_told_with_their_place() {
        let told = import(&LOG.replace("1.500  1.000  1.0", "1.500  1.000  soon"))
            .expect_err("faulty")
            .to_string();
        assert_eq!(
            told,
            "line 6, column 22: avg ms is \"soon\"; allowed: a finite number, 0 or more"
        );
        let told = import(&LOG.replace("avg=2500", "avg="))
            .expect_err("faulty")
            .to_string();
        assert_eq!(
            told,
            "line 2, column 48: avg is \"\"; allowed: a finite number, 0 or more"
        );
        assert!(
            import("nothing")
                .expect_err("empty")
                .to_string()
                .contains("benchmark_model")
        );
    }
}
