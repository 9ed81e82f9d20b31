"""The typed schema of ``params.yaml``.

The file lists every key, so nothing here has a default: what is written there is what runs. ``params_file`` reads it.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, field_validator, model_validator

from headstart.config.finetune import FinetuneConfig
from headstart.config.section import ConfigSection, Count, Fraction, Positive, Probability


class SplitConfig(ConfigSection):
    """Shares of images drawn for splits that the source does not bring."""

    validation: Fraction
    test: Fraction

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must leave a share to train on")
        return self


class PrepareConfig(ConfigSection):
    """Where the images come from, and how they are stored."""

    source: Annotated[str, Field(pattern=r"^(digits|imagefolder|csv:.+|torchvision:\w+)$")]
    path: Annotated[str, Field(min_length=1)]
    on_bad_image: Literal["error", "skip"]
    split: SplitConfig
    train_scale: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None
    store: Literal["auto", "raw", "jpeg"]


class BackboneConfig(ConfigSection):
    """The timm model whose features are transferred."""

    name: Annotated[str, Field(min_length=1)]
    pretrained: bool
    image_size: Annotated[int, Field(ge=8)] | None
    drop_rate: Probability
    drop_path_rate: Probability
    args: dict[str, Any]
    seed: Annotated[int, Field(ge=0)]


class FeaturesConfig(ConfigSection):
    """How the frozen backbone's features are computed and kept."""

    batch_size: Count
    dtype: Literal["float32", "float16"]


class ProbeConfig(ConfigSection):
    """The linear head on the features, and what it is compared with."""

    l2: Annotated[list[Positive], Field(min_length=1)]
    heads: list[Literal["ridge", "knn", "tree", "forest", "boosting"]]
    class_map: dict[str, list[int | str] | Literal["rest"]] | None

    @field_validator("class_map", mode="before")
    @classmethod
    def _sets(cls, class_map: Any) -> Any:
        """Say what is wrong in fewer words than a union of types has."""
        for name, entries in class_map.items() if isinstance(class_map, dict) else ():
            if not isinstance(name, str):
                raise ValueError(f"write the class {name!r} in quotes")
            listed = isinstance(entries, list) and entries and {type(entry) for entry in entries} <= {int, str}
            if not listed and entries != "rest":
                raise ValueError(f"{name} needs a list of the backbone's classes, names or indices, or the word rest")
        return class_map


class EvaluateConfig(ConfigSection):
    """How the models are compared on the test split."""

    batch_size: Count
    top_k: Annotated[int, Field(ge=2)]


class RoundedConfig(ConfigSection):
    """How far the answers of a format that rounds the weights may be from the trained model's."""

    agreement: Annotated[float, Field(gt=0, le=1)]
    nll: Positive


class ExportConfig(ConfigSection):
    """The model as others load it."""

    from_: Annotated[Literal["finetune", "probe"], Field(alias="from")]
    formats: list[Literal["onnx", "onnx_fp16", "onnx_int8", "pt2"]]
    pictures: Count
    tolerance: Positive
    fp16: RoundedConfig
    int8: RoundedConfig
    license: str
    data_license: str

    @field_validator("formats")
    @classmethod
    def _rounded_from_whole(cls, formats: list[str]) -> list[str]:
        if {"onnx_fp16", "onnx_int8"} & set(formats) and "onnx" not in formats:
            raise ValueError("onnx_fp16 and onnx_int8 are made from onnx: name it too")
        if len(set(formats)) < len(formats):
            raise ValueError("name each format once")
        return formats


class RunConfig(ConfigSection):
    """Where and how fast: changes no result, so no DVC stage depends on it."""

    devices: Literal["auto"] | Count
    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    workers: Literal["auto"] | Annotated[int, Field(ge=0)]
    cache: str | None
    resume: bool
    save_minutes: Positive
    timeout_minutes: Annotated[float, Field(ge=0.5, allow_inf_nan=False)]
    tracking: Literal["offline", "online", "disabled"]


class Params(ConfigSection):
    """The whole of ``params.yaml``."""

    prepare: PrepareConfig
    backbone: BackboneConfig
    features: FeaturesConfig
    probe: ProbeConfig
    finetune: FinetuneConfig
    evaluate: EvaluateConfig
    export: ExportConfig
    run: RunConfig
    _record: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _there_are_weights_to_stay_near(self) -> Self:
        if self.finetune.l2.kind == "l2_sp" and not self.backbone.pretrained:
            raise ValueError("finetune.l2.kind: l2_sp stays near pretrained weights: set backbone.pretrained: true")
        return self

    def declared(self, keys: Iterable[str]) -> Self:
        """Keep the declared keys and ``run``; using any other raises an AttributeError that says so.

        Args:
            keys: dotted keys, a whole section (``"prepare"``) or one key of it (``"backbone.name"``), as a stage's
                ``params`` in ``dvc.yaml`` lists them.
        """
        sections: dict[str, Any] = {"run": self.run}
        partial: dict[str, dict[str, Any]] = {}
        for key in keys:
            section, _, name = key.partition(".")
            if name:
                partial.setdefault(section, {})[name] = getattr(getattr(self, section), name)
            else:
                sections[section] = getattr(self, section)
        for section, values in partial.items():
            sections[section] = type(getattr(self, section)).model_construct(**values)
        declared = self.model_construct(**sections)
        declared._record = self.record()  # noqa: SLF001  (its own class)
        return declared

    def record(self) -> dict[str, Any]:
        """Return all of ``params.yaml`` as plain values: to be written down, not to be used."""
        return self._record or self.model_dump()
