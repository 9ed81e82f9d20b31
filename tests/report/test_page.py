from pathlib import Path

import pytest

from headstart.core.errors import UserError
from headstart.report.page import THUMBNAIL_SIDE, Thumbnails
from helpers import images


def test_an_image_is_small_and_given_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "STORED", 2 * THUMBNAIL_SIDE)
    thumbnails = Thumbnails(images.write_prepared())
    first, again, other = thumbnails(3), thumbnails(3), thumbnails(4)
    assert (first.row, first.width, first.height) == (3, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    assert first.uri is not None
    assert first.uri.startswith("data:image/webp;base64,")
    assert again == first._replace(uri=None)
    assert other.uri not in (None, first.uri)
    # 24 + 216 mistakes and 5 lists of 24 in the data checks, all of them noise, are below 5 MB.
    assert (24 + 216 + 5 * 24) * len(first.uri) < 4e6


@pytest.mark.parametrize("row", [-1, sum(images.IMAGES.values())])
def test_a_row_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, row: int) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="run `dvc repro`"):
        Thumbnails(images.write_prepared())(row)
