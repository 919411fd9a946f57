//! Core ML: the report that Xcode writes (`X.mlperf/report.json`), and a log of the runtime's own estimates.
//!
//! A report is of a whole model: samples in seconds of loading, compiling and predicting; operations by the unit that
//! Core ML prefers for them, in some versions only. It tells no shapes and no memory. What names a person's device
//! (serial number, identifiers, display name) is not read at all, and so cannot travel on.
//!
//! Estimates are not measurements: they are shown and never stored.

use std::collections::BTreeMap;

use ::csv::{ReaderBuilder, Trim};
use search_spaces::{Block, Dtype, Shape};
use serde::Deserialize;

use super::{ImportError, ImportErrors, Imported, json_error};
use crate::{Entry, EntryState, LutKey, Measurement, Runtime, Samples};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    model_metadata: Metadata,
    device_info: DeviceInfo,
    compute_unit: u8,
    device_results: Results,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    file_name: String,
}

/// Serial number, identifier and display name stand beside these and are left where they are.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceInfo {
    model_name: String,
    os_name_and_version_without_build_number: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    predict: Phase,
    #[serde(default)]
    load: Option<Phase>,
    #[serde(default)]
    compile: Option<Phase>,
    /// Version-dependent, so looked into only where it is as expected.
    #[serde(default)]
    model_structure: serde_json::Value,
}

#[derive(Deserialize)]
struct Phase {
    /// Seconds.
    samples: Vec<f64>,
}

/// The report of a model as its entry.
///
/// # Errors
/// The first place that is not JSON or no such report; a time or unit that is none.
pub fn import_report(text: &str, device: &str, dtype: Dtype) -> Result<Imported, ImportErrors> {
    let report: Report = serde_json::from_str(text).map_err(|error| json_error(&error))?;
    let at_fault = |field: &str, found: String, allowed: &str| ImportError::Value {
        line: text
            .lines()
            .position(|line| line.contains(field))
            .map_or(1, |at| at as u64 + 1),
        column: 1,
        field: field.to_owned(),
        found,
        allowed: allowed.to_owned(),
    };
    let unit = match report.compute_unit {
        0 => "cpu",
        1 => "cpu-gpu",
        2 => "all",
        3 => "cpu-ne",
        other => return Err(at_fault("computeUnit", other.to_string(), "0, 1, 2, 3").into()),
    };
    let milliseconds = |phase: &Phase, field: &str| {
        let samples = Samples::new(phase.samples.iter().map(|seconds| 1000.0 * seconds).collect());
        samples.map_err(|error| at_fault(field, error.found.to_string(), "times in seconds"))
    };
    let latency_ms = milliseconds(&report.device_results.predict, "predict")?;
    if latency_ms.is_empty() {
        return Err(at_fault("predict", String::new(), "at least one sample").into());
    }
    let model = report.model_metadata.file_name;
    let model = [".mlpackage", ".mlmodelc", ".mlmodel"]
        .iter()
        .find_map(|ending| model.strip_suffix(ending))
        .unwrap_or(&model);
    let info = report.device_info;
    let mut notes = vec![format!(
        "measured on {}, {}",
        info.model_name, info.os_name_and_version_without_build_number
    )];
    for (what, phase) in [
        ("load", &report.device_results.load),
        ("compile", &report.device_results.compile),
    ] {
        if let Some(median) = phase
            .as_ref()
            .map(|phase| milliseconds(phase, what))
            .transpose()?
            .and_then(|all| all.median())
        {
            notes.push(format!("{what} {median:.3} ms in the median"));
        }
    }
    let units = preferred_units(&report.device_results.model_structure);
    notes.extend(
        units
            .iter()
            .map(|(unit, operations)| format!("{operations} operations on {unit}")),
    );
    let key = LutKey {
        device: device.to_owned(),
        runtime: Runtime::new(format!("coreml-{unit}"), info.os_name_and_version_without_build_number),
        dtype,
        block: Block::new(model, Shape::default()),
    };
    let measurement = Measurement {
        latency_ms,
        peak_memory_bytes: Samples::default(),
    };
    let entry = Entry {
        key,
        state: EntryState::Measured(measurement),
    };
    Ok(Imported {
        entries: vec![entry],
        notes,
    })
}

/// How many operations Core ML prefers each kind of unit for.
fn preferred_units(structure: &serde_json::Value) -> BTreeMap<String, u64> {
    let mut units = BTreeMap::new();
    let functions = structure["program"]["_0"]["functions"].as_object();
    let operations = functions
        .into_iter()
        .flat_map(serde_json::Map::values)
        .filter_map(|function| function["block"]["operations"].as_array());
    for operation in operations.flatten() {
        if let Some(unit) = operation["deviceUsage"]["preferred"]["deviceType"].as_str() {
            *units.entry(unit.to_owned()).or_default() += 1;
        }
    }
    units
}

/// One operation as the runtime estimates it.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// Its name in the compiled model.
    pub name: String,
    /// Its operator.
    pub operator: String,
    /// The backend that was chosen: `ane`, `bnns`, `classic_cpu`, `mps_graph`.
    pub backend: String,
    /// The chosen backend's estimate, as the log has it: unit undocumented, in proportion to time.
    pub estimate: f64,
}

/// Reads a log of estimates: each operation with the backend that was chosen. Values are padded with a space; a backend
/// that cannot run an operation has neither name nor estimate.
///
/// # Errors
/// A log without the columns; every operation without a number for the backend that was chosen.
pub fn import_estimates(text: &str) -> Result<Vec<Estimate>, ImportErrors> {
    const BACKENDS: usize = 4;
    const COLUMNS: usize = 3 + 3 * BACKENDS;
    // The reader trims only after it has looked for quotes, so these stay and are taken off below.
    let mut reader = ReaderBuilder::new()
        .trim(Trim::All)
        .quoting(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| syntax(&error))?.clone();
    let expected = ["DebugName", "OpType", "SelectedBackend", "backend_0"];
    for (at, name) in expected.into_iter().enumerate() {
        if header.get(at) != Some(name) {
            let found = header.get(at).unwrap_or_default().to_owned();
            let (field, allowed, column) = ("header".to_owned(), name.to_owned(), at as u64 + 1);
            return Err(ImportError::Value {
                line: 1,
                column,
                field,
                found,
                allowed,
            }
            .into());
        }
    }
    let (mut estimates, mut errors) = (Vec::new(), Vec::new());
    for record in reader.records() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                errors.push(syntax(&error));
                continue;
            }
        };
        let line = record.position().map_or(0, ::csv::Position::line);
        let refused = |column: usize, field: &str, found: &str, allowed: &str| ImportError::Value {
            line,
            column: column as u64 + 1,
            field: field.to_owned(),
            found: found.to_owned(),
            allowed: allowed.to_owned(),
        };
        // A reason why a backend cannot run an operation may itself hold commas, at the very end of the line.
        if record.len() < COLUMNS {
            errors.push(refused(
                record.len(),
                "line",
                &format!("{} values", record.len()),
                "15 values",
            ));
            continue;
        }
        let value = |at: usize| record.get(at).unwrap_or_default();
        let backend = value(2).trim_matches('"');
        let Some(place) = (0..BACKENDS).find(|place| value(3 + place) == backend) else {
            errors.push(refused(
                2,
                "SelectedBackend",
                backend,
                "one of the backends of its line",
            ));
            continue;
        };
        let at = 3 + BACKENDS + place;
        match value(at)
            .parse::<f64>()
            .ok()
            .filter(|estimate| estimate.is_finite() && *estimate >= 0.0)
        {
            Some(estimate) => estimates.push(Estimate {
                name: value(0).to_owned(),
                operator: value(1).to_owned(),
                backend: backend.to_owned(),
                estimate,
            }),
            None => errors.push(refused(
                at,
                &format!("est_time_{place}"),
                value(at),
                "a number, 0 or more",
            )),
        }
    }
    if errors.is_empty() && estimates.is_empty() {
        errors.push(ImportError::Syntax {
            line: 2,
            column: 1,
            message: "no operation".to_owned(),
        });
    }
    if errors.is_empty() {
        Ok(estimates)
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

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{
        "modelMetadata": {"fileName": "unet.mlpackage", "size": 12},
        "deviceInfo": {
            "modelName": "iPhone 16 Pro Max", "osNameAndVersionWithoutBuildNumber": "iOS 18.2",
            "serialNumber": "F2LXSECRET", "deviceID": "00008140-SECRET", "displayName": "Someone's phone"
        },
        "computeUnit": 3,
        "deviceResults": {
            "predict": {"samples": [0.25, 0.26], "numOperations": 2},
            "load": {"samples": [1.5]},
            "modelStructure": {"program": {"_0": {"functions": {"main": {"block": {"operations": [
                {"operatorName": "ios17.conv", "deviceUsage": {"preferred": {"deviceType": "neuralEngine"}}},
                {"operatorName": "const"}
            ]}}}}}}
        }
    }"#;

    #[test]
    fn a_report_becomes_an_entry_and_names_nobody() {
        let imported = import_report(REPORT, "iphone", Dtype::F16).unwrap();
        let told = format!("{imported:?}");
        assert!(!told.contains("SECRET") && !told.contains("Someone"), "{told}");
        let [entry] = &imported.entries[..] else {
            panic!("one entry")
        };
        assert_eq!(entry.key.runtime.to_string(), "coreml-cpu-ne iOS 18.2");
        assert_eq!(entry.key.block.operator, "unet");
        let EntryState::Measured(measured) = &entry.state else {
            panic!("measured")
        };
        assert_eq!(measured.latency_ms.values(), [250.0, 260.0]);
        assert!(
            imported.notes.contains(&"1 operations on neuralEngine".to_owned()),
            "{told}"
        );
        assert!(
            imported.notes.contains(&"load 1500.000 ms in the median".to_owned()),
            "{told}"
        );
    }

    #[test]
    fn a_report_that_is_damaged_is_refused_with_its_place() {
        let read = |text: &str| import_report(text, "iphone", Dtype::F16).unwrap_err().to_string();
        assert!(read(&REPORT[..100]).starts_with("line 4, column "));
        assert_eq!(
            read(&REPORT.replace("\"computeUnit\": 3", "\"computeUnit\": 9")),
            "line 7, column 1: computeUnit is \"9\"; allowed: 0, 1, 2, 3"
        );
        assert!(read(&REPORT.replace("0.25,", "-1,")).starts_with("line 9, column 1: predict is"));
        assert!(read(&REPORT.replace("[0.25, 0.26]", "[]")).contains("at least one sample"));
    }

    const LOG: &str = "DebugName, OpType, SelectedBackend, backend_0, backend_1, backend_2, backend_3, est_time_0, est_time_1, est_time_2, est_time_3, invalid_0, invalid_1, invalid_2, invalid_3\n\
        ios17.mul:6:12, ios17.mul, \"bnns\", , bnns, classic_cpu, mps_graph, , 0.026, 0.03, 0.015, Invalid output tensor format: fp32, , , \n\
        ios17.conv:25:12, ios17.conv, \"ane\", ane, bnns, classic_cpu, mps_graph, 0.004, 0.08, 0.09, 0.03, , , , \n";

    #[test]
    fn an_estimate_is_that_of_the_backend_that_was_chosen() {
        let estimates = import_estimates(LOG).unwrap();
        let told: Vec<_> = estimates
            .iter()
            .map(|one| (one.backend.as_str(), one.estimate))
            .collect();
        assert_eq!(told, [("bnns", 0.026), ("ane", 0.004)]);
        let told = import_estimates(&LOG.replace("0.004", "soon")).unwrap_err().to_string();
        assert_eq!(
            told,
            "line 3, column 8: est_time_0 is \"soon\"; allowed: a number, 0 or more"
        );
        let told = import_estimates(&LOG[..LOG.len() - 60]).unwrap_err().to_string();
        assert!(told.starts_with("line 3, column"), "{told}");
        assert!(import_estimates("a,b\n").is_err() && import_estimates("").is_err());
    }
}
