"""The images that a command's arguments name; folders of classes are in test_sources.py."""

import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from headstart.core.errors import UserError
from headstart.images import files
from headstart.images.decode import BadImageError
from headstart.images.files import ImageFile, counted, find_images, read_file
from helpers.damaged import saved
from helpers.kinds import NO_IMAGES, UNREADABLE_IMAGES


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
    (tmp_path / os.fsdecode(b"in/\xfe")).mkdir()
    assert {each.path: each.problem for each in find_images(["in"])} == {
        Path("in/a.png"): None,
        Path("in/up"): "a link to a folder that it lies in",
        Path(r"in/\xff.png"): "its name is not UTF-8: rename it",
        Path(r"in/\xfe"): "with all in it: its name is not UTF-8: rename it",
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


def test_an_empty_argument_is_not_the_working_directory() -> None:
    with pytest.raises(UserError, match="an empty path"):
        find_images(["a.png", ""])


def test_the_content_decides_where_the_suffix_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    image = saved(Image.new("RGB", (8, 8)), "JPEG")
    names = ["a.jpe", "b.jfif", "c.img", "d.part", "e", "f.jpg.1", "g.tga", "h.txt"]
    write(tmp_path, *(f"in/{name}" for name in names))
    for name in names:
        (tmp_path / "in" / name).write_bytes(image)
    (tmp_path / "in" / "g.tga").write_bytes(saved(Image.new("RGB", (8, 8)), "TGA"))  # has no signature
    for argument in ("in", "in/*", "in/**"):
        assert [each.path.name for each in find_images([argument])] == names


def test_what_is_passed_over_is_counted_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "in/a.png", "in/empty")
    for name, (content, _) in (NO_IMAGES | UNREADABLE_IMAGES).items():
        (tmp_path / "in" / name).write_bytes(content)
    (tmp_path / "in" / "odd").write_bytes(b"\x01\x02")
    os.mkfifo(tmp_path / "in" / "pipe")
    (tmp_path / "in" / "nowhere").symlink_to("missing")
    for argument in ("in", "in/*"):
        kinds: Counter[str] = Counter()
        found = [each.path.name for each in find_images([argument], kinds)]
        assert found == sorted(["a.png", *UNREADABLE_IMAGES])  # they show an image, so each is a row that says why not
        expected = Counter(named for _, named in NO_IMAGES.values())
        assert kinds == expected | Counter(["empty", "unknown", "pipe", "unreadable"])
    assert counted(Counter({"PDF": 1, "text": 3})) == "3 text, 1 PDF"
    (tmp_path / "in" / "a.png").unlink()
    for name in UNREADABLE_IMAGES:
        (tmp_path / "in" / name).unlink()
    with pytest.raises(UserError, match=r"^in: no image is there, but 3 archive, 2 .*1 unknown"):
        find_images(["in"])


def test_files_with_an_images_suffix_are_not_opened_to_be_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, *(f"{i}.jpg" for i in range(100)))
    monkeypatch.setattr(files, "image_format", None)
    assert sum(1 for _ in find_images([str(tmp_path)])) == 100


def test_a_link_into_an_annex_says_how_it_is_filled(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("../.git/annex/objects/Gx/3f/SHA256E-s3--aa.jpg")
    with pytest.raises(BadImageError, match=r"^a link to nothing: `git annex get` fetches it$"):
        read_file(tmp_path / "a.jpg")
