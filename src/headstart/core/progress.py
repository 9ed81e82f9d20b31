"""Progress of long work: a bar on a terminal, a line every ten seconds in a file."""

import logging
import sys
import time

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10


class Progress:
    """Counts pieces of work and shows how many are done, how fast, and the time left.

    Attributes:
        done: pieces so far.
        total: pieces to do, None while nobody knows; it may be set at any time.
    """

    def __init__(self, label: str, total: int | None, unit: str = "images", *, shown: bool = True) -> None:
        """Start the clock.

        Args:
            label: what is being done.
            total: pieces to do.
            unit: what a piece is called, in the plural.
            shown: False to count only.
        """
        self.label, self.total, self.unit, self.shown = label, total, unit, shown
        self.done = 0
        self._began = self._last_line = time.perf_counter()
        self._bar = None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm  # noqa: PLC0415  (its import would delay the first prediction of `headstart predict`)

            self._bar = tqdm(total=total, desc=label, unit=f" {unit}", leave=False)

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return max(time.perf_counter() - self._began, 1e-9)

    def advance(self, pieces: int = 1) -> None:
        """Count pieces that are done."""
        self.done += pieces
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(pieces)
        elif self.shown and time.perf_counter() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            rate = self.done / self.seconds
            of = left = ""
            if self.total is not None:
                of = f" of {self.total}"
                left = f", {(self.total - self.done) / rate if rate else float('inf'):.0f} s left"
            logger.info(f"{self.label}: {self.done}{of} {self.unit}, {rate:.0f}/s{left}")

    def close(self) -> float:
        """Remove the bar and return the pieces a second."""
        if self._bar is not None:
            self._bar.close()
        return self.done / self.seconds

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
