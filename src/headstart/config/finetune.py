"""The section ``finetune`` of ``params.yaml``."""

import re
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from headstart.config.section import ConfigSection, Count, NonNegative, Positive, Probability


class GroupRule(ConfigSection):
    """Parameters whose whole name matches are ``name``'s; the first rule that matches wins."""

    name: Annotated[str, Field(pattern=r"^\w+$")]
    match: str
    biases_and_norms: Literal["in", "out"]

    @field_validator("match")
    @classmethod
    def _compiles(cls, match: str) -> str:
        try:
            re.compile(match)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return match


class L2Config(ConfigSection):
    """What keeps the weights small, and under each group's own name its λ."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NonNegative | None] = Field(init=False)

    kind: Literal["l2", "l2_sp", "decoupled", "none"]

    @property
    def by_group(self) -> dict[str, float]:
        """λ of each group that has one."""
        return {name: value for name, value in self.__pydantic_extra__.items() if value is not None}


class EarlyStoppingConfig(ConfigSection):
    """When to stop: no improvement of ``monitor`` by ``min_delta`` for ``patience`` epochs."""

    monitor: Literal["val_loss", "val_accuracy"]
    patience: Count
    min_delta: NonNegative


class AugmentConfig(ConfigSection):
    """What happens to the training images at random."""

    scale: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)]
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)]
    hflip: Annotated[float, Field(ge=0, le=1)]
    vflip: Annotated[float, Field(ge=0, le=1)]
    policy: Literal["none", "randaugment", "trivialaugment"]
    color_jitter: Annotated[list[NonNegative], Field(min_length=4, max_length=4)] | None
    erasing: Annotated[float, Field(ge=0, le=1)]
    mixup: NonNegative
    cutmix: NonNegative

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("scale", "ratio"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name} is [least, largest], and {least} is more than {largest}")
        if self.color_jitter is not None and self.color_jitter[3] > 0.5:
            raise ValueError(f"color_jitter: the hue goes round by at most 0.5, not {self.color_jitter[3]}")
        return self


class FinetuneConfig(ConfigSection):
    """The training of backbone and head together."""

    recipe: Literal["lp_ft", "full", "head_first", "gradual"]
    phase_epochs: Count
    epochs: Count
    batch_size: Count
    optimizer: Literal["sgd", "adam", "adamw"]
    momentum: Probability
    nesterov: bool
    groups: Annotated[list[GroupRule], Field(min_length=1)]
    lr: dict[str, NonNegative]
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None
    l2: L2Config
    decay: dict[str, NonNegative | None]
    warmup_epochs: NonNegative
    batch_norm: Literal["auto", "frozen", "train"]
    early_stopping: EarlyStoppingConfig
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
    compile: bool
    clip: Positive | None
    accumulate: Count
    label_smoothing: Probability
    class_weights: Literal["none", "balanced"]
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    augment: AugmentConfig
    seed: Annotated[int, Field(ge=0)]

    @property
    def decay_by_group(self) -> dict[str, float]:
        """The decoupled decay of each group that has one."""
        return {name: value for name, value in self.decay.items() if value is not None}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.recipe in {"head_first", "gradual"} and self.phase_epochs >= self.epochs:
            raise ValueError(f"phase_epochs ({self.phase_epochs}) must be less than epochs ({self.epochs})")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate ({self.accumulate}) must not exceed batch_size ({self.batch_size})")
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0: set nesterov: false")
        return self

    @model_validator(mode="after")
    def _each_group_has_its_numbers(self) -> Self:
        names = {rule.name for rule in self.groups}
        if reserved := [name for name in sorted(names) if name.endswith("_free")]:
            raise ValueError(f"groups: {reserved[0]}: _free ends the names of what is outside a group's penalty")
        if "kind" in names:
            raise ValueError("groups: kind is taken, since finetune.l2.kind says what the penalty is; choose another")
        _one_a_group("lr", self.lr, names)
        kind, penalised, decayed = self.l2.kind, self.l2.by_group, self.decay_by_group
        if kind == "decoupled":
            if self.optimizer == "adam":
                raise ValueError("l2.kind: Adam has no decoupled decay; use optimizer: adamw")
            if penalised:
                raise ValueError(
                    f"l2.{min(penalised)}: decoupled decay is no λ and has its own unit: give decay.{min(penalised)}, "
                    "and set this to null"
                )
            _one_a_group("decay", decayed, names)
        elif decayed:
            raise ValueError(
                f"decay.{min(decayed)}: only l2.kind: decoupled reads it, and that is {kind}: set it to null"
            )
        elif kind != "none":
            _one_a_group("l2", penalised, names)
        return self


def _one_a_group(key: str, values: Iterable[str], names: set[str]) -> None:
    """Raise unless each group has one number under ``key``, and nothing else has."""
    if missing := sorted(names - set(values)):
        raise ValueError(f"{key}.{missing[0]}: missing; each of the groups ({', '.join(sorted(names))}) needs one")
    if unknown := sorted(set(values) - names):
        raise ValueError(f"{key}.{unknown[0]}: no such group; finetune.groups names {', '.join(sorted(names))}")
