"""The model card of an exported model: its data, its figures, how to load it, its limits and its licence."""

import json
from collections.abc import Mapping
from typing import Any

from headstart.libraries.metrics import LEADERBOARD

UNKNOWN = "unknown"

_ABOUT = """A [timm](https://github.com/huggingface/pytorch-image-models) model, fine-tuned with headstart.
`model.safetensors` with `config.json` and `model.onnx` give the same logits."""


def model_card(
    *, config: Mapping[str, Any], license_name: str, pictures: Mapping[str, int], report: Mapping[str, Any]
) -> str:
    """Write the README.md of an exported model, with the front matter that the Hugging Face hub reads.

    Args:
        config: the content of the exported ``config.json``, as timm writes it.
        license_name: the licence of the exported model, or ``unknown``.
        pictures: how many pictures each split has.
        report: the content of ``reports/evaluate.json``.
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
        + " |"
        for name, figures in models
    )
    return f"""## Figures

On the {report["pictures"]} pictures of the test split, which nothing was trained on or chosen by. The probe is a linear
classifier on the same backbone before it was fine-tuned.

| | {" | ".join(LEADERBOARD.values())} |
|---|{"---|" * len(LEADERBOARD)}
{rows}"""


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


def _limits(classes: int) -> str:
    return f"""## Limits

- It always answers with one of its {classes} classes, also for a picture of something else.
- The figures hold for pictures like those of the test split; for others measure first.
- Its probabilities (the softmax of the logits) were not calibrated."""


def _licence(config: Mapping[str, Any], license_name: str) -> str:
    backbone = config["pretrained_cfg"].get("license", UNKNOWN)
    said = "not stated yet (`export.license`)" if license_name == UNKNOWN else license_name
    return f"""## Licence

This model: {said}. The pretrained weights of its backbone (`{config["architecture"]}`): {backbone}.
Check that the terms of the pictures and of the backbone allow your use."""
