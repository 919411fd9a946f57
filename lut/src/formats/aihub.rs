//! What Qualcomm AI Hub measured: the public performance table (CSV), and the profile of one job (JSON).
//!
//! Both are of whole models: there are no shapes, so an entry's operator is the model's name and its shape is empty. Traps:
//!
//! - The table holds many devices, precisions and runtimes; a look-up table holds one device, and one number format and
//!   runtime each. Rows of quantized models have no number format here: they are told and left out.
//! - Memory is a range that the hub estimates. Its upper bound stands; it never compares between runtimes.
//! - Times of a profile are in microseconds, and all of them are there from version 1.2 on only; before, the estimate
//!   stands as the only one.

use std::collections::{BTreeMap, BTreeSet};

use ::csv::{ReaderBuilder, StringRecord};
use search_spaces::{Block, Dtype, Shape};
use serde::Deserialize;

use super::{ImportError, ImportErrors, Imported, json_error};
use crate::{Entry, EntryState, LutKey, Measurement, Runtime, Samples};

const MEBIBYTE: f64 = 1_048_576.0;
const COLUMNS: [&str; 10] = [
    "model",
    "component",
    "precision",
    "device",
    "runtime",
    "status",
    "ms",
    "peak_mb_min",
    "peak_mb_max",
    "unit",
];

/// Rows of one device of the performance table.
///
/// # Errors
/// A table without the columns; every row of any device that is cut short or holds no numbers; a device without rows,
/// with those that have some.
pub fn import_table(text: &str, source: &str, device: &str, dtype: Dtype) -> Result<Imported, ImportErrors> {
    let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| syntax(&error))?.clone();
    let mut places = [0; COLUMNS.len()];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        let found = header.iter().position(|column| column == name);
        *place = found.ok_or_else(|| ImportError::Value {
            line: 1,
            column: header.len() as u64 + 1,
            field: "header".to_owned(),
            found: String::new(),
            allowed: format!("column {name:?}, which is missing"),
        })?;
    }
    let (mut imported, mut errors) = (Imported::default(), Vec::new());
    let (mut devices, mut quantized) = (BTreeSet::new(), BTreeMap::<String, u64>::new());
    for record in reader.records() {
        let row = record
            .map_err(|error| syntax(&error))
            .and_then(|record| Row { record, places }.read());
        let row = match row {
            Ok(row) => row,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        if row.device != source {
            devices.insert(row.device);
        } else if row.precision != "float" {
            *quantized.entry(row.precision).or_default() += 1;
        } else {
            imported.entries.push(row.entry(device, dtype));
        }
    }
    if errors.is_empty() && imported.entries.is_empty() && quantized.is_empty() {
        let found = source.to_owned();
        let allowed = devices.into_iter().collect::<Vec<_>>().join(", ");
        let field = "device".to_owned();
        errors.push(ImportError::Value {
            line: 1,
            column: 4,
            field,
            found,
            allowed,
        });
    }
    let left_out = quantized
        .iter()
        .map(|(precision, rows)| format!("{rows} rows in {precision} left out: no number format of a table"));
    imported.notes.extend(left_out);
    if errors.is_empty() {
        Ok(imported)
    } else {
        Err(ImportErrors(errors))
    }
}

fn syntax(error: &::csv::Error) -> ImportError {
    let line = error.position().map_or(1, ::csv::Position::line);
    let message = error.to_string();
    ImportError::Syntax {
        line,
        column: 1,
        message,
    }
}

struct Row {
    record: StringRecord,
    places: [usize; COLUMNS.len()],
}

struct Values {
    model: String,
    precision: String,
    device: String,
    runtime: String,
    unit: String,
    passed: bool,
    latency_ms: Samples,
    peak_memory_bytes: Samples,
}

impl Row {
    fn read(&self) -> Result<Values, ImportError> {
        let number = |name: &str, scale: f64| {
            let found = self.text(name)?;
            let number = found
                .parse::<f64>()
                .ok()
                .and_then(|number| Samples::new(vec![scale * number]).ok());
            number.ok_or_else(|| self.error(name, found, "a number, 0 or more"))
        };
        let status = self.text("status")?;
        let passed = status == "Passed";
        let measured = |name: &str, scale: f64| {
            if passed {
                number(name, scale)
            } else {
                Ok(Samples::default())
            }
        };
        let (model, component) = (self.text("model")?, self.text("component")?);
        measured("peak_mb_min", MEBIBYTE)?;
        Ok(Values {
            model: format!("{model}/{component}"),
            precision: self.text("precision")?.to_owned(),
            device: self.text("device")?.to_owned(),
            runtime: self.text("runtime")?.to_owned(),
            unit: self.text("unit")?.to_lowercase(),
            passed,
            latency_ms: measured("ms", 1.0)?,
            peak_memory_bytes: measured("peak_mb_max", MEBIBYTE)?,
        })
    }

    fn text(&self, name: &str) -> Result<&str, ImportError> {
        let found = self.record.get(self.place(name)).unwrap_or_default().trim();
        if found.is_empty() {
            Err(self.error(name, found, "a value"))
        } else {
            Ok(found)
        }
    }

    fn place(&self, name: &str) -> usize {
        COLUMNS
            .iter()
            .position(|column| *column == name)
            .map_or(0, |at| self.places[at])
    }

    fn error(&self, name: &str, found: &str, allowed: &str) -> ImportError {
        ImportError::Value {
            line: self.record.position().map_or(0, ::csv::Position::line),
            column: self.place(name) as u64 + 1,
            field: name.to_owned(),
            found: found.to_owned(),
            allowed: allowed.to_owned(),
        }
    }
}

impl Values {
    fn entry(self, device: &str, dtype: Dtype) -> Entry {
        let state = if self.passed {
            EntryState::Measured(Measurement {
                latency_ms: self.latency_ms,
                peak_memory_bytes: self.peak_memory_bytes,
            })
        } else {
            EntryState::Unsupported {
                detail: "AI Hub's job did not pass".to_owned(),
            }
        };
        Entry {
            key: key(device, runtime(&self.runtime, &self.unit), dtype, &self.model),
            state,
        }
    }
}

/// The family first, as tables name runtimes; the hub does not say versions.
fn runtime(name: &str, unit: &str) -> Runtime {
    let family = match name {
        "onnx" => "onnxruntime".to_owned(),
        "precompiled_qnn_onnx" => "onnxruntime-precompiled".to_owned(),
        other => other.replace('_', "-"),
    };
    Runtime::new(format!("{family}-{unit}"), "aihub")
}

fn key(device: &str, runtime: Runtime, dtype: Dtype, model: &str) -> LutKey {
    LutKey {
        device: device.to_owned(),
        runtime,
        dtype,
        block: Block::new(model, Shape::default()),
    }
}

/// The profile of a job, as `qai_hub`'s `download_profile` gives it; other keys are passed over.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Profile {
    /// The whole model.
    pub execution_summary: Summary,
    /// Its layers, in order.
    #[serde(default)]
    pub execution_detail: Vec<Layer>,
}

/// Times in microseconds, memory in bytes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Summary {
    /// Fastest of all runs.
    pub estimated_inference_time: f64,
    /// Most memory of a run.
    #[serde(default)]
    pub estimated_inference_peak_memory: Option<f64>,
    /// Lowest and highest peak, from version 1.1 on.
    #[serde(default)]
    pub inference_memory_peak_range: Option<(f64, f64)>,
    /// Each run, from version 1.2 on.
    #[serde(default)]
    pub all_inference_times: Vec<f64>,
    /// Loading for the first time.
    #[serde(default)]
    pub first_load_time: Option<f64>,
    /// Loading once it has been loaded before.
    #[serde(default)]
    pub warm_load_time: Option<f64>,
    /// Compiling.
    #[serde(default)]
    pub compile_time: Option<f64>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Layer {
    /// Its name.
    pub name: String,
    /// Its operator.
    #[serde(rename = "type")]
    pub kind: String,
    /// `NPU`, `GPU` or `CPU`.
    pub compute_unit: String,
    /// Microseconds; absent where only cycles are known.
    #[serde(default)]
    pub execution_time: Option<f64>,
}

/// The profile of a job as the entry of a model.
///
/// # Errors
/// The first place that is not JSON or no such profile; a time that is none.
pub fn import_profile(
    text: &str,
    device: &str,
    model: &str,
    runtime: Runtime,
    dtype: Dtype,
) -> Result<Imported, ImportErrors> {
    let profile: Profile = serde_json::from_str(text).map_err(|error| json_error(&error))?;
    let summary = &profile.execution_summary;
    let times = match summary.all_inference_times.as_slice() {
        [] => vec![summary.estimated_inference_time],
        all => all.to_vec(),
    };
    let range = summary.inference_memory_peak_range.map(|(_, most)| most);
    let peak = range.or(summary.estimated_inference_peak_memory);
    let samples = |field: &str, values: Vec<f64>| {
        Samples::new(values).map_err(|error| ImportError::Syntax {
            line: text
                .lines()
                .position(|line| line.contains(field))
                .map_or(1, |at| at as u64 + 1),
            column: 1,
            message: format!("{field}: {error}"),
        })
    };
    let measurement = Measurement {
        latency_ms: samples("inference_time", times.iter().map(|time| time / 1000.0).collect())?,
        peak_memory_bytes: samples("inference_memory_peak", peak.into_iter().collect())?,
    };
    let mut units = BTreeMap::<&str, u64>::new();
    profile
        .execution_detail
        .iter()
        .for_each(|layer| *units.entry(&layer.compute_unit).or_default() += 1);
    let mut notes: Vec<String> = units
        .iter()
        .map(|(unit, layers)| format!("{layers} layers on {unit}"))
        .collect();
    let loads = [
        ("compiling", summary.compile_time),
        ("first load", summary.first_load_time),
        ("warm load", summary.warm_load_time),
    ];
    notes.extend(
        loads
            .into_iter()
            .filter_map(|(what, time)| Some(format!("{what} {:.3} ms", time? / 1000.0))),
    );
    let entry = Entry {
        key: key(device, runtime, dtype, model),
        state: EntryState::Measured(measurement),
    };
    Ok(Imported {
        entries: vec![entry],
        notes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "model,component,precision,device,runtime,status,ms,peak_mb_min,peak_mb_max,unit,layers,npu,gpu,cpu\n\
        act,ACT,float,Phone,tflite,Passed,16.21,0,71,NPU,756,756,,\n\
        act,ACT,w8a8,Phone,qnn_dlc,Passed,8,0,30,NPU,756,756,,\n\
        act,ACT,float,Board,onnx,Passed,19.025,4,10,CPU,544,,,544\n";

    #[test]
    fn rows_of_a_device_become_entries_and_the_rest_is_told() {
        let imported = import_table(TABLE, "Phone", "phone", Dtype::F16).unwrap();
        let [entry] = &imported.entries[..] else {
            panic!("one entry")
        };
        assert_eq!(
            (entry.key.block.operator.as_str(), entry.key.device.as_str()),
            ("act/ACT", "phone")
        );
        assert_eq!(entry.key.runtime.to_string(), "tflite-npu aihub");
        let EntryState::Measured(measured) = &entry.state else {
            panic!("measured")
        };
        assert_eq!(measured.latency_ms.values(), [16.21]);
        assert_eq!(measured.peak_memory_bytes.values(), [71.0 * MEBIBYTE]);
        assert_eq!(imported.notes, ["1 rows in w8a8 left out: no number format of a table"]);
        let other = import_table(TABLE, "Tablet", "t", Dtype::F16).unwrap_err().to_string();
        assert_eq!(other, "line 1, column 4: device is \"Tablet\"; allowed: Board, Phone");
    }

    #[test]
    fn a_damaged_table_is_refused_with_its_places() {
        let told = import_table(&TABLE.replace("16.21", "fast"), "Phone", "p", Dtype::F16)
            .unwrap_err()
            .to_string();
        assert_eq!(told, "line 2, column 7: ms is \"fast\"; allowed: a number, 0 or more");
        let told = import_table(&TABLE.replace(",ms,", ",s,"), "Phone", "p", Dtype::F16)
            .unwrap_err()
            .to_string();
        assert!(told.contains("column \"ms\", which is missing"), "{told}");
        let cut = &TABLE[..TABLE.len() - 20];
        assert!(
            import_table(cut, "Phone", "p", Dtype::F16)
                .unwrap_err()
                .to_string()
                .starts_with("line 4,")
        );
    }

    const PROFILE: &str = r#"{
        "execution_summary": {
            "estimated_inference_time": 1500, "estimated_inference_peak_memory": 1000,
            "inference_memory_peak_range": [0, 2000], "all_inference_times": [1500, 1750],
            "first_load_time": 90000, "warm_load_time": null, "compile_time": 0
        },
        "execution_detail": [{"name": "conv", "type": "Conv2d", "compute_unit": "NPU", "execution_cycles": 7}]
    }"#;

    #[test]
    fn a_profile_is_read_in_milliseconds_with_all_runs_where_they_are_there() {
        let read = |text: &str| import_profile(text, "phone", "net", Runtime::new("qnn-npu", "2.31"), Dtype::F16);
        let latency = |imported: Imported| match &imported.entries[0].state {
            EntryState::Measured(measured) => (
                measured.latency_ms.values().to_vec(),
                measured.peak_memory_bytes.values().to_vec(),
            ),
            other => panic!("{other:?}"),
        };
        let imported = read(PROFILE).unwrap();
        assert_eq!(
            imported.notes,
            ["1 layers on NPU", "compiling 0.000 ms", "first load 90.000 ms"]
        );
        assert_eq!(latency(imported), (vec![1.5, 1.75], vec![2000.0]));
        let old = r#"{"execution_summary": {"estimated_inference_time": 1500, "estimated_inference_peak_memory": 1000, "inference_memory_peak_range": null}}"#;
        assert_eq!(latency(read(old).unwrap()), (vec![1.5], vec![1000.0]));
        let told = read(&PROFILE[..80]).unwrap_err().to_string();
        assert!(told.starts_with("line 3, column "), "{told}");
        let told = read(&PROFILE.replace("1750", "-1")).unwrap_err().to_string();
        assert!(told.starts_with("line 3, column 1: inference_time"), "{told}");
    }
}
