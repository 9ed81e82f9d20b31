"""Long lists for a user: the first 20 entries, how many more there are of each kind, and the file that has them all."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from headstart.core.io import atomic_write
from headstart.core.paths import PROBLEMS

SHOWN = 20


def list_problems(first: str, problems: Sequence[tuple[str, str]], last: str = "") -> str:
    """Return a message with a line for each problem; of more than 20, all are written to ``PROBLEMS``.

    Args:
        first: the line above them.
        problems: what each one is about, and what is wrong there.
        last: the line below them, if any.
    """
    lines = [f"  {name if name.isprintable() else repr(name)}: {problem}" for name, problem in problems]
    shown = lines[:SHOWN]
    if len(lines) > SHOWN:
        try:
            with atomic_write(PROBLEMS) as partial:
                partial.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
            where = f"all are in {PROBLEMS}"
        except OSError as error:
            where = f"{PROBLEMS}, for all of them, can't be written: {error.strerror}"
        kinds = count_kinds(problem for _, problem in problems)
        in_all = f", in all {kinds}" if "," in kinds else ""
        shown.append(f"  and {len(lines) - SHOWN:,} more{in_all}: {where}")
    return "\n".join([first, *shown, *filter(None, [last])])


def count_kinds(problems: Iterable[str]) -> str:
    """Return how many problems there are of each kind, which is what stands before the details, the largest first."""
    starts = (re.split(r"[:;,(]| as ", problem)[0].strip() for problem in problems)
    kinds = Counter(re.sub(r"(?<![\w-])\d+\b", "N", start) for start in starts)  # not in UTF-8 and HDF5
    return some([f"{count:,} x {kind}" for kind, count in kinds.most_common()], 5)


def some(names: Iterable[str], shown: int = SHOWN) -> str:
    """Return names separated by commas, on one line; of a long list the first ones and the number of the others."""
    rest = iter(names)
    first = list(itertools.islice(rest, shown))
    others = sum(1 for _ in rest)
    return ", ".join(first) + (f" and {others:,} more" if others else "")
