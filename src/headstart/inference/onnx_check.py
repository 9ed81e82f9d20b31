"""What an ONNX file asks for, read off its bytes before ONNX Runtime sees it; the onnx package is not needed.

The file is protobuf: fields of a number, a wire type and a value (https://protobuf.dev/programming-guides/encoding);
the numbers are those of ``onnx.proto``. Weights are passed over, not copied, so a gigabyte takes no longer.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from headstart.core.errors import UserError

DOMAINS = ("", "ai.onnx")  # 16- and 8-bit models need no other
# Field numbers of onnx.proto, of the messages in which something may be wrong.
GRAPH, TRAINING, FUNCTIONS = 7, 20, 25  # ModelProto
NODE, INITIALIZER, SPARSE_INITIALIZER = 1, 5, 15  # GraphProto
ATTRIBUTE, DOMAIN = 5, 7  # NodeProto
TENSOR, SUBGRAPH, TENSORS, SUBGRAPHS, SPARSE_TENSOR, SPARSE_TENSORS = 5, 6, 10, 11, 22, 23  # AttributeProto
VALUES, INDICES = 1, 2  # SparseTensorProto
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # TensorProto
KEY, VALUE = 1, 2  # StringStringEntryProto

Field = tuple[int, "memoryview | int | None"]


class _RefusedError(Exception):
    """The message is the reason."""


def check_onnx(path: Path, data_files: Collection[str] = ()) -> None:
    """Raise UserError where an ONNX file asks for more than arithmetic on the bundle's own weights.

    Refused are weights in other files than ``data_files`` beside it, operators of other domains than ONNX's own, loops
    and branches, functions, what belongs to training, and what is not protobuf. All else is ONNX Runtime's to refuse.
    """
    try:
        if not path.stat().st_size:
            raise _RefusedError("is empty")
        _check_model(np.memmap(path, np.uint8, "r").data, data_files)
    except _RefusedError as reason:
        raise UserError(f"{path}: {reason}") from None


def _check_model(content: memoryview, data_files: Collection[str]) -> None:
    graphs = 0
    for number, value in _fields(content):
        if number == TRAINING:
            raise _RefusedError("holds steps of a training")
        if number == FUNCTIONS:
            raise _RefusedError("defines functions of its own, which no exported model needs")
        if number == GRAPH:
            graphs += 1
            _check_graph(_message(value), data_files)
    if not graphs:
        raise _RefusedError("holds no graph")


def _check_graph(graph: memoryview, data_files: Collection[str]) -> None:
    for number, value in _fields(graph):
        if number == NODE:
            _check_node(_message(value), data_files)
        elif number == INITIALIZER:
            _check_tensor(_message(value), data_files)
        elif number == SPARSE_INITIALIZER:
            _check_sparse(_message(value), data_files)


def _check_node(node: memoryview, data_files: Collection[str]) -> None:
    for number, value in _fields(node):
        if number == DOMAIN and _text(value) not in DOMAINS:
            raise _RefusedError(f"uses an operator of the domain {_text(value)!r}: only ONNX's own are run")
        if number == ATTRIBUTE:
            _check_attribute(_message(value), data_files)


def _check_attribute(attribute: memoryview, data_files: Collection[str]) -> None:
    for number, value in _fields(attribute):
        if number in (SUBGRAPH, SUBGRAPHS):
            raise _RefusedError("has a graph within its graph, as loops and branches do: they may never end")
        if number in (TENSOR, TENSORS):
            _check_tensor(_message(value), data_files)
        elif number in (SPARSE_TENSOR, SPARSE_TENSORS):
            _check_sparse(_message(value), data_files)


def _check_sparse(tensor: memoryview, data_files: Collection[str]) -> None:
    for number, value in _fields(tensor):
        if number in (VALUES, INDICES):
            _check_tensor(_message(value), data_files)


def _check_tensor(tensor: memoryview, data_files: Collection[str]) -> None:
    external, locations = False, []
    for number, value in _fields(tensor):
        if number == DATA_LOCATION:
            external |= value != 0
        elif number == EXTERNAL_DATA:
            entry = list(_fields(_message(value)))
            if "location" in [_text(text) for field, text in entry if field == KEY]:
                locations += [_text(text) for field, text in entry if field == VALUE]
    if external and not locations:
        raise _RefusedError("has weights in another file, but does not say in which")
    for location in locations:
        if location not in data_files:
            raise _RefusedError(f"has weights in {location!r}, which is no file of the bundle for it")


def _fields(message: memoryview) -> Iterator[Field]:
    """Return each field's number and value: an int, a view of bytes, or None where it has a fixed width."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: memoryview | int | None = None
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            size, at = _varint(message, at)
            value = message[at : at + size]
            at += size
        else:
            raise _RefusedError("is no ONNX file: a field of an unknown kind")
        if number == 0 or at > len(message):
            raise _RefusedError("is no ONNX file, or a damaged one: a field ends beyond its end")
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte; give it and where the next thing begins."""
    number = 0
    for place in range(10):
        if at + place >= len(message):
            break
        byte = message[at + place]
        number |= (byte & 127) << 7 * place
        if byte < 128:
            return number, at + place + 1
    raise _RefusedError("is no ONNX file, or a damaged one: a number without an end")


def _message(value: memoryview | int | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise _RefusedError("is no ONNX file: a number stands where a message must")
    return value


def _text(value: memoryview | int | None) -> str:
    return bytes(_message(value)[:1000]).decode("utf-8", "backslashreplace")
