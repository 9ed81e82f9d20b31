"""The bundle: the folder that ``export`` writes, and that predict, serve and push read.

Its files lie directly in it; ``manifest.json`` lists every one of them but itself. A bundle may come from strangers:
a file is checked before it is read, and nothing in it is ever executed.
"""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.core.io import write_json
from headstart.core.json_value import parse_json
from headstart.core.paths import MODEL_CONFIG, MODEL_WEIGHTS
from headstart.inference.bundle_config import FORMAT, BundleConfig, check_format, parse_config

ONNX = "model.onnx"
ONNX_FP16 = "model.fp16.onnx"
ONNX_INT8 = "model.int8.onnx"
ONNX_DATA = "model.onnx.data"
EXPORTED_PROGRAM = "model.pt2"
REFERENCE = "reference.npy"
CARD = "README.md"
LICENSE = "LICENSE"
BUNDLE_MANIFEST = "manifest.json"

MAX_JSON_BYTES = 64 * 2**20
MAX_FILE_BYTES = 2**50
MAX_FILES = 1000
MAX_REFERENCE_ROWS = 1_000_000


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the size and the sha256 of every other file in the folder."""
    files = {path.name: _size_and_sha256(path) for path in sorted(folder.iterdir()) if path.name != BUNDLE_MANIFEST}
    write_json(folder / BUNDLE_MANIFEST, {"format": FORMAT, "files": files})


def _size_and_sha256(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and ``config.json`` have passed their checks.

    ``files`` are the manifest's: ``bytes`` and ``sha256`` by file name; all are there, of that size.
    """

    folder: Path
    files: dict[str, dict[str, Any]]
    config: BundleConfig

    def path(self, name: str) -> Path:
        """Return a file's path; raises UserError where the manifest does not list it, or lists another content."""
        return _verified_path(self.folder, self.files, name)

    def ood_reference(self) -> NDArray[np.float32] | None:
        """Read the features of training images, float32 (m, width); None where the bundle has none.

        Raises UserError where the file is not such an array, or was changed.
        """
        if self.config.ood_thresholds is None:
            return None
        path = self.path(REFERENCE)
        with path.open("rb") as file:
            try:
                np.lib.format.read_magic(file)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            except Exception as error:  # noqa: BLE001  (NumPy lets through what Python's parser raises)
                raise UserError(f"{path}: is no array in NumPy's format 1.0: {error}") from None
            width = self.config.features
            if dtype != np.dtype("<f4") or fortran or len(shape) != 2 or shape[1] != width:
                raise UserError(f"{path}: must be float32 of (images, {width}), but is {dtype} of {shape}")
            # Before memory is taken: the header may promise more than the file has.
            if not 1 <= shape[0] <= MAX_REFERENCE_ROWS or path.stat().st_size - file.tell() != 4 * shape[0] * width:
                raise UserError(f"{path}: its header promises {shape[0]} rows of {width} numbers, which are not there")
            rows = np.fromfile(file, dtype=dtype).reshape(shape)
        if not np.isfinite(rows).all():
            raise UserError(f"{path}: has values that are not finite")
        return rows


def open_bundle(folder: Path) -> Bundle:
    """Check a bundle's manifest and config, and the sizes of all its files; raises UserError with the file and the key.

    Only files that the manifest lists are ever read, each after its sha256 was compared.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one that `headstart export` wrote")
    files = _read_manifest(folder)
    path = _verified_path(folder, files, MODEL_CONFIG)
    return Bundle(folder, files, parse_config(path.read_bytes(), str(path)))


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 by file name; raises UserError where a file is missing or of another size."""
    path = folder / BUNDLE_MANIFEST
    _file_size(path)
    manifest = parse_json(path.read_bytes(), str(path))
    check_format(manifest["format"])
    listed = list(manifest["files"].items())
    if len(listed) > MAX_FILES:
        manifest["files"].refuse(f"lists more than {MAX_FILES} files")
    files = {}
    for name, entry in listed:
        if Path(name).name != name or "\\" in name or not name.isprintable() or name == BUNDLE_MANIFEST:
            entry.refuse("is no name of a file that lies directly in the bundle")
        files[name] = {"bytes": entry["bytes"].integer(0, MAX_FILE_BYTES), "sha256": entry["sha256"].text(64)}
        if _file_size(folder / name) != files[name]["bytes"]:
            raise _changed(folder / name)
    return files


def _file_size(path: Path) -> int:
    """Return the size of a regular file; raises UserError for a link, a pipe, a device, a folder, or too large JSON."""
    try:
        status = os.lstat(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}. A bundle is what `headstart export` wrote, whole") from None
    if stat.S_ISLNK(status.st_mode):
        raise UserError(
            f"{path} is a link; a bundle's files must lie in it themselves: get it by `hf download REPOSITORY "
            "--local-dir FOLDER`, or copy it by `cp -rL`"
        )
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{path} is no regular file")
    if path.name in (MODEL_CONFIG, BUNDLE_MANIFEST) and status.st_size > MAX_JSON_BYTES:
        raise UserError(f"{path} has {status.st_size} bytes, more than such a file may have ({MAX_JSON_BYTES})")
    return status.st_size


def _verified_path(folder: Path, files: dict[str, dict[str, Any]], name: str) -> Path:
    path = folder / name
    if name not in files:
        hint = ": --device torch runs model.safetensors" if name == ONNX and MODEL_WEIGHTS in files else ""
        has = ", ".join(sorted(files)) or "nothing"
        raise UserError(f"{folder / BUNDLE_MANIFEST}: lists no {name}; it has {has}{hint}")
    _file_size(path)
    if _size_and_sha256(path) != files[name]:
        raise _changed(path)
    return path


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path} is not what {BUNDLE_MANIFEST} says: it was damaged, or changed after `headstart export`; "
        "get the bundle anew"
    )
