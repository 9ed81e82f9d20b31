"""reports/index.html: one page that needs nothing else, made from the tables and figures on disk.

No model is read, and the same files give the same bytes.
"""

from base64 import b64encode
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
from headstart.report.charts import learning_charts, ledger_charts, probe_chart, reliability_charts, sizes_chart
from headstart.report.confusion import (
    MOST_CONFIDENT,
    ImageOutcome,
    confused_pairs,
    count_up,
    heat_map,
    in_clusters,
    most_often_taken_for,
    shares,
)
from headstart.report.inputs import read_files, read_predictions, unreadable

MOST_CLASSES_IN_A_TABLE = 20
FILTERS = (
    formatting.percent, formatting.percent_range, formatting.points, formatting.signed, formatting.figure,
    formatting.strength, formatting.p_value, formatting.duration, formatting.count, formatting.sum_of, formatting.flat,
)  # fmt: skip


def write_html_report(prepared: PreparedDataset) -> Path:
    """Write the page.

    Args:
        prepared: the images that ``reports`` is about.

    Returns:
        Where the page is.

    Raises:
        UserError: a file is missing, damaged or of another run; the message names it.
    """
    contents = read_files()
    if contents["evaluate"]["classes"] != prepared.classes:
        raise unreadable(report_of("evaluate"), "its classes are not those of data/prepared")
    outcome = count_up(prepared.classes, read_predictions())
    template = _environment().get_template("page.html")
    html = template.render(
        **contents,
        **_style_and_script(),
        **_charts(contents),
        **_mistakes(prepared, outcome),
        classes=prepared.classes,
        splits=SPLITS,
        thumbnail=Thumbnails(prepared),
        top_k=next((key for key in contents["evaluate"]["models"]["finetune"] if key.startswith("top_")), None),
    )
    with atomic_write(HTML_REPORT) as aside:
        aside.write_text(html, encoding="utf-8")
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


def _style_and_script() -> dict[str, str]:
    """Return the page's style and its only script, and the hash by which a browser knows the script from any other."""
    style, script = ((files(__package__) / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": digest}  # noqa: S704  (they are ours)


def _charts(contents: dict[str, Any]) -> dict[str, Any]:
    finetuning, trust = contents["finetune"], contents["evaluate_trust"]
    return {
        "learning": [
            *learning_charts(contents["finetune_history"], finetuning),
            probe_chart(contents["probe_l2_path"]),
        ],
        "ledger": ledger_charts(contents["finetune_ledger"], finetuning),
        "reliability": reliability_charts(trust["calibration"]),
        "sizes": sizes_chart(trust["conformal"]),
    }


def _mistakes(prepared: PreparedDataset, outcome: ImageOutcome) -> dict[str, Any]:
    """Return what the page says of mistakes: a matrix of few classes as a table, of many as an image."""
    wrong = {mistake.id for mistake in outcome.mistakes}
    rows = {name: row for row, name in enumerate(prepared.ids.tolist()) if name in wrong}
    if missing := wrong - set(rows):
        raise unreadable(PREDICTIONS, f"data/prepared has no image {min(missing):016x}")
    few = len(outcome.classes) <= MOST_CLASSES_IN_A_TABLE
    return {
        "wrong": len(outcome.mistakes),
        "confident": outcome.mistakes[:MOST_CONFIDENT],
        "pairs": confused_pairs(outcome),
        "taken_for": most_often_taken_for(outcome),
        "rows": rows,
        "matrix": _matrix(outcome) if few else None,
        "heat": None if few else data_uri(heat_map(in_clusters(outcome.counts)), "PNG"),
    }


def _matrix(outcome: ImageOutcome) -> list[tuple[str, list[tuple[int, float, str]]]]:
    """Return each class and the cells of its row: images, their share of the row, and whether that is right."""
    cells = np.where(np.eye(len(outcome.classes), dtype=bool), "right", "wrong")
    columns = (outcome.counts.tolist(), shares(outcome.counts).tolist(), cells.tolist())
    return [(name, list(zip(*row, strict=True))) for name, *row in zip(outcome.classes, *columns, strict=True)]


SIDE = 96


class Thumbnail(NamedTuple):
    """An image of data/prepared: its row, its size in pixels, and a data: URI where it comes for the first time."""

    row: int
    width: int
    height: int
    uri: str | None


class Thumbnails:
    """Makes them; an image that the page shows twice is in it once, the second place refers to its row."""

    def __init__(self, prepared: PreparedDataset) -> None:
        """Take the images from ``prepared``."""
        self._prepared = prepared
        self._made: dict[int, Thumbnail] = {}

    def __call__(self, row: int) -> Thumbnail:
        """Return an image, at most ``SIDE`` pixels long and wide; raises UserError where there is no such row."""
        if not 0 <= row < len(self._prepared.ids):
            raise UserError(f"{REPORTS} names image {row} and data/prepared has none such: run `dvc repro`")
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
