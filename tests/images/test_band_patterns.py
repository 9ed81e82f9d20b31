"""Files with a band each, joined to images by their names."""

from pathlib import Path

import pytest

from headstart.images.band_files import BandPatterns, FileGroup, is_pattern
from headstart.images.files import ImageFile, join_bands


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        *(("*_B02.tif", True), ("B02/*.tif", True), ("*", True)),
        *((each, False) for each in ("a.tif", "*_*.tif", "*/a.tif", "/etc/*.tif", "")),
    ],
)
def test_a_pattern_is_the_end_of_a_path_with_one_star(pattern: str, *, expected: bool) -> None:
    assert is_pattern(pattern) is expected


def test_images_come_in_the_order_of_their_first_files_with_the_bands_in_that_of_the_patterns() -> None:
    paths = ["x/a_B03.tif", "x/b_B02.tif", "x/a_B02.tif", "lone.tif", "y/a_B02.tif", "y/a_B03.tif", "x/a_B02.tif"]
    assert BandPatterns(["*_B02.tif", "*_B03.tif"]).group(paths) == [
        FileGroup("x/a", [2, 0]),
        FileGroup("x/b", [1], "lacks bands: b_B03.tif"),
        FileGroup("lone.tif", [3]),
        FileGroup("y/a", [4, 5]),
        FileGroup("x/a", [6], "lacks bands: a_B03.tif"),  # the same band once more: another image
    ]
    assert BandPatterns([]).group(["a", "a"]) == [FileGroup("a", [0]), FileGroup("a", [1])]


def test_the_longest_pattern_decides_and_folders_may_tell_bands() -> None:
    assert BandPatterns(["*.tif", "*_nir.tif"]).group(["a.tif", "a_nir.tif"]) == [FileGroup("a", [0, 1])]
    in_folders = BandPatterns(["red/*.tif", "nir/*.tif"])
    assert in_folders.group(["up/nir/a.tif", "up/red/a.tif"]) == [FileGroup("up/a", [1, 0])]


def test_a_files_own_problem_is_the_images() -> None:
    files = [ImageFile(Path("a_1.tif"), "a pipe"), ImageFile(Path("a_2.tif"), None), ImageFile(Path("b.png"), "odd")]
    assert join_bands(iter(files), ["*_1.tif", "*_2.tif"]) == [
        ImageFile(Path("a"), "a pipe", (Path("a_1.tif"), Path("a_2.tif"))),
        ImageFile(Path("b.png"), "odd", (Path("b.png"),)),
    ]
