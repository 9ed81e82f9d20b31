"""The section ``finetune`` of ``params.yaml``."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from headstart.config.section import (
    Auto,
    BelowOne,
    ConfigSection,
    Count,
    NonNegative,
    Positive,
    Probability,
    Seed,
    UpToOne,
)


class GroupRule(ConfigSection):
    """A parameter group: the parameters whose whole name matches and that no earlier rule took."""

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
    """What keeps the weights small: the kind of regulariser, and the λ of each group under the group's own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NonNegative | None] = Field(init=False)

    kind: Literal["l2", "l2_sp", "decoupled", "none"] = "l2"
    """The regulariser:
    - `l2`: loss + Σ λ ‖W‖², gradient 2λW: in the optimiser where that is exactly the same, otherwise in the loss
    - `l2_sp`: loss + Σ λ ‖W − W₀‖² with the pretrained weights W₀; `l2` for the head, which is new. A λ below the
      ledger's equivalent_l2 does little
    - `decoupled`: W ← (1 − lr · decay) W at each step, as in AdamW and SGDW; needs `finetune.decay`, every λ null
    - `none`: no regulariser; the λ are not read
    """

    @property
    def by_group(self) -> dict[str, float]:
        """λ of each group that has one."""
        return {name: value for name, value in self.__pydantic_extra__.items() if value is not None}


class EarlyStoppingConfig(ConfigSection):
    """Stop when `monitor` has not improved by `min_delta` for `patience` epochs; the best epoch is kept."""

    monitor: str = "auto"
    """What validation must improve:
    - `auto`: how well images are told apart, however sure the model is, which evaluate and export put right later
      (Berta et al. 2025): `val_refined_loss` of classes, `val_log_loss` of labels and grades, `val_loss` of numbers
    - `val_refined_loss`: of classes, the loss after the temperature that makes it lowest
    - `val_loss`: the loss as it is, without the penalty
    - `val_` and a measure: of classes accuracy, balanced_accuracy, macro_f1, nll, ece; of labels mean_ap, macro_f1,
      micro_f1, auroc, subset_accuracy, log_loss; of numbers mae, rmse, r2, spearman; of grades kappa, mae, accuracy,
      within_one, macro_f1, log_loss
    """
    patience: Auto | Count = "auto"
    """Epochs without an improvement after which training stops. auto: half of `epochs`, and at least 5."""
    min_delta: NonNegative = 0.0
    """Smallest change that counts as an improvement."""

    @field_validator("monitor")
    @classmethod
    def _is_a_figure(cls, monitor: str) -> str:
        if not re.fullmatch(r"auto|val_\w+", monitor):
            raise ValueError("must be 'auto', 'val_loss' or 'val_accuracy', or val_ and another measure of the target")
        return monitor


class AugmentConfig(ConfigSection):
    """Random changes of the training images, each drawn from (seed, epoch, image, its repeat in the epoch)."""

    scale: Annotated[list[UpToOne], Field(min_length=2, max_length=2)] = Field(default=[0.6, 1.0])
    """RandomResizedCrop: least and largest fraction of the image's area."""
    ratio: Annotated[list[Positive], Field(min_length=2, max_length=2)] = Field(default=[0.75, 1.3333])
    """RandomResizedCrop: least and largest ratio of width to height."""
    hflip: Auto | Probability = "auto"
    """Probability of a flip from left to right. auto: 0.5 where the probe finds on validation images that this keeps
    the label (`reports/probe.json` has the evidence), else 0."""
    vflip: Auto | Probability = "auto"
    """Probability of a flip from top to bottom. auto: likewise."""
    quarter_turn: Auto | Probability = "auto"
    """Probability of a turn by 90 degrees, to the left or to the right; only for square inputs. auto: likewise."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """none, randaugment or trivialaugment, with torchvision's settings; of 8-bit RGB, as is `color_jitter`."""
    color_jitter: Annotated[list[NonNegative], Field(min_length=4, max_length=4)] | None = None
    """ColorJitter: range of brightness, contrast, saturation and hue, such as [0.4, 0.4, 0.4, 0.0]. null: none."""
    erasing: Probability = 0.0
    """Probability that a rectangle is erased."""
    gain: BelowOne = 0.0
    """Of images kept at their own depth (`prepare.channels`): largest relative change of a band's values, counted from
    the low end of its `prepare.range`, drawn for each band, such as 0.1; 0: none."""
    offset: NonNegative = 0.0
    """Likewise: largest shift of a band's values either way, as a fraction of its range, such as 0.05; 0: none."""
    noise: NonNegative = 0.0
    """Likewise: standard deviation of Gaussian noise, as a fraction of the band's range, such as 0.01; 0: none."""
    mixup: NonNegative = 0.0
    """Mixup's α of the Beta distribution, such as 0.2; 0: none. With cutmix too, each mixes half of the images."""
    cutmix: NonNegative = 0.0
    """CutMix's α of the Beta distribution, such as 1.0; 0: none."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("scale", "ratio"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(f"{name} is [least, largest], and {least} is more than {largest}")
        if self.color_jitter is not None and self.color_jitter[3] > 0.5:
            raise ValueError(f"color_jitter: the hue goes round by at most 0.5, not {self.color_jitter[3]}")
        return self

    def refusal(self, *, banded: bool) -> str | None:
        """Return the line that refuses a change which images with bands, or 8-bit RGB, can't have; None: there is none.

        torchvision's policies and colour jitter are of 8-bit RGB; gain, offset and noise need a band's range.
        """
        off = {"policy": "none", "color_jitter": "null"} if banded else {"gain": "0", "offset": "0", "noise": "0"}
        asked = next((name for name in off if getattr(self, name) not in ("none", None, 0)), None)
        if asked is None:
            return None
        key = f"finetune.augment.{asked}"
        if banded:
            instead = "use gain, offset and noise, or prepare.channels: rgb"
            return f"{key} is of 8-bit RGB, and these images keep their own depth: set it to {off[asked]}, or {instead}"
        what = "is of images that keep their own depth (prepare.channels)"
        return f"{key} {what}, and these are 8-bit RGB: set it to 0; color_jitter changes those"


class ResolvedAugmentConfig(AugmentConfig):
    """The section with a value for every `auto`."""

    hflip: Probability
    vflip: Probability
    quarter_turn: Probability


class FinetuneConfig(ConfigSection):
    """The training of backbone and head together."""

    recipe: Literal["lp_ft", "full", "head_first", "gradual"] = "lp_ft"
    """Where the head starts and what trains when; early stopping applies to the last phase only.
    - `lp_ft`: the head starts from the probe's (if that has a smaller λ than `l2.head`, from the head on the probe's
      path with the λ nearest to `l2.head`), everything trains from the first step (Kumar et al. 2022)
    - `full`: the head starts from zero, everything trains
    - `head_first`: the head starts from zero and trains alone for `phase_epochs`, on a frozen backbone
    - `gradual`: the head starts from the probe's and trains alone; after every `phase_epochs` one more stage of the
      backbone joins it, from the top down. `epochs` must be more than these phases take
    """
    phase_epochs: Count = 1
    """Epochs of each phase but the last, for `head_first` and `gradual`."""
    epochs: Auto | Count = "auto"
    """Most passes over the training images, all phases together. A pass leaves out images that fill no whole batch.
    auto: as many as make 300 optimiser steps, but at least 5 and at most 20."""
    batch_size: Count = 64
    """Images in an optimiser step, over all devices and accumulation steps."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """sgd, adam, or adamw, which is the same as adam unless `l2.kind` is decoupled."""
    momentum: BelowOne = 0.9
    """Momentum of sgd."""
    nesterov: bool = True
    """Nesterov's momentum, for sgd."""
    groups: Annotated[list[GroupRule], Field(min_length=1)] = Field(
        default=[
            GroupRule(name="head", match=r"head\..*", biases_and_norms="out"),
            GroupRule(name="backbone", match=".*", biases_and_norms="out"),
        ]
    )
    r"""Parameter groups. A parameter belongs to the first whose `match`, a regular expression, matches its whole name:
    head.weight and head.bias, or backbone. and timm's name. `biases_and_norms`: whether biases, normalisation weights
    and what timm leaves undecayed are in the group's penalty or out of it. A group of your own goes before '.*' and
    needs its own `lr` and `l2`: {name: top, match: 'backbone\.layer4\..*', biases_and_norms: out}. `match: stem` is the
    layer that reads the image, in any backbone"""
    lr: Mapping[str, Auto | NonNegative] = Field(default={"backbone": "auto", "head": "auto"})
    """Peak learning rate of each group: linear warm-up, then a cosine to zero. auto: for adam and adamw, whose steps
    are about as long as the rate, 0.3 % of the size of the backbone's weights (their root mean square, the median of
    its tensors); for sgd 0.003; ten times that for a head that starts from zero and for random weights."""
    layer_decay: UpToOne | None = None
    """Factor on the learning rate from each layer to the one below it, such as 0.75. null: none."""
    l2: L2Config = L2Config.model_validate({"kind": "l2", "backbone": 1e-4, "head": 1e-3})
    decay: dict[str, NonNegative | None] = Field(default={"backbone": None, "head": None})
    """Decay of each group for `l2.kind: decoupled`; null for the other kinds."""
    warmup_epochs: Auto | NonNegative = "auto"
    """Epochs in which the learning rate rises linearly to its peak. auto: the smaller of 2 and 0.3 ·
    `epochs`. Adam learns the gradients' size in its first steps: full ones would undo the start."""
    batch_norm: Literal["auto", "frozen", "train"] = "auto"
    """BatchNorm's running statistics. frozen keeps the features that the head was fitted to, gives the same weights on
    any number of processes, and suits small batches. train fits them to each batch: what evaluation uses lags behind,
    and the first epochs undo the start. auto: frozen for pretrained weights, train for random ones."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed"] = "auto"
    """auto: 32-true or bf16-mixed, whichever is faster with this backbone on this machine, measured once, remembered in
    `run.cache` and named in the report; a resumed run keeps it. 16-mixed needs a GPU."""
    compile: bool = False
    """Whether to use torch.compile; refused where it would cost more time than it saves."""
    clip: Positive | None = None
    """Largest norm of the gradient, with a penalty in the loss but without a decoupled decay; null: no clipping."""
    accumulate: Count = 1
    """Gradient accumulation steps per batch, to save memory. Where there is too little, more are taken by themselves
    (on a CPU not with training BatchNorm: there too large a batch is refused). The result is the same except with
    training BatchNorm (each step has its own statistics) and dropout."""
    loss: Literal["auto", "focal", "asymmetric", "huber", "quantile"] = "auto"
    """What is minimised, beside the penalty:
    - `auto`: the target's: the cross-entropy of classes, the sum of the binary ones of labels and of grades, the
      squared error of numbers in standard deviations
    - `focal`: of classes and labels: hard images weigh more (Lin et al. 2017, γ = 2)
    - `asymmetric`: of labels: absent ones weigh less the easier they are (Ridnik et al. 2021)
    - `huber`: of numbers: beyond one standard deviation an error counts linearly, so that outliers weigh less
    - `quantile`: of numbers: the 5 %, 50 % and 95 % quantiles: the middle one is the answer, the outer ones its
      interval, which is wide where the model is unsure (Koenker and Bassett 1978)
    """
    label_smoothing: BelowOne = 0.0
    """Label smoothing of the cross-entropy, such as 0.1; 0: none. Not for numbers."""
    class_weights: Literal["none", "balanced"] = "none"
    """none, or balanced: images of rare classes or grades weigh more in the loss (n / (classes · n_class),
    scikit-learn's), and labels where they are there, by how many times as many images are without them. Not for
    numbers."""
    logit_adjustment: NonNegative = 0.0
    """Factor τ on the logarithm of how common each class is, which is added to the outputs in training alone, so that
    rare ones are not given up for common ones (Menon et al. 2021); 1 aims at the balanced accuracy. 0: none. Not for
    numbers."""
    sampling: Literal["none", "balanced", "sqrt"] = "none"
    """How often an image occurs in an epoch, whose length stays:
    - `none`: once
    - `balanced`: in proportion to how rare its class or grade, its rarest label or its tenth of the first number's
      range is: all are equally frequent
    - `sqrt`: by the square root of that: between both
    """
    ema: Auto | Annotated[float, Field(gt=0, lt=1)] | None = "auto"
    """Decay of a moving average of the weights, such as 0.999, that is validated and kept beside them; null: none.
    auto: 1 − 1/n, an average over about n steps: those of an epoch, but at least 10."""
    augment: AugmentConfig = AugmentConfig()
    shuffle_windows: Auto | Count = "auto"
    """In how many windows an epoch's images are shuffled. 1: all with all. More: each window has short runs of images
    from everywhere in the store and is shuffled by itself, so that they are read from the disk in long runs and two
    windows fit into memory. auto: 1 where the training images take up to 16 GiB, else as many as are 2 GiB each."""
    seed: Seed = 0
    """Seed of the order of the images, their augmentation and dropout."""

    @property
    def copies_of_weights(self) -> int:
        """Tensors as large as the weights that a training keeps beside them: gradients, moments, ledger, average."""
        moments = int(self.momentum > 0) if self.optimizer == "sgd" else 2
        # The ledger's, within an epoch: the weights at its start, and the penalty's pull where Adam rescales it.
        ledger = 1 + (self.optimizer != "sgd" and self.l2.kind != "decoupled")
        return 1 + moments + ledger + (self.ema is not None)

    @property
    def decay_by_group(self) -> dict[str, float]:
        """The decoupled decay of each group that has one."""
        return {name: value for name, value in self.decay.items() if value is not None}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        epochs = math.inf if self.epochs == "auto" else self.epochs
        if self.recipe in {"head_first", "gradual"} and self.phase_epochs >= epochs:
            raise ValueError(f"phase_epochs ({self.phase_epochs}) must be less than epochs ({self.epochs})")
        if self.warmup_epochs != "auto" and self.warmup_epochs > epochs:
            raise ValueError(f"warmup_epochs ({self.warmup_epochs}) must not exceed epochs ({self.epochs})")
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate ({self.accumulate}) must not exceed batch_size ({self.batch_size})")
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, which is 0: set nesterov: false")
        return self

    @model_validator(mode="after")
    def _check_numbers_of_groups(self) -> Self:
        names = {rule.name for rule in self.groups}
        if reserved := [name for name in names if name.endswith("_free")]:
            raise ValueError(f"groups: {min(reserved)}: _free ends the names of parameters outside a group's penalty")
        if "kind" in names:
            raise ValueError("groups: kind is taken, since finetune.l2.kind says what the penalty is; choose another")
        _check_one_per_group("lr", self.lr, names)
        kind, l2, decay = self.l2.kind, self.l2.by_group, self.decay_by_group
        if kind == "decoupled":
            if self.optimizer == "adam":
                raise ValueError("l2.kind: Adam has no decoupled decay; use optimizer: adamw")
            if l2:
                unit = "decoupled decay is no λ and has its own unit"
                raise ValueError(f"l2.{min(l2)}: {unit}: give decay.{min(l2)}, and set this to null")
            _check_one_per_group("decay", decay, names)
        elif decay:
            only = f"only l2.kind: decoupled reads it, and that is {kind}"
            raise ValueError(f"decay.{min(decay)}: {only}: set it to null")
        elif kind != "none":
            _check_one_per_group("l2", l2, names)
        return self


class ResolvedEarlyStoppingConfig(EarlyStoppingConfig):
    """Early stopping with its patience."""

    patience: Count


class ResolvedFinetuneConfig(FinetuneConfig):
    """The section with a value for every `auto` but the precision's, which depends on the machine."""

    epochs: Count
    lr: Mapping[str, NonNegative]
    warmup_epochs: NonNegative
    batch_norm: Literal["frozen", "train"]
    early_stopping: ResolvedEarlyStoppingConfig
    augment: ResolvedAugmentConfig
    shuffle_windows: Count
    ema: Annotated[float, Field(gt=0, lt=1)] | None


def _check_one_per_group(key: str, values: Iterable[str], names: set[str]) -> None:
    """Raise unless each group has one number under ``key``, and nothing else has."""
    listed = ", ".join(sorted(names))
    if missing := names.difference(values):
        raise ValueError(f"{key}.{min(missing)}: missing; each of the groups ({listed}) needs one")
    if unknown := set(values) - names:
        raise ValueError(f"{key}.{min(unknown)}: no such group; finetune.groups names {listed}")
