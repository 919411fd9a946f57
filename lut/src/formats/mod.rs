//! Tables as text: our own CSV and JSON, which keep every raw sample, and published formats.

pub mod csv;
pub mod json;
pub mod published;

use crate::{Entry, EntryState, LutKey, Measurement, Samples};

/// What is wrong with an imported text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// A value that cannot stand where it stands.
    #[error("line {line}, column {column}: {field} is {found:?}; allowed: {allowed}")]
    Value {
        /// Line, from 1.
        line: u64,
        /// Column of a table, or character of a line, from 1.
        column: u64,
        /// Name of the field.
        field: String,
        /// What stands there.
        found: String,
        /// What may stand there.
        allowed: String,
    },
    /// The text is not of the format at all.
    #[error("line {line}, column {column}: {message}")]
    Syntax {
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What was found and what was expected.
        message: String,
    },
}

/// Everything wrong with an imported text, in reading order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportErrors(pub Vec<ImportError>);

impl std::error::Error for ImportErrors {}

impl std::fmt::Display for ImportErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl From<ImportError> for ImportErrors {
    fn from(error: ImportError) -> Self {
        Self(vec![error])
    }
}

/// Values of the field `state`.
const STATES: &str = "measured, out_of_memory, unsupported";

/// What is wrong with the parts of an entry taken together: field, found, allowed.
struct Conflict {
    field: &'static str,
    found: String,
    allowed: &'static str,
}

/// Puts an entry together: a measured one has a latency, a failed one has no samples.
fn entry(key: LutKey, state: &str, detail: String, latency: Samples, memory: Samples) -> Result<Entry, Conflict> {
    let samples = latency.len() + memory.len();
    let state = match state {
        "measured" if latency.is_empty() => {
            return Err(Conflict { field: "latency_ms", found: String::new(), allowed: "at least one sample where state is measured" });
        }
        "measured" if !detail.is_empty() => {
            return Err(Conflict { field: "detail", found: detail, allowed: "nothing where state is measured" });
        }
        "measured" => EntryState::Measured(Measurement { latency_ms: latency, peak_memory_bytes: memory }),
        "out_of_memory" | "unsupported" if samples > 0 => {
            let field = if latency.is_empty() { "peak_memory_bytes" } else { "latency_ms" };
            return Err(Conflict { field, found: format!("{samples} samples"), allowed: "none where state is not measured" });
        }
        "out_of_memory" => EntryState::OutOfMemory { detail },
        "unsupported" => EntryState::Unsupported { detail },
        _ => return Err(Conflict { field: "state", found: state.to_owned(), allowed: STATES }),
    };
    Ok(Entry { key, state })
}

/// Detail and raw samples of a state, empty where it has none.
fn parts(state: &EntryState) -> (&str, &[f64], &[f64]) {
    match state {
        EntryState::Measured(m) => ("", m.latency_ms.values(), m.peak_memory_bytes.values()),
        EntryState::OutOfMemory { detail } | EntryState::Unsupported { detail } => (detail, &[], &[]),
    }
}
