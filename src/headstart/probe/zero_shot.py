"""The backbone's own classes, summed: a classifier of other classes that is fitted to nothing.

Each of a user's classes is a set of the classes that the backbone was pretrained on, and its probability the sum of
theirs, ``P(c) = Σ_{k in set(c)} p_k`` with p the softmax over all of the backbone's classes. Divided by the sum over
the mapped sets, unless one class is ``rest``, the set of all that the others left: then they sum to 1.
"""

import difflib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from headstart.core.errors import UserError
from headstart.models.head import PretrainedHead

if TYPE_CHECKING:
    from torch import nn

REST = "rest"
BATCH = 4096
"""Images whose logits of the backbone's classes, up to 21,843 of them, are in memory at once."""

ClassMap = Mapping[str, Sequence[int | str] | Literal["rest"]]


def pretrained_head(model: "nn.Module") -> PretrainedHead | None:
    """Copy the classifier of a pretrained timm model; None where it has none that is one linear layer with a bias.

    Nor is there one where ``num_classes`` was changed: those weights were drawn. The classes' names are those that the
    model brings, else timm's of the ImageNet subset with as many classes.
    """
    # They bring torch, which --help needs not.
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    head = model.get_classifier()  # type: ignore[operator]
    config = model.pretrained_cfg
    assert isinstance(config, dict)
    if not isinstance(head, nn.Linear) or head.bias is None or head.out_features != config.get("num_classes"):
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
    weight, bias = (tensor.detach().float().cpu().contiguous().numpy().copy() for tensor in (head.weight, head.bias))
    return PretrainedHead(weight, bias, list(names), descriptions)


def resolve(class_map: ClassMap, classes: Sequence[str], own: PretrainedHead) -> list[NDArray[np.int64]]:
    """Find the backbone's classes of each of the user's.

    Args:
        class_map: by the user's class, the backbone's classes, many to one: indices, or names (a class's name, its
            description or one of the synonyms that commas separate in it, in upper or lower case); or, once, ``rest``.
        classes: the user's.
        own: the backbone's.

    Returns:
        For each of ``classes``, its set: int64, increasing.

    Raises:
        UserError: a class that is missing or not in the data; a name or an index that is unknown, stands for several
            classes or is in two sets; a second ``rest`` or nothing left for it. All of them are listed.
    """
    problems = [f"{name}: missing; every class of the data needs a set" for name in classes if name not in class_map]
    problems += [
        f"{name}: no such class in the data{_nearest(name, classes)}" for name in class_map if name not in classes
    ]
    known, taken = _known_names(own), dict[int, str]()
    for name, entries in class_map.items():
        for entry in entries if entries != REST else ():
            found = _found(entry, own, known)
            if isinstance(found, str):
                problems.append(f"{name}: {found}")
            elif taken.setdefault(found, name) != name:
                problems.append(f"{name}: {entry!r} ({_shown(found, own)}) is in the set of {taken[found]} already")
    rest, resting = np.setdiff1d(np.arange(len(own.bias)), list(taken)), [k for k, v in class_map.items() if v == REST]
    if len(resting) > 1:
        problems.append(f"{', '.join(resting)}: only one class can be the rest")
    if resting and not len(rest):
        problems.append(f"{resting[0]}: every class of the backbone is in another set: nothing is left for the rest")
    if problems:
        raise UserError("\n  ".join(["probe.class_map:", *problems]))
    return [
        rest if class_map[name] == REST else np.array(sorted(k for k, owner in taken.items() if owner == name))
        for name in classes
    ]


def summed(
    features: NDArray[np.float32], own: PretrainedHead, sets: Sequence[NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Return the log-probabilities of the user's classes: features (n, width) to float32 (n, classes)."""
    outputs = np.empty((len(features), len(sets)), np.float32)
    for start in range(0, len(features), BATCH):
        logits = features[start : start + BATCH] @ own.weight.T + own.bias
        sums = np.column_stack([logsumexp(logits[:, members], axis=1) for members in sets])
        outputs[start : start + BATCH] = log_softmax(sums, axis=1)
    return outputs


def _known_names(own: PretrainedHead) -> dict[str, set[int]]:
    """Return the classes that each name may stand for, in lower case."""
    known = defaultdict(set)
    for texts in (own.names, own.descriptions):
        for i, text in enumerate(texts):
            for name in filter(None, (text, *map(str.strip, text.split(",")))):
                known[name.casefold()].add(i)
    return known


def _found(entry: int | str, own: PretrainedHead, known: Mapping[str, set[int]]) -> int | str:
    """Return the one class that an entry stands for, or what is wrong with it."""
    last = len(own.bias) - 1
    if isinstance(entry, int):
        return entry if 0 <= entry <= last else f"the backbone has no class {entry}; they are 0 to {last}"
    if not known:
        return f"the names of this backbone's classes are unknown: give {entry!r} by its index, 0 to {last}"
    places = sorted(known.get(entry.strip().casefold(), ()))
    if len(places) > 1:
        options = "; ".join(_shown(place, own) for place in places)
        return f"{entry!r} stands for several of the backbone's classes: {options}; choose by name or index"
    return places[0] if places else f"the backbone has no class {entry!r}{_nearest(entry.casefold(), known)}"


def _shown(place: int, own: PretrainedHead) -> str:
    texts = [text[place] for text in (own.names, own.descriptions) if text]
    return " ".join([str(place), *texts])


def _nearest(name: str, names: Sequence[str] | Mapping[str, set[int]]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
