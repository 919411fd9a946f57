"""Converts an ONNX graph to a Core ML package: python -c SCRIPT GRAPH.onnx NAME.mlpackage; without arguments, imports.

coremltools reads no ONNX. This rebuilds the graph in its MIL, operator by operator, for the operators that the worker's
graphs are made of. Weights and activations are binary16 in the package; inputs and outputs are as the graph's.
"""

import logging
import shutil
import sys
import zipfile
from pathlib import Path

# It tells of every part that only a Mac has.
logging.getLogger("coremltools").setLevel(logging.ERROR)

import coremltools as ct
import numpy as np
import onnx
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from onnx import numpy_helper

FLOATS = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}
TYPES = {np.float32: types.fp32, np.float16: types.fp16, np.int32: types.int32}
# The first system that takes binary16 tensors in and out.
TARGET = ct.target.iOS17


class Unknown(Exception):
    """Something that has no counterpart here."""


def dtype_of(value):
    """Core ML has no 64-bit integers."""
    return FLOATS.get(value.type.tensor_type.elem_type, np.int32)


def shape_of(value):
    return tuple(d.dim_value for d in value.type.tensor_type.shape.dim)


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def safe(name):
    """The nearest name that MIL takes: `hidden_1` for `hidden.1`."""
    return "".join(c if c.isalnum() else "_" for c in name)


class Reader:
    """Rebuilds nodes in MIL. All numbers are binary32 while reading; coremltools narrows them in the end."""

    def __init__(self, graph):
        self.graph = graph
        self.constants = {t.name: self.array(t) for t in graph.initializer}
        self.values = {}

    @staticmethod
    def array(tensor):
        array = numpy_helper.to_array(tensor)
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int32)

    def value(self, name):
        """A node's input: a value so far, or a constant."""
        if name not in self.values:
            self.values[name] = self.constants[name]
        return self.values[name]

    def ints(self, name):
        return [int(i) for i in self.constants[name]]

    def read(self, node):
        convert = getattr(self, "read_" + node.op_type, None)
        if convert is None:
            raise Unknown(f"operator {node.op_type} of `{node.name}`")
        made = convert(node, attributes(node))
        made = made if isinstance(made, (list, tuple)) else [made]
        self.values.update(zip(node.output, made))

    def binary(build):
        return lambda self, node, _: build(x=self.value(node.input[0]), y=self.value(node.input[1]))

    def unary(build):
        return lambda self, node, _: build(x=self.value(node.input[0]))

    read_Add = binary(mb.add)
    read_Sub = binary(mb.sub)
    read_Mul = binary(mb.mul)
    read_Div = binary(mb.real_div)
    read_Pow = binary(mb.pow)
    read_Sqrt = unary(mb.sqrt)
    read_Sigmoid = unary(mb.sigmoid)
    read_Cos = unary(mb.cos)
    read_Sin = unary(mb.sin)
    read_Erf = unary(mb.erf)
    read_Identity = unary(mb.identity)

    def read_Cast(self, node, attrs):
        if attrs["to"] not in FLOATS:
            raise Unknown(f"a cast to type {attrs['to']} in `{node.name}`")
        # Statistics in binary32 between two casts: the whole package has one precision.
        return self.value(node.input[0])

    def read_Softmax(self, node, attrs):
        return mb.softmax(x=self.value(node.input[0]), axis=attrs["axis"])

    def read_MatMul(self, node, _):
        return mb.matmul(x=self.value(node.input[0]), y=self.value(node.input[1]))

    def read_Conv(self, node, attrs):
        pads = attrs["pads"]
        half = len(pads) // 2
        pairs = [p for i in range(half) for p in (pads[i], pads[i + half])]
        bias = {"bias": self.value(node.input[2])} if len(node.input) > 2 else {}
        return mb.conv(
            x=self.value(node.input[0]), weight=self.value(node.input[1]), strides=list(attrs["strides"]),
            pad_type="custom", pad=pairs, groups=attrs["group"], **bias,
        )

    def read_InstanceNormalization(self, node, attrs):
        x, scale, bias = (self.value(name) for name in node.input)
        return mb.instance_norm(x=x, gamma=scale, beta=bias, epsilon=np.float32(attrs["epsilon"]))

    def read_LayerNormalization(self, node, attrs):
        bias = {"beta": self.value(node.input[2])} if len(node.input) > 2 else {}
        return mb.layer_norm(
            x=self.value(node.input[0]), axes=[attrs["axis"]], gamma=self.value(node.input[1]),
            epsilon=np.float32(attrs["epsilon"]), **bias,
        )

    def read_ReduceMean(self, node, attrs):
        return mb.reduce_mean(x=self.value(node.input[0]), axes=list(attrs["axes"]), keep_dims=bool(attrs["keepdims"]))

    def read_Reshape(self, node, _):
        return mb.reshape(x=self.value(node.input[0]), shape=self.ints(node.input[1]))

    def read_Transpose(self, node, attrs):
        return mb.transpose(x=self.value(node.input[0]), perm=list(attrs["perm"]))

    def read_Concat(self, node, attrs):
        return mb.concat(values=[self.value(name) for name in node.input], axis=attrs["axis"])

    def read_Split(self, node, attrs):
        return mb.split(x=self.value(node.input[0]), split_sizes=self.ints(node.input[1]), axis=attrs["axis"])

    def read_Slice(self, node, _):
        x = self.value(node.input[0])
        begin, size = [0] * x.rank, list(x.shape)
        for first, last, axis in zip(*(self.ints(name) for name in node.input[1:4])):
            begin[axis], size[axis] = first, last - first
        return mb.slice_by_size(x=x, begin=begin, size=size)

    def read_Expand(self, node, _):
        x = self.value(node.input[0])
        wanted = self.ints(node.input[1])
        return mb.tile(x=x, reps=[w // found for w, found in zip(wanted, x.shape)])

    def read_Gather(self, node, attrs):
        return mb.gather(x=self.value(node.input[0]), indices=self.value(node.input[1]), axis=attrs["axis"])

    def read_Resize(self, node, attrs):
        x = self.value(node.input[0])
        height, width = self.ints(node.input[3])[2:]
        modes = {name: attrs[name].decode() for name in ("mode", "nearest_mode", "coordinate_transformation_mode")}
        if list(modes.values()) != ["nearest", "floor", "asymmetric"]:
            raise Unknown(f"a resize by {modes} in `{node.name}`")
        if height % x.shape[2] == 0 and width % x.shape[3] == 0:
            by_rows, by_columns = height // x.shape[2], width // x.shape[3]
            return mb.upsample_nearest_neighbor(x=x, scale_factor_height=by_rows, scale_factor_width=by_columns)
        # Rows and columns by number: place i of m is place floor(n i / m) of n.
        rows = np.arange(height) * x.shape[2] // height
        columns = np.arange(width) * x.shape[3] // width
        x = mb.gather(x=x, indices=rows.astype(np.int32), axis=2)
        return mb.gather(x=x, indices=columns.astype(np.int32), axis=3)


def program_of(graph):
    """The graph in MIL."""
    reader = Reader(graph)
    inputs = {safe(v.name): mb.placeholder(shape=shape_of(v), dtype=TYPES[dtype_of(v)]) for v in graph.input}
    program = Program()
    with Function(inputs, opset_version=TARGET) as function:
        for value in graph.input:
            given = function.inputs[safe(value.name)]
            is_half = given.dtype == types.fp16
            reader.values[value.name] = mb.cast(x=given, dtype="fp32") if is_half else given
        for node in graph.node:
            reader.read(node)
        outputs = []
        for value in graph.output:
            made, name = reader.values[value.name], safe(value.name)
            is_half = dtype_of(value) == np.float16
            outputs.append(mb.cast(x=made, dtype="fp16", name=name) if is_half else mb.identity(x=made, name=name))
        function.set_outputs(outputs)
    program.add_function("main", function)
    return program


def validate(package, graph):
    """Reads the saved package back; Core ML itself, which would run it, is not on every system."""
    spec = ct.utils.load_spec(str(package))
    ct.models.MLModel(str(package), skip_model_load=True)
    kinds = {np.float32: "FLOAT32", np.float16: "FLOAT16", np.int32: "INT32"}

    def told(features):
        array = ct.proto.FeatureTypes_pb2.ArrayFeatureType
        return {
            f.name: (tuple(f.type.multiArrayType.shape), array.ArrayDataType.Name(f.type.multiArrayType.dataType))
            for f in features
        }

    for features, values in ((spec.description.input, graph.input), (spec.description.output, graph.output)):
        wanted = {safe(v.name): (shape_of(v), kinds[dtype_of(v)]) for v in values}
        if told(features) != wanted:
            raise Unknown(f"a package with {told(features)} where the graph has {wanted}")
    main = spec.mlProgram.functions["main"]
    if not sum(len(block.operations) for block in main.block_specializations.values()):
        raise Unknown("a package without operations")


def main():
    if len(sys.argv) == 1:
        print(ct.__version__)
        return
    source, package = (Path(name) for name in sys.argv[1:])
    graph = onnx.load(str(source)).graph
    outputs = [ct.TensorType(name=safe(v.name), dtype=dtype_of(v)) for v in graph.output]
    model = ct.convert(
        program_of(graph), convert_to="mlprogram", minimum_deployment_target=TARGET,
        compute_precision=ct.precision.FLOAT16, outputs=outputs, skip_model_load=True,
    )
    shutil.rmtree(package, ignore_errors=True)
    model.save(str(package))
    validate(package, graph)
    with zipfile.ZipFile(f"{package}.zip", "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(p for p in package.rglob("*") if p.is_file()):
            archive.write(file, Path(package.name) / file.relative_to(package))
    shutil.rmtree(package)


if __name__ == "__main__":
    try:
        main()
    except Unknown as problem:
        print(f"has no counterpart in Core ML: {problem}", file=sys.stderr)
        sys.exit(1)
