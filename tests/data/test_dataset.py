import ctypes
import io
import json
import mmap
import os
import pickle
import sys
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from PIL import Image

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import atomic_write, read_json, read_table, write_json, write_report, write_table
from headstart.data.dataset import SPLITS, PreparedDataset, read_groups, read_values
from headstart.data.manifest import manifest_rows, write_manifest
from headstart.data.shards import (
    INDEX_DTYPE,
    SHARD_HEADER,
    Shards,
    Store,
    pack_image,
    read_index,
    shard_header,
    shard_path,
)
from headstart.features.cache import read_features
from headstart.features.extract import write_features
from headstart.images.bands import DEPTHS, Depth, PixelLayout
from headstart.models.head import Head, read_head, write_heads
from helpers.images import CLASSES, IMAGES, INPUT, STORED, write_prepared


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_that_failed_half_way_leaves_the_old_one_and_nothing_beside_it(project: Path) -> None:
    def write(text: str, *, fail: bool) -> None:
        with atomic_write(project / "deep" / "file.txt") as temporary:
            temporary.write_text(text)
            assert temporary.parent == project / "deep"
            assert temporary.name != "file.txt"
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write("half", fail=True)
    assert list((project / "deep").iterdir()) == []
    write("whole", fail=False)
    with pytest.raises(KeyboardInterrupt):
        write("half", fail=True)
    assert [path.name for path in (project / "deep").iterdir()] == ["file.txt"]
    assert (project / "deep" / "file.txt").read_text() == "whole"


def test_a_folder_appears_whole_or_not_at_all(project: Path) -> None:
    final = project / "out"

    def write(names: list[str], *, fail: bool) -> None:
        with atomic_write(final) as temporary:
            temporary.mkdir()
            for name in names:
                (temporary / name).write_text(name)
            if fail:
                raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        write(["a"], fail=True)
    assert list(project.iterdir()) == []
    write(["a", "b"], fail=False)
    with pytest.raises(ValueError, match=r"^$"):
        write(["c"], fail=True)
    assert sorted(path.name for path in final.iterdir()) == ["a", "b"]
    write(["c"], fail=False)
    assert [path.name for path in final.iterdir()] == ["c"]
    assert [path.name for path in project.iterdir()] == ["out"]


def test_the_target_of_a_link_is_not_overwritten(project: Path) -> None:
    """DVC may link its outputs into its cache."""
    kept = project / "cache"
    kept.write_text("{}")
    (project / "report.json").symlink_to(kept)
    write_json(project / "report.json", {"new": 1})
    assert (kept.read_text(), read_json(project / "report.json")) == ("{}", {"new": 1})


def test_json_is_readable_and_nan_and_infinity_are_refused(project: Path) -> None:
    path = project / "x.json"
    write_json(path, {"λ": 1e-4, "names": ["ö"]})
    assert "λ" in path.read_text(encoding="utf-8")
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON compliant"):
            write_json(path, {"loss": number})
    assert json.loads(path.read_text(encoding="utf-8")) == {"λ": 1e-4, "names": ["ö"]}
    assert list(project.iterdir()) == [path]


def test_a_report_is_named_after_its_stage() -> None:
    write_report("probe", {"l2": 0.1})
    assert read_json(Path("reports/probe.json")) == {"l2": 0.1}


def test_a_table_keeps_commas_lines_and_quotes(project: Path) -> None:
    rows = [["a,b", "ein\nzwei", '"x"'], ["", "ö", "1"]]
    write_table(project / "t.csv", ("one", "two", "three"), iter(rows))
    assert [list(row.values()) for row in read_table(project / "t.csv")] == rows


def test_pixels_and_splits_are_those_that_were_stored() -> None:
    prepared = write_prepared()
    stored = np.fromfile(shard_path(paths.PREPARED, 0), np.uint8, offset=SHARD_HEADER).reshape(-1, STORED, STORED, 3)
    assert len(prepared.ids) == len(stored) == sum(IMAGES.values())
    for row, image in enumerate(stored):
        assert np.array_equal(prepared.pixels(row), image)
    assert (tuple(prepared.classes), prepared.input) == (CLASSES, INPUT)
    rows = {split: prepared.rows(split) for split in SPLITS}
    assert {split: len(of_split) for split, of_split in rows.items()} == IMAGES
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(stored)))
    manifest = list(manifest_rows())
    assert [int(row["id"], 16) for row in manifest] == prepared.ids.tolist()
    for split, of_split in rows.items():
        assert [row["split"] for row in manifest if row["split"] == split] == [split] * len(of_split)
        assert {manifest[row]["split"] for row in of_split} == {split}


def test_stored_pixels_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        write_prepared().pixels(0)[0, 0, 0] = 1


def test_prepared_is_sent_to_another_process_without_its_pixels() -> None:
    prepared = write_prepared()
    before = prepared.pixels(3).copy()
    sent = pickle.dumps(prepared)
    assert len(sent) < before.nbytes < shard_path(paths.PREPARED, 0).stat().st_size
    assert np.array_equal(pickle.loads(sent).pixels(3), before)  # noqa: S301  (our own bytes)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux drops what its page cache has")
def test_images_that_are_fetched_are_in_the_page_cache_before_they_are_read(project: Path) -> None:
    block = 2**16
    index = np.zeros(64, INDEX_DTYPE)
    index["offset"], index["bytes"], index["height"], index["width"] = np.arange(64) * block + SHARD_HEADER, 300, 10, 10
    path = shard_path(project, 0)
    with path.open("wb") as file:
        file.write(shard_header("raw").ljust(64 * block, b"\0"))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def is_cached(row: int) -> bool:
        """Ask mincore(2), since even a read that does not wait makes the kernel read ahead."""
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            content, resident = np.frombuffer(mapped, np.uint8), ctypes.c_ubyte()
            page = content.ctypes.data + (int(index["offset"][row]) & ~(mmap.PAGESIZE - 1))
            del content
            assert ctypes.CDLL(None).mincore(ctypes.c_void_p(page), mmap.PAGESIZE, ctypes.byref(resident)) == 0
        return bool(resident.value & 1)

    if is_cached(40):
        pytest.skip("this file system keeps its files in memory")
    Shards(project, index).prefetch([40, 7])
    for row in (40, 7):
        while not is_cached(row):
            time.sleep(0.01)
    assert not is_cached(63)


def test_labels_stand_in_the_order_of_the_rows() -> None:
    prepared = write_prepared()
    labels = np.array([CLASSES.index(row["label"]) for row in manifest_rows()])
    assert len(set(labels.tolist())) == len(CLASSES)
    for split in SPLITS:
        assert np.array_equal(read_values(split), labels[prepared.rows(split)])


def test_groups_are_numbered_by_their_names_then_images_without_one() -> None:
    write_prepared()
    assert {split: read_groups(split) for split in SPLITS} == dict.fromkeys(SPLITS)
    rows = list(manifest_rows())
    of_test = [row for row in rows if row["split"] == "test"]
    for row, group in zip(of_test, ["b", "", "a", "b", "", "ä", "a", "a", ""], strict=True):
        row["group"] = group
    write_manifest(paths.PREPARED, [], [list(row.values()) for row in rows], len(rows))
    numbers = read_groups("test")
    assert numbers is not None
    assert numbers.tolist() == [1, 3, 0, 1, 4, 2, 0, 0, 5]
    assert read_groups("train") is None


def test_missing_files_are_named() -> None:
    for read, name in (
        (PreparedDataset.open, "data/prepared/dataset.json"),
        (read_head, "models/probe/heads.json"),
        (lambda: read_features(np.arange(2)), "data/features/features.npy"),
        (lambda: read_json(Path("reports/x.json")), "reports/x.json"),
    ):
        with pytest.raises(UserError, match=name):
            read()


def test_a_resumable_write_keeps_its_temporary_folder_after_a_failure(project: Path) -> None:
    def write(*, fail: bool) -> None:
        with atomic_write(project / "out", resumable=True) as temporary:
            temporary.mkdir(exist_ok=not fail)
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(fail=True)
    assert [path.name for path in project.iterdir()] == [".out.partial"]
    write(fail=False)
    assert [path.name for path in project.iterdir()] == ["out"]


REMEDY = r"`chmod u\+w (\S+); touch \1`.*`dvc checkout --force data/prepared`.*`rm -f \1`.*`dvc repro -f prepare`"


def change(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_shard_that_is_missing_or_cut_off_is_named_on_opening() -> None:
    prepared = write_prepared()
    shard = shard_path(paths.PREPARED, 0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"data/prepared/pixels-00000\.bin is missing, or not of .* bytes.*{REMEDY}"):
        PreparedDataset.open()
    shard.unlink()
    with pytest.raises(UserError, match=rf"data/prepared/pixels-00000\.bin is missing.*{REMEDY}"):
        PreparedDataset.open()
    with pytest.raises(UserError, match=rf"data/prepared/pixels-00000\.bin is damaged.*{REMEDY}"):
        prepared.pixels(0)  # opened before


def test_a_flipped_bit_is_detected_when_the_image_is_first_read(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = write_prepared()
    size = STORED * STORED * 3
    change(shard_path(paths.PREPARED, 0), SHARD_HEADER + 7 * size + 100)
    prepared.pixels(6)
    source = list(manifest_rows())[7]["source"]
    for opened in (prepared, PreparedDataset.open(), pickle.loads(pickle.dumps(prepared))):  # noqa: S301  (our own bytes)
        with pytest.raises(UserError, match=rf"pixels-00000\.bin is damaged: the image {source} is not.*{REMEDY}"):
            opened.pixels(7)
    monkeypatch.setattr("zlib.crc32", lambda _: pytest.fail("checked again"))
    prepared.pixels(6)


def test_an_index_that_is_missing_or_damaged_is_named() -> None:
    write_prepared()
    change(paths.PREPARED / "index.npy", 200)
    with pytest.raises(UserError, match=rf"index\.npy is missing or damaged.*{REMEDY}"):
        PreparedDataset.open()
    (paths.PREPARED / "index.npy").unlink()
    with pytest.raises(UserError, match=r"index\.npy is missing"):
        PreparedDataset.open()


def test_the_index_takes_few_bytes_an_image() -> None:
    prepared = write_prepared()
    index, flags, permutation = read_index(paths.PREPARED).itemsize, 1 + prepared.splits.itemsize, 8
    rows_and_labels = 2 * 8
    assert index + flags + permutation + rows_and_labels <= 100


def test_jpegs_are_read_as_pillow_reads_them() -> None:
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    smooth = np.stack([x * 4, y * 5, 100 + x + y], axis=2).astype(np.uint8)
    row = pack_image(Image.fromarray(smooth), "jpeg")
    assert len(row) < smooth.nbytes / 2
    shard_path(Path(), 0).write_bytes(shard_header("jpeg") + b"before" + row)
    index = np.array([(0, SHARD_HEADER + 6, len(row), crc32(row), 0, 0, 40, 60, 0)], INDEX_DTYPE)
    pixels = Shards(Path(), index).pixels(0)
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(row))))
    assert np.abs(pixels.astype(int) - smooth).mean() < 1
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


@pytest.mark.parametrize("store", ["raw", "jpeg"])
def test_a_grey_image_takes_one_channel_and_is_read_as_the_same_rgb(store: Store) -> None:
    x, y = np.meshgrid(np.arange(60), np.arange(40))
    rgb = Image.fromarray((x * 4 + y).astype(np.uint8)).convert("RGB")
    row = pack_image(rgb, store)
    expected = rgb
    if store == "jpeg":
        file = io.BytesIO()
        rgb.save(file, "JPEG", quality=95, subsampling="4:4:4")
        expected = Image.open(file)
    else:
        assert len(row) == 40 * 60
    shard_path(Path(), 0).write_bytes(shard_header(store) + row)
    index = np.array([(0, SHARD_HEADER, len(row), crc32(row), 0, 0, 40, 60, 0)], INDEX_DTYPE)
    assert np.array_equal(Shards(Path(), index).pixels(0), np.asarray(expected))


@pytest.mark.parametrize("depth", DEPTHS)
def test_bands_are_read_as_they_were_packed(depth: Depth) -> None:
    pixels = np.random.default_rng(0).normal(0, 100, (5, 7, 13)).astype(depth)
    row = pack_image(pixels, "raw")
    header = shard_header("raw", PixelLayout(13, depth))
    shard_path(Path(), 0).write_bytes(header + b"odd" + row)
    index = np.array([(0, SHARD_HEADER + 3, len(row), crc32(row), 0, 0, 5, 7, 0)], INDEX_DTYPE)
    read = Shards(Path(), index).pixels(0)
    assert read.dtype == depth
    assert np.array_equal(read, pixels)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_are_read_as_they_were_written(dtype: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)
    write_features(rows.__getitem__, rows.shape, dtype, {"weights": "abc"})
    chosen = np.array([6, 0, 3])
    read = read_features(chosen)
    assert read.dtype == np.float32
    assert np.array_equal(read, rows[chosen].astype(np.float32))
    assert np.load(paths.FEATURES / "features.npy").dtype == dtype
    assert read_json(paths.FEATURES / "features.json") == {"weights": "abc"}


@pytest.mark.parametrize("shape", [(2, 5), (3, 4), (3, 6)])
def test_features_of_another_shape_are_not_written(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="rows of shape"):
        write_features(np.zeros(shape).__getitem__, (3, 5), "float32", {})
    assert not paths.FEATURES.exists()
    assert list(paths.FEATURES.parent.iterdir()) == []


def test_heads_are_read_as_they_were_written() -> None:
    generator = np.random.default_rng(0)
    written = [
        Head(generator.normal(size=(3, 4)).astype(np.float32), generator.normal(size=3).astype(np.float32), l2)
        for l2 in (1.0, 1e-2, 3e-5)
    ]
    write_heads(written, chosen=1)
    for least_l2, expected in (
        (0.0, written[1]),
        (1e-6, written[1]),
        (1e-2, written[1]),
        (0.2, written[0]),
        (5.0, written[0]),
    ):
        head = read_head(least_l2)
        assert head.weight.dtype == head.bias.dtype == np.float32
        assert np.array_equal(head.weight, expected.weight)
        assert np.array_equal(head.bias, expected.bias)
        assert head.l2 == expected.l2


def test_logits_are_the_heads() -> None:
    generator = np.random.default_rng(0)
    head = Head(generator.normal(size=(3, 4)).astype(np.float32), np.arange(3, dtype=np.float32), 0.1)
    features = generator.normal(size=(6, 4)).astype(np.float32)
    expected = [[float(row @ head.weight[c] + head.bias[c]) for c in range(3)] for row in features]
    assert np.allclose(head.logits(features), expected, atol=1e-6)


def test_the_cache_folder_is_the_users_unless_params_name_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.cache_folder(None).is_relative_to(tmp_path)
    assert paths.cache_folder(None).name == "headstart"
    assert paths.cache_folder("~/here") == tmp_path / "here"
    assert not paths.cache_folder("~/here").exists()
