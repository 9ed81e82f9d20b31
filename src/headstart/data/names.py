"""What names mean: which split a folder or a value of a table is, and the one form of a class's name."""

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
INVISIBLE = re.compile(
    r"[\0-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
# In Persian, Indic scripts and emoji these two change what is seen; beside ASCII and at the ends they do not.
JOINERS = re.compile(r"[\u200c\u200d](?=[ -~]|$)|(?<=[ -~])[\u200c\u200d]|^[\u200c\u200d]")


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


@functools.lru_cache
def normalize_label(name: str) -> str:
    """Return a class's name in Unicode's composed form (NFC), without outer, repeated and invisible characters."""
    visible = " ".join(INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split())
    return JOINERS.sub("", visible).strip()
