//! Tables as text: our own CSV and JSON, which keep every raw sample, and published formats.

pub mod aihub;
pub mod coreml;
pub mod csv;
pub mod json;
pub mod published;
pub mod tflite;

use serde::{Deserialize, Serialize};

use crate::{Entry, EntryState, LutKey, Measurement, Samples};

/// What a foreign text brings to a table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Imported {
    /// Entries.
    pub entries: Vec<Entry>,
    /// What was left out, or has no place in a table, for people.
    pub notes: Vec<String>,
}

/// Where a text is not the JSON that it should be.
fn json_error(error: &serde_json::Error) -> ImportError {
    let (line, column) = (error.line() as u64, error.column() as u64);
    let told = error.to_string();
    let message = told
        .rsplit_once(" at line ")
        .map_or(told.as_str(), |(message, _)| message);
    let message = message.to_owned();
    ImportError::Syntax { line, column, message }
}

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

impl ImportError {
    /// Line, from 1.
    pub fn line(&self) -> u64 {
        match self {
            Self::Value { line, .. } | Self::Syntax { line, .. } => *line,
        }
    }
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
            return Err(Conflict {
                field: "latency_ms",
                found: String::new(),
                allowed: "at least one sample where state is measured",
            });
        }
        "measured" if !detail.is_empty() => {
            return Err(Conflict {
                field: "detail",
                found: detail,
                allowed: "nothing where state is measured",
            });
        }
        "measured" => EntryState::Measured(Measurement {
            latency_ms: latency,
            peak_memory_bytes: memory,
        }),
        "out_of_memory" | "unsupported" if samples > 0 => {
            let field = if latency.is_empty() {
                "peak_memory_bytes"
            } else {
                "latency_ms"
            };
            return Err(Conflict {
                field,
                found: format!("{samples} samples"),
                allowed: "none where state is not measured",
            });
        }
        "out_of_memory" => EntryState::OutOfMemory { detail },
        "unsupported" => EntryState::Unsupported { detail },
        _ => {
            return Err(Conflict {
                field: "state",
                found: state.to_owned(),
                allowed: STATES,
            });
        }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use search_spaces::{Block, Dtype, Shape};

    use super::{ImportErrors, csv, json};
    use crate::{Entry, EntryState, LutKey, Measurement, Runtime, Samples};

    const HEADER: &str = "device,runtime,version,dtype,operator,shape,state,detail,latency_ms,peak_memory_bytes\n";

    fn states() -> impl Strategy<Value = EntryState> {
        let samples =
            |least| prop::collection::vec(0.0..1e12_f64, least..6).prop_map(|v| Samples::new(v).expect("valid"));
        prop_oneof![
            (samples(1), samples(0)).prop_map(|(latency_ms, peak_memory_bytes)| {
                EntryState::Measured(Measurement {
                    latency_ms,
                    peak_memory_bytes,
                })
            }),
            "\\PC{0,20}".prop_map(|detail| EntryState::OutOfMemory { detail }),
            "[a-z,\" \n]{0,20}".prop_map(|detail| EntryState::Unsupported { detail }),
        ]
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let name = "[a-z0-9][a-z0-9,._-]{0,8}";
        let shape = prop::collection::btree_map("[a-z_]{1,5}", any::<u64>(), 0..5).prop_map(Shape::from_iter);
        let dtype = prop::sample::select(Dtype::ALL.to_vec());
        let entry = (name, name, name, dtype, name, shape, states()).prop_map(
            |(device, runtime, version, dtype, operator, shape, state)| {
                let runtime = Runtime::new(runtime, version);
                Entry {
                    key: LutKey {
                        device,
                        runtime,
                        dtype,
                        block: Block { operator, shape },
                    },
                    state,
                }
            },
        );
        prop::collection::vec(entry, 0..8)
    }

    proptest! {
        #[test]
        fn csv_keeps_every_raw_sample(entries in entries()) {
            prop_assert_eq!(csv::import(&csv::export(entries.clone())), Ok(entries));
        }

        #[test]
        fn json_keeps_every_raw_sample(entries in entries()) {
            prop_assert_eq!(json::import(&json::export(entries.clone())), Ok(entries));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,200}") {
            prop_assert!(csv::import(&text).is_err());
            prop_assert!(json::import(&text).is_err() || text.trim() == "[]");
            let row = format!("{HEADER}{text}");
            prop_assert!(csv::import(&row).is_err() || text.is_empty());
        }
    }

    fn told(result: Result<Vec<Entry>, ImportErrors>) -> String {
        result.expect_err("faulty").to_string()
    }

    #[test]
    fn csv_tells_line_column_found_and_allowed_for_every_fault() {
        let good = "desk,torch,2,f32,conv1d,c=4 t=5,measured,,1 2,\n";
        let text = format!(
            "{HEADER}{good}\
             ,torch,2,f32,conv1d,c=4,measured,,1,\n\
             desk,torch,2,f64,conv1d,c=4,measured,,1,\n\
             desk,torch,2,f32,conv1d,c:4,measured,,1,\n\
             desk,torch,2,f32,conv1d,c=4,lost,,1,\n\
             desk,torch,2,f32,conv1d,c=4,measured,,,\n\
             desk,torch,2,f32,conv1d,c=4,measured,,1 fast,\n\
             desk,torch,2,f32,conv1d,c=4,measured,,1,-5\n\
             desk,torch,2,f32,conv1d,c=4,unsupported,no kernel,1,\n\
             desk,torch\n"
        );
        let expected = [
            "line 3, column 1: device is \"\"; allowed: a name",
            "line 4, column 4: dtype is \"f64\"; allowed: f32, f16, bf16",
            "line 5, column 6: shape is \"c:4\"; allowed: name=size pairs such as \"c=64 h=8 t=5 w=8\"",
            "line 6, column 7: state is \"lost\"; allowed: measured, out_of_memory, unsupported",
            "line 7, column 9: latency_ms is \"\"; allowed: at least one sample where state is measured",
            "line 8, column 9: latency_ms is \"fast\"; allowed: numbers from 0 to 1e15, with a space between",
            "line 9, column 10: peak_memory_bytes is \"-5\"; allowed: numbers from 0 to 1e15, with a space between",
            "line 10, column 9: latency_ms is \"1 samples\"; allowed: none where state is not measured",
            "line 11, column 1: 2 fields; allowed: 10, as in the header",
        ];
        assert_eq!(told(csv::import(&text)), expected.join("\n"));
    }

    #[test]
    fn csv_names_missing_and_unknown_columns() {
        let told = told(csv::import(
            "device,runtime,version,dtype,operator,shape,state,detail,latency\n",
        ));
        assert!(
            told.starts_with("line 1, column 9: header is \"latency\"; allowed: device, runtime,"),
            "{told}"
        );
        assert!(told.contains("column \"latency_ms\", which is missing"), "{told}");
    }

    #[test]
    fn the_order_of_csv_columns_is_free() {
        let text = "latency_ms,peak_memory_bytes,device,runtime,version,dtype,operator,shape,state,detail\n\
                    1.5,64,desk,torch,2,f32,conv1d,c=4,measured,\n";
        assert_eq!(csv::import(text).expect("valid")[0].key.block.to_string(), "conv1d c=4");
    }

    #[test]
    fn json_tells_line_column_found_and_allowed() {
        let with = |tail: &str| {
            format!(
                "[\n{{\"device\":\"desk\",\"runtime\":{{\"name\":\"torch\",\"version\":\"2\"}},\"dtype\":\"f32\",\
                 \"block\":{{\"operator\":\"conv1d\",\"shape\":{{\"c\":4}}}},\n{tail}}}]"
            )
        };
        let cases = [
            (
                r#""state":"lost","latency_ms":[1]"#,
                "line 3",
                "state is \"lost\"; allowed: measured, out_of_memory, unsupported",
            ),
            (
                r#""state":"measured""#,
                "line 3",
                "latency_ms is \"\"; allowed: at least one sample",
            ),
            (
                r#""state":"measured","latency_ms":[1,-2]"#,
                "line 3",
                "sample 1 is -2; allowed: a number from 0 to 1e15",
            ),
            (
                r#""state":"measured","latency_ms":"1""#,
                "line 3, column 35",
                "invalid type: string \"1\", expected a sequence",
            ),
            (
                r#""state":"measured","latency":[1]"#,
                "line 3, column 28",
                "unknown field `latency`, expected one of `device`",
            ),
        ];
        for (tail, place, message) in cases {
            let told = told(json::import(&with(tail)));
            assert!(told.starts_with(place) && told.contains(message), "{told}");
        }
    }
}
