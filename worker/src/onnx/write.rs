//! A finished graph as files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use prost::Message as _;
use protocol::jobs::TensorSpec;
use tch::Device;

use super::graph::{Attribute, Constant, Node};
use super::proto::{
    AttributeProto, DimensionProto, EXTERNAL, FLOAT, FLOAT16, GraphProto, INT64, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use super::{Dtype, Graph, OPSET, OnnxError, Value};

/// Bytes of weights up to which they stand in the graph's own file. A protobuf message ends at 2 GiB, and readers hold
/// it in memory whole.
pub const INLINE_BYTES: usize = 64 << 20;
/// Constants smaller than this stand in the graph's file always: shapes and factors, which readers look at.
const SMALL_BYTES: usize = 1024;
/// Weights in a file of their own begin at multiples of a page, so that a runtime can map them.
const PAGE: u64 = 4096;
/// Version of the file format that came with the opset.
const IR_VERSION: i64 = 8;

/// A graph on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// The ONNX file.
    pub graph: PathBuf,
    /// The file of its weights, where they are apart; the graph names it, so both stay in one folder.
    pub weights: Option<PathBuf>,
    /// What goes in.
    pub inputs: Vec<TensorSpec>,
    /// What comes out.
    pub outputs: Vec<TensorSpec>,
    /// Scalars of its weights.
    pub parameters: u64,
    /// Multiplications with additions of its convolutions and matrix products.
    pub macs: u64,
}

impl Written {
    /// The ONNX file, then that of the weights where there is one.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.graph.as_path()).chain(self.weights.as_deref())
    }
}

impl Dtype {
    pub(super) const fn code(self) -> i32 {
        match self {
            Self::F32 => FLOAT,
            Self::F16 => FLOAT16,
            Self::I64 => INT64,
        }
    }
}

impl Graph {
    /// Writes `NAME.onnx` into a folder, and `NAME.onnx.data` beside it where the weights have more than `inline` bytes
    /// (see [`INLINE_BYTES`]).
    ///
    /// # Errors
    /// The first use of an operator that could not be, a weight that is no finite number in the graph's format, or a
    /// file that cannot be written.
    pub fn write(&self, folder: &Path, inline: usize) -> Result<Written, OnnxError> {
        if let Some(problem) = self.problem() {
            return Err(self.wrong(problem.to_owned()));
        }
        let path = folder.join(format!("{}.onnx", self.name()));
        let bytes: usize = self.constants.iter().map(Constant::bytes).sum();
        let mut weights = (bytes > inline).then(|| WeightsFile::create(&path)).transpose()?;
        let constants = self.constants.iter();
        let initializer = constants.map(|constant| self.tensor(constant, weights.as_mut()));
        let renamed: HashMap<&str, &str> = self
            .outputs
            .iter()
            .map(|(to, from)| (&*from.name, to.as_str()))
            .collect();
        let graph = GraphProto {
            initializer: initializer.collect::<Result<_, _>>()?,
            node: self.nodes.iter().map(|node| node_of(node, &renamed)).collect(),
            name: Some(self.name().to_owned()),
            input: self.used_inputs().map(|value| info(&value.name, value)).collect(),
            output: self.outputs.iter().map(|(name, value)| info(name, value)).collect(),
        };
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some(env!("CARGO_PKG_NAME").to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(OPSET.into()),
            }],
        };
        std::fs::write(&path, model.encode_to_vec()).map_err(|source| OnnxError::File {
            path: path.clone(),
            source,
        })?;
        Ok(Written {
            name: self.name().to_owned(),
            weights: weights.map(WeightsFile::finish).transpose()?,
            graph: path,
            inputs: self.input_specs(),
            outputs: self.output_specs(),
            parameters: self.parameters(),
            macs: self.macs(),
        })
    }

    fn tensor(&self, constant: &Constant, weights: Option<&mut WeightsFile>) -> Result<TensorProto, OnnxError> {
        let value = &constant.value;
        let data = constant.data();
        let Some(data) = data else {
            return Err(self.wrong(format!(
                "`{}` of shape {:?} has numbers that are not finite in {}",
                value.name,
                value.shape(),
                value.dtype().name()
            )));
        };
        let mut proto = TensorProto {
            dims: value.shape().to_vec(),
            data_type: Some(value.dtype().code()),
            name: Some(value.name.to_string()),
            ..TensorProto::default()
        };
        match weights {
            Some(weights) if data.len() >= SMALL_BYTES => {
                proto.external_data = weights.add(&data)?;
                proto.data_location = Some(EXTERNAL);
            }
            _ => proto.raw_data = Some(data),
        }
        Ok(proto)
    }

    pub(super) fn wrong(&self, problem: String) -> OnnxError {
        OnnxError::Graph {
            graph: self.name().to_owned(),
            problem,
        }
    }
}

impl Constant {
    fn bytes(&self) -> usize {
        self.tensor.numel() * self.value.dtype().bytes()
    }

    /// Its numbers in its format, little-endian; nothing where one is not finite.
    fn data(&self) -> Option<Vec<u8>> {
        let kind = self.value.dtype().kind();
        let tensor = self.tensor.to_device(Device::Cpu).to_kind(kind).contiguous();
        let is_finite = kind == tch::Kind::Int64 || bool::try_from(tensor.isfinite().all()).unwrap_or(false);
        let mut data = vec![0; self.bytes()];
        if !data.is_empty() {
            tensor.copy_data_u8(&mut data, tensor.numel());
        }
        is_finite.then_some(data)
    }
}

/// The file of weights while it is written.
struct WeightsFile {
    path: PathBuf,
    name: String,
    file: BufWriter<File>,
    length: u64,
}

impl WeightsFile {
    fn create(graph: &Path) -> Result<Self, OnnxError> {
        let name = format!("{}.data", graph.file_name().unwrap_or_default().to_string_lossy());
        let path = graph.with_file_name(&name);
        match File::create(&path) {
            Ok(file) => Ok(Self {
                path,
                name,
                file: BufWriter::new(file),
                length: 0,
            }),
            Err(source) => Err(OnnxError::File { path, source }),
        }
    }

    /// Where the bytes are, in ONNX's words.
    fn add(&mut self, data: &[u8]) -> Result<Vec<StringStringEntryProto>, OnnxError> {
        let offset = self.length.next_multiple_of(PAGE);
        let gap = vec![0; (offset - self.length) as usize];
        let written = self.file.write_all(&gap).and_then(|()| self.file.write_all(data));
        written.map_err(|source| self.error(source))?;
        self.length = offset + data.len() as u64;
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        Ok(vec![
            entry("location", self.name.clone()),
            entry("offset", offset.to_string()),
            entry("length", data.len().to_string()),
        ])
    }

    fn finish(mut self) -> Result<PathBuf, OnnxError> {
        self.file.flush().map_err(|source| self.error(source))?;
        Ok(self.path)
    }

    fn error(&self, source: std::io::Error) -> OnnxError {
        OnnxError::File {
            path: self.path.clone(),
            source,
        }
    }
}

fn node_of(node: &Node, renamed: &HashMap<&str, &str>) -> NodeProto {
    let name = |name: &Rc<str>| {
        renamed
            .get(&**name)
            .map_or_else(|| name.to_string(), |to| (*to).to_owned())
    };
    NodeProto {
        input: node.inputs.iter().map(name).collect(),
        output: node.outputs.iter().map(name).collect(),
        name: Some(node.name.clone()),
        op_type: Some(node.operator.to_owned()),
        attribute: node
            .attributes
            .iter()
            .map(|(name, value)| attribute(name, value))
            .collect(),
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    match value {
        Attribute::Float(number) => (proto.f, proto.kind) = (Some(*number as f32), Some(1)),
        Attribute::Int(number) => (proto.i, proto.kind) = (Some(*number), Some(2)),
        Attribute::Text(text) => (proto.s, proto.kind) = (Some(text.as_bytes().to_vec()), Some(3)),
        Attribute::Ints(numbers) => (proto.ints, proto.kind) = (numbers.clone(), Some(7)),
    }
    proto
}

fn info(name: &str, value: &Value) -> ValueInfoProto {
    let dimension = |size: &i64| DimensionProto { dim_value: Some(*size) };
    let tensor = TensorTypeProto {
        elem_type: Some(value.dtype().code()),
        shape: Some(TensorShapeProto {
            dim: value.shape().iter().map(dimension).collect(),
        }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            tensor_type: Some(tensor),
        }),
    }
}
