"""The model card of an exported model: its data, its figures, how to load it, its limits and its licence."""

import json
from collections.abc import Mapping
from typing import Any

from headstart.libraries.metrics import LEADERBOARD

UNKNOWN = "unknown"

_ABOUT = """A [timm](https://github.com/huggingface/pytorch-image-models) model, fine-tuned with headstart.
`model.safetensors` with `config.json` and `model.onnx` give the same logits."""


def model_card(
    *,
    config: Mapping[str, Any],
    license_name: str,
    pictures: Mapping[str, int],
    report: Mapping[str, Any],
    calibration: Mapping[str, Any],
) -> str:
    """Write the README.md of an exported model, with the front matter that the Hugging Face hub reads.

    Args:
        config: the content of the exported ``config.json``, as timm writes it.
        license_name: the licence of the exported model, or ``unknown``.
        pictures: how many pictures each split has.
        report: the content of ``reports/evaluate.json``.
        calibration: the model's own in ``reports/evaluate/trust.json``.
    """
    classes = config["label_names"]
    parts = [
        _front_matter(license_name),
        f"# {config['architecture']}, fine-tuned for {len(classes)} classes",
        _ABOUT,
        "## Classes\n\n" + ", ".join(f"`{name}`" for name in classes),
        _data(pictures),
        _figures(report),
        _use(config["pretrained_cfg"]),
        _trust(calibration, report["pictures"]),
        _limits(len(classes)),
        _licence(config, license_name),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(license_name: str) -> str:
    # A JSON string is a YAML string, whatever the user's licence is called.
    return f"""---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
- onnx
license: {json.dumps(license_name, ensure_ascii=False)}
---"""


def _data(pictures: Mapping[str, int]) -> str:
    rows = "\n".join(f"| {split} | {count} |" for split, count in pictures.items())
    return f"""## Data

| split | pictures |
|---|---|
{rows}
| all | {sum(pictures.values())} |"""


def _figures(report: Mapping[str, Any]) -> str:
    models = sorted(report["models"].items(), key=lambda model: model[0] != "finetune")
    rows = "\n".join(
        f"| {'this model' if name == 'finetune' else name} | "
        + " | ".join(f"{figures[key]:.4f}" for key in LEADERBOARD)
        + " | {:.3f} to {:.3f} |".format(*figures["intervals"]["accuracy"])
        for name, figures in models
    )
    return f"""## Figures

On the {report["pictures"]} pictures of the test split, which nothing was trained on or chosen by. The other rows are
classifiers on what the same backbone gave before it was fine-tuned: the probe is a linear one.

| | {" | ".join(LEADERBOARD.values())} | 95 % interval of the accuracy |
|---|{"---|" * (len(LEADERBOARD) + 1)}
{rows}

NLL is the mean negative log-likelihood, ECE how far the probability of the chosen class is from how often it is
right."""


def _use(config: Mapping[str, Any]) -> str:
    channels, height, width = config["input_size"]
    return f"""## Use

In the folder that holds this one as `export/`:

```python
import timm, torch
from PIL import Image, ImageOps
model = timm.create_model("local-dir:export", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
pixels = transform(ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB"))[None]
print(model.pretrained_cfg["label_names"][model(pixels).argmax().item()])
```

With onnxruntime, `pixels` and the names of the classes as above, any number of pictures at once:

```python
import onnxruntime
session = onnxruntime.InferenceSession("export/model.onnx")
[logits] = session.run(["logits"], {{"pixels": pixels.numpy()}})
print(model.pretrained_cfg["label_names"][logits[0].argmax()])
```

Without timm: `pixels` is float32 (batch, {channels}, {height}, {width}), RGB in [0, 1] less the mean
{config["mean"]}, divided by the standard deviation {config["std"]}, after timm's resize
({config["interpolation"]}, `crop_pct` {config["crop_pct"]}) and crop (`crop_mode` {config["crop_mode"]}). The names of
the classes are `label_names` in `config.json`."""


def _trust(calibration: Mapping[str, Any], pictures: int) -> str:
    before, after = (f"{calibration[when]['ece']:.3f}" for when in ("before", "after"))
    return f"""## How sure it is

`headstart` in `config.json` has what validation taught, the logits themselves are as they were trained:

- `temperature`: softmax(logits / {calibration["temperature"]:g}) are calibrated probabilities. On the {pictures} test
  pictures the ECE was {before} without and {after} with it.
- `conformal`: a threshold for each method and level. The classes whose score is no more than it are a set that holds
  the right one as often as the level says, for pictures that come as those of validation did. The score of a class is
  one less its probability (LAC), or the probability of all classes that are likelier (APS), of softmax(logits).
- `out_of_distribution`: a picture whose distance to `reference.safetensors` is beyond the threshold is unlike 95 or
  99 % of validation. The distance is one less the cosine of its features, what the classifier reads, to the
  `neighbour`-th nearest of those features."""


def _limits(classes: int) -> str:
    return f"""## Limits

- It always answers with one of its {classes} classes, also for a picture of something else.
- The figures hold for pictures like those of the test split; for others measure first."""


def _licence(config: Mapping[str, Any], license_name: str) -> str:
    backbone = config["pretrained_cfg"].get("license", UNKNOWN)
    said = "not stated yet (`export.license`)" if license_name == UNKNOWN else license_name
    return f"""## Licence

This model: {said}. The pretrained weights of its backbone (`{config["architecture"]}`): {backbone}.
Check that the terms of the pictures and of the backbone allow your use."""
