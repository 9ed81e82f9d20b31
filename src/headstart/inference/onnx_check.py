"""Checks what an ONNX file asks for before ONNX Runtime loads it, by reading its protobuf fields.

ONNX Runtime alone is not enough: 1.32 runs a model's own functions, loops without an end, and weights from any other
file of the bundle, whose sha256 nobody has compared. The onnx package would parse the file, but is no dependency of
predict. So this walks the messages of ``onnx.proto`` itself: fields of a number, a wire type and a value
(https://protobuf.dev/programming-guides/encoding). Weights are passed over, not copied: a gigabyte takes no longer.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from headstart.core.errors import UserError

DOMAINS = ("", "ai.onnx")  # 16- and 8-bit models need no other
# Messages of onnx.proto by field number, below each kind of message.
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute", 7: "domain"},
    "attribute": {5: "tensor", 10: "tensor", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
SUBGRAPH = "has a graph within its graph, as loops and branches do: they may never end"
REFUSED = {
    ("model", 20): "has training steps",
    ("model", 25): "defines functions of its own, which no exported model needs",
    ("attribute", 6): SUBGRAPH,
    ("attribute", 11): SUBGRAPH,
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor
KEY, VALUE = 1, 2  # of an entry of external data


def check_onnx(path: Path, data_files: Collection[str] = ()) -> None:
    """Raise UserError where an ONNX file asks for more than arithmetic on the bundle's own weights.

    Refused are weights in other files than ``data_files`` beside it, operators of other domains than ONNX's own, loops
    and branches, functions, training steps, and what is not protobuf. ONNX Runtime refuses the rest.
    """
    try:
        _check_message("model", np.memmap(path, np.uint8, "r").data, data_files)
    except ValueError as reason:  # of NumPy where the file is empty
        raise UserError(f"{path}: {reason}") from None


def _check_message(kind: str, content: memoryview, data_files: Collection[str]) -> None:
    """Check a message and all messages in it; protobuf joins those that stand twice, so each of them is looked at."""
    if kind == "tensor":
        _check_tensor(content, data_files)
    elif kind == "domain":
        if _text(content) not in DOMAINS:
            raise ValueError(f"uses an operator of the domain {_text(content)!r}: only ONNX's own are run")
    else:
        for number, value in _protobuf_fields(content):
            if (kind, number) in REFUSED:
                raise ValueError(REFUSED[kind, number])
            if number in CHILDREN[kind]:
                _check_message(CHILDREN[kind][number], _message(value), data_files)


def _check_tensor(tensor: memoryview, data_files: Collection[str]) -> None:
    external, locations = False, []
    for number, value in _protobuf_fields(tensor):
        if number == DATA_LOCATION:
            external |= value != 0
        elif number == EXTERNAL_DATA:
            entry = [(field, _text(text)) for field, text in _protobuf_fields(_message(value))]
            if (KEY, "location") in entry:
                locations += [text for field, text in entry if field == VALUE]
    if external and not locations:
        raise ValueError("has weights in another file, but does not say in which")
    for location in locations:
        if location not in data_files:
            raise ValueError(f"has weights in {location!r}, which is no file of the bundle for it")


def _protobuf_fields(message: memoryview) -> Iterator[tuple[int, memoryview | int | None]]:
    """Yield each field's number and value: an int, a view of bytes, or None where it has a fixed width."""
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
            raise ValueError("is no ONNX file: a field of an unknown kind")
        if number == 0 or at > len(message):
            raise ValueError("is no ONNX file, or a damaged one: a field ends beyond its end")
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte from ``at`` on; return it and the offset of what follows."""
    number = 0
    for i, byte in enumerate(message[at : at + 10]):
        number |= (byte & 127) << 7 * i
        if byte < 128:
            return number, at + i + 1
    raise ValueError("is no ONNX file, or a damaged one: a number without an end")


def _message(value: memoryview | int | None) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("is no ONNX file: a number stands where a message must")
    return value


def _text(value: memoryview | int | None) -> str:
    return bytes(_message(value)[:1000]).decode("utf-8", "backslashreplace")
