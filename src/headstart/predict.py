"""Say what is on images, by an exported model; onnxruntime, numpy and Pillow are all that it takes.

PICTURES are files, folders (searched to their depth for images, by their names), patterns like 'new/*.jpg', or - for
paths on stdin, one a line. An image that can't be read is a row with its error. Without --out, a line for each goes to
a terminal, and CSV elsewhere.

In Python: from headstart.predict import Predictor; Predictor("export")("cat.jpg").label
"""

import argparse
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from headstart.core.errors import UserError
from headstart.core.progress import StatusLine
from headstart.images.decode import BadImageError
from headstart.images.files import ImageFile, find_images
from headstart.inference.bundle import ONNX
from headstart.inference.postprocess import Prediction
from headstart.inference.predictor import Predictor
from headstart.inference.writers import Write, check_out, csv_rows, text_writer, writing

__all__ = ["BadImageError", "Prediction", "Predictor", "UserError"]


def main() -> None:
    """Predict: exit code 1 with one message on stderr where the user can mend it, and 0 though images be bad."""
    arguments = _parser().parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        _predict(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headstart predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", metavar="EXPORT", help="the folder that `headstart export` wrote")
    parser.add_argument("pictures", metavar="PICTURES", nargs="+", help="files, folders, patterns, or -")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write FILE.csv, FILE.jsonl or FILE.parquet")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="how many classes to list (default: 5)")
    parser.add_argument(
        "--conformal",
        type=float,
        metavar="LEVEL",
        help="how often the set of classes is to hold the right one: a level that the export has measured, such as 0.9 "
        "(default: its first)",
    )
    parser.add_argument(
        "--conformal-method",
        metavar="METHOD",
        help="LAC, the smallest sets, or APS, larger ones, fairer to hard images (default: the export's first)",
    )
    parser.add_argument(
        "--calibrated",
        action="store_true",
        help="probabilities after the export's temperature, which is nearer to true",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda", "torch"],
        default="cpu",
        help="cuda: a GPU, by onnxruntime-gpu or else torch; torch: torch on the CPU (default: cpu)",
    )
    parser.add_argument(
        "--model",
        default=ONNX,
        metavar="NAME",
        help=f"another ONNX file of the export, such as model.int8.onnx ({ONNX})",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="that decode and compute (default: one a core)")
    return parser


def _predict(arguments: argparse.Namespace) -> None:
    if arguments.out is not None:
        check_out(arguments.out)
    from_stdin = arguments.pictures == ["-"]
    if "-" in arguments.pictures and not from_stdin:
        raise UserError("- stands alone: paths come from stdin or from the command line")
    pictures = _from_stdin() if from_stdin else find_images(arguments.pictures)
    predictor = Predictor(
        arguments.bundle,
        device=arguments.device,
        model=arguments.model,
        calibrated=arguments.calibrated,
        conformal=arguments.conformal,
        conformal_method=arguments.conformal_method,
        top=arguments.top,
        threads=arguments.threads,
    )
    bad = 0
    # Where lines go to a terminal they show themselves how far it is.
    status = StatusLine(sys.stderr, "images", shown=arguments.out is not None or not sys.stdout.isatty())
    if status.shown and not from_stdin:
        threading.Thread(target=_count, args=(arguments.pictures, status), daemon=True).start()
    try:
        with _writer(arguments, predictor) as write:
            for found in predictor.many(pictures):
                write(found)
                status.advance()
                bad += found.error is not None
            if not status.done:  # of arguments this is known before
                raise UserError("no path came on stdin: give one a line")
    finally:
        seconds = status.close()
    if bad:
        print(f"{bad} of {status.done} images are bad: the reasons stand with them as their error", file=sys.stderr)
    if arguments.out is not None:
        print(f"{arguments.out}: {status.done} images in {seconds:.1f} s", file=sys.stderr)


def _count(arguments: list[str], status: StatusLine) -> None:
    """Find out how many images there are while the first are predicted: none waits for it."""
    status.total = sum(1 for _ in find_images(arguments))


def _from_stdin() -> Iterator[ImageFile]:
    for line in sys.stdin.buffer:
        if path := os.fsdecode(line.rstrip(b"\r\n")):
            yield ImageFile(Path(path), None)


def _writer(arguments: argparse.Namespace, predictor: Predictor) -> AbstractContextManager[Write]:
    top = min(arguments.top, len(predictor.bundle.config.classes))
    if arguments.out is not None:
        return writing(arguments.out, top)
    if sys.stdout.isatty():
        return nullcontext(text_writer(sys.stdout, predictor.bundle.config.descriptions))
    return nullcontext(csv_rows(sys.stdout, top))


if __name__ == "__main__":
    main()
