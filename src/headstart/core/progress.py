"""Progress of long work: a bar on a terminal, a line every ten seconds in a file."""

import logging
import sys
import time
from typing import TextIO

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10


class Progress:
    """Counts pieces of work and shows how many are done, how fast, and the time left."""

    def __init__(self, label: str, total: int, unit: str = "images") -> None:
        """Start the clock.

        Args:
            label: what is being done.
            total: pieces to do.
            unit: what a piece is called, in the plural.
        """
        self.label, self.total, self.unit = label, total, unit
        self._bar = tqdm(total=total, desc=label, unit=f" {unit}", leave=False, disable=not sys.stderr.isatty())
        self._done, self._began, self._said = 0, time.perf_counter(), time.perf_counter()

    def advance(self, pieces: int) -> None:
        """Count pieces that are done."""
        self._done += pieces
        self._bar.update(pieces)
        now = time.perf_counter()
        if self._bar.disable and now - self._said >= SECONDS_BETWEEN_LINES:
            self._said = now
            rate = self._done / (now - self._began)
            left = (self.total - self._done) / rate if rate else float("inf")
            logger.info(f"{self.label}: {self._done} of {self.total} {self.unit}, {rate:.0f}/s, {left:.0f} s left")

    def close(self) -> float:
        """Take the bar away; give the pieces a second."""
        self._bar.close()
        return self._done / max(time.perf_counter() - self._began, 1e-9)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


SECONDS_BETWEEN = 0.2


class StatusLine:
    """Shows pieces done, pieces a second and, where the total is known, the time left; nothing but on a terminal.

    It is what ``libraries.progress`` is to training, without tqdm.
    """

    def __init__(self, file: TextIO, unit: str, *, shown: bool = True) -> None:
        """Start the clock.

        Args:
            file: the terminal.
            unit: what a piece is called, in the plural.
            shown: False is for who only counts.
        """
        self.file, self.unit, self.shown = file, unit, shown and file.isatty()
        self.done = 0
        self.total: int | None = None  # pieces to do: whoever knows may say so, also later
        self._began = self._said = time.perf_counter()

    def advance(self) -> None:
        """Count a piece that is done."""
        self.done += 1
        now = time.perf_counter()
        if self.shown and now - self._said >= SECONDS_BETWEEN:
            self._said = now
            rate = self.done / (now - self._began)
            of = "" if self.total is None else f" of {self.total}"
            left = "" if self.total is None else f", {(self.total - self.done) / rate:.0f} s left"
            self.file.write(f"\r{self.done}{of} {self.unit}, {rate:.0f}/s{left}\x1b[K")
            self.file.flush()

    def close(self) -> float:
        """Take the line away; give the seconds that it took."""
        if self.shown:
            self.file.write("\r\x1b[K")
            self.file.flush()
        return time.perf_counter() - self._began
