"""Which split a name means: of a folder, or a value of a table."""

import functools
import re
import unicodedata

from headstart.data.dataset import Split

SPLIT_WORDS: dict[Split, str] = {
    "train": "train|training|trn",
    "validation": "val|valid|validation|dev|devel|development|eval|evaluation",
    "test": "test|testing|tst",
}
DECORATION = r"(?:set|data|dataset|images?|imgs?|pictures?|photos?|files?|samples?|split|folder)"


@functools.lru_cache
def split_of(name: str) -> Split | None:
    """Return the split that a name is a usual spelling of, such as ``Training``, ``val_set`` or ``images-test``."""
    plain = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()
    for split, words in SPLIT_WORDS.items():
        if re.fullmatch(rf"(?:{DECORATION} ?)?(?:{words})(?: ?{DECORATION})?", plain):
            return split
    return None


def mentioned_split(name: str) -> Split | None:
    """Return the split that a word in a name is, such as in ``seg_train``, ``testA`` or ``01_val``."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
    return next(filter(None, map(split_of, words)), None)
