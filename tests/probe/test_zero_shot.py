"""The map of classes against the bundled backbone itself, and every way in which it can be wrong."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from headstart.core.errors import UserError
from headstart.models.backbone import BUNDLED, create_backbone, features_of
from headstart.models.head import PretrainedHead
from headstart.probe.zero_shot import ClassMap, pretrained_head, resolve_class_map, summed_log_probabilities

# Of Tiny ImageNet's 200: by name, description, synonym, in capitals, by index.
ANIMALS_AND_THINGS: ClassMap = {
    "fish": ["n01443537"],
    "frog": ["bullfrog, Rana catesbeiana", "TAILED FROG"],
    "cat": ["tabby", "Egyptian cat", "persian cat"],
    "bridge": ["n04311004", "viaduct", "suspension bridge"],
    "low": [6, 7, 8, 9],
}
CLASSES = sorted(ANIMALS_AND_THINGS)
SMALL = PretrainedHead(
    np.eye(5, 3, dtype=np.float32),
    np.zeros(5, np.float32),
    ["n1", "n2", "n3", "n4", "n5"],
    ["tench, Tinca tinca", "crane", "crane, derrick", "Egyptian cat", ""],
)


@pytest.fixture(scope="module")
def bundled() -> nn.Module:
    return create_backbone(BUNDLED, pretrained=True, image_size=None, args={}).eval()


@pytest.fixture(scope="module")
def own(bundled: nn.Module) -> PretrainedHead:
    own = pretrained_head(bundled)
    assert own is not None
    return own


def test_the_bundled_backbones_classes_have_names_and_descriptions(own: PretrainedHead) -> None:
    assert own.weight.shape == (200, 184)
    assert own.names[0] == "n01443537"
    assert own.descriptions[0] == "goldfish, Carassius auratus"
    assert len(own.names) == len(own.descriptions) == 200


@pytest.mark.parametrize("rest", [False, True])
def test_sums_are_those_of_the_full_models_softmax(*, bundled: nn.Module, own: PretrainedHead, rest: bool) -> None:
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = bundled(images).double().softmax(1).numpy()
        features = features_of(bundled, images).numpy()
    class_map = {**ANIMALS_AND_THINGS, **({"other": "rest"} if rest else {})}
    classes = [*CLASSES, *(["other"] if rest else [])]
    found = np.exp(summed_log_probabilities(features, own, resolve_class_map(class_map, classes, own)))

    described = dict(zip(own.descriptions, range(200), strict=True))
    expected = {
        "fish": whole[:, 0],
        "frog": whole[:, 2] + whole[:, 3],
        "cat": sum(whole[:, i] for text, i in described.items() if re.search(r"tabby|Persian cat|Egyptian cat", text)),
        "bridge": sum(whole[:, i] for text, i in described.items() if re.search(r"bridge|viaduct", text)),
        "low": whole[:, 6:10].sum(1),
    }
    sums = np.column_stack([expected[name] for name in CLASSES])
    if rest:
        sums = np.column_stack([sums, 1 - sums.sum(1)])
    else:
        sums /= sums.sum(1, keepdims=True)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, sums, rtol=1e-4, atol=1e-6)


def test_sets_come_in_the_order_of_the_users_classes() -> None:
    sets = resolve_class_map({"b": ["egyptian cat", 3, 0], "a": "rest"}, ["a", "b"], SMALL)
    assert [members.tolist() for members in sets] == [[1, 2, 4], [0, 3]]


def test_a_sum_far_below_the_others_is_not_lost() -> None:
    features = np.array([[300.0, 0.0, 0.0]], np.float32)
    found = summed_log_probabilities(features, SMALL, [np.array([0]), np.array([1, 2])])
    assert found[0] == pytest.approx([0, np.log(2) - 300], abs=1e-4)


@pytest.mark.parametrize(
    ("class_map", "message"),
    [
        ({"a": [0]}, "b: missing; every class of the data needs a set"),
        ({"a": [0], "b": [1], "bb": [2]}, "bb: no such class in the data; did you mean 'b'?"),
        ({"a": [0], "b": [5]}, "b: the backbone has no class 5; they are 0 to 4"),
        ({"a": [0], "b": [-1]}, "b: the backbone has no class -1"),
        (
            {"a": [0], "b": ["Egiptian cat"]},
            "b: the backbone has no class 'Egiptian cat'; did you mean 'egyptian cat'?",
        ),
        ({"a": [0], "b": ["crane"]}, "b: 'crane' stands for several of the backbone's classes: 1 n2 crane; 2 n3 crane"),
        ({"a": [0], "b": [""]}, "b: the backbone has no class ''"),
        ({"a": [0], "b": ["tench"]}, "b: 'tench' (0 n1 tench, Tinca tinca) is in the set of a already"),
        ({"a": "rest", "b": "rest"}, "a, b: only one class can be the rest"),
        ({"a": [0, 1, 2, 3, 4], "b": "rest"}, "b: every class of the backbone is in another set"),
    ],
)
def test_what_is_wrong_is_said(class_map: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        resolve_class_map(class_map, ["a", "b"], SMALL)
    assert str(caught.value).startswith("probe.class_map:\n")
    assert len(str(caught.value).splitlines()) == 2


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        resolve_class_map({"a": [7, "dog"], "c": [0]}, ["a", "b"], SMALL)
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()] == [
        "probe.class_map", "b", "c", "a", "a",
    ]  # fmt: skip


def test_without_names_there_are_indices() -> None:
    nameless = PretrainedHead(SMALL.weight, SMALL.bias, [], [])
    assert [members.tolist() for members in resolve_class_map({"a": [4], "b": [1, 0]}, ["a", "b"], nameless)] == [
        [4],
        [0, 1],
    ]
    with pytest.raises(UserError, match="names of this backbone's classes are unknown: give 'tench' by its index"):
        resolve_class_map({"a": ["tench"], "b": [1]}, ["a", "b"], nameless)


def test_imagenets_names_are_timms() -> None:
    model = create_backbone("test_resnet", pretrained=False, image_size=None, args={})
    own = pretrained_head(model)
    assert own is not None
    assert (own.names[0], own.descriptions[281]) == ("n01440764", "tabby, tabby cat")
    with pytest.raises(UserError, match="134 n02012849 crane; 517 n03126707 crane"):
        resolve_class_map({"a": ["crane"], "b": "rest"}, ["a", "b"], own)


@pytest.mark.parametrize("classes", [0, 7])
def test_a_backbone_without_a_classifier_or_with_a_new_one_has_none_of_its_own(classes: int) -> None:
    assert (
        pretrained_head(
            create_backbone("test_resnet", pretrained=False, image_size=None, args={"num_classes": classes})
        )
        is None
    )
