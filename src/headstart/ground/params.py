"""The typed schema of ``params.yaml``.

The file lists every key, so nothing here has a default: what is written there is what runs. ``params_file`` reads it.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of ``params.yaml``: strict types, unknown keys refused, immutable."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Refuse a key that the stage did not declare: DVC would not know that the stage depends on it."""
            if name in type(self).model_fields:
                raise AttributeError(f"the stage uses {type(self).__name__.lower()}.{name} but does not declare it")
            return super().__getattr__(name)


class Split(Section):
    """Shares of pictures drawn for splits that the source does not bring."""

    validation: Share
    test: Share

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test must leave a share to train on")
        return self


class Prepare(Section):
    """Where the pictures come from."""

    source: Annotated[str, Field(pattern=r"^(digits|imagefolder|csv:.+|torchvision:\w+)$")]
    path: Annotated[str, Field(min_length=1)]
    on_bad_image: Literal["error", "skip"]
    split: Split


class Backbone(Section):
    """The timm model whose features are transferred."""

    name: Annotated[str, Field(min_length=1)]
    pretrained: bool
    image_size: Annotated[int, Field(ge=8)] | None
    drop_rate: Probability
    drop_path_rate: Probability
    args: dict[str, Any]
    seed: Annotated[int, Field(ge=0)]


class Features(Section):
    """How the frozen backbone's features are computed and kept."""

    batch_size: Count
    dtype: Literal["float32", "float16"]


class Probe(Section):
    """The linear head on the features."""

    l2: Annotated[list[Positive], Field(min_length=1)]


class Groups(Section):
    """One number for each parameter group."""

    backbone: NonNegative
    head: NonNegative


class EarlyStopping(Section):
    """When to stop: no improvement of ``monitor`` by ``min_delta`` for ``patience`` epochs."""

    monitor: Literal["val_loss", "val_accuracy"]
    patience: Count
    min_delta: NonNegative


class Augment(Section):
    """Random crops and flips of the training pictures."""

    scale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    hflip: Annotated[float, Field(ge=0, le=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("scale", "ratio"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name} is [least, largest], and {least} is more than {largest}")
        return self


class Finetune(Section):
    """The training of backbone and head together."""

    epochs: Count
    batch_size: Count
    optimizer: Literal["sgd", "adamw"]
    lr: Groups
    momentum: Probability
    l2: Groups
    l2_on_biases_and_norms: bool
    warmup_epochs: NonNegative
    frozen_epochs: Annotated[int, Field(ge=0)]
    head_start: Literal["probe", "zero"]
    batch_norm: Literal["auto", "frozen", "train"]
    early_stopping: EarlyStopping
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    clip: Positive | None
    accumulate: Count
    label_smoothing: Probability
    class_weights: Literal["none", "balanced"]
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    augment: Augment
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.frozen_epochs >= self.epochs:
            raise ValueError(f"frozen_epochs ({self.frozen_epochs}) must be less than epochs ({self.epochs})")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate ({self.accumulate}) must not exceed batch_size ({self.batch_size})")
        return self


class Evaluate(Section):
    """How the models are compared on the test split."""

    batch_size: Count
    top_k: Annotated[int, Field(ge=2)]


class Export(Section):
    """The model as others load it."""

    pictures: Count
    tolerance: Positive
    license: str


class Run(Section):
    """Where and how fast: changes no result, so no DVC stage depends on it."""

    devices: Literal["auto"] | Count
    nodes: Count
    accelerator: Literal["auto", "cpu", "gpu", "mps"]
    workers: Literal["auto"] | Annotated[int, Field(ge=0)]
    cache: str | None
    resume: bool
    tracking: Literal["offline", "online", "disabled"]


class Params(Section):
    """The whole of ``params.yaml``."""

    prepare: Prepare
    backbone: Backbone
    features: Features
    probe: Probe
    finetune: Finetune
    evaluate: Evaluate
    export: Export
    run: Run

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
        return self.model_construct(**sections)
