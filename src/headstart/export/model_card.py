"""The model card of an exported model: its data, its figures, how to use it, its limits and its licences."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headstart.evaluation.leaderboard import LEADERBOARD_COLUMNS

UNKNOWN = "unknown"
MADE = {
    "finetune": "fine-tuned, backbone and head",
    "probe": "a linear head on the frozen backbone",
}
FILES = {
    "timm": "`model.safetensors`, `config.json`",
    "onnx": "`model.onnx`",
    "onnx_fp16": "`model.fp16.onnx`",
    "onnx_int8": "`model.int8.onnx`",
    "pt2": "`model.pt2`",
}


@dataclass(frozen=True)
class ModelCardInfo:
    """What a card says of a model beside its config.

    Attributes:
        model: ``finetune``, ``probe``, or the name of the checkpoint that it was made from.
        license: of the exported model, or ``unknown``.
        data_license: of the images, or ``unknown``.
        images: how many each split has.
        hashes: what the data, the splits and the weights are known by.
        formats: by name, the gate's figures.
        evaluation: the content of ``reports/evaluate.json``; None where the model was not evaluated.
        calibration: the model's own in ``reports/evaluate/trust.json``; None likewise.
    """

    model: str
    license: str
    data_license: str
    images: Mapping[str, int]
    hashes: Mapping[str, str]
    formats: Mapping[str, Mapping[str, float]]
    evaluation: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None


def model_card(config: Mapping[str, Any], told: ModelCardInfo) -> str:
    """Write the README.md of an exported model, with the front matter that the Hugging Face hub reads.

    Args:
        config: the content of the exported ``config.json``, as timm writes it.
        told: what else there is to say.
    """
    classes = config["label_names"]
    parts = [
        _front_matter(told),
        f"# {config['architecture']} for {len(classes)} classes",
        _made(told.model),
        "## Classes\n\n" + ", ".join(f"`{name}`" for name in classes),
        _intended(told.evaluation),
        _data(told),
        _figures(told.evaluation, told.model),
        _files(told.formats),
        _use(config["pretrained_cfg"]),
        _trust(told.calibration, told.evaluation),
        _licence(config, told),
    ]
    return "\n\n".join(parts) + "\n"


def licence_notes(config: Mapping[str, Any], told: ModelCardInfo) -> str:
    """Write the LICENSE of an exported model: whose terms apply to what."""
    backbone = config["pretrained_cfg"].get("license") or UNKNOWN
    return (
        f"This model: {told.license}\n"
        f"The pretrained weights of its backbone, {config['architecture']}: {backbone}\n"
        f"The images that it was trained on: {told.data_license}\n\n"
        "`unknown` means that nobody has said it: export.license and export.data_license in params.yaml say the first\n"
        "and the last. Check that all three allow your use.\n"
    )


def _made(model: str) -> str:
    timm = "[timm](https://github.com/huggingface/pytorch-image-models)"
    return f"A {timm} model made with headstart: {MADE.get(model, f'from the checkpoint {model}')}."


def _front_matter(told: ModelCardInfo) -> str:
    # A JSON string is a YAML string, whatever the user's licence is called.
    quoted = json.dumps(told.license, ensure_ascii=False)
    is_identifier = re.fullmatch(r"[a-z][a-z0-9.-]*", told.license)  # as the hub's are, such as apache-2.0
    license_lines = f"license: {quoted}" if is_identifier else f"license: other\nlicense_name: {quoted}"
    tags = "\n".join(f"- {tag}" for tag in ("timm", "onnx") if tag in told.formats)
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
{tags}
{license_lines}
---"""


def _intended(evaluation: Mapping[str, Any] | None) -> str:
    measured = "see the figures" if evaluation else "it was not evaluated; measure first"
    return f"""## Intended use and limits

To tell these classes apart in images like those that it was trained on. It always answers with one of them, also for
an image of something else (see below for a distance that tells some of these). How good it is holds for images like
those of the test split ({measured}), not for another camera, season or population, and it may be worse for some kinds
of images than on average. Do not use it alone where a mistake would harm somebody."""


def _data(told: ModelCardInfo) -> str:
    rows = "\n".join(f"| {split} | {count} |" for split, count in told.images.items())
    known = "\n".join(f"- {what}: `{value}`" for what, value in told.hashes.items())
    unknown = "The project's images; which of them the checkpoint was trained on is not known.\n\n"
    whose = "" if told.evaluation else unknown
    return f"""## Data

{whose}| split | images |
|---|---|
{rows}
| all | {sum(told.images.values())} |

{known}"""


def _figures(evaluation: Mapping[str, Any] | None, model: str) -> str:
    if evaluation is None:
        return "## Figures\n\nThis checkpoint was not evaluated."
    models = sorted(evaluation["models"].items(), key=lambda each: each[0] != model)
    rows = "\n".join(
        f"| {'**this model**' if name == model else name} | "
        + " | ".join(f"{figures[key]:.4f}" for key in LEADERBOARD_COLUMNS)
        + " | {:.3f} to {:.3f} |".format(*figures["intervals"]["accuracy"])
        for name, figures in models
    )
    return f"""## Figures

On the {evaluation["pictures"]} images of the test split, which nothing was trained on or chosen by. All but
`finetune` are classifiers on what the pretrained backbone gave before it was fine-tuned: the probe is a linear one.

| | {" | ".join(LEADERBOARD_COLUMNS.values())} | 95 % interval of the accuracy |
|---|{"---|" * (len(LEADERBOARD_COLUMNS) + 1)}
{rows}

NLL is the mean negative log-likelihood, ECE how far the probability of the chosen class is from how often it is
right."""


def _files(formats: Mapping[str, Mapping[str, float]]) -> str:
    rows = "\n".join(
        f"| {FILES[name]} | {each['max_difference']:.1e} | {each['top1_agreement']:.2%} |"
        for name, each in formats.items()
    )
    return f"""## Files

Every format was run on validation images and compared with the trained model before it was written:

| | largest difference of a logit | same top class |
|---|---|---|
{rows}

`manifest.json` has the size and sha256 of every file."""


def _use(config: Mapping[str, Any]) -> str:
    channels, height, width = config["input_size"]
    return f"""## Use

With headstart, `headstart predict export/ image.jpg`. In the folder that holds this one as `export/`, with timm:

```python
import timm, torch
from PIL import Image, ImageOps
model = timm.create_model("local-dir:export", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
pixels = transform(ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGB"))[None]
print(model.pretrained_cfg["label_names"][model(pixels).argmax().item()])
```

With onnxruntime, where `model.onnx` is among the files, `pixels` and the names of the classes as above, any number of
images at once:

```python
import onnxruntime
session = onnxruntime.InferenceSession("export/model.onnx")
logits, features = session.run(["logits", "features"], {{"pixels": pixels.numpy()}})
print(model.pretrained_cfg["label_names"][logits[0].argmax()])
```

Without timm: `pixels` is float32 (batch, {channels}, {height}, {width}), RGB in [0, 1] less the mean
{config["mean"]}, divided by the standard deviation {config["std"]}, after timm's resize
({config["interpolation"]}, `crop_pct` {config["crop_pct"]}) and crop (`crop_mode` {config["crop_mode"]}). The names of
the classes are `label_names` in `config.json`."""


def _trust(calibration: Mapping[str, Any] | None, evaluation: Mapping[str, Any] | None) -> str:
    if calibration is None or evaluation is None:
        return (
            "## How sure it is\n\nNothing was fitted for this checkpoint: its probabilities are as they were trained."
        )
    before, after = (f"{calibration[when]['ece']:.3f}" for when in ("before", "after"))
    return f"""## How sure it is

`headstart` in `config.json` has what validation taught, the logits themselves are as they were trained:

- `temperature`: softmax(logits / {calibration["temperature"]:g}) are calibrated probabilities. On the
  {evaluation["pictures"]} test images the ECE was {before} without and {after} with it.
- `conformal`: a threshold for each method and level. The classes whose score is no more than it are a set that holds
  the right one as often as the level says, for images that come as those of validation did. The score of a class is
  one less its probability (LAC), or the probability of all classes that are likelier (APS), of softmax(logits).
- `out_of_distribution`: an image whose distance to `reference.npy` is beyond the threshold is unlike 95 or 99 % of
  validation. The distance is one less the cosine of its features, what the classifier reads, to the `neighbour`-th
  nearest of those features."""


def _licence(config: Mapping[str, Any], told: ModelCardInfo) -> str:
    return "## Licences\n\n" + licence_notes(config, told).strip()
