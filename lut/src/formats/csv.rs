//! CSV: one line an entry, raw samples in one field with a space between.
//!
//! ```text
//! device,runtime,version,dtype,operator,shape,state,detail,latency_ms,peak_memory_bytes
//! desk,libtorch-cpu-1t,2.11.0,f32,conv1d,c=64 h=8 t=5 w=8,measured,,1.25 1.27 1.26,81920 81920 81920
//! ```

use std::{fmt::Display, str::FromStr};

use ::csv::{ReaderBuilder, StringRecord, WriterBuilder};
use search_spaces::{Block, Dtype, Shape};

use super::{Conflict, ImportError, ImportErrors, entry, parts};
use crate::{Entry, LutKey, Runtime, Samples};

const COLUMNS: [&str; 10] = [
    "device",
    "runtime",
    "version",
    "dtype",
    "operator",
    "shape",
    "state",
    "detail",
    "latency_ms",
    "peak_memory_bytes",
];

/// Entries as CSV text.
pub fn export(entries: impl IntoIterator<Item = Entry>) -> String {
    let mut writer = WriterBuilder::new().from_writer(Vec::new());
    let rows = entries.into_iter().map(|Entry { key, state }| {
        let (detail, latency, memory) = parts(&state);
        [
            key.device,
            key.runtime.name,
            key.runtime.version,
            key.dtype.to_string(),
            key.block.operator,
            key.block.shape.to_string(),
            state.label().to_owned(),
            detail.to_owned(),
            joined(latency),
            joined(memory),
        ]
    });
    for row in std::iter::once(COLUMNS.map(str::to_owned)).chain(rows) {
        writer.write_record(row).expect("rows of equal length go into memory");
    }
    let bytes = writer.into_inner().expect("memory takes every byte");
    String::from_utf8(bytes).expect("fields are text")
}

fn joined(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")
}

/// Reads what [`export`] writes; the order of the columns is free.
///
/// # Errors
/// Every line that is not such an entry, with its line, column, what was found and what is allowed.
pub fn import(text: &str) -> Result<Vec<Entry>, ImportErrors> {
    let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
    let header = reader.headers().map_err(|error| syntax(&error))?.clone();
    let places = places(&header)?;
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    for record in reader.records() {
        match record
            .map_err(|error| syntax(&error))
            .and_then(|record| Row { record, places }.entry())
        {
            Ok(entry) => entries.push(entry),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        Ok(entries)
    } else {
        Err(ImportErrors(errors))
    }
}

/// Where each of [`COLUMNS`] stands in the header.
fn places(header: &StringRecord) -> Result<[usize; COLUMNS.len()], ImportErrors> {
    let mut errors = Vec::new();
    let allowed = COLUMNS.join(", ");
    for (i, name) in header.iter().enumerate() {
        if !COLUMNS.contains(&name) || header.iter().take(i).any(|earlier| earlier == name) {
            let (column, found, allowed) = (i as u64 + 1, name.to_owned(), format!("{allowed}, each once"));
            errors.push(ImportError::Value {
                line: 1,
                column,
                field: "header".into(),
                found,
                allowed,
            });
        }
    }
    let mut places = [0; COLUMNS.len()];
    for (place, name) in places.iter_mut().zip(COLUMNS) {
        match header.iter().position(|found| found == name) {
            Some(i) => *place = i,
            None => {
                let (column, found) = (header.len() as u64 + 1, String::new());
                let allowed = format!("column {name:?}, which is missing");
                errors.push(ImportError::Value {
                    line: 1,
                    column,
                    field: "header".into(),
                    found,
                    allowed,
                });
            }
        }
    }
    if errors.is_empty() {
        Ok(places)
    } else {
        Err(ImportErrors(errors))
    }
}

fn syntax(error: &::csv::Error) -> ImportError {
    let line = error.position().map_or(1, ::csv::Position::line);
    let message = match error.kind() {
        ::csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{len} fields; allowed: {expected_len}, as in the header")
        }
        _ => error.to_string(),
    };
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

impl Row {
    fn entry(&self) -> Result<Entry, ImportError> {
        let block = Block {
            operator: self.text("operator")?,
            shape: self.parsed::<Shape>("shape", "name=size pairs such as \"c=64 h=8 t=5 w=8\"")?,
        };
        let runtime = Runtime::new(self.text("runtime")?, self.text("version")?);
        let dtype = self.parsed::<Dtype>("dtype", "f32, f16, bf16")?;
        let key = LutKey {
            device: self.text("device")?,
            runtime,
            dtype,
            block,
        };
        let (latency, memory) = (self.samples("latency_ms")?, self.samples("peak_memory_bytes")?);
        entry(
            key,
            self.field("state"),
            self.field("detail").to_owned(),
            latency,
            memory,
        )
        .map_err(|Conflict { field, found, allowed }| self.error(field, &found, allowed))
    }

    fn place(&self, name: &str) -> usize {
        COLUMNS
            .iter()
            .position(|column| *column == name)
            .map_or(0, |i| self.places[i])
    }

    fn field(&self, name: &str) -> &str {
        self.record.get(self.place(name)).unwrap_or_default()
    }

    fn text(&self, name: &str) -> Result<String, ImportError> {
        match self.field(name).trim() {
            "" => Err(self.error(name, "", "a name")),
            text => Ok(text.to_owned()),
        }
    }

    fn parsed<T: FromStr<Err: Display>>(&self, name: &str, allowed: &str) -> Result<T, ImportError> {
        self.field(name)
            .parse()
            .map_err(|_| self.error(name, self.field(name), allowed))
    }

    fn samples(&self, name: &str) -> Result<Samples, ImportError> {
        let allowed = "numbers from 0 to 1e15, with a space between";
        let number = |text: &str| text.parse::<f64>().map_err(|_| self.error(name, text, allowed));
        let values: Vec<f64> = self
            .field(name)
            .split_whitespace()
            .map(number)
            .collect::<Result<_, _>>()?;
        Samples::new(values).map_err(|error| self.error(name, &error.found.to_string(), allowed))
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
