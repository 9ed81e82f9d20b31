"""Progress of long work: a bar on a terminal, a line every ten seconds in a file."""

import logging
import sys
import time

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
