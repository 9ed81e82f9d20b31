"""reports/index.html: one self-contained page, made from the tables and figures on disk.

No model is read, and the same files give the same bytes.
"""

from base64 import b64encode
from dataclasses import dataclass, field
from functools import partial
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
from headstart.targets.target import Target, best_first

MAX_CLASSES_IN_TABLE = 20
THUMBNAIL_SIDE = 96
FILTERS = (
    formatting.percent, formatting.percent_range, formatting.points, formatting.signed, formatting.figure,
    formatting.strength, formatting.p_value, formatting.duration, formatting.count, formatting.sum_of, formatting.flat,
    formatting.measured, formatting.measured_range, formatting.capital, formatting.compact, formatting.change,
)  # fmt: skip


def write_html_report(prepared: PreparedDataset) -> Path:
    """Write the page about these images and return its path.

    Raises:
        UserError: a file is missing, damaged or of another run; the message names it.
    """
    target = prepared.target
    contents = read_inputs(target)
    if contents["evaluate"]["classes"] != prepared.classes:
        raise damaged_file_error(report_of("evaluate"), f"its {target.words.nouns} are not those of data/prepared")
    confusion = count_predictions(target, partial(read_predictions, target))
    style, script = ((files(__package__) / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    template = _environment().get_template("page.html")
    html = template.render(
        **contents,
        style=Markup(style),  # noqa: S704  (a file of this package)
        script=Markup(script),  # noqa: S704
        script_hash=b64encode(sha256(script.encode()).digest()).decode(),  # without it the browser runs no script
        **draw_charts(contents, target, confusion.points),
        **_mistake_variables(prepared, confusion),
        **_measure_variables(contents["evaluate"], target),
        classes=prepared.classes,
        words=target.words,
        target=target,
        splits=SPLITS,
        thumbnail=Thumbnails(prepared),
        stretch=prepared.bands.stretch() if prepared.bands else None,
    )
    with atomic_write(HTML_REPORT) as temporary:
        temporary.write_text(html, encoding="utf-8")
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


def _measure_variables(evaluate: dict[str, Any], target: Target) -> dict[str, Any]:
    """Return the variables of leaderboard.html: measures in their order, the models, and notes in paragraphs."""
    primary, measure = next(iter(target.measures.items()))
    figures = evaluate["models"]["finetune"]
    beside = (*target.measures, "per_class", "intervals", "fit_seconds", "seconds")
    measures = {name: target.measure(name) for name in figures if name in target.measures or name not in beside}
    notes: list[list[tuple[str, str]]] = [[]]
    for each in measures.values():
        if not each.higher_is_better and len(notes) == 1 and notes[0]:
            notes.append([])
        if each.about:
            term, _, about = each.about.rpartition(": ")
            notes[-1].append((term or formatting.capital(each.title), about))
    ordered = best_first(evaluate["models"], primary, measure.sign)
    return {
        "primary": primary,
        "measure": measure,
        "measures": measures,
        "measure_notes": notes,
        "ordered": ordered,
        "scale": _scale([model["intervals"][primary] for _, model in ordered], measure.sign),
    }


def _scale(intervals: list[list[float] | None], sign: int) -> list[float]:
    """Return the ends of a scale for intervals: at most five times as wide as that with the best end.

    So a bad model does not compress the others.
    """
    known = [ends for ends in intervals if ends] or [[0.0, 1.0]]
    if sign > 0:
        *_, best = sorted(known, key=lambda ends: ends[1])
        return [max(min(low for low, _ in known), best[1] - 5 * (best[1] - best[0])), best[1]]
    best, *_ = sorted(known, key=lambda ends: ends[0])
    return [best[0], min(max(high for _, high in known), best[0] + 5 * (best[1] - best[0]))]


def _mistake_variables(prepared: PreparedDataset, confusion: Confusion) -> dict[str, Any]:
    """Return the variables of mistakes.html: the matrix of few classes is a table, that of many an image.

    In the image names that are confused are next to each other, unless their order means something.
    """
    shown = {each.id for each in (*confusion.confident, *(each for pair in confusion.pairs for each in pair.shown))}
    places = np.flatnonzero(np.isin(prepared.ids, np.fromiter(shown, np.uint64)))
    rows = dict(zip(prepared.ids[places].tolist(), places.tolist(), strict=True))
    if missing := shown - set(rows):
        raise damaged_file_error(PREDICTIONS, f"data/prepared has no image {min(missing):016x}")
    few = len(confusion.classes) <= MAX_CLASSES_IN_TABLE
    counts = confusion.counts if few or prepared.target.ordered else cluster_classes(confusion.counts)
    return {
        "wrong": confusion.wrong,
        "confident": confusion.confident,
        "pairs": confusion.pairs,
        "confused_with": most_frequent_mistakes(confusion),
        "rows": rows,
        "names": confusion.classes,
        "matrix": counts.tolist() if few else None,
        "heat": None if few else data_uri(heat_map(counts), "PNG"),
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
        image = self.prepared.image(row)
        image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        self.made[row] = Thumbnail(row, *image.size, data_uri(image, "WEBP", quality=75))
        return self.made[row]


def data_uri(image: Image.Image, kind: str, **options: int) -> str:
    """Encode an image as a data: URI in Pillow's format ``kind``."""
    file = BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{b64encode(file.getvalue()).decode()}"
