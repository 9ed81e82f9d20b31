"""The files of a new project, and where they come from: `headstart init`."""

import json
import os
import shlex
import shutil
import subprocess
import tomllib
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from headstart.core.errors import UserError, requirement

PACKAGE = Path(__file__).parent


def template() -> dict[str, Path]:
    """Return the files of a project, each by its place in it."""
    inside = PACKAGE / "project"
    if inside.is_dir():
        return {path.relative_to(inside).as_posix(): path for path in sorted(inside.rglob("*")) if path.is_file()}
    # An editable install has no copy of them: they are where pyproject.toml has the wheel take them from.
    clone = PACKAGE.parents[1]
    with (clone / "pyproject.toml").open("rb") as file:
        wheel = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["wheel"]
    return {to.removeprefix("headstart/project/"): clone / path for path, to in wheel["force-include"].items()}


def lay_out(folder: Path, backbone: str | None = None, images: Path | None = None) -> None:
    """Write the files of a project into a folder, which is made where it is missing.

    Args:
        folder: of the project.
        backbone: ``backbone.name`` of its params.yaml.
        images: a folder of images, one folder a class, which becomes the project's source by its absolute path.

    Raises:
        UserError: there is no git, or a file of these names is there already, or can't be written, or ``images`` is no
            folder. Then nothing stays.
    """
    values = {} if backbone is None else {"  name: bundled\n": f"  name: {json.dumps(backbone)}\n"}
    if images is not None:
        if not images.is_dir():
            advice = "give the one with a folder of images for each class, or with your images and their table"
            raise UserError(f"--images: {images} is not a folder: {advice}")
        where = json.dumps(str(images.absolute()), ensure_ascii=False)
        values |= {"  source: digits\n": "  source: imagefolder\n", "  path: data/raw\n": f"  path: {where}\n"}
    git = shutil.which("git")
    if git is None:
        raise UserError("git is not on the PATH, and DVC works in a git repository: install it (`apt install git`)")
    files = {folder / name: source for name, source in template().items()}
    parents = {parent for path in files for parent in path.parents}
    taken = {path for path in files if os.path.lexists(path)}
    taken |= {path for path in parents if os.path.lexists(path) and not path.is_dir()}
    if taken:
        raise UserError(f"{min(taken)} is there already: give a new folder, or an empty one. Nothing was written")
    try:
        with ExitStack() as undo:
            for parent in sorted(parents):
                if not parent.exists():
                    parent.mkdir()
                    undo.callback(parent.rmdir)
            for path, source in files.items():
                undo.callback(path.unlink, missing_ok=True)
                content = source.read_text(encoding="utf-8")
                for default, value in values.items() if path.name == "params.yaml" else ():
                    content = content.replace(default, value, 1)
                path.write_text(content, encoding="utf-8", newline="\n")
            _make_repository(git, folder)
            undo.pop_all()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{folder} can't be written, and nothing was: {error}") from error


def _make_repository(git: str, folder: Path) -> None:
    """Make a git repository, unless the folder is in one that does not ignore it."""
    ignored = subprocess.run([git, "check-ignore", "--quiet", "."], cwd=folder, stderr=subprocess.DEVNULL, check=False)
    if ignored.returncode != 1:
        subprocess.run([git, "init", "--quiet"], cwd=folder, check=True)


def next_steps(folder: Path, images: Path | None = None) -> str:
    """Return what to type next, for a user to read; ``images`` as for ``lay_out``."""
    lines = [f"{folder} is a project now. Next:\n"]
    if find_spec("dvc") is None:
        lines.append(f"    pip install {shlex.quote(requirement('train'))}")
    lines += [
        f"    cd {shlex.quote(str(folder))}",
        "    git add -A && git commit -m 'A project of headstart'",
        "    dvc repro",
    ]
    if images is None:
        lines.append("\nFor your own images: prepare.source and prepare.path in params.yaml.")
    elif not any(path.is_dir() for path in images.iterdir()):
        lines.append(
            f"\nBut first, since {images} has no class folders: name your table in params.yaml, "
            "prepare.source: csv:FILE, and what is learned from it, prepare.target."
        )
    return "\n".join(lines)
