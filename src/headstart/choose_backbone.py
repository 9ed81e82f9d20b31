"""`headstart choose-backbone`: candidates ranked by their probes on a sample of one's own images, cost counted.

``prepare`` and ``features`` run on the sample in a temporary folder for each candidate, so images, splits and inputs
are those of `dvc repro`, and rows that it will need are in its cache already.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headstart.config.completion import complete_params
from headstart.config.loader import load_params
from headstart.config.schema import Params
from headstart.core.errors import UserError, first_line
from headstart.core.io import read_json
from headstart.core.paths import cache_folder, report_of
from headstart.core.text import text_table
from headstart.data.dataset import PreparedDataset, read_groups, read_values
from headstart.distributed.process_group import ProcessGroup, device_of
from headstart.evaluation.bootstrap import Groups
from headstart.evaluation.significance import nll_difference
from headstart.features.cache import read_features
from headstart.models.available import list_backbones
from headstart.models.backbone import LOCAL_DIR, backbone_for, channels_last
from headstart.models.head import Head
from headstart.probe.logistic import linear_path
from headstart.stages import features, prepare
from headstart.stages.program import keep_memory
from headstart.targets.target import Target, Values, mean_loss
from headstart.training.autotune import TooSlowError, affordable_size, seconds_a_step

IMAGES_A_STEP = 8
"""In the steps that are timed: few, since a candidate's batch need not fit into memory."""


class Candidate(NamedTuple):
    """A backbone's figures on the sample.

    Attributes:
        name: as in ``backbone.name``.
        side: of its input, in pixels.
        outputs: of its probe for the validation images, float32 (n, outputs).
        features_rate: images a second whose features were computed, None where all were in the cache.
        training_rate: images a second by which all of it is trained, forward and backward; 0 where two take seconds.
    """

    name: str
    side: int
    outputs: NDArray[np.float32]
    features_rate: float | None
    training_rate: float


def choose_backbone(file: Path, names: Sequence[str], sample: int, *, best: bool) -> Iterator[str]:
    """Rank candidates on about ``sample`` images, write one into a ``params.yaml``, and yield what to tell the user.

    It is the one that trains fastest among those whose probe is not clearly worse than the best one, by a paired
    bootstrap of the loss after temperature; with ``best``, the best one.

    Args:
        file: the ``params.yaml``.
        names: as in ``backbone.name``; none: those that are here.
        sample: how many images, those of a test split that is drawn among them, on which nothing is compared.
        best: whether to leave the cost out.

    Raises:
        UserError: the images are bad, or no candidate can be used.
    """
    keep_memory()
    params, found = _on_sample(load_params(file)), list[Candidate]()
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys(names or [each.name for each in list_backbones()]):
            args = params.backbone.args if name == params.backbone.name else {}
            anchored = LOCAL_DIR + str(Path(name.removeprefix(LOCAL_DIR)).absolute())
            update = {"name": anchored if name.startswith(LOCAL_DIR) else name, "args": args}
            candidate = params.model_copy(update={"backbone": params.backbone.model_copy(update=update)})
            try:
                with chdir(folder):
                    found.append(_measure(candidate, sample)._replace(name=name))
            except UserError as error:
                if not str(error).startswith(("backbone", "features")):  # it is about the images
                    raise
                yield f"{name}: left out: {first_line(error)}"
        if not found:
            raise UserError("choose-backbone: none of them can be used: `headstart backbones` lists what is here")
        with chdir(folder):
            values, groups, target = read_values("validation"), read_groups("validation"), PreparedDataset.open().target
        winner, table = rank(found, values, groups, target, best=best)
        yield table
        changes: dict[str, Any] = {"name": winner}
        if winner != params.backbone.name:  # args are of one backbone
            changes["args"] = {}
        yield from complete_params(file, {"backbone": changes}) or [f"{file}: backbone.name is {winner} already"]


def _on_sample(params: Params) -> Params:
    """Return params for the stages in another folder, in one process, with more validation images if they are drawn.

    They are taken from what would be training images. Which images are test's follows from their content, so they stay
    out, but for one of a class that has so few in the sample that the draw has to move it.
    """
    split = params.prepare.split
    validation = max(split.validation, (1 - split.test) / 3)
    drawn = split.model_copy(update={"validation": validation})
    update = {"path": str(Path(params.prepare.path).absolute()), "split": drawn}
    prepared = params.prepare.model_copy(update=update)
    run = params.run.model_copy(update={"devices": 1, "cache": str(cache_folder(params.run.cache).absolute())})
    return params.model_copy(update={"prepare": prepared, "run": run})


def _measure(params: Params, sample: int) -> Candidate:
    """Compute a candidate's features, fit its probe and time its training, in the working directory."""
    prepare.prepare_images(params, ProcessGroup(), sample)
    features.run(params)
    prepared, values = PreparedDataset.open(), read_values("validation")
    inputs, target = read_features(prepared.rows("validation")), prepared.target
    path = linear_path(read_features(prepared.rows("train")), read_values("train"), target, params.probe.l2)
    heads = (Head(weight.astype(np.float32), bias.astype(np.float32), l2).logits(inputs) for l2, weight, bias in path)
    outputs = min(heads, key=lambda each: mean_loss(target, each, values))

    model = channels_last(backbone_for(params.backbone, target.outputs, prepared.input["input_size"][0]))
    device = device_of(params.run)
    bf16 = (device.type == "cuda",)
    try:
        images = affordable_size(copy.deepcopy(model), prepared.input, device, IMAGES_A_STEP, bf16)
        (seconds,) = seconds_a_step(model, prepared.input, device, images, bf16)
    except TooSlowError:
        images, seconds = 0, 1.0
    rate = read_json(report_of("features"))["images_per_second"]
    return Candidate(params.backbone.name, prepared.input["input_size"][-1], outputs, rate, images / seconds)


def rank(
    found: list[Candidate], values: Values, groups: Groups | None, target: Target, *, best: bool
) -> tuple[str, str]:
    """Return the chosen one's name, and the table with a sentence on the choice."""
    losses = {
        each.name: float(target.refined_losses(each.outputs, values, target.fit(each.outputs, values)).mean())
        for each in found
    }
    found = sorted(found, key=lambda each: losses[each.name])
    leader, eligible = found[0], []
    (_, measure), loss = next(iter(target.measures.items())), target.words.short_loss
    table = [("name", "pixels", measure.title, loss, f"{loss} above the first's", "features/s", "trained/s")]
    for each in found:
        difference, (low, high) = nll_difference(leader.outputs, each.outputs, values, groups, target)
        if low <= 0:
            eligible.append(each)
        score = target.score(each.outputs, values)
        shown = f"{score:.1%}" if measure.as_percent else f"{score:.3g}"
        above = "" if each is leader else f"{difference:.3f} ({low:.3f} to {high:.3f})"
        rate = "cached" if each.features_rate is None else f"{each.features_rate:.0f}"
        trained = f"{each.training_rate:.1f}" if each.training_rate else "too slow"
        table.append((each.name, str(each.side), shown, f"{losses[each.name]:.3f}", above, rate, trained))
    chosen = leader if best else max(eligible, key=lambda each: each.training_rate)
    why = "the fastest to train whose probe is not clearly worse than the first's"
    if best or not chosen.training_rate:
        why = "the best probe"
    about = f"probes on {len(values)} validation images of a sample; {loss} after temperature, with 95 % intervals"
    return chosen.name, f"{text_table(table)}\n{about}\n{chosen.name}: {why}"
