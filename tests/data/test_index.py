from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from headstart.data.index import Catalog
from headstart.data.source_item import SourceItem

Counts = dict[tuple[str, str | None], int]


def sampled(tmp_path: Path, counts: Counts, size: int) -> Counts:
    """How many images of each label and split a sample has; it is the same when it is drawn again."""
    found = []
    for name in ("once", "again"):
        with closing(Catalog(tmp_path / f"{name}.sqlite")) as catalog:
            catalog.add(
                SourceItem(f"{label}/{split}/{i}", label, split)  # type: ignore[arg-type]
                for (label, split), count in counts.items()
                for i in range(count)
            )
            catalog.keep_sample(size, by_label=True)
            found.append([item.source for _, shard in catalog.shards(100) for item in shard])
    assert found[0] == found[1]
    drawn = Counter(tuple(source.split("/")[:2]) for source in found[0])
    return {key: drawn[key[0], str(key[1])] for key in counts}


def test_classes_keep_their_shares_and_none_is_lost(tmp_path: Path) -> None:
    counts: Counts = {("a", None): 800, ("b", None): 195, ("rare", None): 5}
    assert sampled(tmp_path, counts, 100) == {("a", None): 80, ("b", None): 19, ("rare", None): 3}


def test_a_sample_of_more_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    counts: Counts = {("a", None): 8, ("b", None): 1}
    assert sampled(tmp_path, counts, 100) == counts


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"train": 1000, "validation": 100, "test": 500}, {"train": 200, "validation": 100, "test": 3}),
        ({"train": 1000, "test": 500}, {"train": 300, "test": 3}),
        ({"train": 1000, "validation": 500}, {"train": 300, "validation": 3}),  # which serves as the test split
    ],
)
def test_of_given_splits_a_third_is_validations_and_nearly_none_tests(
    tmp_path: Path, given: dict[str, int], kept: dict[str, int]
) -> None:
    found = sampled(tmp_path, {("a", split): count for split, count in given.items()}, 300)
    assert {split: found["a", split] for split in given} == kept
