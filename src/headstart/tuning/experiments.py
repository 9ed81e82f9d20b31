"""The tries as experiments that `dvc exp show` lists beside the user's own.

An experiment of DVC is a commit whose parent is the one that it began from, under ``refs/exps``. These are made with
git alone: `dvc exp save` would hash every output of the workspace for each try, and save the workspace's own figures.
A try's commit has its params.yaml and its validation figures in reports/finetune.json; what dvc.lock says of finetune
and of the stages after it is left out, since they did not run.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from ruamel.yaml import YAML

from headstart.config.completion import complete_params
from headstart.core.io import write_json
from headstart.core.paths import report_of
from headstart.training.figures import Monitor
from headstart.tuning.halving import Try

DROPPED = ("finetune", "evaluate", "export")


def save_experiments(
    folder_of: Callable[[int], Path], tries: Sequence[Try], params: Path, monitor: Monitor, figures: Iterable[str]
) -> str:
    """Save each try that was trained as the experiment tune-N; return what became of it, for the user."""
    try:
        head, top = _git("rev-parse", "HEAD"), _git("rev-parse", "--show-prefix")
    except (OSError, subprocess.CalledProcessError):
        return "no experiments for `dvc exp show`, since there is no commit to which they could belong"
    lock = ""
    if _git("ls-tree", "--name-only", head, "dvc.lock"):
        content = YAML(typ="safe").load(_git("show", f"{head}:./dvc.lock"))
        content["stages"] = {name: stage for name, stage in content["stages"].items() if name not in DROPPED}
        stream = StringIO()
        YAML().dump(content, stream)
        lock = stream.getvalue()
    with TemporaryDirectory() as scratch:
        index = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        for each in tries:
            if each.failed:
                continue
            own, report = Path(scratch) / "params.yaml", Path(scratch) / "finetune.json"
            shutil.copy(params, own)
            complete_params(own, folder_of(each.number) / "changes.json")
            best = each.best(monitor)
            measured = {name: best[name] for name in figures}
            write_json(report, {"best_epoch": best["epoch"], "epochs": each.epochs, **measured})
            _git("read-tree", head, env=index)
            blobs = {str(params): own.read_text("utf-8"), str(report_of("finetune")): report.read_text("utf-8")}
            if lock:
                blobs["dvc.lock"] = lock
            for name, text in blobs.items():
                blob = _git("hash-object", "-w", "--stdin", text=text)
                _git("update-index", "--add", "--cacheinfo", f"100644,{blob},{top}{name}", env=index)
            commit = _git("commit-tree", _git("write-tree", env=index), "-p", head, "-m", f"tune-{each.number}")
            _git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/tune-{each.number}", commit)
    return "`dvc exp show` lists the tries as tune-N"


def _git(*arguments: str, text: str | None = None, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(
        ["git", *arguments],  # noqa: S607  (the user's git)
        input=text,
        env=os.environ | (env or {}),
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
