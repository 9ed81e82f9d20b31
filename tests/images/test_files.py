"""The images that a command's arguments name; folders of classes are in test_sources.py."""

import os
from pathlib import Path

import pytest

from headstart.core.errors import UserError
from headstart.images.files import ImageFile, find_images


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_a_folders_images_come_by_name_and_nothing_else_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "in/c.JPG", "in/a.png", "in/b/d.webp", "in/notes.txt", "in/.hidden.png", "in/Thumbs.db")
    assert list(find_images(["in"])) == [ImageFile(Path("in", name), None) for name in ("a.png", "b/d.webp", "c.JPG")]


def test_problems_are_yielded_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "in/a.png")
    (tmp_path / "in" / "up").symlink_to(".")
    (tmp_path / os.fsdecode(b"in/\xff.png")).write_bytes(b"")
    assert dict(find_images(["in"])) == {
        Path("in/a.png"): None,
        Path("in/up"): "a link to a folder that it lies in",
        Path(r"in/\xff.png"): "its name is not UTF-8",
    }


def test_arguments_stay_in_their_order_and_a_name_is_first_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "b.png", "a.png", "[ab].png", "c/d.png")
    names = [str(each.path) for each in find_images(["b.png", "[ab].png", "?.png", "none.jpg", "*"])]
    assert names == ["b.png", "[ab].png", "a.png", "b.png", "none.jpg", "[ab].png", "a.png", "b.png"]


@pytest.mark.parametrize("argument", ["empty", "*.jpg", "empty/**"])
def test_no_image_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image is there"):
        find_images([argument])
