//! From what workers upload to entries of a look-up table.

use lut::{Entry, EntryState, LutKey, Measurement, Runtime, Samples};
use protocol::{
    FieldProblem,
    devices::RuntimeName,
    luts::{Block, EntryOutcome, EntryUpload},
};
use search_spaces::Shape;
use sha2::{Digest, Sha256};

/// The most raw samples of one figure that an entry may bring.
const MOST_SAMPLES: usize = 10_000;

/// Entries of a table, or every field that cannot be one; `path` is where the list stands in the request.
///
/// # Errors
/// All fields at fault.
pub fn entries(
    device: &str,
    runtime: &RuntimeName,
    uploads: &[EntryUpload],
    path: &str,
) -> Result<Vec<Entry>, Vec<FieldProblem>> {
    let mut problems = Vec::new();
    let mut entries = Vec::with_capacity(uploads.len());
    for (index, upload) in uploads.iter().enumerate() {
        match entry(device, runtime, upload) {
            Ok(entry) => entries.push(entry),
            Err((field, message)) => problems.push(FieldProblem {
                field: format!("{path}[{index}].{field}"),
                line: None,
                column: None,
                message,
            }),
        }
    }
    if problems.is_empty() {
        Ok(entries)
    } else {
        Err(problems)
    }
}

fn entry(device: &str, runtime: &RuntimeName, upload: &EntryUpload) -> Result<Entry, (&'static str, String)> {
    if upload.block.operator.is_empty() || upload.block.operator.len() > 100 {
        return Err(("block.operator", "must have 1 to 100 characters".to_owned()));
    }
    let dtype = upload
        .dtype
        .parse()
        .map_err(|error: search_spaces::UnknownDtype| ("dtype", error.to_string()))?;
    let samples = |field, values: &[f64]| {
        if values.len() > MOST_SAMPLES {
            return Err((
                field,
                format!("{} samples; at most {MOST_SAMPLES} are taken", values.len()),
            ));
        }
        Samples::new(values.to_vec()).map_err(|error| (field, error.to_string()))
    };
    let state = match &upload.outcome {
        EntryOutcome::Measured { latency_ms, .. } if latency_ms.is_empty() => {
            return Err(("latency_ms", "a measured entry needs at least one sample".to_owned()));
        }
        EntryOutcome::Measured {
            latency_ms,
            peak_memory_bytes,
        } => EntryState::Measured(Measurement {
            latency_ms: samples("latency_ms", latency_ms)?,
            peak_memory_bytes: samples("peak_memory_bytes", peak_memory_bytes)?,
        }),
        EntryOutcome::OutOfMemory { detail } => EntryState::OutOfMemory { detail: detail.clone() },
        EntryOutcome::Unsupported { detail } => EntryState::Unsupported { detail: detail.clone() },
    };
    let key = LutKey {
        device: device.to_owned(),
        runtime: lut_runtime(runtime),
        dtype,
        block: lut_block(&upload.block),
    };
    Ok(Entry { key, state })
}

/// The runtime as tables name it.
#[must_use]
pub fn lut_runtime(runtime: &RuntimeName) -> Runtime {
    Runtime::new(&runtime.name, &runtime.version)
}

/// The block as tables name it.
#[must_use]
pub fn lut_block(block: &Block) -> search_spaces::Block {
    search_spaces::Block {
        operator: block.operator.clone(),
        shape: block.shape.iter().map(|(k, v)| (k.clone(), *v)).collect::<Shape>(),
    }
}

/// The block as the wire names it.
#[must_use]
pub fn wire_block(block: &search_spaces::Block) -> Block {
    Block {
        operator: block.operator.clone(),
        shape: block.shape.iter().map(|(k, v)| (k.to_owned(), v)).collect(),
    }
}

/// SHA-256 of bytes in hexadecimal digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
