"""The bundle: the folder that ``export`` writes, and that predict, serve and push read.

Its files lie directly in it; ``manifest.json`` lists every one of them but itself. A bundle may come from strangers:
what is read is checked first, and nothing of it is ever executed.
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
from headstart.core.paths import MODEL_CONFIG
from headstart.inference.bundle_config import FORMAT, BundleConfig, parse_config
from headstart.inference.untrusted_json import Untrusted

ONNX = "model.onnx"
ONNX_FP16 = "model.fp16.onnx"
ONNX_INT8 = "model.int8.onnx"
ONNX_DATA = "model.onnx.data"
EXPORTED_PROGRAM = "model.pt2"
REFERENCE = "reference.npy"
CARD = "README.md"
LICENSE = "LICENSE"
MANIFEST = "manifest.json"

LARGEST_JSON = 64 * 2**20
MOST_FILES = 1000
MOST_REFERENCES = 1_000_000


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the size and the sha256 of every other file that lies in the folder."""
    files = {path.name: _about(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def _about(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest and ``config.json`` were found sound.

    Attributes:
        folder: where it lies.
        files: size and sha256 by file name, as the manifest has them; all are there, of that size.
        config: what ``config.json`` says.
    """

    folder: Path
    files: dict[str, tuple[int, str]]
    config: BundleConfig

    def path(self, name: str) -> Path:
        """Return the path of a listed file whose content was just found to be the manifest's.

        Raises:
            UserError: it is not listed, or its content is another.
        """
        return _verified(self.folder, self.files, name)

    def reference(self) -> NDArray[np.float32] | None:
        """Read the features of training images, float32 (m, width); None where the bundle has none.

        Raises:
            UserError: the file is not such an array, or was changed.
        """
        if self.config.unusual is None:
            return None
        path = self.path(REFERENCE)
        with path.open("rb") as file:
            try:
                np.lib.format.read_magic(file)
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            except Exception as error:  # noqa: BLE001  (NumPy lets through what Python's parser raises)
                raise UserError(f"{path}: is no array that NumPy's format 1.0 describes: {error}") from None
            width = self.config.features
            if dtype != np.dtype("<f4") or fortran or len(shape) != 2 or shape[1] != width:
                raise UserError(f"{path}: must be float32 of (images, {width}), but is {dtype} of {shape}")
            # Before any memory is taken for it: the header may promise what the file does not have.
            if not 1 <= shape[0] <= MOST_REFERENCES or path.stat().st_size - file.tell() != 4 * shape[0] * width:
                raise UserError(f"{path}: its header promises {shape[0]} rows of {width} numbers, which are not there")
            rows = np.fromfile(file, dtype=dtype).reshape(shape)
        if not np.isfinite(rows).all():
            raise UserError(f"{path}: holds what is no finite number")
        return rows


def open_bundle(folder: Path) -> Bundle:
    """Check a bundle's manifest and config, and that all its files are there.

    Only files that the manifest lists are ever read, each after its sha256 was found right; sizes are compared of all.

    Raises:
        UserError: what is wrong with which file, or which key of it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one that `headstart export` wrote")
    files = _listed(folder)
    content = _verified(folder, files, MODEL_CONFIG, largest=LARGEST_JSON).read_bytes()
    return Bundle(folder, files, parse_config(content, str(folder / MODEL_CONFIG)))


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    """Read the manifest and compare the sizes of what it lists."""
    path = folder / MANIFEST
    _regular(path, LARGEST_JSON)
    whole = Untrusted.parse(path.read_bytes(), str(path))
    if whole["format"].integer(0, 2**31) != FORMAT:
        whole["format"].refuse(f"is not {FORMAT}: this bundle needs another version of headstart")
    if len(list(whole["files"].items())) > MOST_FILES:
        whole["files"].refuse(f"lists more than {MOST_FILES} files")
    files = {}
    for name, about in whole["files"].items():
        if Path(name).name != name or "\\" in name or not name.isprintable() or name == MANIFEST:
            about.refuse("is no name of a file that lies directly in the bundle")
        files[name] = about["bytes"].integer(0, 2**50), about["sha256"].text(64)
        if _regular(folder / name, 2**50) != files[name][0]:
            raise _changed(folder / name)
    return files


def _regular(path: Path, largest: int) -> int:
    """Return a file's size; raises UserError where it is none, as a link, a pipe, a device or a folder is not."""
    try:
        about = os.lstat(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}. A bundle is what `headstart export` wrote, whole") from None
    if stat.S_ISLNK(about.st_mode):
        raise UserError(
            f"{path} is a link; a bundle's files must lie in it themselves: get it by `hf download REPOSITORY "
            "--local-dir FOLDER`, or copy it by `cp -rL`"
        )
    if not stat.S_ISREG(about.st_mode):
        raise UserError(f"{path} is no regular file")
    if about.st_size > largest:
        raise UserError(f"{path} has {about.st_size} bytes, more than such a file may have ({largest})")
    return about.st_size


def _verified(folder: Path, files: dict[str, tuple[int, str]], name: str, *, largest: int = 2**50) -> Path:
    path = folder / name
    if name not in files:
        raise UserError(f"{folder / MANIFEST}: lists no {name}; it has {', '.join(sorted(files)) or 'nothing'}")
    _regular(path, largest)
    if _about(path) != {"bytes": files[name][0], "sha256": files[name][1]}:
        raise _changed(path)
    return path


def _changed(path: Path) -> UserError:
    return UserError(
        f"{path} is not what {MANIFEST} says: it was damaged, or changed after `headstart export`; get the bundle anew"
    )
