"""What was made from what, as wandb's artifacts: the manifest of the images, the features, the exported model.

An artifact is named by its content, so using it again means the same one: that is the lineage, online and after a
`wandb sync` alike.
"""

import json
from pathlib import Path
from typing import Any

from headstart.config.schema import RunConfig
from headstart.core.io import read_json
from headstart.core.paths import EXPORT, FEATURES, report_of
from headstart.data.dataset import PreparedDataset, data_sha256
from headstart.tracking.wandb_run import resume_run


def track_model(run: RunConfig, prepared: PreparedDataset) -> None:
    """Log the features as made from the manifest, by a run of the group, then the exported model as made from both."""
    with resume_run(run, "export", beside="features") as tracked:
        if tracked is None:
            return
        _use(tracked, _manifest(prepared))
        tracked.log_artifact(_features())
    with resume_run(run, "export") as tracked:
        if tracked is None:
            return
        for used in (_manifest(prepared), _features()):
            _use(tracked, used)
        exported = read_json(report_of("export"))
        figures = read_json(report_of("evaluate"))["models"][exported["model"]]
        about = {key: value for key, value in figures.items() if isinstance(value, float)}
        about |= {key: exported[key] for key in ("model", "formats", "files")}
        tracked.log_artifact(_artifact("model", [EXPORT], about))


def _manifest(prepared: PreparedDataset) -> Any:
    path = prepared.folder / "manifest.csv"
    counts = read_json(report_of("prepare"))
    about = {
        "sha256": data_sha256(prepared),
        "classes": prepared.classes,
        "splits": counts["splits"],
        "input": prepared.input,
    }
    return _artifact("dataset", [path, prepared.folder / "dataset.json"], about)


def _features() -> Any:
    path = FEATURES / "features.json"
    return _artifact("features", [path], read_json(path))


def _artifact(kind: str, paths: list[Path], about: dict[str, Any]) -> Any:
    """Make an artifact of files, a folder's by their names in it."""
    from wandb import Artifact  # noqa: PLC0415  (as everywhere in this package)

    artifact = Artifact(kind, type=kind, metadata=json.loads(json.dumps(about)))
    for path in paths:
        if path.is_dir():
            artifact.add_dir(str(path))
        else:
            artifact.add_file(str(path))
    return artifact


def _use(tracked: Any, artifact: Any) -> None:
    """Say that a run reads an artifact: as ``use_artifact``, which refuses offline what can be synced later."""
    tracked._log_artifact(artifact, is_user_created=True, use_after_commit=True)  # noqa: SLF001
