"""One line on a terminal that says how far a work of many pieces is."""

import time
from typing import TextIO

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
