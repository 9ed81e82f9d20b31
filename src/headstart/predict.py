"""Predict images with an exported model; onnxruntime, numpy and Pillow are all that it takes.

In Python: from headstart.predict import Predictor; Predictor("export")("cat.jpg").label
"""

import codecs
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from headstart.core.errors import UserError
from headstart.core.progress import Progress
from headstart.images.decode import BadImageError
from headstart.images.files import ImageFile, counted, find_images, join_bands
from headstart.inference.postprocess import DEFAULT_TOP, Prediction
from headstart.inference.predictor import Predictor
from headstart.inference.writers import Write, check_out, csv_rows, text_writer, writing

__all__ = ["BadImageError", "Prediction", "Predictor", "UserError", "predict_images"]


def predict_images(predictor: Predictor, images: Sequence[str], out: Path | None, top: int | None) -> None:
    """Write a row for each image, one that can't be read with its error: the command `headstart predict`.

    Args:
        predictor: the exported model.
        images: files, folders and patterns, or ``-`` alone for paths on stdin, one a line.
        out: a file of CSV, JSON lines or Parquet, by its suffix; None for stdout: a line each on a terminal, else CSV.
        top: classes or labels that a row lists; None: 5.

    Raises:
        UserError: there is no image, or the file can't be written, or the model can't be run.
    """
    if out is not None:
        check_out(out)
    from_stdin = list(images) == ["-"]
    if "-" in images and not from_stdin:
        raise UserError("- stands alone: paths come from stdin or from the command line")
    passed_over: Counter[str] = Counter()
    patterns = predictor.bundle.config.band_files
    files = _joined(_paths_on_stdin() if from_stdin else find_images(images, passed_over), patterns)
    bad = 0
    # Lines on a terminal are themselves the progress.
    with Progress("predict", None, shown=out is not None or not sys.stdout.isatty()) as progress:
        if progress.shown and not from_stdin:
            threading.Thread(target=_count, args=(images, patterns, progress), daemon=True).start()
        with _writer(predictor, out, top) as write:
            for prediction in predictor.predict_many(files):
                write(prediction)
                progress.advance()
                bad += prediction.error is not None
            if not progress.done:  # without stdin, find_images has raised this already
                raise UserError("no path came on stdin: give one a line")
        seconds = progress.seconds
    if bad:
        print(f"{bad} of {progress.done} images are bad: the reasons stand with them as their error", file=sys.stderr)
    if out is not None:
        print(f"{out}: {progress.done} images in {seconds:.1f} s", file=sys.stderr)
    if passed_over:
        print(f"passed over: {counted(passed_over)}", file=sys.stderr)


def _count(images: Sequence[str], patterns: Sequence[str], progress: Progress) -> None:
    """Count the images while the first are predicted, so that none waits for it."""
    progress.total = sum(1 for _ in _joined(find_images(images), patterns))


def _joined(files: Iterator[ImageFile], patterns: Sequence[str]) -> Iterator[ImageFile]:
    """Yield the images that files are; only where an image is several files, all have to be listed first."""
    return iter(join_bands(files, patterns)) if patterns else files


def _paths_on_stdin() -> Iterator[ImageFile]:
    for number, line in enumerate(sys.stdin.buffer):
        mark = b"" if number else codecs.BOM_UTF8  # as Windows puts before text
        if path := os.fsdecode(line.removeprefix(mark).rstrip(b"\r\n")):
            yield ImageFile(Path(path), None)


def _writer(predictor: Predictor, out: Path | None, top: int | None) -> AbstractContextManager[Write]:
    config = predictor.bundle.config
    top = min(top or DEFAULT_TOP, len(config.classes))
    if out is not None:
        return writing(out, config.target, top)
    if sys.stdout.isatty():
        return nullcontext(text_writer(sys.stdout, config.descriptions))
    return nullcontext(csv_rows(sys.stdout, config.target, top))
