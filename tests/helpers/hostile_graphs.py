"""Malicious and damaged ONNX files, in bundles that are good otherwise."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headstart.core import paths
from headstart.inference import bundle
from helpers.bundles import CLASSES, Change, with_content, with_fitting_manifest


def _graph(change: Callable[[onnx.ModelProto], object]) -> Change:
    def changed(folder: Path) -> None:
        model = onnx.load(folder / bundle.ONNX)
        change(model)
        (folder / bundle.ONNX).write_bytes(model.SerializeToString())

    return with_fitting_manifest(changed)


def _whole_graph(nodes: list[onnx.NodeProto], *weights: onnx.TensorProto, **options: Any) -> Change:
    """Replace the model by one of these nodes, which compute ``logits`` and ``features`` from ``pixels``."""
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 3, 32, 32])]
    widths = {"logits": len(CLASSES), "features": 96}
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", n]) for name, n in widths.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(weights))
    versions = [helper.make_opsetid("", 18), *options.pop("domains", [])]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10, **options)
    return with_content(bundle.ONNX, lambda _: model.SerializeToString())


def _external(location: str) -> Change:
    """Store the first weight in another file."""

    def change(model: onnx.ModelProto) -> None:
        weight = next(each for each in model.graph.initializer if each.raw_data)
        size = len(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, "offset": "0", "length": str(size)}.items():
            weight.external_data.add(key=key, value=value)

    return _graph(change)


def _forever() -> Change:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["still_going"]), helper.make_node("Identity", ["step"], ["scanned"])],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("scanned", TensorProto.INT64, []),
        ],
    )
    loop = helper.make_node("Loop", ["", "true"], ["steps"], body=body)
    return _graph(
        lambda model: (
            (
                model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true")),
                model.graph.node.insert(0, loop),
            )
        )
    )


def _own_function() -> Change:
    def change(model: onnx.ModelProto) -> None:
        body = [helper.make_node("Identity", ["x"], ["y"])]
        model.functions.append(helper.make_function("mine", "Same", ["x"], ["y"], body, [helper.make_opsetid("", 18)]))

    return _graph(change)


def _node(*arguments: Any, **options: Any) -> onnx.NodeProto:
    return helper.make_node(*arguments, **options)


def _constant(values: Any, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values), name)


def _rename_outputs(model: onnx.ModelProto) -> None:
    """Call the features logits, and the logits features."""
    other = {"logits": "features", "features": "logits"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [other.get(name, name) for name in names]
    for output in model.graph.output:
        output.name = other[output.name]


def _rename_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = "image"
    for node in model.graph.node:
        node.input[:] = ["image" if name == "pixels" else name for name in node.input]


GRAPHS: dict[str, Change] = {
    "model is empty": with_content(bundle.ONNX, lambda _: b""),
    "model is noise": with_content(bundle.ONNX, lambda _: np.random.default_rng(0).bytes(10_000)),
    "model cut off": with_content(bundle.ONNX, lambda folder: (folder / bundle.ONNX).read_bytes()[:100_000]),
    "model of ONNX Runtime's own format": with_content(bundle.ONNX, lambda _: b"\x18\0\0\0ORTM" + bytes(1000)),
    "weights in /etc/passwd": _external("/etc/passwd"),
    "weights above the bundle": _external("../secret"),
    "weights in another file of the bundle": _external(paths.MODEL_WEIGHTS),
    "weights in a data file that is not listed": _external(bundle.ONNX_DATA),
    "weights somewhere in memory": _external("*/_ORT_MEM_ADDR_/*"),
    "an operator of somebody's domain": _graph(
        lambda model: model.graph.node.append(_node("Run", ["logits"], ["ran"], domain="evil.example"))
    ),
    "an operator of Microsoft's": _graph(
        lambda model: model.graph.node.append(_node("EPContext", ["logits"], ["ran"], domain="com.microsoft"))
    ),
    "a loop without an end": _forever(),
    "functions of its own": _own_function(),
    "2^40 numbers": _whole_graph(
        [
            _node("ConstantOfShape", ["many"], ["numbers"]),
            _node("ReduceSum", ["numbers"], ["sum"], keepdims=0),
            _node("ReduceMean", ["pixels", "sides"], ["means"], keepdims=0),
            _node("Gemm", ["means", "to_features"], ["features_alone"]),
            _node("Add", ["features_alone", "sum"], ["features"]),
            _node("Gemm", ["means", "to_logits"], ["logits"]),
        ],
        _constant([2**40], "many"),
        _constant([2, 3], "sides"),
        _constant(np.ones((3, 96), np.float32), "to_features"),
        _constant(np.ones((3, 4), np.float32), "to_logits"),
    ),
    "outputs that hold no batch": _whole_graph(
        [_node("Identity", ["logits_alone"], ["logits"]), _node("Identity", ["features_alone"], ["features"])],
        _constant(np.ones((1, 4), np.float32), "logits_alone"),
        _constant(np.ones((1, 96), np.float32), "features_alone"),
    ),
    "logits of another width": _graph(_rename_outputs),
    "an input of another name": _graph(_rename_input),
    "no features": _graph(lambda model: model.graph.output.pop()),
}
