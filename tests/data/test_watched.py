"""What prepare reads and what DVC watches are the same files: compared with DVC's own hash of the folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dvc.fs import localfs
from dvc.ignore import DvcIgnoreFilter
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB

from headstart.core.errors import UserError
from headstart.data.sources import CsvTable, ImageFolder


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (".dvc", "raw/cat", "raw/dog", "elsewhere"):
        Path(folder).mkdir(parents=True)
    for name in ("raw/cat/1.jpg", "raw/dog/2.jpg", "elsewhere/3.jpg", "raw/cat/drawing.bmp"):
        Path(name).write_text(name)
    Path(".dvcignore").write_text("# A comment.\n.headstart\n")


def dvc_hash() -> str:
    """Return DVC's hash of the folder raw, as a stage's dependency."""
    here = str(Path.cwd())
    ignored = DvcIgnoreFilter(localfs, here)
    _, _, tree = build(HashFileDB(localfs, f"{here}/db"), f"{here}/raw", localfs, "md5", dry_run=True, ignore=ignored)
    return str(tree.hash_info.value)


def link_to_folder() -> Path:
    Path("raw/owl").symlink_to(Path("elsewhere").absolute())
    return Path("elsewhere/3.jpg")


def link_below_a_class() -> Path:
    Path("raw/cat/more").symlink_to("../../elsewhere")
    return Path("elsewhere/3.jpg")


def link_within() -> Path:
    Path("raw/split").mkdir()
    Path("elsewhere/deep").mkdir()
    Path("elsewhere/deep/4.jpg").touch()
    Path("raw/split/deep").symlink_to("../../elsewhere/deep")
    return Path("elsewhere/deep/4.jpg")


def dvc_project() -> Path:
    Path("raw/dog/.dvc").mkdir()
    return Path("raw/dog/2.jpg")


def ignored_file() -> Path:
    Path(".dvcignore").write_text(".headstart\n*.bmp\n")
    return Path("raw/cat/drawing.bmp")


def ignored_folder() -> Path:
    Path(".dvcignore").write_text("/raw/dog/\n")
    return Path("raw/dog/2.jpg")


@pytest.mark.parametrize(
    "make", [link_to_folder, link_below_a_class, link_within, dvc_project, ignored_file, ignored_folder]
)
def test_what_dvc_does_not_watch_is_refused(make: Callable[[], Path]) -> None:
    unwatched = make()
    before = dvc_hash()
    unwatched.write_text("changed")
    assert dvc_hash() == before
    with pytest.raises(UserError, match=r"^prepare\.path: raw/.*(cp -rL|remove its \.dvc|remove the pattern)"):
        list(ImageFolder(Path("raw")).images())


def link_to_file() -> Path:
    Path("raw/cat/link.jpg").symlink_to("../../elsewhere/3.jpg")
    return Path("elsewhere/3.jpg")


def root_is_a_link() -> Path:
    Path("raw").rename("real")
    Path("raw").symlink_to("real")
    return Path("real/cat/1.jpg")


def other_pattern() -> Path:
    Path(".dvcignore").write_text("*.tmp\n*.bmp\n!raw/**/*.bmp\n")
    return Path("raw/cat/drawing.bmp")


@pytest.mark.parametrize("make", [link_to_file, root_is_a_link, other_pattern])
def test_what_dvc_watches_is_read(make: Callable[[], Path]) -> None:
    watched = make()
    before = dvc_hash()
    assert watched.resolve() in {Path("raw", item.source).resolve() for item in ImageFolder(Path("raw")).images()}
    watched.write_text("changed")
    changed = dvc_hash()
    assert changed != before
    watched.with_name("new.jpg").touch()
    assert (dvc_hash() != changed) == (make is not link_to_file)


@pytest.mark.parametrize("row", ["owl/3.jpg", ".git/4.jpg", "dog/../owl/3.jpg"])
def test_tables_name_only_files_that_dvc_watches(row: str) -> None:
    link_to_folder()
    Path("raw/.git").mkdir()
    Path("raw/.git/4.jpg").touch()
    Path("raw/list.csv").write_text(f"path,label\n{row},x\n")
    with pytest.raises(UserError, match=r"^prepare\.path: raw/"):
        list(CsvTable(Path("raw"), "list.csv").images())


def test_a_table_behind_a_link_is_refused() -> None:
    link_to_folder()
    Path("elsewhere/list.csv").write_text("path,label\ncat/1.jpg,x\n")
    with pytest.raises(UserError, match="raw/owl is a link to a folder"):
        list(CsvTable(Path("raw"), "owl/list.csv").images())


def test_outside_of_the_project_dvc_ignores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dvc_project()
    Path("project/.dvc").mkdir(parents=True)
    monkeypatch.chdir("project")
    assert len(list(ImageFolder(Path("../raw")).images())) == 3
