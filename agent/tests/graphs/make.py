"""Writes the small graphs that the agent's tests measure: python3 make.py (needs the packages onnx and numpy)."""

import pathlib

import numpy
from onnx import TensorProto, checker, helper, numpy_helper, save

FOLDER = pathlib.Path(__file__).parent
FORMATS = {"f32": (TensorProto.FLOAT, numpy.float32), "f16": (TensorProto.FLOAT16, numpy.float16)}


def write(name, nodes, inputs, outputs, weights=(), external=None, domains=()):
    graph = helper.make_graph(nodes, name, inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    if not domains:
        checker.check_model(model)
    path = FOLDER / f"{name}.onnx"
    if external:
        save(model, path, save_as_external_data=True, location=external, size_threshold=0)
    else:
        save(model, path)


def convolution(name, dtype, external=None):
    kind, numbers = FORMATS[dtype]
    drawn = numpy.random.default_rng(1).standard_normal((8, 8, 3, 3)).astype(numbers)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"], "gate"),
        helper.make_node("Mul", ["c", "s"], ["y"], "swish"),
    ]
    tensor = lambda of: helper.make_tensor_value_info(of, kind, [1, 8, 32, 32])
    write(name, nodes, [tensor("x")], [tensor("y")], [numpy_helper.from_array(drawn, "w")], external)


def tokens():
    table = numpy.random.default_rng(2).standard_normal((4, 16)).astype(numpy.float32)
    nodes = [helper.make_node("Gather", ["table", "tokens"], ["y"], "embed")]
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 7])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 7, 16])]
    write("tokens", nodes, inputs, outputs, [numpy_helper.from_array(table, "table")])


def hungry():
    """4 GiB of activations."""
    shape = numpy_helper.from_array(numpy.array([1024, 1024, 1024], dtype=numpy.int64), "shape")
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["wide"], "widen"),
        helper.make_node("ReduceSum", ["wide"], ["y"], "sum", keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])]
    write("hungry", nodes, inputs, outputs, [shape])


def foreign():
    nodes = [helper.make_node("Teleport", ["x"], ["y"], "teleport", domain="example.nowhere")]
    tensor = lambda of: helper.make_tensor_value_info(of, TensorProto.FLOAT, [1])
    write("foreign", nodes, [tensor("x")], [tensor("y")], domains=["example.nowhere"])


convolution("conv_f32", "f32", external="conv_f32.data")
convolution("conv_f16", "f16")
tokens()
hungry()
foreign()
