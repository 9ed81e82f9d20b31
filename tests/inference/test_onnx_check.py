"""What exports write is let through, and of what is changed nothing but a reason comes."""

import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from headstart.core.errors import UserError
from headstart.export.formats import write_fp16, write_int8
from headstart.inference.bundle import ONNX, ONNX_DATA
from headstart.inference.onnx_check import check_onnx
from helpers.bundles import copy_bundle


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_bundle(tmp_path_factory.mktemp("bundle") / "export") / ONNX


@pytest.mark.filterwarnings("ignore")  # of the quantisation's
def test_models_in_32_16_and_8_bits_are_let_through(path: Path, tmp_path: Path) -> None:
    check_onnx(path)
    write_fp16(path, tmp_path / "fp16.onnx")
    check_onnx(tmp_path / "fp16.onnx")
    write_int8(path, tmp_path / "int8.onnx", [np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)])
    check_onnx(tmp_path / "int8.onnx")


def test_weights_beside_it_only_where_they_are_expected(path: Path, tmp_path: Path) -> None:
    target = tmp_path / ONNX
    onnx.save(onnx.load(path), target, save_as_external_data=True, location=ONNX_DATA, size_threshold=0)
    check_onnx(target, [ONNX_DATA])
    with pytest.raises(UserError, match=r"has weights in 'model\.onnx\.data', which is no file of the bundle"):
        check_onnx(target)


def test_a_tensor_that_a_node_holds_is_looked_at_too(path: Path, tmp_path: Path) -> None:
    model = onnx.load(path)
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    model.graph.node.append(helper.make_node("Constant", [], ["stolen"], value=tensor))
    (tmp_path / ONNX).write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"'\.\./secret'"):
        check_onnx(tmp_path / ONNX)
    del tensor.external_data[:]
    model.graph.node[-1].CopyFrom(helper.make_node("Constant", [], ["stolen"], value=tensor))
    (tmp_path / ONNX).write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="does not say in which"):
        check_onnx(tmp_path / ONNX)


def test_what_is_said_twice_is_looked_at_twice(path: Path, tmp_path: Path) -> None:
    """Protobuf joins the parts of a message that stands twice: the second graph here adds a node to the first."""
    graph = helper.make_graph([helper.make_node("Run", [], ["x"], domain="evil.example")], "g", [], [])
    (tmp_path / ONNX).write_bytes(path.read_bytes() + onnx.ModelProto(graph=graph).SerializeToString())
    with pytest.raises(UserError, match=r"the domain 'evil\.example'"):
        check_onnx(tmp_path / ONNX)


def test_changed_bytes_give_a_reason_or_pass(path: Path, tmp_path: Path) -> None:
    content, reasons = path.read_bytes(), []
    for seed in range(300):
        chosen, changed = random.Random(seed), bytearray(content)  # noqa: S311  (no secret)
        for _ in range(chosen.choice([1, 5, 50])):
            changed[chosen.randrange(chosen.choice([100, 5000, len(content)]))] = chosen.randrange(256)
        (tmp_path / ONNX).write_bytes(changed[: chosen.choice([None, chosen.randrange(len(content))])])
        try:
            check_onnx(tmp_path / ONNX)
        except UserError as error:
            reasons.append(str(error))
    assert len(reasons) > 100
    assert all(reason.startswith(f"{tmp_path / ONNX}: ") for reason in reasons)
