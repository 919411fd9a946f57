//! A graph while it is built.

use std::collections::HashMap;
use std::rc::Rc;

use protocol::jobs::{ExportPrecision, TensorSpec};
use tch::{Kind, Tensor};

/// Number format of a graph's weights and activations.
pub type Precision = ExportPrecision;

/// Number format of a tensor of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// 64-bit integers.
    I64,
}

impl Dtype {
    /// Of a graph's activations.
    #[must_use]
    pub const fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
        }
    }

    /// Name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::I64 => "i64",
        }
    }

    /// libtorch's.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::F16 => Kind::Half,
            Self::I64 => Kind::Int64,
        }
    }

    /// Bytes of one number.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
            Self::I64 => 8,
        }
    }
}

/// A tensor of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub(super) name: Rc<str>,
    dtype: Dtype,
    shape: Rc<[i64]>,
}

impl Value {
    pub(super) fn new(name: String, dtype: Dtype, shape: &[i64]) -> Self {
        Self {
            name: name.into(),
            dtype,
            shape: shape.into(),
        }
    }

    /// Its name in the graph.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sizes, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// Number format.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Size of an axis, from the end where it is negative; 0 where there is none.
    #[must_use]
    pub fn size(&self, axis: i64) -> i64 {
        self.shape.get(self.axis(axis)).copied().unwrap_or(0)
    }

    /// Number of axes.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// Counts from the front what may count from the end.
    pub(super) fn axis(&self, axis: i64) -> usize {
        let axis = if axis < 0 { axis + self.rank() as i64 } else { axis };
        usize::try_from(axis).unwrap_or(usize::MAX)
    }

    /// Through a module of one input: `xs.through(graph, &module)`.
    pub fn through(&self, graph: &mut Graph, module: &impl super::Export) -> Self {
        module.export(graph, self)
    }
}

/// A parameter of a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f64),
    Text(&'static str),
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) operator: &'static str,
    pub(super) inputs: Vec<Rc<str>>,
    pub(super) outputs: Vec<Rc<str>>,
    pub(super) attributes: Vec<(&'static str, Attribute)>,
}

/// A tensor that stands in the file; converted to its number format when it is written.
#[derive(Debug)]
pub(super) struct Constant {
    pub(super) value: Value,
    pub(super) tensor: Tensor,
}

/// What tells a tensor in memory from others: one that is used twice is taken up once.
type Place = (usize, Vec<i64>, Vec<i64>, Dtype);

/// A graph while it is built; see the [module](super) for how.
#[derive(Debug)]
pub struct Graph {
    name: String,
    precision: Precision,
    scope: Vec<String>,
    pub(super) inputs: Vec<Value>,
    pub(super) outputs: Vec<(String, Value)>,
    pub(super) nodes: Vec<Node>,
    pub(super) constants: Vec<Constant>,
    places: HashMap<Place, Value>,
    small: HashMap<(Dtype, Vec<i64>, Vec<u64>), Value>,
    parameters: u64,
    pub(super) macs: u64,
    problem: Option<String>,
}

impl Graph {
    /// An empty graph; its file will be named after it.
    #[must_use]
    pub fn new(name: &str, precision: Precision) -> Self {
        Self {
            name: name.to_owned(),
            precision,
            scope: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            nodes: Vec::new(),
            constants: Vec::new(),
            places: HashMap::new(),
            small: HashMap::new(),
            parameters: 0,
            macs: 0,
            problem: None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number format.
    #[must_use]
    pub const fn precision(&self) -> Precision {
        self.precision
    }

    /// The number format of its activations.
    #[must_use]
    pub const fn dtype(&self) -> Dtype {
        Dtype::of(self.precision)
    }

    /// Scalars of the weights so far.
    #[must_use]
    pub const fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Multiplications with additions of the convolutions and matrix products so far.
    #[must_use]
    pub const fn macs(&self) -> u64 {
        self.macs
    }

    /// A tensor that whoever runs the graph gives, in the graph's number format. One that nothing reads is left out of
    /// the file.
    pub fn input(&mut self, name: &str, shape: &[i64]) -> Value {
        self.input_of(name, self.dtype(), shape)
    }

    /// As [`Self::input`] in another number format.
    pub fn input_of(&mut self, name: &str, dtype: Dtype, shape: &[i64]) -> Value {
        let value = Value::new(name.to_owned(), dtype, shape);
        if self.inputs.iter().any(|input| input.name == value.name) {
            self.fault(format!("two inputs are named `{name}`"));
        }
        self.inputs.push(value.clone());
        value
    }

    /// Gives a tensor out under a name.
    pub fn output(&mut self, name: &str, value: &Value) {
        let is_taken = self.outputs.iter().any(|(_, other)| other.name == value.name);
        let value = if is_taken || !self.nodes.iter().any(|node| node.outputs.contains(&value.name)) {
            // A runtime wants an output to be made by a node of its own.
            self.node("Identity", &[value], vec![], value.dtype, value.shape())
        } else {
            value.clone()
        };
        self.outputs.push((name.to_owned(), value));
    }

    /// A weight of the model, in the graph's number format; counted among its parameters.
    pub fn weight(&mut self, tensor: &Tensor) -> Value {
        let before = self.constants.len();
        let value = self.take(tensor, self.dtype(), "weight");
        if self.constants.len() > before {
            self.parameters += tensor.numel() as u64;
        }
        value
    }

    /// A table that belongs to the graph but was never trained, in the graph's number format.
    pub fn table(&mut self, tensor: &Tensor) -> Value {
        self.table_of(tensor, self.dtype())
    }

    /// As [`Self::table`] in another number format.
    pub fn table_of(&mut self, tensor: &Tensor, dtype: Dtype) -> Value {
        let values = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap_or_default();
        self.listed(dtype, &tensor.size(), &values)
    }

    /// One number, in the format of `beside`.
    pub fn scalar(&mut self, number: f64, beside: &Value) -> Value {
        self.listed(beside.dtype, &[], &[number])
    }

    /// Integers in one dimension: shapes, axes, places.
    pub(super) fn integers(&mut self, list: &[i64]) -> Value {
        let tensor = Tensor::from_slice(list);
        let key = (Dtype::I64, tensor.size(), list.iter().map(|i| *i as u64).collect());
        self.known_or(key, tensor)
    }

    pub(super) fn listed(&mut self, dtype: Dtype, shape: &[i64], values: &[f64]) -> Value {
        let key = (dtype, shape.to_vec(), values.iter().map(|v| v.to_bits()).collect());
        let tensor = Tensor::from_slice(values).reshape(shape);
        self.known_or(key, tensor)
    }

    fn known_or(&mut self, key: (Dtype, Vec<i64>, Vec<u64>), tensor: Tensor) -> Value {
        if let Some(known) = self.small.get(&key) {
            return known.clone();
        }
        let value = self.take(&tensor, key.0, "constant");
        self.small.insert(key, value.clone());
        value
    }

    fn take(&mut self, tensor: &Tensor, dtype: Dtype, what: &str) -> Value {
        let place = (tensor.data_ptr() as usize, tensor.size(), tensor.stride(), dtype);
        if let Some(known) = self.places.get(&place) {
            return known.clone();
        }
        let name = format!("{}{what}_{}", self.prefix(), self.constants.len());
        let value = Value::new(name, dtype, &tensor.size());
        self.constants.push(Constant {
            value: value.clone(),
            // Held, so that its place in memory stays its own.
            tensor: tensor.detach(),
        });
        self.places.insert(place, value.clone());
        value
    }

    /// Builds a block whose nodes carry its name.
    pub fn within<T>(&mut self, block: impl std::fmt::Display, build: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(block.to_string());
        let built = build(self);
        self.scope.pop();
        built
    }

    fn prefix(&self) -> String {
        self.scope.iter().map(|block| format!("{block}/")).collect()
    }

    pub(super) fn node(
        &mut self,
        operator: &'static str,
        inputs: &[&Value],
        attributes: Vec<(&'static str, Attribute)>,
        dtype: Dtype,
        shape: &[i64],
    ) -> Value {
        let mut outputs = self.node_of(operator, inputs, attributes, &[(dtype, shape.to_vec())]);
        outputs.remove(0)
    }

    pub(super) fn node_of(
        &mut self,
        operator: &'static str,
        inputs: &[&Value],
        attributes: Vec<(&'static str, Attribute)>,
        outputs: &[(Dtype, Vec<i64>)],
    ) -> Vec<Value> {
        let name = format!("{}{operator}_{}", self.prefix(), self.nodes.len());
        let suffix = |i: usize| if i == 0 { String::new() } else { format!(".{i}") };
        let made = outputs.iter().enumerate();
        let made: Vec<Value> = made
            .map(|(i, (dtype, shape))| Value::new(format!("{name}{}", suffix(i)), *dtype, shape))
            .collect();
        if let Some(bad) = made.iter().find(|value| value.shape.iter().any(|size| *size < 0)) {
            self.fault(format!("`{name}` would have the shape {:?}", bad.shape));
        }
        self.nodes.push(Node {
            inputs: inputs.iter().map(|value| value.name.clone()).collect(),
            outputs: made.iter().map(|value| value.name.clone()).collect(),
            name,
            operator,
            attributes,
        });
        made
    }

    /// Notes a use that cannot be; the first is told when the graph is written.
    pub(super) fn fault(&mut self, problem: String) {
        let prefix = self.prefix();
        self.problem.get_or_insert_with(|| format!("{prefix}: {problem}"));
    }

    /// Notes that `xs` is nothing that a block takes, and stands in for what would have come out.
    pub(crate) fn refuse(&mut self, takes: &str, xs: &Value) -> Value {
        self.fault(format!("{takes}, found {:?}", xs.shape()));
        xs.clone()
    }

    pub(super) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Inputs that a node reads.
    pub(super) fn used_inputs(&self) -> impl Iterator<Item = &Value> {
        let is_read = |value: &&Value| self.nodes.iter().any(|node| node.inputs.contains(&value.name));
        self.inputs.iter().filter(is_read)
    }

    /// What goes in, as the manifest says it.
    #[must_use]
    pub fn input_specs(&self) -> Vec<TensorSpec> {
        self.used_inputs().map(|value| spec(&value.name, value)).collect()
    }

    /// What comes out, as the manifest says it.
    #[must_use]
    pub fn output_specs(&self) -> Vec<TensorSpec> {
        self.outputs.iter().map(|(name, value)| spec(name, value)).collect()
    }
}

fn spec(name: &str, value: &Value) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        dtype: value.dtype.name().to_owned(),
        shape: value.shape.iter().map(|size| size.unsigned_abs()).collect(),
    }
}
