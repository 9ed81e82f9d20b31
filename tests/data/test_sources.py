"""What each source lists, reads and refuses: folders and tables; test_datasets.py has those of libraries."""

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headstart.core.errors import UserError
from headstart.data.source_item import SourceItem
from headstart.data.sources import CsvTable, ImageFolder
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


def test_links_to_files_are_followed_but_no_loops(tmp_path: Path) -> None:
    root = write(tmp_path / "root", "cat/a.jpg", "cat/c/d.jpg")
    (root / "cat" / "a_link.jpg").symlink_to("a.jpg")
    (root / "cat" / "up").symlink_to("..")
    (root / "cat" / "c" / "round").symlink_to("..")
    problems = {name: item.problem for name, item in listed(ImageFolder(root).images()).items()}
    loop = "a link to a folder that it lies in"
    good = dict.fromkeys(["cat/a.jpg", "cat/a_link.jpg", "cat/c/d.jpg"])
    assert problems == {**good, "cat/up": loop, "cat/c/round": loop}


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


def test_split_folders_of_many_spellings(tmp_path: Path) -> None:
    write(tmp_path, "Training/cat/a", "DEV/cat/b", "test-set/dog/c", "__MACOSX/Training/x", "lost+found/y")
    assert {(item.source, item.label, item.split) for item in ImageFolder(tmp_path).images()} == {
        ("Training/cat/a", "cat", "train"),
        ("DEV/cat/b", "cat", "validation"),
        ("test-set/dog/c", "dog", "test"),
    }


@pytest.mark.parametrize("named", [None, {}, {"cats": "train", "dogs": "test"}])
def test_folders_that_share_their_names_are_splits_or_classes_as_the_user_says(
    tmp_path: Path, named: dict[str, str] | None
) -> None:
    write(tmp_path, "cats/indoor/a", "cats/outdoor/b", "dogs/indoor/c", "dogs/outdoor/d", "dogs/stray.jpg")
    source = ImageFolder(tmp_path, named)
    if named is None:
        with pytest.raises(UserError, match=r"\(indoor, outdoor\).*prepare\.split_folders: \{cats: train, …\}.*\{\}$"):
            list(source.images())
        return
    found = {item.source: (item.label, item.split) for item in source.images() if item.problem is None}
    assert found["dogs/outdoor/d"] == (("outdoor", "test") if named else ("dogs", None))
    assert len(found) == (4 if named else 5)


@pytest.mark.parametrize(
    "names",
    [
        ["animals/cat/1", "animals/other/2", "plants/rose/3", "plants/other/4"],
        ["n01/images/1", "n02/images/2", "n03/images/3"],
        ["cat/1.jpg", "cat/2.jpg", "cat/more/3.jpg", "dog/more/4.jpg"],
    ],
)
def test_classes_of_two_levels_are_classes(tmp_path: Path, names: list[str]) -> None:
    items = ImageFolder(write(tmp_path, *names)).images()
    expected = {(name, name.split("/", 1)[0], None) for name in names}
    assert {(item.source, item.label, item.split) for item in items} == expected


def test_several_named_folders_may_be_one_split(tmp_path: Path) -> None:
    write(tmp_path, *(f"{fold}/{label}/1" for fold in ("f1", "f2", "f3") for label in ("cat", "dog")))
    items = list(ImageFolder(tmp_path, {"f1": "train", "f2": "train", "f3": "validation"}).images())
    assert [item.split for item in items] == ["train"] * 4 + ["validation"] * 2


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": "train", "none": "test"}, r"prepare\.split_folders: .*has no folder 'none', only a, b$"),
        ({"a": "train"}, "b in .* is not named"),
        ({"a": "validation", "b": "test"}, "no folder is train"),
    ],
)
def test_split_folders_that_do_not_fit_are_refused(tmp_path: Path, named: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(ImageFolder(write(tmp_path, "a/cat/1", "b/cat/2"), named).images())


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/cat/a", "Training/cat/b"], r"prepare\.split_folders: \{Training: train, train: train\}"),
        (["cat/a", "Test/b.jpg"], r"Test look like splits, but beside them lies 'cat'.*prepare\.split_folders"),
        (["train/1.jpg", "train/2.jpg", "test/3.jpg"], "train: 2 images and no class folder"),
        (
            ["cat/train/1", "cat/test/2", "dog/train/3", "dog/test/4"],
            r"the splits test, train lie in the class .*test/cat",
        ),
        (["1.jpg", "notes.txt"], "1 images and no class folder: .*csv:FILE"),
        (["list.csv"], "1 text and no class folder"),
        (["test/cat/1", "val/cat/2"], r"set prepare\.split_folders: \{\}$"),
        (
            ["seg_train/seg_train/cat/1", "seg_test/seg_test/cat/2", "seg_pred/seg_pred/3.jpg"],
            r"seg_test, seg_train are called as splits are: .*\{seg_test: test, …\}, or .*\{\}$",
        ),
        (["trainA/1.jpg", "trainB/2.jpg", "testA/3.jpg"], "testA, trainA, trainB are called as splits are"),
        ([f"{split}/{c}/1" for split in ("Pruef", "Trainingsdaten") for c in "ab"], r"\{Trainingsdaten: train, …\}"),
        (["\u200b/1.jpg", "cat/2.jpg"], "the name of the class folder .* is blank"),
    ],
)
def test_layouts_that_are_refused(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(ImageFolder(write(tmp_path, *names)).images())


def test_named_splits_are_passed_through_where_they_hold_themselves(tmp_path: Path) -> None:
    write(tmp_path, "seg_train/seg_train/cat/1", "seg_test/seg_test/cat/2", "seg_pred/seg_pred/3.jpg")
    items = ImageFolder(tmp_path, {"seg_train": "train", "seg_test": "test", "seg_pred": "test"}).images()
    assert {(item.label, item.split) for item in items} == {("cat", "train"), ("cat", "test")}


def test_what_storage_and_windows_leave_is_no_class_and_no_image(tmp_path: Path) -> None:
    left = ["#recycle/1.jpg", "@Recycle/2.jpg", "System Volume Information/3", "cat/a.jpg:Zone.Identifier"]
    items = ImageFolder(write(tmp_path, "cat/a.jpg", "dog/b.jpg", "dog/Picasa.ini", *left)).images()
    assert [item.source for item in items] == ["cat/a.jpg", "dog/b.jpg"]


def test_what_stands_for_an_image_is_not_hidden(tmp_path: Path) -> None:
    items = ImageFolder(write(tmp_path, "cat/.a.jpg.icloud", "dog/b.jpg")).images()
    assert [item.source for item in items] == ["cat/.a.jpg.icloud", "dog/b.jpg"]


def test_the_header_of_a_table_joined_to_another_is_no_image(tmp_path: Path) -> None:
    write(tmp_path, "1.jpg", "2.jpg")
    items = table(tmp_path, "path,label\n1.jpg,cat\n\ufeffpath,label\n2.jpg,dog\n").images()
    assert [item.label for item in items] == ["cat", "dog"]


@pytest.mark.parametrize("inside", ["test", "test/test"])
def test_images_without_classes_are_no_training_data(
    tmp_path: Path, inside: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(tmp_path, "train/cat/a.jpg", "train/dog/b.jpg", *(f"{inside}/{i}.jpg" for i in range(300)))
    assert [item.source for item in ImageFolder(tmp_path).images()] == ["train/cat/a.jpg", "train/dog/b.jpg"]
    assert f"{tmp_path / inside}: 300 images in no class folder are left out" in caplog.text
    assert "`headstart predict`" in caplog.text


@pytest.mark.parametrize("split", ["", "train/", "train/train/"])
@pytest.mark.parametrize("around", ["", "dataset/", "a/b/"])
def test_folders_around_all_others_are_passed_through(tmp_path: Path, around: str, split: str) -> None:
    write(tmp_path, f"{around}{split}cat/1", f"{around}{split}dog/2", "__MACOSX/x/._1", f"{around}.hidden/3")
    items = ImageFolder(tmp_path).images()
    assert {(item.source, item.label, item.split) for item in items} == {
        (f"{around}{split}cat/1", "cat", "train" if split else None),
        (f"{around}{split}dog/2", "dog", "train" if split else None),
    }


def test_blanks_and_unicode_forms_make_no_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    names = ["cafe\u0301/1", "caf\xe9 /2", "dog/3", "\ufeffdog/4"]
    items = ImageFolder(write(tmp_path, *names)).images()
    assert {(item.source, item.label) for item in items} == {
        (names[0], "caf\xe9"),
        (names[1], "caf\xe9"),
        (names[2], "dog"),
        (names[3], "dog"),
    }
    assert r"one class each: 'caf\xe9 ' is 'cafe\u0301', '\ufeffdog' is 'dog'" in caplog.text


def table(root: Path, text: str, encoding: str = "utf-8-sig") -> CsvTable:
    (root / "list.csv").write_bytes(text.encode(encoding))
    return CsvTable(root, "list.csv")


def test_table(tmp_path: Path) -> None:
    write(tmp_path, "x/1.jpg", "2.jpg")
    text = 'camera,path,label,split,group\nA,x/1.jpg,"cat, big",train,g1\n\nB,./x/../2.jpg,dog,valid,\n'
    source = table(tmp_path, text)
    assert list(source.images()) == [
        SourceItem("x/1.jpg", "cat, big", "train", "g1", ("A",)),
        SourceItem("2.jpg", "dog", "validation", None, ("B",)),
    ]
    assert source.metadata_columns == ["camera"]


def test_table_without_splits(tmp_path: Path) -> None:
    write(tmp_path, "a", "b")
    assert [each.split for each in table(tmp_path, "path,label,split\na,x,\nb,y,\n").images()] == [None, None]


@pytest.mark.parametrize("text", ["path,label,kind\na,x,train\nb,y,bus\n", "path,label,kind\na,x,train\nb,y,train\n"])
def test_other_columns_are_no_splits(tmp_path: Path, text: str) -> None:
    assert len(list(table(write(tmp_path, "a", "b"), text).images())) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column path and no column label"),
        ("path:label\na:x\n", r"no column path .*path:label.*first line must name"),
        ("path,label,Path\n", "two columns"),
        ("path,label,path\n", "two columns"),
        ("path,label,sha256\n", "rename the column 'sha256'"),
        ("path,label,split\na,x,train\nb,y,\n", "line 3: the split is missing"),
        ("path,label,split\na,x,\nb,y,test\n", "line 3: the split is given"),
        ("path,label,split\na,x,fold1\n", "line 2: unknown split 'fold1'"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,label\na\n", "line 2: 1 values for 2 columns"),
        ("path,label\na,big, cat\n", "line 2: 3 values for 2 columns: quote values that hold a separator"),
        ("path,label,Set\na,x,Training\nb,y,val\n", "the column 'Set' holds splits, .*: rename it to that"),
        ("path,label\n/etc/a.jpg,x\n", "line 2: /etc/a.jpg is not inside"),
        ("path,label\nx/../../a.jpg,x\n", "line 2: .* is not inside"),
        ("path,label\nC:\\data\\a.jpg,x\n", "line 2: .* is not inside"),
        ("path,label\nfile:///a%00.jpg,x\n", "line 2: .* is not inside"),
        ("path,label\nin,x\n", "line 2: in is a folder"),
        ('path,label\na,"x\nb,y\nc,y\n', "line 2: is a quote opened there"),
        ('path,label\na,x\n"b,y\nc,y\n', "line 3: is a quote opened there"),
        ('path,label,note\na,x,"n\nb,y,n\n', "line 2: is a quote opened there"),
        ('path,label\na,"x\nb,y"\nc,y\n', "line 2: a line break .* in the label: is a quote not closed"),
        ("path,label\na,x\0y\n", "line 2: .* NUL byte in the label"),
        (f"path,label,note\na,x,{'n' * 200_000}\n", "line 2: .*field larger"),
        (f"path,label,{'n' * 200_000}\na,x,\n", "not a CSV table .*field larger"),
        ("path,label\nb.jpg,x\nc.jpg,x\n", r"none of its 2 rows names a file; the first would be .*b\.jpg"),
        (f"path,label\n{'long' * 100},x\n", "none of its 1 rows names a file"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=message):
        list(table(tmp_path, text).images())


def test_an_empty_label_is_the_problem_of_its_row(tmp_path: Path) -> None:
    source = table(write(tmp_path, "a", "b"), "path,label\na,x\nb,\n")
    assert [item.problem for item in source.images()] == [
        None,
        "the label is empty (line 3): write one, or leave the image out",
    ]


def test_a_missing_table_and_one_that_is_not_utf8(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        CsvTable(tmp_path, "none.csv")
    (tmp_path / "latin.csv").write_bytes(b"path,label\ncaf\xe9.jpg,x\n")
    with pytest.raises(UserError, match="not a CSV table in UTF-8"):
        list(CsvTable(tmp_path, "latin.csv").images())
    with pytest.raises(
        UserError, match=r"prepare\.source: \.\./list\.csv is not inside .*, the folder that DVC watches"
    ):
        CsvTable(tmp_path, "../list.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="is no file"):
        CsvTable(tmp_path, "pipe.csv")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"])
def test_a_workbook_is_called_one(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "table.csv").write_bytes(start + bytes(range(256)))
    with pytest.raises(UserError, match=r"table\.csv is a workbook, not a CSV table: save it as CSV UTF-8"):
        CsvTable(tmp_path, "table.csv")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"path": "a.jpg", "label": "cat"}\n', "JSON"),
        (b"PAR1\x15\x04\x15\xff", "Parquet"),
        (b"\x1f\x8b\x08\x00\xff", "archive"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_what_is_no_table_is_called_by_its_kind(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "table.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"^prepare\.source: .*table\.csv holds no CSV table \({kind}\): "):
        CsvTable(tmp_path, "table.csv")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\na.jpg,caf\xe9,train\nb.jpg,dog,test\n",
        "Path; LABEL ;Split\na.jpg;caf\xe9;Training\n\nb.jpg;dog;TST\n",
        "sep=;\r\npath;label;split\r\na.jpg;caf\xe9;train\r\nb.jpg;dog;test\r\n",
        '"path"\t"label"\t"split"\r"a.jpg"\t"caf\xe9"\t"train"\r"b.jpg"\t"dog"\t"test"\r',
        'path, label, split,,\n a.jpg , "cafe\u0301 ", train,,\nb.jpg,\xa0dog,test,,\n,,,,\n',
        ",path,label,split\n0,a.jpg,caf\xe9,train,\n1,b.jpg,dog,test,\n",
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: str, encoding: str) -> None:
    source = table(write(tmp_path, "a.jpg", "b.jpg"), text, encoding)
    assert source.metadata_columns == []
    assert list(source.images()) == [SourceItem("a.jpg", "caf\xe9", "train"), SourceItem("b.jpg", "dog", "test")]


def test_paths_of_tables_in_other_spellings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["cat/1.jpg", "cat/a b.jpg", "cat/ends in a blank.jpg ", "cat/back\\slash.jpg", "cat/cafe\u0301.jpg"]
    root = write(tmp_path / "real", *names)
    monkeypatch.chdir(tmp_path)
    Path("raw").symlink_to("real")
    Path("other").symlink_to("real")
    spellings = {
        names[0]: [
            *("cat/1.jpg", " cat/1.jpg", "./cat/1.jpg", "../raw/cat/1.jpg", "raw/cat/1.jpg", "cat\\1.jpg"),
            *(f"{tmp_path}/{folder}/cat/1.jpg" for folder in ("raw", "real", "other", "raw/cat/..")),
        ],
        names[1]: [f"file://{root}/cat/a%20b.jpg"],
        names[2]: [names[2]],
        names[3]: [names[3]],
        names[4]: ["cat/caf\xe9.jpg"],
    }
    for name, paths in spellings.items():
        for path in paths:
            assert [item.source for item in table(Path("raw"), f"path,label\n{path},x\n").images()] == [name], path


def test_absent_files_of_a_table_are_bad_images_and_groups_have_no_blanks(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    items = list(table(tmp_path, "path,label,group\na.jpg,x,g \nb.jpg,x,g\n").images())
    assert [item.problem for item in items] == [None, "there is no such file"]
    assert {item.group for item in items} == {"g"}
