"""Makes ``docs/backbones.md``: which of timm's families this pipeline fine-tunes, and at which sizes.

usage: python docs/make_backbones.py

Of each family, the models of one module of timm, the one with the fewest parameters is tried, of those with pretrained
weights if there are any: by the check with which ``prepare`` begins, and, where that passes, by a step of training of 2
random images on the CPU. Takes half an hour.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import timm
import torch
from torch.nn.functional import cross_entropy

from headstart.config.schema import BackboneConfig
from headstart.core.errors import UserError
from headstart.core.io import atomic_write
from headstart.models.backbone import backbone_for, channels_last, features_of, get_head
from headstart.models.backbone_check import check_backbone, dry_run

COMMAND = "python docs/make_backbones.py"
SIZES = (64, 128, 160, 224, 256)
TOLERANCE = 1e-4
"""Largest difference between the model's logits and the classifier's of its features, of outputs of about 1."""
HEADER = ("family", "smallest model", "its own px", "with its weights", "with random weights", "verdict")


def smallest_models() -> Iterator[tuple[str, str]]:
    """Yield timm's families and the model of each that has the fewest parameters, with weights if any has."""
    for family in timm.list_modules():
        sizes = {}
        names = timm.list_models(module=family)
        for name in list(filter(timm.is_model_pretrained, names)) or names:
            with torch.device("meta"):
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
        if sizes:
            yield family, min(sizes, key=lambda name: sizes[name])


def row_of(family: str, name: str) -> list[str]:
    """Return a row of the table."""
    config = timm.get_pretrained_cfg(name)
    assert config is not None
    own, has_weights = config.input_size[-1], bool(config.has_weights)
    problem = problem_of(BackboneConfig(name=name, pretrained=has_weights))
    if problem is not None:
        return [family, f"`{name}`", str(own), "", "", f"**refused**: {problem}"]
    trained = sizes_of(name, SIZES, pretrained=True) if has_weights else []
    random = sorted({*trained, *sizes_of(name, [size for size in SIZES if size not in trained], pretrained=False)})
    with_weights = in_words(trained, own) if has_weights else "there are none"
    side = 128 if 128 in random else next(iter(random), None)
    verdict = problem_of_training(BackboneConfig(name=name, pretrained=False, image_size=side))
    if verdict is None:
        verdict = "works at its own size" if not set(trained if has_weights else random) - {own} else "works"
    return [family, f"`{name}`", str(own), with_weights, in_words(random, own), verdict]


def sizes_of(name: str, sizes: Iterable[int], *, pretrained: bool) -> list[int]:
    """Return those of some image sizes, in px, that a model reads."""
    works = []
    for size in sizes:
        with suppress(UserError):
            dry_run(BackboneConfig(name=name, pretrained=pretrained, image_size=size))
            works.append(size)
    return works


def in_words(sizes: list[int], own: int) -> str:
    """Return sizes as they stand in the table."""
    return ", ".join(map(str, sizes)) if set(sizes) - {own} else f"{own} only"


def problem_of(backbone: BackboneConfig) -> str | None:
    """Return why the check refuses a backbone, without what could be chosen instead; None where it does not."""
    try:
        check_backbone(backbone)
    except UserError as error:
        return str(error).partition("; choose")[0].removeprefix("backbone.name: ").removeprefix(f"{backbone.name}: ")
    return None


def problem_of_training(backbone: BackboneConfig) -> str | None:
    """Train a model of random weights for a step; return what is wrong, None if nothing is."""
    torch.manual_seed(0)
    model = channels_last(backbone_for(backbone, classes=2)).eval()
    head = get_head(model)
    torch.nn.init.normal_(head.weight, std=head.in_features**-0.5)
    config = timm.get_pretrained_cfg(backbone.name)
    assert config is not None
    side = backbone.fixed_size or config.input_size[-1]
    images = torch.rand(2, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        logits = model(images)
        difference = float((head(features_of(model, images)) - logits).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(logits.abs().max())):
        return f"**wrong**: logits and the classifier of the features differ by {difference:.1e}"
    cross_entropy(model.train()(images), torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    return f"works; {len(missing)} parameters have no gradient, such as {missing[0]}" if missing else None


def main() -> None:
    """Write the table into the project's folder, from which this is run."""
    rows, seconds = [], []
    for family, name in smallest_models():
        began = time.perf_counter()
        problem_of(BackboneConfig(name=name, pretrained=False))
        seconds.append(time.perf_counter() - began)
        rows.append(row_of(family, name))
        print(f"{seconds[-1]:.1f} s", *rows[-1], sep=" | ", file=sys.stderr, flush=True)
    text = (Path(__file__).parent / "backbones.md").read_text(encoding="utf-8")
    intro = text[: text.index("| family")]
    with atomic_write(Path("docs/backbones.md")) as partial:
        partial.write_text(intro + "\n".join(table(rows)) + "\n", encoding="utf-8")
    seconds.sort()
    print(f"check: median {seconds[len(seconds) // 2]:.1f} s, longest {seconds[-1]:.1f} s", file=sys.stderr)


def table(rows: list[list[str]]) -> list[str]:
    """Return the lines of the Markdown table."""
    return [f"| {' | '.join(row)} |" for row in (list(HEADER), ["---"] * len(HEADER), *rows)]


if __name__ == "__main__":
    main()
