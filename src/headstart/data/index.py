"""The working list of images while they are prepared, on disk, so that memory stays flat however many there are."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from headstart.core.errors import UserError
from headstart.data.dataset import SPLITS
from headstart.data.image_info import PackedImage
from headstart.data.sources import SourceItem
from headstart.data.splits import NOT_GIVEN, TRAIN, group_number

SCHEMA = """
CREATE TABLE pictures (
    source TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, label TEXT, given TEXT, grp TEXT, further TEXT NOT NULL,
    problem TEXT, sha256 BLOB, training INTEGER,
    width INTEGER, height INTEGER, phash TEXT, contrast REAL,
    shard INTEGER, offset INTEGER, bytes INTEGER, crc32 INTEGER, stored_height INTEGER, stored_width INTEGER
) WITHOUT ROWID
"""


class Catalog:
    """A table of images, in the order of their source names."""

    def __init__(self, path: Path) -> None:
        """Make the table in a new file, which is of no use after a crash."""
        self._database = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-32768"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute(SCHEMA)
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, images: Iterable[SourceItem]) -> None:
        """Take a source's images; raises UserError where one is listed twice."""
        for image in images:
            row = (
                image.source,
                image_id(image.source),
                image.label,
                image.split,
                image.group,
                json.dumps(image.further),
                image.problem,
            )
            try:
                self._database.execute(
                    "INSERT INTO pictures (source, id, label, given, grp, further, problem) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError as error:
                if "pictures.id" in str(error) and not self._value(
                    "SELECT count(*) FROM pictures WHERE source = ?", image.source
                ):
                    raise UserError(f"prepare: {image.source} and another image have the same id: rename it") from None
                raise UserError(f"prepare: {image.source} is listed twice in the source") from None

    def runs(self, size: int) -> Iterator[list[SourceItem]]:
        """List the images that are not known to be bad, some at a time, without labels."""
        last = ""
        while True:
            rows = self._database.execute(
                "SELECT source, NULL, given, grp FROM pictures WHERE source > ? AND problem IS NULL "
                "ORDER BY source LIMIT ?",
                (last, size),
            ).fetchall()
            if not rows:
                return
            yield [SourceItem(*row) for row in rows]
            last = rows[-1][0]

    def sample(self, size: int) -> list[str]:
        """Return some sources by chance, the same ones every time."""
        rows = self._database.execute("SELECT source FROM pictures WHERE problem IS NULL ORDER BY id LIMIT ?", (size,))
        return [source for (source,) in rows]

    def record_bad(self, source: str, problem: str) -> None:
        """Note that an image is bad."""
        self._database.execute("UPDATE pictures SET problem = ? WHERE source = ?", (problem, source))

    def record_good(self, outcome: PackedImage) -> None:
        """Note an image's content and where it is stored."""
        assert outcome.look is not None
        assert outcome.row is not None
        self._database.execute(
            "UPDATE pictures SET label = coalesce(label, ?), sha256 = ?, training = ?, width = ?, height = ?, "
            "phash = ?, contrast = ?, shard = ?, offset = ?, bytes = ?, crc32 = ?, stored_height = ?, stored_width = ? "
            "WHERE source = ?",
            (outcome.label, outcome.sha256, outcome.training, *outcome.look, *outcome.row, outcome.source),
        )

    def to_pack_again(self, splits: NDArray[np.int8]) -> Iterator[tuple[int, list[SourceItem]]]:
        """List the shards that hold an image at another split's size, or one that is bad after all.

        Args:
            splits: int8 (n,), indices into ``SPLITS``, in the order of ``arrays``.

        Yields:
            A shard's number, and its good images with their splits.
        """
        again = {shard for (shard,) in self._database.execute(
            "SELECT DISTINCT shard FROM pictures WHERE problem IS NOT NULL AND shard IS NOT NULL"
        )}  # fmt: skip
        places = "SELECT source, shard, training FROM pictures WHERE problem IS NULL ORDER BY source"
        for split, (_, shard, training) in zip(splits, self._database.execute(places), strict=True):
            if training != (split == TRAIN):
                again.add(shard)
        rows = zip(splits, self._database.execute(places), strict=True)
        for shard, members in groupby(rows, key=lambda row: row[1][1]):
            if shard in again:
                yield shard, [SourceItem(source, None, SPLITS[split]) for split, (source, *_) in members]

    def refuse_conflicts(self) -> None:
        """Note as bad, all of them, images with the same bytes under different labels."""
        self._database.execute("CREATE INDEX by_content ON pictures (sha256)")
        conflicts = self._database.execute(
            "SELECT a.source, b.label, min(b.source) FROM pictures a JOIN pictures b "
            "ON a.sha256 = b.sha256 AND a.label <> b.label "
            "WHERE a.problem IS NULL AND b.problem IS NULL GROUP BY a.source"
        ).fetchall()
        for source, label, other in conflicts:
            self.record_bad(source, f"the same bytes as {other}, but that is labelled {label!r}")

    def check_groups(self) -> None:
        """Raise UserError where a group is in two of the splits that the source gives."""
        torn = self._database.execute(
            "SELECT grp, min(given), max(given) FROM pictures WHERE grp IS NOT NULL AND problem IS NULL "
            "GROUP BY grp HAVING min(given) <> max(given) LIMIT 1"
        ).fetchone()
        if torn:
            raise UserError(f"prepare: the group {torn[0]!r} is in two splits, {torn[1]} and {torn[2]}: correct either")

    def bad(self) -> list[tuple[str, str]]:
        """List bad images, each with its problem."""
        return self._database.execute(
            "SELECT source, problem FROM pictures WHERE problem IS NOT NULL ORDER BY source"
        ).fetchall()

    def count(self) -> int:
        """Count the images that are not known to be bad."""
        return int(self._value("SELECT count(*) FROM pictures WHERE problem IS NULL"))

    def class_counts(self) -> dict[str, int]:
        """Count the usable images of each class, in the order of names; a class with bad ones only has 0.

        Before reading, a source that tells labels only then has no class here.
        """
        rows = self._database.execute(
            "SELECT label, sum(problem IS NULL) FROM pictures WHERE label IS NOT NULL GROUP BY label ORDER BY label"
        )
        return dict(rows.fetchall())

    def given_counts(self) -> dict[int, int]:
        """Count the usable images of each split that the source gives: by the index into ``SPLITS``."""
        rows = self._database.execute("SELECT given, count(*) FROM pictures WHERE problem IS NULL GROUP BY given")
        return {SPLITS.index(split) if split else NOT_GIVEN: count for split, count in rows}

    def arrays(
        self, classes: list[str]
    ) -> tuple[NDArray[np.int8], NDArray[np.int32], NDArray[np.uint64], NDArray[np.uint64]]:
        """Return what splits are made from, for the usable images, in the order of source names.

        Returns:
            The given splits, int8 (n,); the labels, int32 (n,), indices into ``classes``; the units, uint64 (n,), from
            the group's name where there is a group, else from the content; the contents, uint64 (n,).
        """
        number, n = {name: i for i, name in enumerate(classes)}, self.count()
        given, labels = np.empty(n, np.int8), np.empty(n, np.int32)
        units, contents = np.empty(n, np.uint64), np.empty(n, np.uint64)
        rows = self._database.execute(
            "SELECT given, label, grp, sha256 FROM pictures WHERE problem IS NULL ORDER BY source"
        )
        for i, (split, label, group, sha256) in enumerate(rows):
            given[i], labels[i] = SPLITS.index(split) if split else NOT_GIVEN, number[label]
            contents[i] = int.from_bytes(sha256[:8])
            units[i] = group_number(group, sha256)
        return given, labels, units, contents

    def manifest(self, splits: NDArray[np.int8]) -> Iterator[list[str | int | float]]:
        """List the manifest's rows: ``MANIFEST_COLUMNS``, then the source's further columns.

        Args:
            splits: int8 (n,), indices into ``SPLITS``, in the order of ``arrays``.
        """
        rows = self._database.execute(
            "SELECT id, source, label, coalesce(grp, ''), lower(hex(sha256)), width, height, phash, contrast, "
            "further "
            "FROM images WHERE problem IS NULL ORDER BY source"
        )
        for split, (name, source, label, *values, further) in zip(splits, rows, strict=True):
            yield [name, source, label, SPLITS[split], *values, *json.loads(further)]

    def index(self, classes: list[str], splits: NDArray[np.int8]) -> Iterator[tuple[int, ...]]:
        """List the index's rows, in the order of ``INDEX``.

        Args:
            classes: names, in the order of the labels' numbers.
            splits: int8 (n,), indices into ``SPLITS``, in the order of ``arrays``.
        """
        number = {name: i for i, name in enumerate(classes)}
        rows = self._database.execute(
            "SELECT id, offset, bytes, crc32, shard, label, stored_height, stored_width FROM pictures "
            "WHERE problem IS NULL ORDER BY source"
        )
        for split, (name, offset, size, crc32, shard, label, *stored) in zip(splits, rows, strict=True):
            yield int(name, 16), offset, size, crc32, shard, number[label], *stored, int(split)

    def _value(self, query: str, *values: str) -> int:
        value: int = self._database.execute(query, values).fetchone()[0]
        return value


def image_id(source: str) -> str:
    """Name an image: the first 16 hex digits of its source name's sha256."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]
