"""The class of every command: help as it is written, errors as one message on stderr, exit codes."""

import atexit
import inspect
import logging
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from headstart.core.errors import UserError, requirement
from headstart.core.run_state import rank_of_process
from headstart.core.storage import storage_message

SECONDS_FOR_RANK_0 = 3
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 120}
"""Click's settings of every command."""

params_option = click.option(
    "--params",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    help="The parameters.",
)


class Command(click.Command):
    """A command that turns errors into messages and exit codes; nothing else in the package does.

    0: done. 1: something that the user can mend, with one message on stderr. 2: wrong usage. 130: Ctrl+C.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command's function."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # its disk may be full
        except UserError as error:
            # One that a DataLoader's worker raised comes with the worker's traceback before it.
            _fail(str(error).rpartition("UserError: ")[2])
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "headstart":
                raise
            needed = shlex.quote(requirement("serve" if ctx.info_name == "serve" else "train"))
            _fail(f"{ctx.command_path} needs {error.name}, which is not installed: pip install {needed}")
        except OSError as error:
            message = storage_message(error)
            if message is None:
                raise
            _fail(message)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
        return result

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002  (click's)
        """Return the first sentence of the help, whole; click would cut it to one line."""
        return super().get_short_help_str(200)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's)
        """Write the docstring with its own line breaks; click would merge "reads:" and "writes:" into one paragraph."""
        formatter.write(f"\n{self.help_text()}\n")

    def help_text(self) -> str:
        """Return what `--help` says above the options."""
        return inspect.cleandoc(self.help or "")


def _fail(message: str) -> NoReturn:
    """Exit with code 1 and a message. Rank 0 comes first: most errors are those of all ranks, and its end ends them."""
    if rank := rank_of_process():
        time.sleep(SECONDS_FOR_RANK_0)
        message = f"rank {rank} on {socket.gethostname()}: error: {message}"
    else:
        message = f"error: {message}"
    print(message, file=sys.stderr)
    sys.exit(1)


def log_to_stdout() -> None:
    """Print what this package logs, one line per record."""
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    for ours in ("headstart", "__main__"):  # __main__ is a stage that `python -m` started
        logging.getLogger(ours).setLevel(logging.INFO)


@contextmanager
def quick_exit() -> Iterator[None]:
    """End the process, where ``sys.exit`` was called within, once what is registered with ``atexit`` has run.

    Python would then take apart every module and object, which takes 1.6 s after the imports of torch and timm.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(codes[0])

    atexit.register(leave)  # the first to be registered is the last to be called
    try:
        yield
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            codes.append(end.code or 0)
        raise
