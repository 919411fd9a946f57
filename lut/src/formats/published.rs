//! Latency tables as the Once-for-All, ProxylessNAS and NSGANetV2 projects publish them: YAML of one depth.
//!
//! ```text
//! expanded_conv-input:112x112x24-output:56x56x32-expand:72-kernel:3-stride:2-idskip:0-se:0-hs:0:
//!   count: 56
//!   mean: 2.4670
//!   std: 0.0238
//! ```
//!
//! The part before the first `-` becomes the operator; `input` gives `h`, `w` and `c_in`, `output` gives `c_out`,
//! and every further part a dimension of its own name. Such tables keep no raw samples: the published mean
//! stands as the only one.

use search_spaces::{Block, Dtype, Shape};
use serde::Deserialize;

use super::{ImportError, ImportErrors, json_error};
use crate::{EntryState, Lut, Measurement, Runtime, Samples};

const KEY: &str = "a key such as Conv-input:224x224x3-output:112x112x24-kernel:3:";

/// Reads a table into entries of the given device, runtime and number type, which the files do not name.
///
/// # Errors
/// Every line that is neither a key nor a number, a key without a `mean`, a key that stands twice.
pub fn import(text: &str, device: &str, runtime: Runtime, dtype: Dtype) -> Result<Lut, ImportErrors> {
    let (rows, mut errors) = rows(text);
    let mut lut = Lut::new(device, runtime, dtype);
    for Row { line, block, mean } in rows {
        if lut.state(&block).is_some() {
            errors.push(error(
                line,
                1,
                "key",
                &block.to_string(),
                "each operator and shape once",
            ));
        }
        match mean {
            Some(latency_ms) => {
                let measurement = Measurement {
                    latency_ms,
                    peak_memory_bytes: Samples::default(),
                };
                lut.insert(block, EntryState::Measured(measurement));
            }
            None => errors.push(error(line, 1, "mean", "", "a line `mean: MILLISECONDS` below the key")),
        }
    }
    errors.sort_by_key(ImportError::line);
    if errors.is_empty() {
        Ok(lut)
    } else {
        Err(ImportErrors(errors))
    }
}

/// What a table says of a network: the sum of the entries it has, and the blocks it lacks.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sum {
    /// Milliseconds, of the blocks that are there.
    pub latency_ms: f64,
    /// Blocks of the network that the table does not have, in its order.
    pub missing: Vec<Block>,
}

/// Adds a network's blocks up; one that the table lacks is told and is no error.
#[must_use]
pub fn sum(table: &Lut, blocks: &[Block]) -> Sum {
    let mut sum = Sum::default();
    for block in blocks {
        match table.state(block) {
            Some(EntryState::Measured(measured)) => sum.latency_ms += measured.latency_ms.median().unwrap_or(0.0),
            _ => sum.missing.push(block.clone()),
        }
    }
    sum
}

#[derive(Deserialize)]
struct Network {
    first_conv: Layer,
    blocks: Vec<NetworkBlock>,
    feature_mix_layer: Layer,
    classifier: Classifier,
}

#[derive(Deserialize)]
struct NetworkBlock {
    mobile_inverted_conv: Layer,
    shortcut: Option<serde::de::IgnoredAny>,
}

/// A layer; one that does nothing has a name alone.
#[derive(Deserialize)]
struct Layer {
    name: String,
    #[serde(default)]
    in_channels: u64,
    #[serde(default)]
    out_channels: u64,
    #[serde(default)]
    kernel_size: u64,
    #[serde(default)]
    stride: u64,
    #[serde(default)]
    expand_ratio: u64,
}

#[derive(Deserialize)]
struct Classifier {
    in_features: u64,
    out_features: u64,
}

/// Height and width of the images that ProxylessNAS's tables are measured for.
const IMAGE: u64 = 224;

/// The blocks of a network as ProxylessNAS publishes it (JSON), named as its table names them.
///
/// # Errors
/// The first place that is not JSON or no such network; a stride of 0.
pub fn network(text: &str) -> Result<Vec<Block>, ImportErrors> {
    let network: Network = serde_json::from_str(text).map_err(|error| json_error(&error))?;
    let plain = |operator: &str, size: u64, c_in: u64, c_out: u64| {
        Block::new(
            operator,
            Shape::new([("h", size), ("w", size), ("c_in", c_in), ("c_out", c_out)]),
        )
    };
    let smaller = |size: u64, layer: &Layer| match layer.stride {
        0 => Err(error(1, 1, "stride", "0", "1 or more")),
        stride => Ok(size.div_ceil(stride)),
    };
    let first = &network.first_conv;
    let mut blocks = vec![plain("Conv", IMAGE, first.in_channels, first.out_channels)];
    let mut size = smaller(IMAGE, first)?;
    for NetworkBlock {
        mobile_inverted_conv: layer,
        shortcut,
    } in &network.blocks
    {
        if layer.name == "ZeroLayer" {
            continue;
        }
        let shape = Shape::new([
            ("h", size),
            ("w", size),
            ("c_in", layer.in_channels),
            ("c_out", layer.out_channels),
            ("expand", layer.expand_ratio),
            ("kernel", layer.kernel_size),
            ("stride", layer.stride),
            ("idskip", u64::from(shortcut.is_some())),
        ]);
        blocks.push(Block::new("expanded_conv", shape));
        size = smaller(size, layer)?;
    }
    let (mix, classifier) = (&network.feature_mix_layer, &network.classifier);
    blocks.push(plain("Conv_1", size, mix.in_channels, mix.out_channels));
    blocks.push(plain("Logits", size, classifier.in_features, classifier.out_features));
    Ok(blocks)
}

struct Row {
    line: u64,
    block: Block,
    mean: Option<Samples>,
}

/// Keys with the mean below them, and what is wrong with single lines.
fn rows(text: &str) -> (Vec<Row>, Vec<ImportError>) {
    let (mut rows, mut errors) = (Vec::new(), Vec::new());
    let mut open: Option<Row> = None;
    for (line, content) in (1..)
        .zip(text.lines())
        .filter(|(_, content)| !content.trim().is_empty())
    {
        if !content.starts_with(' ') {
            rows.extend(open.take());
            match key(line, content) {
                Ok(block) => {
                    open = Some(Row {
                        line,
                        block,
                        mean: None,
                    })
                }
                Err(error) => errors.push(error),
            }
            continue;
        }
        match (field(line, content), &mut open) {
            (Ok(Some(mean)), Some(row)) => row.mean = Some(mean),
            (Ok(_), _) => {}
            (Err(error), _) => {
                errors.push(error);
                // The line was there, so that it is missing is not told as well.
                open = None;
            }
        }
    }
    rows.extend(open);
    (rows, errors)
}

fn key(line: u64, content: &str) -> Result<Block, ImportError> {
    let refused = |found: &str, allowed: &str| {
        let column = content.find(found).map_or(1, |at| at as u64 + 1);
        error(line, column, "key", found, allowed)
    };
    let body = content
        .trim_end()
        .strip_suffix(':')
        .ok_or_else(|| refused(content, KEY))?;
    let mut parts = body.split('-');
    let operator = parts
        .next()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| refused(body, KEY))?;
    let mut shape = Shape::default();
    for part in parts {
        let (name, size) = part.split_once(':').ok_or_else(|| refused(part, "name:size"))?;
        let sizes: Option<Vec<u64>> = size.split('x').map(|size| size.parse().ok()).collect();
        shape = match (name, sizes.as_deref()) {
            ("input", Some(&[h, w, c])) => shape.with("h", h).with("w", w).with("c_in", c),
            ("input", Some(&[c])) => shape.with("c_in", c),
            ("output", Some(&[.., c])) => shape.with("c_out", c),
            ("input" | "output", _) => return Err(refused(part, "HEIGHTxWIDTHxCHANNELS or CHANNELS")),
            (name, Some(&[size])) => shape.with(name, size),
            _ => return Err(refused(part, "name:size with a whole number")),
        };
    }
    Ok(Block::new(operator, shape))
}

/// The mean, if this line holds it; the others are checked to be numbers.
fn field(line: u64, content: &str) -> Result<Option<Samples>, ImportError> {
    let column = |found: &str| content.find(found).map_or(1, |at| at as u64 + 1);
    let (name, value) = content
        .trim()
        .split_once(": ")
        .ok_or_else(|| error(line, column(content.trim()), "line", content.trim(), "name: number"))?;
    let number = value
        .parse::<f64>()
        .ok()
        .and_then(|value| Samples::new(vec![value]).ok());
    let samples = number.ok_or_else(|| error(line, column(value), name, value, "a number from 0 to 1e15"))?;
    Ok((name == "mean").then_some(samples))
}

fn error(line: u64, column: u64, field: &str, found: &str, allowed: &str) -> ImportError {
    ImportError::Value {
        line,
        column,
        field: field.into(),
        found: found.into(),
        allowed: allowed.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lookup;

    fn read(text: &str) -> Result<Lut, ImportErrors> {
        import(text, "phone", Runtime::new("tflite-cpu", "1.15"), Dtype::F32)
    }

    #[test]
    fn a_key_becomes_operator_and_shape() {
        let lut = read("MBConv-input:8x8x16-output:4x4x24-expand:3-stride:2:\n  count: 9\n  mean: 1.5\n  std: 0.1\n")
            .expect("valid");
        let shape = Shape::new([
            ("h", 8),
            ("w", 8),
            ("c_in", 16),
            ("c_out", 24),
            ("expand", 3),
            ("stride", 2),
        ]);
        let Lookup::Measured(cost) = lut.get(&Block::new("MBConv", shape)) else {
            panic!("not measured")
        };
        assert_eq!(cost.latency_ms.value, 1.5);
        assert_eq!(cost.peak_memory_bytes, None);
    }

    #[test]
    fn every_fault_is_told_with_its_place() {
        let text = "Conv-input:8x8:\n  mean: 1\nLogits-input:4-output:10:\n  mean: slow\nPool-input:4:\n  mean: 1\nPool-input:4:\n  mean: 2\nPool-input:5:\n";
        let told = read(text).expect_err("faulty").to_string();
        assert_eq!(
            told,
            "line 1, column 6: key is \"input:8x8\"; allowed: HEIGHTxWIDTHxCHANNELS or CHANNELS\n\
             line 4, column 9: mean is \"slow\"; allowed: a number from 0 to 1e15\n\
             line 7, column 1: key is \"Pool c_in=4\"; allowed: each operator and shape once\n\
             line 9, column 1: mean is \"\"; allowed: a line `mean: MILLISECONDS` below the key"
        );
    }
}
