"""Tables for a terminal, and the one form of a name that people wrote."""

import functools
import re
import unicodedata
from collections.abc import Sequence

INVISIBLE = re.compile(
    r"[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
# In Persian, Indic scripts and emoji these two change what is seen; beside ASCII and at the ends they do not.
JOINERS = re.compile(r"[\u200c\u200d](?=[ -~]|$)|(?<=[ -~])[\u200c\u200d]|^[\u200c\u200d]")


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns, the first to the left, the others to the right; the first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in rows
    )


@functools.lru_cache
def normalize_label(name: str) -> str:
    """Return a class's name in Unicode's composed form (NFC), without outer, repeated and invisible characters."""
    visible = " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split())
    return JOINERS.sub("", visible).strip()
