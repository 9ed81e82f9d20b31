"""Write the fine-tuned model as others load it, once every format has been shown to compute what was trained.

reads:   data/prepared (pictures of validation), models/finetune, reports/evaluate.json (for the model card), and what
         tells how sure it is: models/reference, reports/evaluate/trust.json
writes:  export (model.safetensors and config.json for timm, model.onnx, reference.safetensors, README.md),
         reports/export.json
params:  export

Each format's logits on real pictures are compared with the trained model's first, all on the CPU and so with the same
arithmetic. Where they differ by more than export.tolerance, nothing is written.
"""

import itertools
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
from numpy.typing import NDArray
from torch import Tensor, nn

from headstart.assembly.inference import infer
from headstart.assembly.program import main
from headstart.assembly.ranks import Ranks, use_cores
from headstart.assembly.tracking.lineage import track_model
from headstart.ground import artifacts
from headstart.ground.artifacts import SPLITS, Prepared, manifest_rows
from headstart.ground.errors import UserError
from headstart.ground.params import Params, Run
from headstart.ground.reference import FEATURES_OF_TRAINING, REFERENCE
from headstart.libraries.backbone import input_config
from headstart.libraries.model_card import model_card
from headstart.libraries.onnx_export import onnx_model, write_onnx

PARAMS = ("export",)
EVALUATION, TRUST = artifacts.REPORTS / "evaluate.json", artifacts.REPORTS / "evaluate" / "trust.json"
READS = (artifacts.PREPARED, artifacts.FINETUNE, REFERENCE, EVALUATION, TRUST)
WRITES = (artifacts.EXPORT,)
BATCH = 32

logger = logging.getLogger(__name__)


def run(params: Params) -> None:
    """Write each format aside and compare it; the folder takes its final name when all agree."""
    began = time.perf_counter()
    use_cores(1)
    prepared = Prepared.open()
    evaluation, trust = artifacts.read_json(EVALUATION), artifacts.read_json(TRUST)
    rows = _comparison_rows(prepared, params.export.pictures)
    trained = load_timm(artifacts.existing(artifacts.FINETUNE))
    expected = _logits(trained, prepared, rows, BATCH, run=params.run, name="trained")
    with artifacts.replacing(artifacts.EXPORT) as aside:
        aside.mkdir()
        formats = []
        for name, model, batch_size in _written(aside, trained, prepared):
            found = _logits(model, prepared, rows, batch_size, run=params.run, name=name)
            formats.append(_compared(name, found, expected, rows, params.export.tolerance))
        config = artifacts.read_json(aside / "config.json") | {"headstart": _told(trust)}
        artifacts.write_json(aside / "config.json", config)
        shutil.copyfile(artifacts.existing(FEATURES_OF_TRAINING), aside / FEATURES_OF_TRAINING.name)
        card = model_card(
            config=config,
            license_name=params.export.license,
            pictures={split: len(prepared.rows(split)) for split in SPLITS},
            report=evaluation,
            calibration=trust["calibration"]["finetune"],
        )
        (aside / "README.md").write_text(card, encoding="utf-8")
    worst = max(figures["max_difference"] for figures in formats)
    files = sorted(artifacts.EXPORT.iterdir())
    report = {
        "pictures": len(rows),
        "tolerance": params.export.tolerance,
        "max_difference": worst,
        "formats": formats,
        "files": [{"file": path.name, "bytes": path.stat().st_size} for path in files],
        "seconds": round(time.perf_counter() - began, 2),
    }
    artifacts.write_report("export", report)
    track_model(params.run, prepared)
    logger.info("export: %s; logits of %d pictures differ by %.1e at most", artifacts.EXPORT, len(rows), worst)


def _told(trust: dict[str, Any]) -> dict[str, Any]:
    """Choose what whoever predicts with the model needs to say how sure it is; timm passes over it."""
    return {
        "temperature": trust["calibration"]["finetune"]["temperature"],
        "conformal": [{key: each[key] for key in ("method", "level", "threshold")} for each in trust["conformal"]],
        "out_of_distribution": {
            key: trust["out_of_distribution"][key] for key in ("score", "neighbour", "references", "thresholds")
        },
    }


def write_timm(folder: Path) -> None:
    """Copy what fine-tuning kept, which is timm's ``local-dir`` format already."""
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(artifacts.FINETUNE / name, folder / name)


def load_timm(folder: Path) -> nn.Module:
    """Load a folder in timm's ``local-dir`` format, for evaluation, on the CPU."""
    model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    return model.eval()


def _comparison_rows(prepared: Prepared, count: int) -> NDArray[np.int64]:
    """Choose validation pictures evenly over the manifest, which meets all classes; train's where there are none."""
    rows = prepared.rows("validation")
    if not len(rows):
        rows = prepared.rows("train")
    return rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(np.int64)]


def _written(
    folder: Path, trained: nn.Module, prepared: Prepared
) -> Iterator[tuple[str, Callable[[Tensor], Tensor], int]]:
    """Write one format after the other; give a name, what was written as a function, and a batch size to compare at."""
    write_timm(folder)
    reloaded = load_timm(folder)
    _check_config(folder, reloaded, prepared)
    yield "timm", reloaded, BATCH
    path = folder / "model.onnx"
    write_onnx(trained, path, tuple(prepared.input["input_size"]))
    session = onnx_model(path)
    yield "onnx_batch_1", session, 1
    yield f"onnx_batch_{BATCH}", session, BATCH


def _check_config(folder: Path, model: nn.Module, prepared: Prepared) -> None:
    """Raise UserError where ``config.json`` names other classes or another preparation than the model was trained with.

    Logits of prepared pictures would not show either.
    """
    config = artifacts.read_json(folder / "config.json")
    written = {**input_config(model), "label_names": config.get("label_names")}
    for key, value in {**prepared.input, "label_names": prepared.classes}.items():
        if written.get(key) != value:
            raise UserError(
                f"{artifacts.FINETUNE / 'config.json'}: {key} is {written.get(key)}, but data/prepared has {value}; "
                "nothing was exported. Run `dvc repro -f finetune`"
            )


def _logits(
    model: Callable[[Tensor], Tensor],
    prepared: Prepared,
    rows: NDArray[np.int64],
    batch_size: int,
    *,
    run: Run,
    name: str,
) -> NDArray[np.float32]:
    """Compute logits on the CPU: (n, classes)."""
    outputs = infer(model, prepared, rows, batch_size=batch_size, run=run, ranks=Ranks(), label=f"export, {name}")
    return np.concatenate(list(outputs))


def _compared(
    name: str, found: NDArray[np.float32], expected: NDArray[np.float32], rows: NDArray[np.int64], tolerance: float
) -> dict[str, Any]:
    """Compare a format's logits (n, classes) with the trained model's.

    Raises:
        UserError: a picture's logits differ by more than the tolerance, or are not numbers.
    """
    difference = np.abs(found - expected).max(axis=1)
    wrong = np.flatnonzero(~(difference <= tolerance))  # also where the difference is NaN
    if len(wrong):
        first = int(wrong[0])
        picture = next(itertools.islice(manifest_rows(), int(rows[first]), None))
        raise UserError(
            f"export: {name}: the logits of {len(wrong)} of {len(rows)} pictures differ from the trained model's "
            f"by more than export.tolerance ({tolerance:g}); the first is {picture['source']}, by "
            f"{difference[first]:.3g}. Nothing was exported"
        )
    agreement = float((found.argmax(1) == expected.argmax(1)).mean())
    return {"format": name, "max_difference": float(difference.max()), "top1_agreement": agreement}


if __name__ == "__main__":
    main(run, PARAMS)
