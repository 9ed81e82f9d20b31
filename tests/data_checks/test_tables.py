import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headstart.config.schema import ChecksConfig
from headstart.core import paths
from headstart.core.io import read_table
from headstart.data.dataset import PreparedDataset, Split, read_values
from headstart.data.manifest import manifest_rows, write_manifest
from headstart.data_checks import duplicates, label_errors, tables
from headstart.data_checks.tables import check_features, check_images, class_imbalance
from headstart.features.extract import write_features
from headstart.images.decode import Note
from headstart.targets import classes
from headstart.targets.classes import Classes
from headstart.targets.labels import Labels
from headstart.targets.number import Numbers
from helpers.images import write_prepared

IMAGE_QUALITY, DUPLICATES, LABELS = Path("image_quality.csv"), Path("duplicates.csv"), Path("labels.csv")


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDataset:
    """Images whose features tell their classes, none of them a copy."""
    monkeypatch.chdir(tmp_path)
    prepared = write_prepared({"train": 120, "validation": 60, "test": 60})
    labels = [prepared.classes.index(row["label"]) for row in manifest_rows()]
    noise = np.random.default_rng(0).normal(size=(len(labels), 32))
    features = np.asarray(6 * np.eye(4, 32)[labels] + noise, np.float32)
    write_features(features.__getitem__, features.shape, "float32", {})
    return prepared


def rewrite(changes: Mapping[int, Mapping[str, Any]]) -> None:
    """Change some rows of the manifest."""
    rows = [row | dict(changes.get(i, {})) for i, row in enumerate(manifest_rows())]
    write_manifest(paths.PREPARED, [], [list(row.values()) for row in rows], len(rows))


def test_clean_data_give_tables_without_rows_and_no_line(
    prepared: PreparedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headstart")
    rewrite({i: {"phash": f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}"} for i in range(240)})
    found = check_features(DUPLICATES, LABELS, prepared, ChecksConfig())
    assert found["duplicates_across_splits"] == {"exact": 0, "near": 0}
    assert found["suspicious_labels"] == 0
    assert found["near_duplicates_among"] == "all pairs"
    assert found["labels_learned_from"] == 180
    assert all(0 < found["check_seconds"][name] < 60 for name in ("duplicates", "labels"))
    assert check_images(IMAGE_QUALITY, prepared.folder, 32)["odd_pictures"] == {"tiny": 0, "blank": 0}
    assert class_imbalance(prepared.target, {"a": {"train": 10}, "b": {"train": 5}}) == 2
    assert [read_table(table) for table in (IMAGE_QUALITY, DUPLICATES, LABELS)] == [[], [], []]
    assert caplog.messages == []


def test_a_copy_in_another_split_is_listed(prepared: PreparedDataset, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    rows = list(manifest_rows())
    original, copy = int(prepared.rows("train")[0]), int(prepared.rows("test")[0])
    rewrite({copy: {"sha256": rows[original]["sha256"]}})
    found = check_features(DUPLICATES, LABELS, prepared, ChecksConfig())
    assert found["duplicates_across_splits"]["exact"] == 1
    first = read_table(DUPLICATES)[0]
    assert (first["kind"], int(first["row"]), int(first["other_row"])) == ("exact", original, copy)
    assert (first["source"], first["other_source"]) == (rows[original]["source"], rows[copy]["source"])
    assert (first["split"], first["other_split"]) == ("train", "test")
    assert any("1 pairs of images are the same" in message for message in caplog.messages)


def test_a_wrong_label_is_listed_and_those_of_test_are_not_read(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = int(np.flatnonzero(np.isin(prepared.rows("train"), prepared.rows("train")[[7]]))[0])
    asked = []

    def labels_of(split: Split) -> np.ndarray:
        asked.append(split)
        labels = read_values(split)
        if split == "train":
            labels[wrong] = (labels[wrong] + 1) % 4
        return labels

    monkeypatch.setattr(tables, "read_values", labels_of)
    true = read_values("train")[wrong]
    assert check_features(DUPLICATES, LABELS, prepared, ChecksConfig())["suspicious_labels"] >= 1
    assert set(asked) == {"train", "validation"}
    first = read_table(LABELS)[0]
    assert int(first["row"]) == prepared.rows("train")[wrong]
    assert (first["label"], first["suggested"]) == (prepared.classes[(true + 1) % 4], prepared.classes[true])
    assert float(first["label_probability"]) < 0.05
    assert float(first["suggested_probability"]) > 0.5


def test_tiny_and_blank_images_are_listed_and_sizes_that_vary_are_said(
    prepared: PreparedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headstart")
    rewrite({3: {"width": 10}, 5: {"contrast": 0.5}, 8: {"width": 4000, "height": 3000}})
    found = check_images(IMAGE_QUALITY, prepared.folder, 32)
    assert found == {"odd_pictures": {"tiny": 1, "blank": 1}, "side_range": [10, 3000]}
    assert [(row["row"], row["problem"], float(row["value"])) for row in read_table(IMAGE_QUALITY)] == [
        ("3", "tiny", 10),
        ("5", "blank", 0.5),
    ]
    assert any("1 images are tiny, 1 are blank" in message for message in caplog.messages)
    assert any("the short sides vary: 10 to 3000 pixels" in message for message in caplog.messages)


def test_what_was_noted_when_images_were_decoded_is_listed_and_said(
    prepared: PreparedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    notes = [(row, Note("few_bits", "12 of 16")) for row in (2, 4)] + [(6, Note("unused_bands", "1 of 4"))]
    notes.append((7, Note("no_data", "3.125% of its values")))
    found = check_images(IMAGE_QUALITY, prepared.folder, 32, notes)
    assert found["odd_pictures"] == {"tiny": 0, "blank": 0, "few_bits": 2, "unused_bands": 1, "no_data": 1}
    table = read_table(IMAGE_QUALITY)
    assert [(row["row"], row["problem"], row["value"]) for row in table] == [
        ("2", "few_bits", "12 of 16"),
        ("4", "few_bits", "12 of 16"),
        ("6", "unused_bands", "1 of 4"),
        ("7", "no_data", "3.125% of its values"),
    ]
    first = table[0]["source"]
    assert f"2 images hold few of their bits, such as {first} 12 of 16: they become nearly black" in caplog.text
    assert f"1 images have bands that are not used, such as {table[2]['source']} 1 of 4" in caplog.text
    assert f"no data or no number, such as {table[3]['source']} 3.125% of its values: each counts as" in caplog.text


def test_uneven_classes_are_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "headstart")
    names, both = ["common", "rare"], " and class_weights"
    for target, advice in ((Classes(names), both), (Labels(names), both), (Numbers(["age"], [""], [0], [1]), "")):
        caplog.clear()
        assert class_imbalance(target, {"common": {"train": 40}, "rare": {"train": 10}}) == 4
        counted = f"{target.nouns} are uneven: 40 training images of 'common', 10 of 'rare'; see finetune.sampling"
        assert caplog.messages == [counted + advice]


def test_no_more_than_the_worst_are_listed(prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROWS", 3)
    blank = {i: {"sha256": "0" * 64} for i in (prepared.rows("test")[0], *prepared.rows("train")[:5])}
    rewrite(blank)
    found = check_features(DUPLICATES, LABELS, prepared, ChecksConfig())
    assert found["duplicates_across_splits"]["exact"] == 5
    assert len(read_table(DUPLICATES)) == 3


def test_a_large_data_set_is_checked_by_an_index_and_by_a_sample(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headstart")
    monkeypatch.setattr(duplicates, "ALL_PAIRS_UP_TO", 239)
    monkeypatch.setattr(label_errors, "MAX_SAMPLE", 100)
    rewrite({i: {"phash": f"{i * 0x9E3779B97F4A7C15 % 2**64:016x}"} for i in range(240)})
    found = check_features(DUPLICATES, LABELS, prepared, ChecksConfig())
    assert found["duplicates_across_splits"] == {"exact": 0, "near": 0}
    assert found["near_duplicates_among"] == "each image's 10 nearest"
    assert "near-duplicates of 240 images were looked for among each image's 10 nearest" in caplog.text
    assert (found["suspicious_labels"], found["labels_learned_from"]) == (0, 100)
    assert "the labels of 180 images are judged by heads that learn from 100 of them" in caplog.text


@pytest.mark.parametrize("off", ["duplicates", "labels"])
def test_a_check_can_be_switched_off(prepared: PreparedDataset, off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(manifest_rows())
    original, copy = int(prepared.rows("train")[0]), int(prepared.rows("test")[0])
    rewrite({copy: {"sha256": rows[original]["sha256"]}})
    monkeypatch.setattr(classes, "MAX_RATIO", 2.0)  # each image that is not sure is one
    found = check_features(DUPLICATES, LABELS, prepared, ChecksConfig(**{off: False}))
    table = DUPLICATES if off == "duplicates" else LABELS
    assert read_table(table) == []
    assert table.read_text().startswith(("kind,row,", "row,source,"))
    assert found["check_seconds"][off] == "switched off"
    figures = "duplicates_across_splits" if off == "duplicates" else "suspicious_labels"
    assert found[figures] is None
    everything = check_features(DUPLICATES, LABELS, prepared, ChecksConfig())
    assert everything[figures] is not None
    assert {name for name in found if found[name] is None} | {"check_seconds"} >= {
        name for name in found if found[name] != everything[name]
    }
