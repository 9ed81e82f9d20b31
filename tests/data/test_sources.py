"""What each source lists, reads and refuses: folders and tables; test_datasets.py has those of libraries."""

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.core.errors import UserError
from headstart.data.sources import CsvTable, ImageFolder, SourceItem
from headstart.images.decode import BadImageError


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def listed(items: Iterator[SourceItem]) -> dict[str, SourceItem]:
    return {item.source: item for item in items}


def test_files_need_neither_torch_nor_scikit_learn() -> None:
    """In a process of its own, since this one has imported them."""
    heavy = "{'torch', 'torchvision', 'sklearn', 'timm'}"
    subprocess.run(
        [sys.executable, "-c", f"import sys, headstart.data.sources; assert not {heavy} & set(sys.modules)"], check=True
    )


def test_class_folders(tmp_path: Path) -> None:
    ignored = ("README.md", "classes.txt", ".hidden/x.jpg", "cat/.DS_Store", "cat/Thumbs.db", "dog/desktop.ini")
    write(tmp_path, "cat/a.jpg", "cat/deep/er/b.png", "dog/notes", *ignored)
    items = listed(ImageFolder(tmp_path).images())
    assert {name: item.label for name, item in items.items()} == {
        "cat/a.jpg": "cat",
        "cat/deep/er/b.png": "cat",
        "dog/notes": "dog",
    }
    assert all(item.split is None and item.problem is None for item in items.values())
    assert ImageFolder(tmp_path).read("cat/a.jpg") == b"cat/a.jpg"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_split_folders(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train/cat/a", f"{name}/cat/b", "test/dog/c", "README")
    items = listed(ImageFolder(tmp_path).images())
    assert {(item.source, item.label, item.split) for item in items.values()} == {
        ("train/cat/a", "cat", "train"),
        (f"{name}/cat/b", "cat", "validation"),
        ("test/dog/c", "dog", "test"),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/cat/a", "dog/b"], "beside them lies 'dog'"),
        (["train/cat/a", "val/cat/b", "valid/cat/c"], "at most one of val, valid"),
        (["test/cat/a", "val/cat/b"], "must be train"),
    ],
)
def test_two_sources_of_truth(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(ImageFolder(write(tmp_path, *names)).images())


def test_an_empty_class_folder_is_refused(tmp_path: Path) -> None:
    (write(tmp_path, "cat/a") / "dog").mkdir()
    with pytest.raises(UserError, match="dog: the class folder holds no image"):
        list(ImageFolder(tmp_path).images())


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare\.path: .*nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere")


def test_links_are_followed_but_no_loops(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "cat/a.jpg")
    write(tmp_path / "elsewhere", "b.jpg", "c/d.jpg")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "a_link.jpg").symlink_to("a.jpg")
    (root / "cat" / "up").symlink_to("..")
    (tmp_path / "elsewhere" / "c" / "round").symlink_to("..")
    problems = {name: item.problem for name, item in listed(ImageFolder(root).images()).items()}
    loop = "a link to a folder that it lies in"
    good = dict.fromkeys(["cat/a.jpg", "cat/a_link.jpg", "dog/b.jpg", "dog/c/d.jpg"])
    assert problems == {**good, "cat/up": loop, "dog/c/round": loop}


def test_images_beside_the_class_folders_are_bad(tmp_path: Path) -> None:
    write(tmp_path, "cat/a", "lost.jpg")
    (tmp_path / "gone").symlink_to("nowhere")
    items = listed(ImageFolder(tmp_path).images())
    assert items["lost.jpg"].problem == items["gone"].problem == "lies in no class folder"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    files = pickle.loads(pickle.dumps(ImageFolder(tmp_path)))  # noqa: S301  (as it is sent to worker processes)
    for name, reason in (
        ("pipe", "a pipe"),
        ("dangling", "a link to nothing"),
        ("none", "no such file"),
        (".", "a folder"),
    ):
        with pytest.raises(BadImageError, match=reason):
            files.read(name)


def table(root: Path, text: str) -> CsvTable:
    (root / "list.csv").write_text(text, encoding="utf-8-sig")
    return CsvTable(root, "list.csv")


def test_table(tmp_path: Path) -> None:
    text = 'camera,path,label,split,group\nA,x/1.jpg,"cat, big",train,g1\n\nB,./x/../2.jpg,dog,valid,\n'
    source = table(tmp_path, text)
    assert list(source.images()) == [
        SourceItem("x/1.jpg", "cat, big", "train", "g1", ("A",)),
        SourceItem("2.jpg", "dog", "validation", None, ("B",)),
    ]
    assert source.metadata_columns == ["camera"]


def test_table_without_splits(tmp_path: Path) -> None:
    assert [each.split for each in table(tmp_path, "path,label,split\na,x,\nb,y,\n").images()] == [None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column path and no column label"),
        ("path;label\na;x\n", r"no column path .*path;label"),
        ("path,label,path\n", "two columns"),
        ("path,label,sha256\n", "rename the column 'sha256'"),
        ("path,label,split\na,x,train\nb,y,\n", "line 3: the split is missing"),
        ("path,label,split\na,x,\nb,y,test\n", "line 3: the split is given"),
        ("path,label,split\na,x,dev\n", "line 2: unknown split 'dev'"),
        ("path,label\na,x\nb,\n", "line 3: the label is empty"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label\na\n", "line 2: 1 values for 2 columns"),
        ("path,label\n/etc/a.jpg,x\n", "line 2: /etc/a.jpg is not inside"),
        ("path,label\nx/../../a.jpg,x\n", "line 2: .* is not inside"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(table(tmp_path, text).images())


def test_a_missing_table_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        CsvTable(tmp_path, "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"path,label\ncaf\xe9.jpg,x\n")
    with pytest.raises(UserError, match="not a CSV table in UTF-8"):
        list(CsvTable(tmp_path, "latin.csv").images())
