"""The prepare stage on small folders: its outputs, the same bytes on every way to them, and the errors."""

import csv
import logging
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from ruamel.yaml import YAML
from timm.data.transforms_factory import create_transform

from headstart.config.loader import parse_params
from headstart.config.schema import Params
from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, read_table
from headstart.core.paths import PREPARED
from headstart.data import packing, remote
from headstart.data.dataset import SPLITS, PreparedDataset, read_values
from headstart.data.image_info import LabelledImage, content_sha256, info_of
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.manifest import MANIFEST_COLUMNS, manifest_rows
from headstart.data.shards import SHARD_HEADER, read_index
from headstart.data.sources import ImageFolder, lock_source
from headstart.data.transforms import evaluation_transform
from headstart.export.parity import compare_preprocessing
from headstart.stages import prepare
from helpers.damaged import make_damaged
from helpers.file_server import serve
from helpers.waiting import wait_for_workers

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def content(source: str, **prepare_keys: Any) -> dict[str, Any]:
    sections: dict[str, Any] = YAML(typ="safe").load(ROOT / "params.yaml")
    sections["prepare"] |= {"source": source, "path": "images", "train_scale": 1.5, "store": "raw", **prepare_keys}
    sections["backbone"] |= {"name": "test_resnet", "image_size": 16}
    sections["run"]["workers"] = 0
    return sections


def params(source: str = "imagefolder", **prepare_keys: Any) -> Params:
    return parse_params(content(source, **prepare_keys)).declared(prepare.PARAMS)


def draw(path: str, seed: int, size: tuple[int, int] = (30, 20)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def draw_classes(classes: Sequence[str] = "ab", each: int = 12, root: str = "images") -> None:
    for number, name in enumerate(classes):
        for i in range(each):
            draw(f"{root}/{name}/{i:03d}.png", 1000 * number + i)


def written() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in PREPARED.iterdir()}


def splits() -> dict[str, str]:
    return {row["source"]: row["split"] for row in manifest_rows()}


def resized(prepared: PreparedDataset, source: str, split: str) -> NDArray[np.uint8]:
    """Return the pixels to store of an image: for training, at most 24 = 1.5 x 16 on the short side."""
    image = Image.open(Path("images") / source).convert("RGB")
    resize, _ = evaluation_transform(prepared.input)
    if split != "train" or min(image.size) < 18:
        return np.asarray(resize(image))
    if min(image.size) <= 24:
        return np.asarray(image)
    shape = [24 * side // min(image.size) for side in image.size]
    return np.asarray(image.resize((shape[0], shape[1]), Image.Resampling.BILINEAR))


def check_store() -> dict[str, str]:
    """Assert that every row is its image at its split's size, and shards hold nothing else; return the splits."""
    prepared, stored = PreparedDataset.open(), 0
    assert prepared.input["interpolation"] == "bilinear"
    for row, about in enumerate(manifest_rows()):
        pixels = prepared.pixels(row)
        np.testing.assert_array_equal(pixels, resized(prepared, about["source"], about["split"]))
        assert SPLITS[prepared.splits[row]] == about["split"]
        stored += pixels.size
    sizes = [path.stat().st_size for path in PREPARED.glob("pixels-*.bin")]
    assert stored == sum(sizes) - SHARD_HEADER * len(sizes)
    assert read_json(Path("reports/prepare.json"))["bytes"] == sum(sizes)
    places = read_index(PREPARED)[["shard", "offset"]].tolist()
    assert places == sorted(places)  # neighbours in the manifest are so on the disk: training in windows reads runs
    return splits()


def test_training_images_are_stored_for_crops_and_others_at_timms_evaluation_resize() -> None:
    draw_classes(each=10)
    for i, size in enumerate([(90, 60), (50, 70), (24, 99), (23, 99), (10, 8)] * 3):
        draw(f"images/{'ab'[i % 2]}/large{i}.png", 3000 + i, size)
    prepare.run(params())
    assert set(check_store().values()) == set(SPLITS)
    manifest = list(manifest_rows())
    sizes = {(int(row["width"]), int(row["height"])) for row in manifest}
    assert sizes == {(30, 20), (90, 60), (50, 70), (24, 99), (23, 99), (10, 8)}
    assert PreparedDataset.open().classes == ["a", "b"]
    for split in SPLITS:
        assert [int(row["label"] == "b") for row in manifest if row["split"] == split] == read_values(split).tolist()
    assert sorted(path.name for path in Path("data").iterdir()) == ["prepared"]
    names = {path.name for path in PREPARED.iterdir()}
    assert names == {"dataset.json", "manifest.parquet", "manifest.csv", "index.npy", "pixels-00000.bin"}
    report = read_json(Path("reports/prepare.json"))
    assert (report["pictures"], report["decoded"], report["reused"]) == (35, 35, 0)
    assert (report["store"], report["train_side"]) == ("raw", 24)
    assert sum(report["splits"].values()) == 35
    assert report["per_class"]["a"]["train"] + report["per_class"]["b"]["train"] == report["splits"]["train"]


def test_every_row_has_its_splits_size_if_splits_differ_from_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    """In classes of three, images move to the split that is missing; groups that share an image are joined."""
    monkeypatch.setattr(packing, "SHARD_IMAGES", 7)
    rows = ["path,label,group"]
    for number in range(40):
        label = f"c{number % 13:02d}"
        draw(f"images/{number}.png", number, (60, 40))
        rows.append(f"{number}.png,{label},{'' if number % 4 else f'group{number}'}")
    for number in range(0, 24, 4):  # the same image once more, in another group
        Path(f"images/{number}again.png").write_bytes(Path(f"images/{number}.png").read_bytes())
        rows.append(f"{number}again.png,c{number % 13:02d},other{number}")
    Path("images/list.csv").write_text("\n".join(rows))
    prepare.run(params("csv:list.csv"))
    stored = check_store()
    assert all(stored[f"{number}.png"] == stored[f"{number}again.png"] for number in range(0, 24, 4))
    assert read_json(Path("reports/prepare.json"))["decoded_again"] >= 5
    first = written()
    prepare.run(params("csv:list.csv"))
    assert written() == first
    report = read_json(Path("reports/prepare.json"))
    assert (report["decoded"], report["reused"], report["decoded_again"]) == (0, 46, 0)


def test_given_splits_are_predicted() -> None:
    for split, each in {"train": 30, "val": 5}.items():
        for label in "ab":
            for i in range(each):
                draw(f"images/{split}/{label}/{i}.png", hash_of(split, label, i), (60, 40))
    prepare.run(params())
    stored = check_store()
    assert {split for source, split in stored.items() if source.startswith("val")} == {"test"}
    assert "validation" in stored.values()
    assert read_json(Path("reports/prepare.json"))["decoded_again"] == 0


def hash_of(*parts: object) -> int:
    return crc32(repr(parts).encode())


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
def test_a_run_from_nothing_and_an_incremental_one_write_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 5)
    draw_classes(each=12)
    prepare.run(params(store=kind))
    first, before = written(), splits()
    assert len([name for name in first if name.startswith("pixels")]) > 3
    for path in PREPARED.iterdir():
        path.chmod(0o444)  # as links into DVC's cache are
    prepare.run(params(store=kind))
    assert written() == first
    assert read_json(Path("reports/prepare.json"))["decoded"] == 0

    draw("images/a/0005.png", 77)
    draw("images/c/1.png", 78)
    draw("images/c/2.png", 79)
    draw("images/c/3.png", 80)
    Path("images/b/003.png").unlink()
    prepare.run(params(store=kind))
    incremental = written()
    assert read_json(Path("reports/prepare.json"))["decoded"] == 4
    assert read_json(Path("reports/prepare.json"))["reused"] == 23
    after = splits()
    assert all(after[source] == split for source, split in before.items() if source in after)
    for path in PREPARED.iterdir():
        path.unlink()
    prepare.run(params(store=kind))
    assert written() == incremental


def test_other_workers_write_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 5)
    draw_classes("abc", each=20)
    alone = params()
    prepare.run(alone)
    first = written()
    shutil.rmtree(PREPARED)
    wait_for_workers(monkeypatch)
    prepare.run(alone.model_copy(update={"run": alone.run.model_copy(update={"workers": 2})}))
    assert written() == first
    assert read_json(Path("reports/prepare.json"))["decoded"] == 60


# SIGKILL needs a process of its own.
KILLED = """
import os, signal, sys
from headstart.data import packing
from headstart.config.loader import load_params
from headstart.stages import prepare
from pathlib import Path

packing.SHARD_IMAGES = 5
hashed, left = packing.content_sha256, iter(range({before_the_kill}))

def hash_or_be_killed(content):
    if next(left, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
    return hashed(content)

packing.content_sha256 = hash_or_be_killed
prepare.run(load_params(Path("params.yaml")).declared(prepare.PARAMS))
"""


def test_a_run_after_a_kill_decodes_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 5)
    draw_classes(each=12)
    with Path("params.yaml").open("w") as file:
        YAML().dump(content("imagefolder"), file)
    killed = subprocess.run([sys.executable, "-c", KILLED.format(before_the_kill=13)], check=False)
    assert killed.returncode == -signal.SIGKILL  # in the third shard
    assert not PREPARED.exists()
    run_interrupted(22)  # two of its shards are those of the first run
    run_interrupted(3)  # nothing is finished
    prepare.run(params())
    report = read_json(Path("reports/prepare.json"))
    assert (report["decoded"], report["reused"]) == (4, 20)
    assert [path.name for path in Path("data").iterdir()] == ["prepared"]
    resumed = written()
    shutil.rmtree(PREPARED)
    prepare.run(params())
    assert written() == resumed
    check_store()


def run_interrupted(before: int) -> None:
    left = iter(range(before))

    def hash_or_stop(content: bytes | LabelledImage) -> str:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return content_sha256(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "content_sha256", hash_or_stop)
        with pytest.raises(KeyboardInterrupt):
            prepare.run(params())
    assert not PREPARED.exists()


def test_images_packed_before_an_error_are_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_classes()
    Path("images/a/bad.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 bad images"):
        prepare.run(params())
    prepare.run(params(on_bad_image="skip"))
    assert read_json(Path("reports/prepare.json"))["reused"] == 24
    check_store()
    monkeypatch.setattr(prepare, "_plan", lambda *_: pytest.fail("nothing is packed yet"))
    with pytest.raises(pytest.fail.Exception):
        prepare.run(params())
    assert [path.name for path in Path("data").iterdir()] == ["prepared"]


def change_first_pixel(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[SHARD_HEADER] ^= 1
    path.write_bytes(content)


def test_damaged_rows_are_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 6)
    draw_classes(each=12)
    prepare.run(params())
    whole = written()

    def decoded_after(damage: Callable[[Path], object], name: str) -> int:
        damage(PREPARED / name)
        prepare.run(params())
        assert written() == whole
        return int(read_json(Path("reports/prepare.json"))["decoded"])

    assert decoded_after(lambda path: path.write_bytes(path.read_bytes()[:-1]), "pixels-00000.bin") == 1
    assert decoded_after(change_first_pixel, "pixels-00001.bin") == 1
    assert decoded_after(Path.unlink, "pixels-00002.bin") == 6
    assert decoded_after(lambda path: path.write_bytes(path.read_bytes()[:-9]), "manifest.parquet") == 24
    assert decoded_after(Path.unlink, "index.npy") == 24


def test_jpegs_are_smaller_than_the_pixels_and_near_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SHARD_IMAGES", 5)
    for i in range(24):
        draw_smooth(f"images/{'ab'[i % 2]}/{i}.png", i)
    prepare.run(params(train_scale=6.0))
    raw, size = PreparedDataset.open(), read_json(Path("reports/prepare.json"))["bytes"]
    pixels = [raw.pixels(row).astype(int) for row in range(24)]
    prepare.run(params(train_scale=6.0, store="jpeg"))
    report = read_json(Path("reports/prepare.json"))
    assert (report["store"], report["decoded"]) == ("jpeg", 24)
    assert report["bytes"] < size / 2
    prepared = PreparedDataset.open()
    for row, expected in enumerate(pixels):
        assert prepared.pixels(row).shape == expected.shape
        assert np.abs(prepared.pixels(row) - expected).mean() < 2


def draw_smooth(path: str, seed: int) -> None:
    few = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(few).resize((480, 360), Image.Resampling.BICUBIC).save(path)


def test_original_pixels_can_be_kept() -> None:
    for i in range(20):
        draw(f"images/{'ab'[i % 2]}/{i}.png", i, (70, 50))
    prepare.run(params(train_scale=None))
    prepared = PreparedDataset.open()
    assert {prepared.pixels(int(row)).shape for row in prepared.rows("train")} == {(50, 70, 3)}
    assert read_json(Path("reports/prepare.json"))["train_side"] is None


def test_training_images_are_evaluated_at_timms_resize() -> None:
    for i in range(30):
        draw(f"images/{'ab'[i % 2]}/{i}.png", i, [(70, 50), (20, 22), (24, 60)][i % 3])
    prepare.run(params())
    prepared = PreparedDataset.open()
    transform = create_transform(**prepared.input, is_training=False)
    pixels = evaluation_pixels(prepared, np.arange(30))
    for row, about in enumerate(manifest_rows()):
        with Image.open(Path("images") / about["source"]) as file:
            original = file.convert("RGB")
        larger = about["split"] == "train" and min(original.size) > 24
        image = Image.fromarray(prepared.pixels(row)) if larger else original
        # torch's kernel, which resizes the training images, may be one level of 255 away from Pillow's.
        level = 1.01 / 255 / min(prepared.input["std"]) if about["split"] == "train" else 1e-5
        difference = Normalize(prepared.input)(pixels[row : row + 1])[0] - transform(image)
        assert difference.abs().max() <= level


def test_another_input_size_decodes_again() -> None:
    draw_classes()
    prepare.run(params())
    other = params()
    prepare.run(other.model_copy(update={"backbone": other.backbone.model_copy(update={"image_size": 24})}))
    assert read_json(Path("reports/prepare.json"))["decoded"] == 24
    prepared = PreparedDataset.open()
    assert {prepared.pixels(int(row)).shape[0] for row in prepared.rows("validation")} == {25}
    prepare.run(params(train_scale=1.2))
    assert read_json(Path("reports/prepare.json"))["decoded"] == 24


def test_the_input_is_no_larger_than_the_images(caplog: pytest.LogCaptureFixture) -> None:
    draw_classes()  # of 30 x 20 pixels, and test_resnet's own input has 160
    auto = params()
    backbone = auto.backbone.model_copy(update={"image_size": "auto"})
    with caplog.at_level("INFO"):
        prepare.run(auto.model_copy(update={"backbone": backbone}))
    reason = "half of the images have a shorter side of at most 20 px"
    assert f"backbone.image_size: 64; {reason}" in caplog.messages
    chosen = read_json(Path("reports/prepare.json"))["chosen"]
    assert chosen == [{"key": "backbone.image_size", "value": 64, "reason": reason}]
    assert PreparedDataset.open().input["input_size"] == [3, 64, 64]
    prepare.run(auto.model_copy(update={"backbone": backbone.model_copy(update={"image_size": 64})}))
    report = read_json(Path("reports/prepare.json"))
    assert (report["chosen"], report["decoded"]) == ([], 0)


def test_every_damaged_file_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    draw_classes()
    names = make_damaged(Path("images"))
    assert len(names) == 200
    with pytest.raises(UserError) as error:
        prepare.run(params())
    shown = str(error.value).splitlines()[1:-1]
    assert len(shown) == 21
    assert "180 more, in all" in shown[-1]
    assert str(paths.PROBLEMS) in shown[-1]
    lines = paths.PROBLEMS.read_text().splitlines()
    assert len(lines) == 200
    assert shown[:-1] == lines[:20]
    assert all(any(line.startswith((f"  {name}: ", f"  {name!r}: ")) for line in lines) for name in names)
    assert not PREPARED.exists()

    for i in range(3):
        draw(f"images/odd/good{i}.png", 5000 + i)
        draw(f"images/damaged/good{i}.png", 6000 + i)
    prepare.run(params(on_bad_image="skip"))
    report = read_json(Path("reports/prepare.json"))
    assert {bad["source"] for bad in report["bad"]} == names
    assert report["pictures"] == 30
    assert "200 bad images left out" in caplog.text


def test_absent_files_are_told_before_others_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.Packer, "__call__", lambda *_: pytest.fail("decoded"))
    draw_classes()
    rows = [f"{label}/{i:03d}.png,{label}" for label in "ab" for i in range(30)]
    Path("images/list.csv").write_text("\n".join(["path,label", *rows]))
    with pytest.raises(UserError, match="36 bad images") as error:
        prepare.run(params("csv:list.csv"))
    assert len(str(error.value).splitlines()) == 23
    assert len(paths.PROBLEMS.read_text().splitlines()) == 36


def test_splits_of_other_names_and_classes_that_train_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_classes("ab", root="images/Lernen")
    for i, label in enumerate("abab"):
        draw(f"images/Probe/{label}/{i}.png", 5000 + i)
    with pytest.raises(UserError, match=r"prepare\.split_folders: \{Lernen: train"):
        prepare.run(params())
    prepare.run(params(split_folders={"Lernen": "train", "Probe": "test"}))
    assert {source.split("/")[0]: split == "test" for source, split in splits().items()} == {
        "Lernen": False,
        "Probe": True,
    }
    monkeypatch.setattr(packing.Packer, "__call__", lambda *_: pytest.fail("decoded"))
    draw("images/Probe/c/1.png", 6000)
    with pytest.raises(UserError, match="no training image of 'c'"):
        prepare.run(params(split_folders={"Lernen": "train", "Probe": "test"}))


def test_classes_that_differ_in_case_alone() -> None:
    draw_classes(["Dog", "cat", "dog", "DOG"])
    with pytest.raises(UserError, match=r"'DOG' \(12 images\) and 'Dog' .* \(1 such\): set prepare\.label_case: fold"):
        prepare.run(params())
    prepare.run(params(label_case="keep"))
    assert PreparedDataset.open().classes == ["DOG", "Dog", "cat", "dog"]
    prepare.run(params(label_case="fold"))
    assert PreparedDataset.open().classes == ["cat", "dog"]
    labels = {row["source"].split("/")[0]: row["label"] for row in manifest_rows()}
    assert labels == {"DOG": "dog", "Dog": "dog", "cat": "cat", "dog": "dog"}


def test_a_table_keeps_its_splits_groups_and_metadata() -> None:
    draw_classes(root="images")
    rows = [("camera", "path", "label", "split", "group")]
    for i in range(12):
        for label in "ab":
            split = "test" if i > 9 else "train"
            rows.append(("left, upper", f"{label}/{i:03d}.png", label, split, "" if i % 2 else f"{split}{i}"))
    with Path("images/list.csv").open("w", newline="") as file:
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
    assert all(len(of_group) == 1 for group, of_group in groups.items() if group)


def test_a_group_in_two_given_splits_is_refused() -> None:
    draw_classes()
    rows = [f"{label}/{i:03d}.png,{label},{'test' if i > 9 else 'train'},{i // 4}" for label in "ab" for i in range(12)]
    Path("images/list.csv").write_text("path,label,split,group\n" + "\n".join(rows))
    with pytest.raises(UserError, match="group '2' is in two splits, test and train"):
        prepare.run(params("csv:list.csv"))


def test_a_path_that_is_listed_twice_is_refused() -> None:
    draw_classes()
    Path("images/list.csv").write_text("path,label\na/000.png,a\nb/000.png,b\n./a/000.png,a\n")
    with pytest.raises(UserError, match=r"a/000\.png is listed twice"):
        prepare.run(params("csv:list.csv"))


def test_identical_images_of_given_splits_are_counted() -> None:
    for split in ("train", "val", "test"):
        draw_classes(each=3, root=f"images/{split}")
    prepare.run(params())
    assert read_json(Path("reports/prepare.json"))["duplicates"] == {"identical": 12, "across_splits": 6}


def test_classes_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing.Packer, "__call__", lambda *_: pytest.fail("decoded"))
    draw_classes("a")
    with pytest.raises(UserError, match="single class, 'a'"):
        prepare.run(params())
    draw_classes("b", each=2)
    with pytest.raises(UserError, match="b: 2"):
        prepare.run(params())


@pytest.mark.parametrize("folder", [".", "data", "data/prepared", "reports/images", "models"])
def test_images_where_stages_write_are_refused_and_stay(folder: str) -> None:
    draw_classes(root=folder)
    with pytest.raises(UserError, match=r"prepare\.path: .*which this pipeline writes.*a folder of their own"):
        prepare.run(params(path=folder))
    assert len(list(Path(folder).rglob("*.png"))) == 24


def test_a_class_of_bad_images_only_is_refused() -> None:
    draw_classes()
    Path("images/c").mkdir()
    for i in range(3):
        Path(f"images/c/{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="c: 0"):
        prepare.run(params(on_bad_image="skip"))


def test_a_given_split_whose_images_are_all_bad_is_not_drawn_anew() -> None:
    for split in ("train", "val", "test"):
        draw_classes(root=f"images/{split}", each=2)
    for path in Path("images/test").glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"^prepare: all 4 images of the split test are bad: correct them, or remove"):
        prepare.run(params(on_bad_image="skip"))


def test_an_empty_folder_is_refused() -> None:
    Path("images").mkdir()
    with pytest.raises(UserError, match="no usable image"):
        prepare.run(params())


def test_size_and_appearance_are_recorded_and_tiny_or_blank_images_listed() -> None:
    draw_classes(each=12)
    Image.new("RGB", (300, 200), "grey").save("images/a/blank.png")
    prepare.run(params())
    manifest = {row["source"]: row for row in manifest_rows()}
    image = Image.open("images/a/005.png").convert("RGB")
    info = info_of(image)
    row = manifest["a/005.png"]
    assert (row["width"], row["height"]) == image.size
    assert (row["phash"], float(row["contrast"])) == (info.phash, info.contrast)
    assert imagehash.hex_to_hash(row["phash"]) - imagehash.phash(image) <= 8
    assert [(odd["source"], odd["problem"]) for odd in read_table(paths.ODD_IMAGES)] == [("a/blank.png", "blank")]
    report = read_json(Path("reports/prepare.json"))
    assert report["odd_pictures"] == {"tiny": 0, "blank": 1}
    assert report["class_imbalance"] >= 1


def test_values_that_become_nearly_black_are_said_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """Twelve bits in sixteen: said of new images, and of those that an earlier run packed."""
    draw_classes(each=12)
    pixels = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)
    Image.fromarray(pixels).save("images/a/deep.tif")
    prepare.run(params())
    assert read_json(Path("reports/prepare.json"))["odd_pictures"]["few_bits"] == 1
    draw("images/b/new.png", 99)
    caplog.clear()
    prepare.run(params())
    assert read_json(Path("reports/prepare.json"))["decoded"] == 1
    assert "1 images hold few of their bits, such as a/deep.tif 12 of 16" in caplog.text
    (odd,) = [row for row in read_table(paths.ODD_IMAGES) if row["problem"] == "few_bits"]
    assert (odd["source"], odd["value"]) == ("a/deep.tif", "12 of 16")
    Path("images/a/deep.tif").unlink()
    prepare.run(params())
    assert not (PREPARED / "notes.json").exists()  # a store without notes is what it was before there were any


def test_scans_and_lines_of_text_are_taken_where_the_limits_allow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # Pillow refuses twice as many
    draw_classes(each=12)
    draw("images/a/line.png", 1, (700, 7))
    draw("images/b/scan.png", 2, (100, 100))
    with pytest.raises(UserError) as raised:
        prepare.run(params(max_pixels=6000))
    said = str(raised.value)
    assert "line.png: 700 x 7 pixels: longer than 20 times its width: if that is right, raise prepare.max_asp" in said
    assert (
        "scan.png: Image size (10000 pixels) exceeds limit of 6000 pixels: a decompression bomb, or raise pre" in said
    )
    limits: dict[str, Any] = {"max_aspect_ratio": 100.0, "max_pixels": 10_000}
    prepare.run(params(**limits))
    rows = {row["source"]: (row["width"], row["height"]) for row in manifest_rows()}
    assert rows["a/line.png"] == (700, 7)
    assert rows["b/scan.png"] == (100, 100)
    # The export reads the files once more.
    compared = compare_preprocessing(ImageFolder(Path("images")), PreparedDataset.open(), np.arange(len(rows)))
    assert compared["pictures"] == len(rows)
    with pytest.raises(UserError, match=r"1 bad images:\n  b/scan\.png: 100 x 100 pixels are more than 9999"):
        prepare.run(params(**limits | {"max_pixels": 9999}))  # though it is packed already


def test_an_image_too_narrow_to_be_stored_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_classes(each=12)
    draw("images/a/thread.png", 1, (1000, 1))
    monkeypatch.setattr(packing, "LONGEST_SIDE", 10_000)  # 65,535 is beyond such small images
    with pytest.raises(UserError, match=r"thread\.png: 1000 x 1 pixels: too narrow to be stored"):
        prepare.run(params(max_aspect_ratio=1000.0))


@pytest.mark.parametrize(
    ("key", "value"), [("args", {"in_chans": 1}), ("args", {"checkpoint_path": "gone"}), ("drop_path_rate", 0.1)]
)
def test_a_backbone_that_a_later_stage_can_not_use_stops_before_any_image(key: str, value: Any) -> None:
    sections = content("imagefolder")  # without any image
    sections["backbone"] |= {
        "name": "vgg11" if key == "drop_path_rate" else "test_resnet",
        key: value,
        "image_size": 32,
    }
    with pytest.raises(UserError, match=rf"^backbone\.{key}"):
        prepare.run(parse_params(sections).declared(prepare.PARAMS))
    assert not Path("data").exists()


def test_archives_hold_what_a_folder_holds() -> None:
    draw_classes()
    prepare.run(params())
    expected = sorted((row["label"], row["sha256"]) for row in manifest_rows())
    with tarfile.open("images/all.tar", "w") as archive:
        for path in sorted(Path("images").glob("*/*.png")):
            label = Path(f"{path}.cls")
            label.write_text(path.parent.name, encoding="utf-8")
            archive.add(path, f"{path.parent.name}-{path.name}")
            archive.add(label, f"{path.parent.name}-{path.stem}.cls")
    prepare.run(params("webdataset:*.tar"))
    assert sorted((row["label"], row["sha256"]) for row in manifest_rows()) == expected
    assert read_json(Path("reports/prepare.json"))["reused"] == 24


def test_a_network_that_fails_costs_what_was_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_classes(root="served/raw")
    monkeypatch.setattr(packing, "SHARD_IMAGES", 4)
    monkeypatch.setattr(prepare, "SAMPLE", 1)
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    with serve(Path("served")) as server:
        remote_params = params(f"imagefolder:{server.url}/raw", path="source.lock")
        lock_source(remote_params.prepare)
        server.faults["/raw/b/003.png"] = ["503", "always"]
        with pytest.raises(UserError, match=r"/raw/b/003\.png can't be read, after 5 attempts"):
            prepare.run(remote_params)
        assert not PREPARED.exists()
        server.faults.clear()
        prepare.run(remote_params)
    figures = read_json(Path("reports/prepare.json"))
    assert (figures["decoded"], figures["reused"], figures["bad"]) == (12, 12, [])
    assert len(splits()) == 24
