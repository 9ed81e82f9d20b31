"""timm's inference as its script inference.py does it: its data set, its loader, its model, on the CPU.

python -m benchmarks.contestants.timm_inference BUNDLE FOLDER BATCH WORKERS LOGITS.npy prints a line of JSON: the
seconds from the loader's start to the last batch. Logits come in the order of the files' paths.
"""

import json
import sys
import time

import numpy as np
import timm
import torch
from timm.data.config import resolve_model_data_config
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader


def main(bundle: str, folder: str, batch: str, workers: str, target: str) -> None:
    """Predict every image of a folder of classes."""
    model = timm.create_model(f"local-dir:{bundle}", pretrained=True).eval()
    config = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    dataset = create_dataset("", root=folder)
    loader = create_loader(
        dataset, batch_size=int(batch), num_workers=int(workers), device=torch.device("cpu"), **config
    )
    began, found = time.perf_counter(), []
    with torch.inference_mode():
        found = [model(images).numpy() for images, _ in loader]
    seconds = time.perf_counter() - began
    order = np.argsort([dataset.filename(i, absolute=True) for i in range(len(dataset))], kind="stable")
    np.save(target, np.concatenate(found)[order])
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
