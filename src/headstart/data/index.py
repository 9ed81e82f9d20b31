"""The catalog of the images while they are prepared: on disk, so that memory stays flat at any number."""

import hashlib
import json
import logging
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.core.problems import some
from headstart.data.dataset import SPLITS
from headstart.data.image_info import PackedImage
from headstart.data.source_item import SourceItem
from headstart.data.splits import NOT_GIVEN, TEST, TRAIN, VALIDATION, group_number
from headstart.images.decode import Note

logger = logging.getLogger(__name__)

CATALOG_TABLE = """
CREATE TABLE pictures (
    source TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, label TEXT, given TEXT, grp TEXT, further TEXT NOT NULL,
    problem TEXT, sha256 BLOB, training INTEGER,
    width INTEGER, height INTEGER, phash TEXT, contrast REAL,
    shard INTEGER, offset INTEGER, bytes INTEGER, crc32 INTEGER, stored_height INTEGER, stored_width INTEGER, note TEXT
) WITHOUT ROWID
"""
# Those not known to be bad, in the order of every array and file about them.
GOOD_VIEW = "CREATE VIEW good AS SELECT * FROM pictures WHERE problem IS NULL"


class Catalog:
    """A table of images, in the order of their source names. Good images are those not known to be bad.

    The argument ``splits`` is int8 (n,), indices into ``SPLITS``, one for each good image in that order.
    """

    def __init__(self, path: Path) -> None:
        """Create the table in a new file. It does not survive a crash, and need not."""
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-32768"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(CATALOG_TABLE)
        self._database.execute(GOOD_VIEW)
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, items: Iterable[SourceItem]) -> None:
        """Add a source's images, each with an id: the first 16 hex digits of the sha256 of its source name.

        Raises UserError if one is listed twice.
        """
        for item in items:
            name = hashlib.sha256(item.source.encode()).hexdigest()[:16]
            row = (item.source, name, item.label, item.split, item.group, json.dumps(item.metadata), item.problem)
            try:
                self._database.execute(
                    "INSERT INTO pictures (source, id, label, given, grp, further, problem) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError:
                same = self._database.execute("SELECT source FROM pictures WHERE id = ?", (name,)).fetchone()
                if same != (item.source,):
                    raise UserError(f"prepare: {item.source} and another image have the same id: rename it") from None
                raise UserError(f"prepare: {item.source} is listed twice in the source: keep one of its rows") from None

    def keep_sample(self, size: int, *, by_label: bool) -> None:
        """Keep a random sample of about ``size`` images, the same every time; no class and split has fewer than 3 left.

        Classes, which are the labels where ``by_label`` says so, keep their shares. Of splits that the source assigns,
        a third of the sample is validation's and hardly any is test's.
        """
        counts = self.given_counts()
        test = VALIDATION if set(counts) == {TRAIN, VALIDATION} else TEST  # as ``fractions_to_draw`` has it
        shares = {VALIDATION: 1 / 3, test: 0.0}
        shares |= {NOT_GIVEN: 1.0, TRAIN: 1 - (shares[VALIDATION] if VALIDATION in counts else 0.0)}
        for split, count in counts.items():
            given = None if split == NOT_GIVEN else SPLITS[split]
            self._database.execute(
                "DELETE FROM pictures WHERE given IS ? AND source NOT IN (SELECT source FROM (SELECT source, "
                "row_number() OVER of_class AS place, count(*) OVER (PARTITION BY iif(?, label, '')) AS total "
                "FROM pictures WHERE given IS ? WINDOW of_class AS (PARTITION BY iif(?, label, '') ORDER BY id)) "
                "WHERE place <= max(3, ? * total))",
                (given, by_label, given, by_label, shares[split] * size / count),
            )

    def shards(self, size: int) -> Iterator[tuple[int, list[SourceItem]]]:
        """Yield the number and the images of each shard: the good ones, ``size`` at a time, without their labels."""
        last, shard = "", 0
        while True:
            rows = self._database.execute(
                "SELECT source, NULL, given, grp FROM good WHERE source > ? ORDER BY source LIMIT ?", (last, size)
            ).fetchall()
            if not rows:
                return
            yield shard, [SourceItem(*row) for row in rows]
            last, shard = rows[-1][0], shard + 1

    def sample(self, size: int) -> list[str]:
        """Return the source names of a random sample of good images, the same one every time."""
        rows = self._database.execute("SELECT source FROM good ORDER BY id LIMIT ?", (size,))
        return [source for (source,) in rows]

    def first(self, size: int) -> list[str]:
        """Return the names of the first good images, in the order of names."""
        rows = self._database.execute("SELECT source FROM good ORDER BY source LIMIT ?", (size,))
        return [source for (source,) in rows]

    def record(self, images: Iterable[PackedImage]) -> Counter[str]:
        """Record why images are bad, or their contents and places; count the ``decoded`` and the ``reused`` ones."""
        counts: Counter[str] = Counter()
        for image in images:
            if image.info is None or image.entry is None:
                self._record_problem(image.source, str(image.problem))
                continue
            note = json.dumps(image.note) if image.note else None
            counts["decoded" if image.decoded else "reused"] += 1
            content = bytes.fromhex(image.sha256)
            self._database.execute(
                "UPDATE pictures SET label = coalesce(label, ?), sha256 = ?, training = ?, width = ?, height = ?, "
                "phash = ?, contrast = ?, shard = ?, offset = ?, bytes = ?, crc32 = ?, stored_height = ?, "
                "stored_width = ?, note = ? WHERE source = ?",
                (image.label, content, image.for_training, *image.info, *image.entry, note, image.source),
            )
        return counts

    def _record_problem(self, source: str, problem: str) -> None:
        self._database.execute("UPDATE pictures SET problem = ? WHERE source = ?", (problem, source))

    def shards_to_repack(self, splits: NDArray[np.int8]) -> Iterator[tuple[int, list[SourceItem]]]:
        """Yield the number and good images of shards with an image at another split's size, or that became bad."""
        stale = {shard for (shard,) in self._database.execute("SELECT shard FROM pictures WHERE problem IS NOT NULL")}
        query = "SELECT source, shard, training FROM good ORDER BY source"
        for split, (_, shard, training) in zip(splits, self._database.execute(query), strict=True):
            if training != (split == TRAIN):
                stale.add(shard)
        rows = zip(splits, self._database.execute(query), strict=True)
        for shard, members in groupby(rows, key=lambda row: row[1][1]):
            if shard in stale:
                yield shard, [SourceItem(source, None, SPLITS[split]) for split, (source, *_) in members]

    def reject_conflicting_labels(self) -> None:
        """Mark as bad all images with the same bytes under different labels."""
        self._database.execute("CREATE INDEX by_content ON pictures (sha256)")
        conflicts = self._database.execute(
            "SELECT a.source, b.label, min(b.source) FROM good a JOIN good b "
            "ON a.sha256 = b.sha256 AND a.label <> b.label GROUP BY a.source"
        ).fetchall()
        for source, label, other in conflicts:
            self._record_problem(source, f"the same bytes as {other}, but that is labelled {label!r}")

    def untrained_classes(self) -> list[str]:
        """Return the classes whose good images all have another split than train from the source."""
        rows = self._database.execute(
            "SELECT label FROM good WHERE label IS NOT NULL GROUP BY label HAVING min(given <> 'train') ORDER BY label"
        )
        return [label for (label,) in rows]

    def check_given_splits(self) -> None:
        """Raise UserError if all images of a split that the source assigns are bad: another would be drawn instead."""
        lost = self._database.execute(
            "SELECT given, count(*) FROM pictures WHERE given IS NOT NULL GROUP BY given "
            "HAVING min(problem IS NOT NULL) ORDER BY given"
        ).fetchone()
        if lost:
            raise UserError(
                f"prepare: all {lost[1]:,} images of the split {lost[0]} are bad: correct them, or remove that split "
                "to have one drawn"
            )

    def settle_case(self, label_case: Literal["keep", "fold"] | None) -> None:
        """Make classes whose names differ in case alone one, under the name that sorts last, if that is wanted.

        Raises UserError if there are such classes and ``prepare.label_case`` is not set.
        """
        spellings: dict[str, list[str]] = {}
        counts = self.class_counts()
        for label in counts:
            spellings.setdefault(label.casefold(), []).append(label)
        twins = [labels for labels in spellings.values() if len(labels) > 1]
        if twins and label_case is None:
            shown = " and ".join(f"{label!r} ({counts[label]:,} images)" for label in twins[0])
            raise UserError(
                f"prepare: the classes {shown} differ in case alone ({len(twins)} such): set prepare.label_case: fold "
                "to make them one class, or keep to keep them apart"
            )
        if twins and label_case == "fold":
            joined = [(labels[-1], label) for labels in twins for label in labels[:-1]]
            self._database.executemany("UPDATE pictures SET label = ? WHERE label = ?", joined)
            logger.info("one class each: %s", some(f"{label!r} is {kept!r}" for kept, label in joined))

    def check_groups(self) -> None:
        """Raise UserError if a group is in two of the splits that the source assigns."""
        torn = self._database.execute(
            "SELECT grp, min(given), max(given) FROM good WHERE grp IS NOT NULL "
            "GROUP BY grp HAVING min(given) <> max(given) LIMIT 1"
        ).fetchone()
        if torn:
            raise UserError(
                f"prepare: the group {torn[0]!r} is in two splits, {torn[1]} and {torn[2]}: correct one of them"
            )

    def bad(self) -> list[tuple[str, str]]:
        """Return the bad images, each with its problem."""
        return self._database.execute(
            "SELECT source, problem FROM pictures WHERE problem IS NOT NULL ORDER BY source"
        ).fetchall()

    def count(self) -> int:
        """Count the good images."""
        return int(self._database.execute("SELECT count(*) FROM good").fetchone()[0])

    def texts(self, *, distinct: bool = False) -> Iterator[str]:
        """Yield the labels of the good images, in the order of source names; or those that occur, each once."""
        rows = "DISTINCT label FROM good" if distinct else "label FROM good ORDER BY source"
        return (text for (text,) in self._database.execute(f"SELECT {rows}"))

    def class_counts(self) -> dict[str, int]:
        """Count the good images of each class, in the order of names; a class with only bad ones has 0.

        Before the images are read, a source whose labels come with the pixels has no class here.
        """
        rows = self._database.execute(
            "SELECT label, sum(problem IS NULL) FROM pictures WHERE label IS NOT NULL GROUP BY label ORDER BY label"
        )
        return dict(rows.fetchall())

    def given_counts(self) -> dict[int, int]:
        """Count the good images of each split that the source assigns, by index into ``SPLITS`` or ``NOT_GIVEN``."""
        rows = self._database.execute("SELECT given, count(*) FROM good GROUP BY given")
        return {SPLITS.index(split) if split else NOT_GIVEN: count for split, count in rows}

    def split_inputs(self) -> tuple[NDArray[np.int8], NDArray[np.uint64], NDArray[np.uint64]]:
        """Return what the splits are drawn from beside the labels, of each good image in the order of source names.

        Returns:
            The splits that the source assigns, indices into ``SPLITS``, or ``NOT_GIVEN``; the ids of ``group_number``;
            and the first 8 bytes of the sha256. All have shape (n,).
        """
        n = self.count()
        given, (group_ids, contents) = np.empty(n, np.int8), np.empty((2, n), np.uint64)
        rows = self._database.execute("SELECT given, grp, sha256 FROM good ORDER BY source")
        for i, (split, group, sha256) in enumerate(rows):
            given[i] = SPLITS.index(split) if split else NOT_GIVEN
            group_ids[i], contents[i] = group_number(group, sha256), int.from_bytes(sha256[:8])
        return given, group_ids, contents

    def manifest(self, splits: NDArray[np.int8]) -> Iterator[list[str | int | float]]:
        """Yield the manifest's rows: each a ``ManifestRow``, then the source's metadata."""
        rows = self._database.execute(
            "SELECT id, source, label, coalesce(grp, ''), lower(hex(sha256)), width, height, phash, contrast, further "
            "FROM good ORDER BY source"
        )
        for split, (name, source, label, *values, metadata) in zip(splits, rows, strict=True):
            yield [name, source, label, SPLITS[split], *values, *json.loads(metadata)]

    def notes(self) -> list[tuple[int, str, Note]]:
        """Return the row in the manifest, the hex digits of the sha256 and the note of each image that has one."""
        rows = self._database.execute("SELECT lower(hex(sha256)), note FROM good ORDER BY source")
        return [(row, sha256, Note(*json.loads(note))) for row, (sha256, note) in enumerate(rows) if note]

    def index_rows(self, labels: Iterable[int], splits: NDArray[np.int8]) -> Iterator[tuple[int, ...]]:
        """Yield the rows of the shards' index, in the order of ``INDEX_DTYPE``, with the images' labels and splits."""
        rows = self._database.execute(
            "SELECT id, offset, bytes, crc32, shard, stored_height, stored_width FROM good ORDER BY source"
        )
        for split, label, (name, offset, size, crc32, shard, *stored) in zip(splits, labels, rows, strict=True):
            yield int(name, 16), offset, size, crc32, shard, int(label), *stored, int(split)
