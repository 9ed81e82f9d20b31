"""Small pictures inside the page, so that it needs no other file."""

from base64 import b64encode
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from headstart.ground.artifacts import REPORTS, Prepared
from headstart.ground.errors import UserError

SIDE = 96


class Thumbnail(NamedTuple):
    """A picture of data/prepared: its row, its size in pixels, and a data: URI where it comes for the first time."""

    row: int
    width: int
    height: int
    uri: str | None


class Thumbnails:
    """Makes them; a picture that the page shows twice is in it once, the second place refers to its row."""

    def __init__(self, prepared: Prepared) -> None:
        """Take the pictures from ``prepared``."""
        self._prepared = prepared
        self._made: dict[int, Thumbnail] = {}

    def __call__(self, row: int) -> Thumbnail:
        """Give a picture, at most ``SIDE`` pixels long and wide; raises UserError where there is no such row."""
        if not 0 <= row < len(self._prepared.ids):
            raise UserError(f"{REPORTS} names picture {row} and data/prepared has none such: run `dvc repro`")
        if row in self._made:
            return self._made[row]._replace(uri=None)
        image = Image.fromarray(self._prepared.pixels(row))
        image.thumbnail((SIDE, SIDE))
        self._made[row] = Thumbnail(row, *image.size, data_uri(image, "WEBP", quality=75))
        return self._made[row]


def data_uri(image: Image.Image, kind: str, **options: int) -> str:
    """Write an image as a data: URI of Pillow's format ``kind``."""
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{b64encode(file.getvalue()).decode()}"
