"""reports/index.html: one self-contained page, made from the tables and figures on disk.

No model is read, and the same files give the same bytes.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from headstart.core.errors import UserError
from headstart.core.io import atomic_write
from headstart.core.paths import HTML_REPORT, PREDICTIONS, REPORTS, report_of
from headstart.data.dataset import SPLITS, PreparedDataset
from headstart.report import formatting
from headstart.report.charts import draw_charts
from headstart.report.confusion import (
    Confusion,
    cluster_classes,
    count_predictions,
    heat_map,
    most_frequent_mistakes,
)
from headstart.report.inputs import damaged_file_error, read_inputs, read_predictions

MAX_CLASSES_IN_TABLE = 20
THUMBNAIL_SIDE = 96
FILTERS = (
    formatting.percent, formatting.percent_range, formatting.points, formatting.signed, formatting.figure,
    formatting.strength, formatting.p_value, formatting.duration, formatting.count, formatting.sum_of, formatting.flat,
)  # fmt: skip


def write_html_report(prepared: PreparedDataset) -> Path:
    """Write the page about these images and return its path.

    Raises:
        UserError: a file is missing, damaged or of another run; the message names it.
    """
    contents = read_inputs()
    if contents["evaluate"]["classes"] != prepared.classes:
        raise damaged_file_error(report_of("evaluate"), "its classes are not those of data/prepared")
    confusion = count_predictions(prepared.classes, read_predictions)
    style, script = ((files(__package__) / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    template = _environment().get_template("page.html")
    html = template.render(
        **contents,
        style=Markup(style),  # noqa: S704  (a file of this package)
        script=Markup(script),  # noqa: S704
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),  # without it the browser runs no script
        **draw_charts(contents),
        **_mistake_variables(prepared, confusion),
        classes=prepared.classes,
        splits=SPLITS,
        thumbnail=Thumbnails(prepared),
        top_k=next((key for key in contents["evaluate"]["models"]["finetune"] if key.startswith("top_")), None),
    )
    with atomic_write(HTML_REPORT) as partial:
        partial.write_text(html, encoding="utf-8")
    return HTML_REPORT


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=formatting.visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment


def _mistake_variables(prepared: PreparedDataset, confusion: Confusion) -> dict[str, Any]:
    """Return the variables of mistakes.html: the matrix of few classes is a table, that of many an image."""
    shown = {each.id for each in (*confusion.confident, *(each for pair in confusion.pairs for each in pair.shown))}
    places = np.flatnonzero(np.isin(prepared.ids, np.fromiter(shown, np.uint64)))
    rows = dict(zip(prepared.ids[places].tolist(), places.tolist(), strict=True))
    if missing := shown - set(rows):
        raise damaged_file_error(PREDICTIONS, f"data/prepared has no image {min(missing):016x}")
    few = len(confusion.classes) <= MAX_CLASSES_IN_TABLE
    return {
        "wrong": confusion.wrong,
        "confident": confusion.confident,
        "pairs": confusion.pairs,
        "confused_with": most_frequent_mistakes(confusion),
        "rows": rows,
        "matrix": confusion.counts.tolist() if few else None,
        "heat": None if few else data_uri(heat_map(cluster_classes(confusion.counts)), "PNG"),
    }


class Thumbnail(NamedTuple):
    """An image of data/prepared: its row, its size in pixels, and a data: URI at its first use on the page."""

    row: int
    width: int
    height: int
    uri: str | None


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails by row; an image that the page shows twice is embedded once, and referred to by its row afterwards."""

    prepared: PreparedDataset
    made: dict[int, Thumbnail] = field(default_factory=dict)

    def __call__(self, row: int) -> Thumbnail:
        """Return an image's thumbnail, at most ``THUMBNAIL_SIDE`` pixels a side; raises UserError at an unknown row."""
        if not 0 <= row < len(self.prepared.ids):
            raise UserError(f"{REPORTS} names image {row} and data/prepared has no such row: run `dvc repro`")
        if row in self.made:
            return self.made[row]._replace(uri=None)
        image = Image.fromarray(self.prepared.pixels(row))
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        self.made[row] = Thumbnail(row, *image.size, data_uri(image, "WEBP", quality=75))
        return self.made[row]


def data_uri(image: Image.Image, kind: str, **options: int) -> str:
    """Encode an image as a data: URI in Pillow's format ``kind``."""
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{b64encode(file.getvalue()).decode()}"
