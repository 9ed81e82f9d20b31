"""The bundle: the folder that ``export`` writes, and that predict, serve and push read.

Its files lie directly in it; ``manifest.json`` lists every one of them but itself.
"""

import hashlib
from pathlib import Path
from typing import Any

from headstart.ground.artifacts import write_json

FORMAT = 1

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
ONNX = "model.onnx"
ONNX_FP16 = "model.fp16.onnx"
ONNX_INT8 = "model.int8.onnx"
ONNX_DATA = "model.onnx.data"
EXPORTED_PROGRAM = "model.pt2"
REFERENCE = "reference.npy"
CARD = "README.md"
LICENSE = "LICENSE"
MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the size and the sha256 of every other file that lies in the folder."""
    files = {path.name: _about(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def _about(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
