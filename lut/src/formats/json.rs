//! JSON: an array with one object an entry.
//!
//! `{"device", "runtime": {"name", "version"}, "dtype", "block": {"operator", "shape": {"c": 64, …}}, "state":
//! "measured" | "out_of_memory" | "unsupported", "detail", "latency_ms": […], "peak_memory_bytes": […]}`; detail
//! and samples may be left out where they are empty.

use search_spaces::{Block, Dtype};
use serde::{Deserialize, Serialize};

use super::{Conflict, ImportErrors, entry, json_error, parts};
use crate::{Entry, LutKey, Runtime, Samples};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    device: String,
    runtime: Runtime,
    dtype: Dtype,
    block: Block,
    state: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    detail: String,
    #[serde(default, skip_serializing_if = "Samples::is_empty")]
    latency_ms: Samples,
    #[serde(default, skip_serializing_if = "Samples::is_empty")]
    peak_memory_bytes: Samples,
}

/// An object whose parts agree; the check runs while the reader still knows its line.
#[derive(Deserialize)]
#[serde(try_from = "Object")]
struct Checked(Entry);

impl TryFrom<Object> for Checked {
    type Error = String;
    fn try_from(object: Object) -> Result<Self, String> {
        let Object {
            device,
            runtime,
            dtype,
            block,
            state,
            detail,
            latency_ms,
            peak_memory_bytes,
        } = object;
        entry(
            LutKey {
                device,
                runtime,
                dtype,
                block,
            },
            &state,
            detail,
            latency_ms,
            peak_memory_bytes,
        )
        .map(Self)
        .map_err(|Conflict { field, found, allowed }| format!("{field} is {found:?}; allowed: {allowed}"))
    }
}

/// Entries as JSON text, one object a line.
pub fn export(entries: impl IntoIterator<Item = Entry>) -> String {
    let lines: Vec<String> = entries
        .into_iter()
        .map(
            |Entry {
                 key:
                     LutKey {
                         device,
                         runtime,
                         dtype,
                         block,
                     },
                 state,
             }| {
                let (detail, latency, memory) = parts(&state);
                let array = |values: &[f64]| Samples::new(values.to_vec()).unwrap_or_default();
                let object = Object {
                    device,
                    runtime,
                    dtype,
                    block,
                    state: state.label().to_owned(),
                    detail: detail.to_owned(),
                    latency_ms: array(latency),
                    peak_memory_bytes: array(memory),
                };
                serde_json::to_string(&object).expect("strings, numbers and maps with text keys have a JSON form")
            },
        )
        .collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

/// Reads what [`export`] writes.
///
/// # Errors
/// The first place that is not JSON or not such an entry.
pub fn import(text: &str) -> Result<Vec<Entry>, ImportErrors> {
    match serde_json::from_str::<Vec<Checked>>(text) {
        Ok(checked) => Ok(checked.into_iter().map(|Checked(entry)| entry).collect()),
        Err(error) => Err(json_error(&error).into()),
    }
}
