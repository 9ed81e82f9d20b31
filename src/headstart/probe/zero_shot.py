"""A zero-shot classifier: the probabilities of the backbone's pretraining classes, summed by a map of classes.

Each of a user's classes is a set of the classes that the backbone was pretrained on, and its probability the sum of
theirs, ``P(c) = Σ_{k in set(c)} p_k`` with p the softmax over all of the backbone's classes. The sums are divided by
their total, unless one class is ``rest``, the set of all classes in no other set: then they sum to 1 already.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from headstart.core.errors import UserError
from headstart.core.problems import list_problems, some
from headstart.core.text import normalize_label
from headstart.models.head import PretrainedHead, read_pretrained_head
from headstart.probe.outputs import Predict
from headstart.targets.target import Target

if TYPE_CHECKING:
    from torch import nn

REST = "rest"
IMAGES_AT_ONCE = 4096
"""Images whose logits of all the backbone's classes, up to 21,843, are in memory together."""

ClassMap = Mapping[str, Sequence[int | str] | Literal["rest"]]


def pretrained_head(model: "nn.Module") -> PretrainedHead | None:
    """Copy the classifier of a pretrained timm model; None unless it is one linear layer with a bias.

    None too where ``num_classes`` was changed, since those weights are random. The classes' names are the model's own,
    otherwise timm's names of the ImageNet subset with that number of classes.
    """
    # These import torch, which --help does not need.
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset  # noqa: PLC0415

    from headstart.models.backbone import get_head  # noqa: PLC0415

    config = model.pretrained_cfg
    assert isinstance(config, dict)
    try:
        head = get_head(model)
    except UserError:
        return None
    if head.out_features != config.get("num_classes"):
        return None
    names, described = config.get("label_names") or [], config.get("label_descriptions") or {}
    if len(names) != head.out_features:
        names, described = [], {}
        if subset := infer_imagenet_subset({"num_classes": head.out_features}):
            info = ImageNetInfo(subset)
            names = info.label_names()  # type: ignore[no-untyped-call]
            described = info.label_descriptions(as_dict=True)
    if not isinstance(described, Mapping):
        described = dict(zip(names, described, strict=True))
    descriptions = [described.get(name, "") for name in names] if described else []
    weight, bias = (
        tensor.detach().float().cpu().contiguous().numpy().copy() for tensor in (head.weight.flatten(1), head.bias)
    )
    return PretrainedHead(weight, bias, list(names), descriptions)


def zero_shot_classifier(class_map: ClassMap, target: Target) -> tuple[dict[str, Any], Predict]:
    """Return the classifier that a map of classes makes of the backbone's own, and the map with indices for names.

    Raises:
        UserError: the target has no classes, the backbone has no classifier of its own, or the map is wrong
            (``resolve_class_map``).
    """
    if target.link != "softmax":
        raise UserError(
            f"probe.class_map: it sums probabilities of classes, and prepare.target is {target.kind}: set it to null"
        )
    classes = target.names
    pretrained = read_pretrained_head()
    if pretrained is None:
        raise UserError(
            "probe.class_map: this backbone came without a linear classifier of its own (backbone.pretrained is false, "
            "or its weights have none, as most self-supervised ones): set it to null, or choose another backbone.name"
        )
    sets = resolve_class_map(class_map, classes, pretrained)
    indices = {name: members.tolist() for name, members in zip(classes, sets, strict=True)}
    by_index = {name: REST if class_map[name] == REST else each for name, each in indices.items()}
    return by_index, lambda features: summed_log_probabilities(features, pretrained, sets)


def resolve_class_map(
    class_map: ClassMap, classes: Sequence[str], pretrained: PretrainedHead
) -> list[NDArray[np.int64]]:
    """Return for each of the user's classes its set of the backbone's: int64, increasing.

    The map has, by the user's class, the backbone's classes, many to one: indices, or names (a class's name, its
    description or one of the synonyms that commas separate in it, in upper or lower case); or, once, ``rest``.

    Raises:
        UserError: a class is missing or not in the data; a name or an index is unknown, stands for several classes or
            is in two sets; there is a second ``rest``, or nothing is left for it. The message lists every problem.
    """
    class_map = {normalize_label(name): entries for name, entries in class_map.items()}
    problems = [(name, "missing; every class of the data needs a set") for name in classes if name not in class_map]
    unknown = [name for name in class_map if name not in classes]
    problems += [(name, f"no such class in the data{_suggestion(name, classes)}") for name in unknown]
    known, owners = _indices_by_name(pretrained), dict[int, str]()
    for name, entries in class_map.items():
        for entry in entries if entries != REST else ():
            index = _index_of(entry, pretrained, known)
            if isinstance(index, str):
                problems.append((name, index))
            elif owners.setdefault(index, name) != name:
                shown = _class_text(index, pretrained)
                problems.append((name, f"{entry!r} ({shown}) is in the set of {owners[index]} already"))
    rest = np.setdiff1d(np.arange(len(pretrained.bias)), list(owners))
    resting = [name for name, entries in class_map.items() if entries == REST]
    if len(resting) > 1:
        problems.append((some(resting), "only one class can be the rest"))
    if resting and not len(rest):
        problems.append((resting[0], "every class of the backbone is in another set: nothing is left for the rest"))
    if problems:
        raise UserError(list_problems("probe.class_map:", problems))
    return [
        rest if class_map[name] == REST else np.array(sorted(k for k, owner in owners.items() if owner == name))
        for name in classes
    ]


def summed_log_probabilities(
    features: NDArray[np.float32], pretrained: PretrainedHead, sets: Sequence[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Return the log-probabilities of the user's classes, float32 (n, classes), from features, float32 (n, width)."""
    outputs = np.empty((len(features), len(sets)), np.float32)
    for start in range(0, len(features), IMAGES_AT_ONCE):
        logits = features[start : start + IMAGES_AT_ONCE] @ pretrained.weight.T + pretrained.bias
        sums = np.column_stack([logsumexp(logits[:, members], axis=1) for members in sets])
        outputs[start : start + IMAGES_AT_ONCE] = log_softmax(sums, axis=1)
    return outputs


def _indices_by_name(pretrained: PretrainedHead) -> dict[str, set[int]]:
    """Return the classes that each name, in lower case, may stand for."""
    known = defaultdict(set)
    for texts in (pretrained.names, pretrained.descriptions):
        for i, text in enumerate(texts):
            for name in filter(None, (text, *map(str.strip, text.split(",")))):
                known[name.casefold()].add(i)
    return known


def _index_of(entry: int | str, pretrained: PretrainedHead, known: Mapping[str, set[int]]) -> int | str:
    """Return the index of the one class that an entry stands for, or a text that says what is wrong with the entry."""
    last = len(pretrained.bias) - 1
    if isinstance(entry, int):
        return entry if 0 <= entry <= last else f"the backbone has no class {entry}; they are 0 to {last}"
    if not known:
        return f"the names of this backbone's classes are unknown: give {entry!r} by its index, 0 to {last}"
    indices = sorted(known.get(entry.strip().casefold(), ()))
    if len(indices) > 1:
        options = "; ".join(_class_text(index, pretrained) for index in indices)
        return f"{entry!r} stands for several of the backbone's classes: {options}; choose by name or index"
    return indices[0] if indices else f"the backbone has no class {entry!r}{_suggestion(entry.casefold(), known)}"


def _class_text(index: int, pretrained: PretrainedHead) -> str:
    texts = [text[index] for text in (pretrained.names, pretrained.descriptions) if text]
    return " ".join([str(index), *texts])


def _suggestion(name: str, names: Sequence[str] | Mapping[str, set[int]]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
