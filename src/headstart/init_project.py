"""Lay out a project of your own: `dvc repro` there takes scikit-learn's digits, until params.yaml names your images.

writes:  DIR/params.yaml, dvc.yaml, sweep.yaml, slurm, data/raw, .dvc and what git ignores; a git repository where DIR
         is in none. Nothing that is there already is changed.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
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


def lay_out(folder: Path) -> None:
    """Write the files of a project into a folder, which is made where it is missing.

    Raises:
        UserError: there is no git, or a file of these names is there already, or can't be written. Then nothing stays.
    """
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
                path.write_bytes(source.read_bytes())
            _make_repository(git, folder)
            undo.pop_all()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{folder} can't be written, and nothing was: {error}") from error


def _make_repository(git: str, folder: Path) -> None:
    """Make a git repository, unless the folder is in one that does not ignore it."""
    ignored = subprocess.run([git, "check-ignore", "--quiet", "."], cwd=folder, stderr=subprocess.DEVNULL, check=False)
    if ignored.returncode != 1:
        subprocess.run([git, "init", "--quiet"], cwd=folder, check=True)


def main() -> None:
    """Lay a project out and say what comes next: exit code 1 with one message on stderr where the user can mend it."""
    parser = argparse.ArgumentParser(
        prog="headstart init", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder, new or without files of these names")
    folder = parser.parse_args().folder
    try:
        lay_out(folder)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{folder} is a project now. Next:\n")
    if find_spec("dvc") is None:
        print(f"    pip install {shlex.quote(requirement('train'))}")
    print(f"    cd {shlex.quote(str(folder))}")
    print("    git add -A && git commit -m 'A project of headstart'")
    print("    dvc repro")
    print("\nFor your own images: prepare.source and prepare.path in params.yaml.")


if __name__ == "__main__":
    main()
