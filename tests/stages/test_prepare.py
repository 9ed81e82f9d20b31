"""The stage on small folders: what it writes, that it writes the same again, and what stops it."""

import csv
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from damaged import make_damaged
from headstart.assembly import store
from headstart.ground.artifacts import MANIFEST_COLUMNS, PREPARED, Prepared, manifest_rows, read_json, read_labels
from headstart.ground.errors import UserError
from headstart.ground.params import Params
from headstart.ground.params_file import parse_params
from headstart.libraries.backbone import evaluation_transform
from headstart.libraries.images import Decoder
from headstart.stages import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def params(source: str = "imagefolder", **prepare_keys: Any) -> Params:
    content = YAML(typ="safe").load(ROOT / "params.yaml")
    content["prepare"] |= {"source": source, "path": "pictures", **prepare_keys}
    content["backbone"] |= {"name": "test_resnet", "image_size": 16}
    content["run"]["workers"] = 0
    return parse_params(content).declared(prepare.PARAMS)


def draw(path: str, seed: int, size: tuple[int, int] = (30, 20)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def draw_classes(classes: str = "ab", each: int = 12, root: str = "pictures") -> None:
    for number, name in enumerate(classes):
        for i in range(each):
            draw(f"{root}/{name}/{i:03d}.png", 1000 * number + i)


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in PREPARED.iterdir()}


def splits() -> dict[str, str]:
    return {row["source"]: row["split"] for row in manifest_rows()}


def test_the_store_holds_timms_evaluation_resize() -> None:
    draw_classes()
    prepare.run(params())
    prepared = Prepared.open()
    resize, _ = evaluation_transform(prepared.input)
    for row, about in enumerate(manifest_rows()):
        expected = np.asarray(resize(Image.open(Path("pictures") / about["source"]).convert("RGB")))
        np.testing.assert_array_equal(prepared.pixels(row), expected)
        assert (about["width"], about["height"]) == ("30", "20")
    assert prepared.classes == ["a", "b"]
    assert sum(len(read_labels(split)) for split in ("train", "validation", "test")) == 24
    assert sorted(path.name for path in Path("data").iterdir()) == ["prepared"]
    report = read_json(Path("reports/prepare.json"))
    assert (report["pictures"], report["decoded"], report["reused"]) == (24, 24, 0)
    assert sum(report["splits"].values()) == 24
    assert report["per_class"]["a"]["train"] + report["per_class"]["b"]["train"] == report["splits"]["train"]


def test_a_run_from_nothing_and_an_incremental_one_write_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.ShardWriter.__init__, "__defaults__", (2000,))
    draw_classes(each=12)
    prepare.run(params())
    first, before = written(), splits()
    assert len([name for name in first if name.startswith("pixels")]) > 3
    for path in PREPARED.iterdir():
        path.chmod(0o444)  # as links into DVC's cache are
    prepare.run(params())
    assert written() == first
    assert read_json(Path("reports/prepare.json"))["decoded"] == 0

    draw("pictures/a/0005.png", 77)
    draw("pictures/c/1.png", 78)
    draw("pictures/c/2.png", 79)
    draw("pictures/c/3.png", 80)
    Path("pictures/b/003.png").unlink()
    prepare.run(params())
    incremental = written()
    assert read_json(Path("reports/prepare.json"))["decoded"] == 4
    assert read_json(Path("reports/prepare.json"))["reused"] == 23
    after = splits()
    assert all(after[source] == split for source, split in before.items() if source in after)
    for path in PREPARED.iterdir():
        path.unlink()
    prepare.run(params())
    assert written() == incremental


def test_another_input_decodes_anew() -> None:
    draw_classes()
    prepare.run(params())
    other = params()
    prepare.run(other.model_copy(update={"backbone": other.backbone.model_copy(update={"image_size": 24})}))
    assert read_json(Path("reports/prepare.json"))["decoded"] == 24
    assert Prepared.open().pixels(0).shape[0] == 25


def test_every_damaged_file_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    draw_classes()
    names = make_damaged(Path("pictures"))
    assert len(names) == 200
    with pytest.raises(UserError) as error:
        prepare.run(params())
    lines = str(error.value).splitlines()[1:-1]
    assert len(lines) == 200
    assert all(any(line.startswith((f"  {name}: ", f"  {name!r}: ")) for line in lines) for name in names)
    assert not PREPARED.exists()
    assert not any(Path("data").iterdir())

    for i in range(3):
        draw(f"pictures/odd/good{i}.png", 5000 + i)
        draw(f"pictures/damaged/good{i}.png", 6000 + i)
    prepare.run(params(on_bad_image="skip"))
    report = read_json(Path("reports/prepare.json"))
    assert {bad["source"] for bad in report["bad"]} == names
    assert report["pictures"] == 30
    assert "200 bad pictures left out" in caplog.text


def test_a_table_keeps_its_splits_groups_and_further_columns() -> None:
    draw_classes(root="pictures")
    rows = [("camera", "path", "label", "split", "group")]
    for i in range(12):
        for label in "ab":
            split = "test" if i > 9 else "train"
            rows.append(("left, upper", f"{label}/{i:03d}.png", label, split, "" if i % 2 else f"{split}{i}"))
    with Path("pictures/list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    prepare.run(params("csv:list.csv"))
    manifest = list(manifest_rows())
    assert list(manifest[0]) == [*MANIFEST_COLUMNS, "camera"]
    assert {row["camera"] for row in manifest} == {"left, upper"}
    assert sum(row["split"] == "test" for row in manifest) == 4
    assert any(row["split"] == "validation" for row in manifest)
    groups = {
        row["group"]: {other["split"] for other in manifest if other["group"] == row["group"]} for row in manifest
    }
    assert all(len(found) == 1 for group, found in groups.items() if group)


def test_a_group_in_two_given_splits_is_refused() -> None:
    draw_classes()
    rows = [f"{label}/{i:03d}.png,{label},{'test' if i > 9 else 'train'},{i // 4}" for label in "ab" for i in range(12)]
    Path("pictures/list.csv").write_text("path,label,split,group\n" + "\n".join(rows))
    with pytest.raises(UserError, match="group '2' is in two splits, test and train"):
        prepare.run(params("csv:list.csv"))


def test_a_path_that_is_listed_twice_is_refused() -> None:
    draw_classes()
    Path("pictures/list.csv").write_text("path,label\na/000.png,a\nb/000.png,b\n./a/000.png,a\n")
    with pytest.raises(UserError, match=r"a/000\.png is listed twice"):
        prepare.run(params("csv:list.csv"))


def test_identical_pictures_of_given_splits_are_counted() -> None:
    for split in ("train", "val", "test"):
        draw_classes(each=3, root=f"pictures/{split}")
    prepare.run(params())
    assert read_json(Path("reports/prepare.json"))["duplicates"] == {"identical": 12, "across_splits": 6}


def test_classes_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "__call__", lambda *_: pytest.fail("decoded"))
    draw_classes("a")
    with pytest.raises(UserError, match="single class, 'a'"):
        prepare.run(params())
    draw_classes("b", each=2)
    with pytest.raises(UserError, match="b: 2"):
        prepare.run(params())


def test_a_class_of_bad_pictures_only_is_refused() -> None:
    draw_classes()
    Path("pictures/c").mkdir()
    for i in range(3):
        Path(f"pictures/c/{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="c: 0"):
        prepare.run(params(on_bad_image="skip"))


def test_an_empty_folder_is_refused() -> None:
    Path("pictures").mkdir()
    with pytest.raises(UserError, match="no usable picture"):
        prepare.run(params())
