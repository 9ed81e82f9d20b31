"""Images whose bands are in a file each: found by patterns or a table's columns, and read in any process by name."""

import io
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest

from headstart.config.schema import PrepareConfig, RunConfig
from headstart.core.errors import UserError
from headstart.data.band_files import join_names, shared_endings, split_names
from headstart.data.image_info import LabelledImage, content_sha256
from headstart.data.source_item import Source, SourceItem
from headstart.data.sources import open_source
from headstart.images.arrays import Content, read_array
from headstart.images.decode import BadImageError

BANDS = ["*_B02.npy", "*_B03.npy", "*_B11.npy"]


def content_of(source: Source, name: str) -> Content:
    content = source.read(name)
    assert not isinstance(content, LabelledImage)
    return content


def write(root: Path, *names: str) -> Path:
    """Write files of a band each, whose values are all the number in the name's end."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        digits = "".join(filter(str.isdigit, path.stem[-3:])) or "0"
        file = io.BytesIO()
        np.save(file, np.full((6, 5), int(digits), np.uint16))
        path.write_bytes(file.getvalue())
    return root


def opened(root: Path, bands: list[str], source: str = "imagefolder") -> Source:
    prepare = PrepareConfig(source=source, path=str(root), band_files=bands)
    return open_source(prepare, RunConfig(cache=str(root.parent / "cache")))


def listed(source: Source) -> dict[str, SourceItem]:
    return {item.source: item for item in source.images()}


def test_files_of_one_image_are_found_and_read_by_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{scene}_B{band}.npy" for scene in ("lake/a", "sea/deep/b") for band in ("02", "03", "04", "11")]
    source = opened(write(tmp_path / "raw", *names), BANDS)
    with caplog.at_level(logging.INFO):
        items = listed(source)
    assert [(name, item.label, item.problem) for name, item in items.items()] == [
        ("lake/a", "lake", None),
        ("sea/deep/b", "sea", None),
    ]
    assert "2 files are in no band of prepare.band_files, and are left out: lake/a_B04.npy" in caplog.text
    content = pickle.loads(pickle.dumps(source)).read("sea/deep/b")  # noqa: S301  (as in worker processes)
    pixels = read_array(content).pixels
    assert pixels.shape == (6, 5, 3)
    assert pixels.dtype == np.uint16
    assert pixels[0, 0].tolist() == [2, 3, 11]
    assert content_sha256(content) != content_sha256(content[::-1])


def test_an_image_that_lacks_a_band_is_bad_and_says_which(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "raw", "lake/a_B02.npy", "lake/a_B11.npy"), BANDS)
    assert listed(source)["lake/a"].problem == "lacks bands: a_B03.npy"
    with pytest.raises(BadImageError, match=r"^a_B03\.npy: there is no such file$"):
        source.read("lake/a")


def test_the_most_special_pattern_decides_and_folders_may_tell_bands(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "raw", "lake/a.npy", "lake/a_nir.npy"), ["*.npy", "*_nir.npy"])
    assert [(name, item.problem) for name, item in listed(source).items()] == [("lake/a", None)]
    source = opened(write(tmp_path / "other", "lake/red/x.npy", "lake/nir/x.npy"), ["red/*.npy", "nir/*.npy"])
    assert [(name, item.problem) for name, item in listed(source).items()] == [("lake/x", None)]
    assert len(source.read("lake/x")) == 2


@pytest.mark.parametrize("pattern", ["B02.npy", "*/B02.npy", "**_B02.npy", "/data/*_B02.npy"])
def test_a_pattern_without_one_star_in_its_name_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(UserError, match=r"^prepare\.band_files: .*with one \*"):
        opened(write(tmp_path / "raw", "lake/a_B02.npy"), [pattern, "*_B03.npy"])


def test_patterns_that_match_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none of 1 file.*is called as one of .*the first is lake/a_B08\.npy"):
        listed(opened(write(tmp_path / "raw", "lake/a_B08.npy"), BANDS))


def test_columns_of_a_table_name_the_files(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", "x/a_B02.npy", "x/a_B03.npy", "b_B02.npy", "y{1},%/B3.npy")
    rows = ["Blue,red,label,place", "x/a_B02.npy,x/a_B03.npy,lake,north", 'b_B02.npy,"y{1},%/B3.npy",sea,south']
    (root / "list.csv").write_text("\n".join([*rows, "b_B02.npy,none.npy,sea,west"]))
    source = opened(root, ["blue", "red"], "csv:list.csv")
    items = listed(source)
    assert [(item.label, item.problem, item.metadata) for item in items.values()] == [
        ("lake", None, ("north",)),
        ("sea", None, ("south",)),
        ("sea", "there is no such file: none.npy", ("west",)),
    ]
    assert next(iter(items)) == "x/a_B0{2,3}.npy"
    assert [read_array(content_of(source, name)).pixels[0, 0].tolist() for name in list(items)[:2]] == [[2, 3], [2, 3]]


def test_a_table_without_a_bands_column_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", "a_B02.npy")
    (root / "list.csv").write_text("blue,label\na_B02.npy,lake")
    with pytest.raises(UserError, match="no column red "):
        opened(root, ["blue", "red"], "csv:list.csv")


def test_other_sources_have_one_file_an_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^prepare\.band_files: the images of digits are one file each"):
        opened(tmp_path, BANDS, "digits")


@pytest.mark.parametrize(
    "paths",
    [
        ["a1.tif", "a2.tif"],
        ["a.tif", "a.tif"],
        ["s3://x/%20a/{b}.tif", "c,d/}.tif"],
        ["a%1B.tif", "a%1A.tif"],
        ["", "a"],
    ],
)
def test_joined_names_are_split_again(paths: list[str]) -> None:
    assert split_names(join_names(paths)) == paths


def test_files_of_several_sizes_are_named(tmp_path: Path) -> None:
    root = write(tmp_path / "raw", "lake/a_B02.npy")
    np.save(root / "lake" / "a_B11.npy", np.zeros((3, 5), np.uint16))
    source = opened(root, ["*_B02.npy", "*_B11.npy"])
    with pytest.raises(BadImageError, match="differ in size: 5 x 6 pixels in the first file, 5 x 3 in that of band 2"):
        read_array(content_of(source, "lake/a"))


def test_endings_that_files_share_are_found_and_numbers_are_none() -> None:
    scenes = [
        f"{folder}/scene{i}_{band}.tif" for folder in ("lake", "sea") for i in range(9) for band in ("B02", "B03")
    ]
    assert shared_endings(scenes) == ["_B02.tif", "_B03.tif"]
    assert shared_endings(scenes[1:]) == ["_B02.tif", "_B03.tif"]  # one is missing
    assert shared_endings([f"{name}/{name}_{i}.jpg" for name in ("cat", "dog", "bird") for i in range(20)]) == []
    assert shared_endings([f"cat/IMG_{i:04}.jpg" for i in range(900)]) == []
    assert shared_endings([f"cat/{i:x}.jpg" for i in range(900)]) == []
    assert shared_endings([f"cat/{i}_{i % 7}.jpg" for i in range(900)]) == []
    assert shared_endings([]) == []
