"""The logits behind headstart's predictions, in an environment that has onnxruntime, numpy and Pillow alone.

python -m benchmarks.contestants.predict_logits BUNDLE FOLDER LOGITS.npy writes them in the order of the files' paths.
"""

import sys
from pathlib import Path

import numpy as np

from headstart.images.decode import decode
from headstart.images.preprocess import Preprocessing
from headstart.inference.bundle import ONNX, open_bundle
from headstart.inference.onnx_runtime import open_session


def main(folder: str, pictures: str, target: str) -> None:
    """Predict every image below a folder, one by one."""
    bundle = open_bundle(Path(folder))
    prepare, run = Preprocessing.of(bundle.config.input), open_session(bundle, ONNX, device="cpu", threads=1)
    paths = sorted(path for path in Path(pictures).rglob("*") if path.is_file())
    np.save(target, np.concatenate([run(prepare(decode(path.read_bytes()))[None])[0] for path in paths]))
    heavy = {"torch", "torchvision", "timm", "onnx", "scipy"} & set(sys.modules)
    assert not heavy, heavy


if __name__ == "__main__":
    main(*sys.argv[1:])
