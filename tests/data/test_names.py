"""Which names are splits, and when two names of a class are one."""

import pytest

from headstart.core.text import normalize_label
from headstart.data.names import mentioned_split, split_of


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", "train Train TRAIN training Training trn train_set training-set trainset images_train train.data"),
        ("validation", "val Val valid VALID validation dev devel development eval evaluation val_set dev-set valset"),
        ("test", "test Test TEST testing tst test_images testset imgs-test Test_Data"),
    ],
)
def test_usual_names_of_splits(split: str, names: str) -> None:
    assert {split_of(name) for name in names.split()} == {split}
    assert {split_of(f" {name} ") for name in names.split()} == {split}


@pytest.mark.parametrize(
    "name",
    ["trains", "model_train", "attestation", "invalid", "tester", "latest", "evaluated", "devil", "1_train", "a", ""],
)
def test_other_names_are_no_splits(name: str) -> None:
    assert split_of(name) is None


def test_words_in_names_that_are_splits() -> None:
    names = {
        "seg_train": "train",
        "testA": "test",
        "01_val": "validation",
        "TrainImages": "train",
        "model.TEST": "test",
    }
    assert {name: mentioned_split(name) for name in names} == names
    assert not any(map(mentioned_split, ["trainer", "constraint", "Testudo", "latest", "invalid_1", ""]))


@pytest.mark.parametrize(
    "name",
    [
        "cat ",
        "\tcat\n",
        "\xa0cat",
        "cat\u200b",
        "\ufeffcat",
        "c\xadat",
        "\u200ecat",
        "ca\u200dt",
        "cat\u200c",
        "c\x07at",
    ],
)
def test_what_is_not_seen_is_not_in_a_label(name: str) -> None:
    assert normalize_label(name) == "cat"


def test_labels_keep_what_is_seen() -> None:
    assert normalize_label("golden \xa0 retriever") == "golden retriever"
    assert normalize_label("cafe\u0301") == "caf\xe9"
    joined = ["\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\U0001f469\u200d\U0001f680"]
    flags = [f"\U0001f3f4\U000e0067\U000e0062{tags}\U000e007f" for tags in ("\U000e0065\U000e006e", "\U000e0073")]
    for name in ("Dog", "dog", "New York", "a_b", "stra\xdfe", *joined, *flags):
        assert normalize_label(name) == name
