//! The operators that blocks are made of, each as ONNX nodes.

use tch::{Kind, Tensor};

use super::graph::Attribute::{Float, Int, Ints, Text};
use super::{Dtype, Graph, Value};

/// Stride and zero padding of a convolution, by spatial axis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    stride: Vec<i64>,
    before: Vec<i64>,
    after: Vec<i64>,
    groups: i64,
}

impl Geometry {
    /// The same padding before and after.
    #[must_use]
    pub fn new<const N: usize>(stride: [i64; N], padding: [i64; N]) -> Self {
        Self {
            stride: stride.to_vec(),
            before: padding.to_vec(),
            after: padding.to_vec(),
            groups: 1,
        }
    }

    /// Another padding after the last place than before the first: a causal convolution has none behind.
    #[must_use]
    pub fn padded_after<const N: usize>(self, after: [i64; N]) -> Self {
        Self {
            after: after.to_vec(),
            ..self
        }
    }

    /// A convolution in groups of channels; with as many groups as channels, depth-wise.
    #[must_use]
    pub fn grouped(self, groups: i64) -> Self {
        Self { groups, ..self }
    }
}

/// Shapes of two tensors made one by repeating axes of size 1.
fn broadcast(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[i64], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    let pair = |i: usize| match (at(a, i), at(b, i)) {
        (a, b) if a == b || b == 1 => Some(a),
        (1, b) => Some(b),
        _ => None,
    };
    (0..rank).map(pair).collect()
}

fn product(shape: &[i64]) -> i64 {
    shape.iter().product()
}

/// Element by element.
impl Graph {
    /// `a + b`, axes of size 1 repeated.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Add", a, b)
    }

    /// `a − b`, axes of size 1 repeated.
    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Sub", a, b)
    }

    /// `a · b` by element, axes of size 1 repeated.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Mul", a, b)
    }

    /// `a / b` by element, axes of size 1 repeated.
    pub fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.binary("Div", a, b)
    }

    /// `factor · xs`.
    pub fn scale(&mut self, xs: &Value, factor: f64) -> Value {
        let factor = self.scalar(factor, xs);
        self.mul(xs, &factor)
    }

    /// `xs + number`.
    pub fn shift(&mut self, xs: &Value, number: f64) -> Value {
        let number = self.scalar(number, xs);
        self.add(xs, &number)
    }

    fn binary(&mut self, operator: &'static str, a: &Value, b: &Value) -> Value {
        if a.dtype() != b.dtype() {
            self.fault(format!("{operator} of {:?} and {:?}", a.dtype(), b.dtype()));
        }
        let shape = broadcast(a.shape(), b.shape()).unwrap_or_else(|| {
            self.fault(format!("{operator} of shapes {:?} and {:?}", a.shape(), b.shape()));
            a.shape().to_vec()
        });
        self.node(operator, &[a, b], vec![], a.dtype(), &shape)
    }

    fn unary(&mut self, operator: &'static str, xs: &Value) -> Value {
        self.node(operator, &[xs], vec![], xs.dtype(), xs.shape())
    }

    /// `1 / (1 + e^(−x))`.
    pub fn sigmoid(&mut self, xs: &Value) -> Value {
        self.unary("Sigmoid", xs)
    }

    /// Cosine.
    pub fn cos(&mut self, xs: &Value) -> Value {
        self.unary("Cos", xs)
    }

    /// Sine.
    pub fn sin(&mut self, xs: &Value) -> Value {
        self.unary("Sin", xs)
    }

    /// `x · sigmoid(x)`.
    pub fn silu(&mut self, xs: &Value) -> Value {
        let gate = self.sigmoid(xs);
        self.mul(xs, &gate)
    }

    /// CLIP's `x · sigmoid(1.702 x)`.
    pub fn quick_gelu(&mut self, xs: &Value) -> Value {
        let steep = self.scale(xs, 1.702);
        let gate = self.sigmoid(&steep);
        self.mul(xs, &gate)
    }

    /// The exact GELU, `x · ½ (1 + erf(x / √2))`.
    pub fn gelu(&mut self, xs: &Value) -> Value {
        let root = self.scalar(std::f64::consts::SQRT_2, xs);
        let inner = self.div(xs, &root);
        let erf = self.unary("Erf", &inner);
        let gate = self.shift(&erf, 1.0);
        let twice = self.mul(xs, &gate);
        self.scale(&twice, 0.5)
    }

    /// Softmax over the last axis.
    pub fn softmax(&mut self, xs: &Value) -> Value {
        self.node("Softmax", &[xs], vec![("axis", Int(-1))], xs.dtype(), xs.shape())
    }

    /// The same numbers in another format; `xs` itself where it has it.
    pub fn cast(&mut self, xs: &Value, to: Dtype) -> Value {
        if xs.dtype() == to {
            return xs.clone();
        }
        let attributes = vec![("to", Int(to.code().into()))];
        self.node("Cast", &[xs], attributes, to, xs.shape())
    }
}

/// Products, norms and attention.
impl Graph {
    /// Matrix product of the last two axes, the others side by side, axes of size 1 repeated.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        let (m, k, n) = (a.size(-2), a.size(-1), b.size(-1));
        let outer = |value: &Value| value.shape()[..value.rank().saturating_sub(2)].to_vec();
        let fits = a.rank() >= 2 && b.rank() >= 2 && b.size(-2) == k && a.dtype() == b.dtype();
        let Some(mut shape) = broadcast(&outer(a), &outer(b)).filter(|_| fits) else {
            self.fault(format!("MatMul of shapes {:?} and {:?}", a.shape(), b.shape()));
            return a.clone();
        };
        shape.extend([m, n]);
        self.macs += (product(&shape) * k).unsigned_abs();
        self.node("MatMul", &[a, b], vec![], a.dtype(), &shape)
    }

    /// `xs Wᵀ + b`, as libtorch's: `xs` `[…, inputs]`, `weight` `[outputs, inputs]`.
    pub fn linear(&mut self, xs: &Value, weight: &Tensor, bias: Option<&Tensor>) -> Value {
        let weight = self.weight(&weight.tr());
        let ys = self.matmul(xs, &weight);
        match bias {
            Some(bias) => {
                let bias = self.weight(bias);
                self.add(&ys, &bias)
            }
            None => ys,
        }
    }

    /// A convolution, as libtorch's: `xs` `[n, inputs, …]`, `weight` `[outputs, inputs / groups, …]`, over one to three
    /// spatial axes.
    pub fn conv(&mut self, xs: &Value, weight: &Tensor, bias: Option<&Tensor>, geometry: &Geometry) -> Value {
        let Geometry {
            stride,
            before,
            after,
            groups,
        } = geometry;
        let kernel = weight.size();
        let axes = stride.len();
        if kernel.len() != axes + 2 || xs.rank() != axes + 2 || xs.size(1) != kernel[1] * groups {
            self.fault(format!("Conv of {:?} with a kernel of {kernel:?}", xs.shape()));
            return xs.clone();
        }
        let size = |i: usize| (xs.shape()[i + 2] + before[i] + after[i] - kernel[i + 2]) / stride[i] + 1;
        let shape: Vec<i64> = [xs.size(0), kernel[0]].into_iter().chain((0..axes).map(size)).collect();
        self.macs += (product(&shape) * product(&kernel[1..])).unsigned_abs();
        let attributes = vec![
            ("kernel_shape", Ints(kernel[2..].to_vec())),
            ("strides", Ints(stride.clone())),
            ("pads", Ints([before.as_slice(), after].concat())),
            ("group", Int(*groups)),
        ];
        let weight = self.weight(weight);
        let bias = bias.map(|bias| self.weight(bias));
        let inputs: Vec<&Value> = [xs, &weight].into_iter().chain(&bias).collect();
        self.node("Conv", &inputs, attributes, xs.dtype(), &shape)
    }

    /// Group norm over `[n, channels, …]`, its statistics in binary32.
    pub fn group_norm(
        &mut self,
        xs: &Value,
        groups: i64,
        eps: f64,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
    ) -> Value {
        let channels = xs.size(1);
        if channels % groups != 0 {
            self.fault(format!("{groups} groups of {channels} channels"));
            return xs.clone();
        }
        let grouped = self.reshape(xs, &[xs.size(0), groups, -1]);
        let grouped = self.cast(&grouped, Dtype::F32);
        let ones = self.listed(Dtype::F32, &[groups], &vec![1.0; groups as usize]);
        let zeros = self.listed(Dtype::F32, &[groups], &vec![0.0; groups as usize]);
        let normed = self.node(
            "InstanceNormalization",
            &[&grouped, &ones, &zeros],
            vec![("epsilon", Float(eps))],
            Dtype::F32,
            grouped.shape(),
        );
        let normed = self.cast(&normed, xs.dtype());
        let mut ys = self.reshape(&normed, xs.shape());
        let by_channel: Vec<i64> = std::iter::once(channels)
            .chain(vec![1; xs.rank().saturating_sub(2)])
            .collect();
        if let Some(weight) = weight {
            let weight = self.weight(&weight.reshape(&by_channel));
            ys = self.mul(&ys, &weight);
        }
        if let Some(bias) = bias {
            let bias = self.weight(&bias.reshape(&by_channel));
            ys = self.add(&ys, &bias);
        }
        ys
    }

    /// Layer norm over the last axis, its statistics in binary32.
    pub fn layer_norm(&mut self, xs: &Value, eps: f64, weight: Option<&Tensor>, bias: Option<&Tensor>) -> Value {
        let width = xs.size(-1);
        let ones = || Tensor::ones([width], (Kind::Float, tch::Device::Cpu));
        let weight = match weight {
            Some(weight) => self.weight(weight),
            None => self.table(&ones()),
        };
        let bias = bias.map(|bias| self.weight(bias));
        let inputs: Vec<&Value> = [xs, &weight].into_iter().chain(&bias).collect();
        let attributes = vec![("axis", Int(-1)), ("epsilon", Float(eps))];
        self.node("LayerNormalization", &inputs, attributes, xs.dtype(), xs.shape())
    }

    /// `x / √(mean(x²) + ε) · w` over the last axis, its statistics in binary32.
    pub fn rms_norm(&mut self, xs: &Value, weight: &Tensor, eps: f64) -> Value {
        let wide = self.cast(xs, Dtype::F32);
        let two = self.scalar(2.0, &wide);
        let square = self.binary("Pow", &wide, &two);
        let mut shape = xs.shape().to_vec();
        if let Some(last) = shape.last_mut() {
            *last = 1;
        }
        let attributes = vec![("axes", Ints(vec![-1])), ("keepdims", Int(1))];
        let mean = self.node("ReduceMean", &[&square], attributes, Dtype::F32, &shape);
        let mean = self.shift(&mean, eps);
        let root = self.unary("Sqrt", &mean);
        let normed = self.div(&wide, &root);
        let normed = self.cast(&normed, xs.dtype());
        let weight = self.weight(weight);
        self.mul(&normed, &weight)
    }

    /// `softmax(Q Kᵀ / √d + mask) V`: `q` `[…, n, d]`, `k` and `v` `[…, m, d]`, `mask` `[n, m]`.
    pub fn attend(&mut self, q: &Value, k: &Value, v: &Value, mask: Option<&Value>) -> Value {
        // Scaled before the product: its sums stay small in binary16.
        let q = self.scale(q, 1.0 / (q.size(-1) as f64).sqrt());
        let keys = self.swap(k, -2, -1);
        let mut scores = self.matmul(&q, &keys);
        if let Some(mask) = mask {
            scores = self.add(&scores, mask);
        }
        let shares = self.softmax(&scores);
        self.matmul(&shares, v)
    }
}

/// Shapes and places.
impl Graph {
    /// The same numbers in another shape; one size may be −1, which is what is left.
    pub fn reshape(&mut self, xs: &Value, shape: &[i64]) -> Value {
        let count = product(xs.shape());
        let known: i64 = shape.iter().filter(|size| **size >= 0).product();
        let fill = |size: &i64| if *size < 0 { count / known.max(1) } else { *size };
        let shape: Vec<i64> = shape.iter().map(fill).collect();
        if product(&shape) != count {
            self.fault(format!("{:?} cannot be reshaped to {shape:?}", xs.shape()));
        }
        if shape == xs.shape() {
            return xs.clone();
        }
        let sizes = self.integers(&shape);
        self.node("Reshape", &[xs, &sizes], vec![], xs.dtype(), &shape)
    }

    /// Axes `from` to `to`, both included, as one.
    pub fn flatten(&mut self, xs: &Value, from: i64, to: i64) -> Value {
        let (from, to) = (xs.axis(from), xs.axis(to));
        let shape = xs.shape();
        let Some(middle) = shape.get(from..=to) else {
            self.fault(format!("axes {from} to {to} of {shape:?}"));
            return xs.clone();
        };
        let flat = [&shape[..from], &[product(middle)], &shape[to + 1..]].concat();
        self.reshape(xs, &flat)
    }

    /// An axis as several, of which one size may be −1.
    pub fn unflatten(&mut self, xs: &Value, axis: i64, sizes: &[i64]) -> Value {
        let (at, whole) = (xs.axis(axis), xs.size(axis));
        let known: i64 = sizes.iter().filter(|size| **size >= 0).product();
        let fill = |size: &i64| if *size < 0 { whole / known.max(1) } else { *size };
        let sizes: Vec<i64> = sizes.iter().map(fill).collect();
        let Some(rest) = xs.shape().get(at + 1..) else {
            self.fault(format!("axis {axis} of {:?}", xs.shape()));
            return xs.clone();
        };
        let shape = [&xs.shape()[..at], &sizes, rest].concat();
        self.reshape(xs, &shape)
    }

    /// The axes in another order: axis `i` of the output is `order[i]` of the input.
    pub fn permute<const N: usize>(&mut self, xs: &Value, order: [i64; N]) -> Value {
        let is_order = (0..N as i64).all(|axis| order.contains(&axis)) && xs.rank() == N;
        if !is_order {
            self.fault(format!("{:?} in the order {order:?}", xs.shape()));
            return xs.clone();
        }
        let shape = order.map(|axis| xs.size(axis));
        self.node(
            "Transpose",
            &[xs],
            vec![("perm", Ints(order.to_vec()))],
            xs.dtype(),
            &shape,
        )
    }

    /// Two axes in each other's place.
    pub fn swap(&mut self, xs: &Value, a: i64, b: i64) -> Value {
        let (a, b) = (xs.axis(a), xs.axis(b));
        let mut order: Vec<i64> = (0..xs.rank() as i64).collect();
        if a.max(b) >= order.len() {
            self.fault(format!("axes {a} and {b} of {:?}", xs.shape()));
            return xs.clone();
        }
        order.swap(a, b);
        let shape: Vec<i64> = order.iter().map(|axis| xs.size(*axis)).collect();
        self.node("Transpose", &[xs], vec![("perm", Ints(order))], xs.dtype(), &shape)
    }

    /// Tensors one after another along an axis.
    pub fn concat(&mut self, all: &[&Value], axis: i64) -> Value {
        let Some(first) = all.first() else {
            self.fault("nothing to join".to_owned());
            return Value::new(String::new(), self.dtype(), &[]);
        };
        let at = first.axis(axis);
        let mut shape = first.shape().to_vec();
        let fits = |value: &&Value| {
            value.rank() == shape.len() && (0..shape.len()).all(|i| i == at || value.shape()[i] == shape[i])
        };
        if at >= shape.len() || !all.iter().all(fits) {
            let shapes: Vec<_> = all.iter().map(|value| value.shape()).collect();
            self.fault(format!("shapes {shapes:?} along axis {axis}"));
            return (*first).clone();
        }
        shape[at] = all.iter().map(|value| value.shape()[at]).sum();
        self.node("Concat", all, vec![("axis", Int(at as i64))], first.dtype(), &shape)
    }

    /// Two halves along an axis.
    pub fn halves(&mut self, xs: &Value, axis: i64) -> [Value; 2] {
        let (at, whole) = (xs.axis(axis), xs.size(axis));
        if whole == 0 || whole % 2 != 0 {
            self.fault(format!("halves of axis {axis} of {:?}", xs.shape()));
            return [xs.clone(), xs.clone()];
        }
        let mut shape = xs.shape().to_vec();
        shape[at] = whole / 2;
        let sizes = self.integers(&[whole / 2; 2]);
        let outputs = [(xs.dtype(), shape.clone()), (xs.dtype(), shape)];
        let mut both = self.node_of("Split", &[xs, &sizes], vec![("axis", Int(at as i64))], &outputs);
        let second = both.pop().unwrap_or_else(|| xs.clone());
        let first = both.pop().unwrap_or_else(|| xs.clone());
        [first, second]
    }

    /// `length` places of an axis from `start` on.
    pub fn narrow(&mut self, xs: &Value, axis: i64, start: i64, length: i64) -> Value {
        let (at, whole) = (xs.axis(axis), xs.size(axis));
        if start < 0 || start + length > whole {
            self.fault(format!("{length} from {start} of axis {axis} of {:?}", xs.shape()));
            return xs.clone();
        }
        if length == whole {
            return xs.clone();
        }
        let mut shape = xs.shape().to_vec();
        shape[at] = length;
        let [from, to, axes] = [start, start + length, at as i64].map(|number| self.integers(&[number]));
        self.node("Slice", &[xs, &from, &to, &axes], vec![], xs.dtype(), &shape)
    }

    /// `count` places of zeros in front of an axis.
    pub fn pad_front(&mut self, xs: &Value, axis: i64, count: i64) -> Value {
        let at = xs.axis(axis);
        let mut shape = xs.shape().to_vec();
        let Some(size) = shape.get_mut(at).filter(|_| count >= 0) else {
            self.fault(format!("{count} in front of axis {axis} of {:?}", xs.shape()));
            return xs.clone();
        };
        *size += count;
        // All beginnings, then all ends.
        let mut pads = vec![0; 2 * xs.rank()];
        pads[at] = count;
        let pads = self.integers(&pads);
        self.node("Pad", &[xs, &pads], vec![], xs.dtype(), &shape)
    }

    /// Each place of the first axis `count` times, one after another.
    pub fn repeat_each(&mut self, xs: &Value, count: i64) -> Value {
        if count == 1 {
            return xs.clone();
        }
        let (n, rest) = (xs.size(0), xs.shape().get(1..).unwrap_or_default().to_vec());
        let apart = self.reshape(xs, &[&[n, 1], rest.as_slice()].concat());
        let wide = [&[n, count], rest.as_slice()].concat();
        let sizes = self.integers(&wide);
        let repeated = self.node("Expand", &[&apart, &sizes], vec![], xs.dtype(), &wide);
        self.flatten(&repeated, 0, 1)
    }

    /// Rows of a table `[rows, width]` by number: `numbers` `[…]` to `[…, width]`.
    pub fn rows(&mut self, table: &Value, numbers: &Value) -> Value {
        let shape = [numbers.shape(), &[table.size(-1)]].concat();
        self.node(
            "Gather",
            &[table, numbers],
            vec![("axis", Int(0))],
            table.dtype(),
            &shape,
        )
    }

    /// Nearest neighbour to another height and width: `[n, c, h, w]`, place `i` of `m` from place `⌊n i / m⌋` of `n`.
    pub fn resize_nearest(&mut self, xs: &Value, size: [i64; 2]) -> Value {
        let shape = [xs.size(0), xs.size(1), size[0], size[1]];
        if xs.rank() != 4 || shape.contains(&0) {
            self.fault(format!("{:?} cannot be resized to {size:?}", xs.shape()));
            return xs.clone();
        }
        let name = "";
        let absent = Value::new(name.to_owned(), Dtype::F32, &[0]);
        let sizes = self.integers(&shape);
        let attributes = vec![
            ("mode", Text("nearest")),
            ("nearest_mode", Text("floor")),
            ("coordinate_transformation_mode", Text("asymmetric")),
        ];
        self.node(
            "Resize",
            &[xs, &absent, &absent, &sizes],
            attributes,
            xs.dtype(),
            &shape,
        )
    }
}
