"""Data lineage as wandb's artifacts: the manifest of the images, the features, the exported model.

wandb recognises an artifact by its content, so logging the same files again refers to the same artifact. That makes the
lineage, online and after a `wandb sync` alike.
"""

import json
from pathlib import Path
from typing import Any

from headstart.config.schema import RunConfig
from headstart.core.io import read_json
from headstart.core.paths import EXPORT, FEATURES_INFO, report_of
from headstart.data.dataset import PreparedDataset
from headstart.data.manifest import MANIFEST
from headstart.tracking.wandb_run import resume_run


def track_model(run: RunConfig, prepared: PreparedDataset) -> None:
    """Log the features as made from the manifest, in a run of their own, then the exported model as made from both."""
    with resume_run(run, "export", suffix="features") as resumed:
        if resumed is None:
            return
        _declare_use(resumed, _manifest(prepared))
        resumed.log_artifact(_features())
    with resume_run(run, "export") as resumed:
        if resumed is None:
            return
        _declare_use(resumed, _manifest(prepared))
        _declare_use(resumed, _features())
        exported = read_json(report_of("export"))
        figures = read_json(report_of("evaluate"))["models"][exported["model"]]
        metadata = {name: value for name, value in figures.items() if isinstance(value, float)}
        metadata |= {name: exported[name] for name in ("model", "formats", "files")}
        resumed.log_artifact(_artifact("model", [EXPORT], metadata))


def _manifest(prepared: PreparedDataset) -> Any:
    metadata = {
        "sha256": prepared.sha256,
        "classes": prepared.classes,
        "splits": read_json(report_of("prepare"))["splits"],
        "input": prepared.input,
    }
    return _artifact("dataset", [prepared.folder / MANIFEST, prepared.folder / "dataset.json"], metadata)


def _features() -> Any:
    return _artifact("features", [FEATURES_INFO], read_json(FEATURES_INFO))


def _artifact(kind: str, paths: list[Path], metadata: dict[str, Any]) -> Any:
    """Make an artifact of files; those of a folder by their names in it."""
    from wandb import Artifact  # noqa: PLC0415

    artifact = Artifact(kind, type=kind, metadata=json.loads(json.dumps(metadata)))
    for path in paths:
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
    return artifact


def _declare_use(run: Any, artifact: Any) -> None:
    """Declare that a run reads an artifact.

    ``use_artifact`` raises where the run is offline, although a later `wandb sync` can send it; online it makes this
    very call (wandb 0.31, ``wandb/sdk/wandb_run.py``).
    """
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)  # noqa: SLF001
