"""Answer by HTTP what is on images, by an exported model; docs/serve.md has the addresses and the status codes.

reads:   the bundle (export/), checked at the start

It listens on the loopback alone unless --host says otherwise, and knows no users: what others reach belongs behind a
reverse proxy that does.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from headstart.core.errors import UserError


def main() -> None:
    """Serve until SIGTERM or Ctrl+C: exit code 1 with one message on stderr where the user can mend it."""
    arguments = _parser().parse_args()
    # Of a start that is still loading, and what uvicorn raises again once the last answers are out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _serve(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headstart serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("bundle", type=Path, help="the folder that `dvc repro export` wrote: export/")
    add("--host", default="127.0.0.1", help="the address to listen on; 0.0.0.0 is all of this machine's (%(default)s)")
    add("--port", type=_count(0), default=8000, help="0 takes a free one (%(default)s)")
    add("--model", default="model.onnx", metavar="NAME", help="the bundle's ONNX file to run (%(default)s)")
    add("--top", type=_count(1), default=5, help="how many of the likeliest classes an answer lists (%(default)s)")
    add("--calibrated", action="store_true", help="give probabilities after the bundle's temperature")
    add("--conformal", type=float, metavar="LEVEL", help="level of the sets of classes (the bundle's first)")
    add("--conformal-method", metavar="METHOD", help="LAC or APS (the bundle's first)")
    add("--max-bytes", type=_count(1), default=16 * 2**20, metavar="N", help="of a request's body (%(default)s)")
    add("--max-pictures", type=_count(1), default=32, metavar="N", help="of a request (%(default)s)")
    add("--max-pixels", type=_count(1), default=50_000_000, metavar="N", help="of one image (%(default)s)")
    add("--max-clients", type=_count(2), default=256, metavar="N", help="connections; others get 503 (%(default)s)")
    add(
        "--timeout",
        type=_count(1),
        default=30,
        metavar="SECONDS",
        help="for a body to come, and again for its answer (%(default)s)",
    )
    add("--threads", type=_count(1), metavar="N", help="that decode and predict (one for each core)")
    return parser


def _count(least: int) -> Callable[[str], int]:
    """Return argparse's reader of a whole number of at least ``least``."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}")
        return int(text)

    return number


def _serve(arguments: argparse.Namespace) -> None:
    # Here, so that --help needs no more than Python.
    from headstart.inference.predictor import Predictor, cores  # noqa: PLC0415
    from headstart.inference.server import Limits, application, listening_socket, serve  # noqa: PLC0415  # noqa: PLC0415

    threads = arguments.threads or cores()
    with listening_socket(arguments.host, arguments.port) as listening:
        predictor = Predictor(
            arguments.bundle,
            model=arguments.model,
            calibrated=arguments.calibrated,
            conformal=arguments.conformal,
            conformal_method=arguments.conformal_method,
            top=arguments.top,
            threads=1,
        )
        limits = Limits(
            body_bytes=arguments.max_bytes,
            images=arguments.max_pictures,
            pixels=arguments.max_pixels,
            seconds=arguments.timeout,
            threads=threads,
        )
        host, port = listening.getsockname()[:2]
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
        serve(application(predictor, limits), listening, clients=arguments.max_clients, seconds=arguments.timeout)


if __name__ == "__main__":
    main()
