"""Whether DVC watches a file of a source: what a stage reads and DVC does not would go stale without a word.

DVC 3.67 follows the dependency itself if it is a link, and links to files, but no link to a folder below it
(``dvc_objects.fs.local.LocalFileSystem.walk``). Within its project it leaves out what a ``.dvcignore`` names, the
folders of git, Mercurial and DVC, and folders that are DVC projects themselves (``dvc.ignore.DvcIgnoreFilter``).
"""

import os
import posixpath
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from headstart.core.errors import UserError
from headstart.core.paths import STATE

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

LEFT_OUT = {".git", ".hg", ".dvc"}


class WatchedFiles:
    """Refuses the files below a source's folder that DVC does not watch."""

    def __init__(self, root: Path) -> None:
        """Read what the DVC project around the working directory ignores in the folder ``root``, if there is one."""
        self.root, self._checked = root, set[str]()
        self._absolute = Path(os.path.abspath(root))  # noqa: PTH100  (links are kept, as DVC does)
        projects = (each for each in (Path.cwd(), *Path.cwd().parents) if (each / ".dvc").is_dir())
        project = next(projects, self._absolute)
        self._in_project = project in self._absolute.parents
        self._ignored: list[tuple[Path, GitIgnoreSpec]] = []
        for folder in self._absolute.parents if self._in_project else ():
            with suppress(FileNotFoundError):
                lines = (folder / ".dvcignore").read_text(encoding="utf-8").splitlines()
                # The pattern that all projects have needs no match with every image.
                patterns = [line for line in lines if line.strip("/ ") != str(STATE) and not line.startswith("#")]
                self._ignored += _compiled(folder, patterns) if any(patterns) else []
            if folder == project:
                break

    def check(self, source: str) -> None:
        """Raise UserError if DVC does not watch a file; its name is posix and relative to the root."""
        self.check_folder(posixpath.dirname(source))
        for folder, patterns in self._ignored:
            if patterns.match_file((self._absolute / source).relative_to(folder)):
                raise UserError(
                    f"prepare.path: {self.root / source} is ignored by {folder / '.dvcignore'}, so DVC would not "
                    "notice when it changes: remove the pattern, or move the file away"
                )

    def check_folder(self, folder: str) -> None:
        """Raise UserError if DVC does not look into a folder."""
        if folder in self._checked:
            return
        path = self.root / folder
        if folder:
            self.check_folder(posixpath.dirname(folder))
            if path.is_symlink():
                raise UserError(
                    f"prepare.path: {path} is a link to a folder, behind which DVC does not look: copy the folder "
                    "there (cp -rL), mount it there, or make prepare.path itself the link"
                )
        if self._in_project and (path.name in LEFT_OUT or (path / ".dvc").is_dir()):
            raise UserError(
                f"prepare.path: {path} is a DVC project of its own or a folder of git, which DVC leaves out: remove "
                "its .dvc, or move the images elsewhere"
            )
        self._checked.add(folder)


def _compiled(folder: Path, patterns: list[str]) -> list[tuple[Path, "GitIgnoreSpec"]]:
    from pathspec import GitIgnoreSpec  # noqa: PLC0415  (few projects have a pattern)

    return [(folder, GitIgnoreSpec.from_lines(patterns))]
