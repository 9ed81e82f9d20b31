"""The model card of an exported model: its data, its figures, how to use it, its limits and its licences.

``templates/model_card.md.jinja`` has what is said of every model, ``templates/<kind>.md.jinja`` what is said of one
target's; without such a file the first stands alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from headstart.config.schema import ExportConfig
from headstart.images.bands import Bands
from headstart.targets.target import Target

PIPELINE = "image-classification"
"""The hub's only pipeline from an image to names or numbers."""
ORIGINS = {"finetune": "fine-tuned, backbone and head", "probe": "a linear head on the frozen backbone"}
FILES = {
    "timm": "`model.safetensors`, `config.json`",
    "onnx": "`model.onnx`",
    "onnx_fp16": "`model.fp16.onnx`",
    "onnx_int8": "`model.int8.onnx`",
    "pt2": "`model.pt2`",
}


@dataclass(frozen=True)
class ModelCardInfo:
    """What a model card says of where the model comes from and how good it is."""

    model: str  # ``finetune``, ``probe``, or the name of the checkpoint that the model was loaded from
    hashes: Mapping[str, str]  # sha256 of the data and of the weights
    evaluation: Mapping[str, Any] | None = None  # ``reports/evaluate.json``; None where the model was not evaluated
    calibration: Mapping[str, Any] | None = None  # the model's entry in ``reports/evaluate/trust.json``, if it has one


def model_card(
    config: Mapping[str, Any],
    target: Target,
    fitted: Mapping[str, Any],
    info: ModelCardInfo,
    export: ExportConfig,
    *,
    images: Mapping[str, int],
    formats: Mapping[str, Mapping[str, float]],
) -> str:
    """Return the README.md of an exported model, with the front matter that the Hugging Face hub reads.

    It states the exported ``config.json``, as timm writes it, what the ``target`` of its outputs means, with what was
    ``fitted`` for them as they are, the licences in ``export``, the number of ``images`` by split, and the parity
    check's figures by format.
    """
    is_identifier = re.fullmatch(r"[a-z][a-z0-9.-]*", export.license)  # as the hub's are, such as apache-2.0
    front_matter = ModelCardData(
        library_name="timm",
        pipeline_tag=PIPELINE if PIPELINE in target.hub_tags else None,
        tags=[*target.hub_tags, *(tag for tag in ("timm", "onnx") if tag in formats)],
        license=export.license if is_identifier else "other",
        license_name=None if is_identifier else export.license,
    )
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    about = config["headstart"]["input"].get("bands")
    bands = Bands.of(about) if about else None
    return environment.select_template([f"{target.kind}.md.jinja", "model_card.md.jinja"]).render(
        config=config,
        bands=bands,
        ranges=bands.ranges() if bands else None,
        target=target,
        fitted=fitted,
        names='model.pretrained_cfg["label_names"]',
        info=info,
        images=images,
        formats=formats,
        front_matter=front_matter.to_yaml(),
        origin=ORIGINS.get(info.model, f"from the checkpoint {info.model}"),
        evaluated=sorted(info.evaluation["models"], key=lambda name: name != info.model) if info.evaluation else [],
        measures=[*target.measures],
        titles=[measure.title for measure in target.measures.values()],
        files=FILES,
        licences=licence_notes(config, export).strip(),
    )


def licence_notes(config: Mapping[str, Any], export: ExportConfig) -> str:
    """Return the LICENSE of an exported model: the terms of the model, of its backbone's weights and of its images."""
    backbone = config["pretrained_cfg"].get("license") or "unknown"
    return (
        f"This model: {export.license}\n"
        f"The pretrained weights of its backbone, {config['architecture']}: {backbone}\n"
        f"The images that it was trained on: {export.data_license}\n\n"
        "`unknown` means that nobody has stated it: export.license and export.data_license in params.yaml set the\n"
        "first and the last. Check that all three allow your use.\n"
    )
