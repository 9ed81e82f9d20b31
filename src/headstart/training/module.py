"""What an epoch of training has counted so far, kept in a state so that an epoch can be gone on with."""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import LightningModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from headstart.config.finetune import FinetuneConfig
from headstart.data.loader import Normalize
from headstart.models.backbone import freeze_, get_head
from headstart.training.datamodule import Batch
from headstart.training.losses import cross_entropies, warmup_cosine
from headstart.training.regularization.ledger import LedgerRow, RegularizationLedger
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import make_optimizer, penalty, penalty_location

POINTS = 100
"""Rows of an epoch's curve, at most: a row is the mean over as few steps as that takes."""
ADAM_BETA_1 = 0.9  # torch's own


class EpochStatistics(nn.Module):
    """Its training loss, the losses and gradients' norms of its steps, and its clock.

    Attributes:
        loss: the mean over the images of all ranks.
        losses: of each optimiser step, on the device: the sum over this rank's images.
        norms: of each optimiser step's gradient, on the device until the epoch's end: to ask for a number is to wait
            for it; 0 where nothing is clipped.
    """

    def __init__(self) -> None:
        """Begin without steps."""
        super().__init__()
        # Without its check, which would wait for the device.
        self.loss = MeanMetric(nan_strategy="disable")
        self.norms: list[Tensor] = []
        self.losses: list[Tensor] = []
        self._began = self._trained = time.perf_counter()

    def begin(self) -> None:
        """Start the clock."""
        self.norms, self.losses = [], []
        self._began = time.perf_counter()

    def add(self, losses: Tensor, *, part: int) -> None:
        """Count a part of a step's batch: its images' losses."""
        self.loss.update(losses)
        if part:
            self.losses[-1] = self.losses[-1] + losses.sum()
        else:
            self.losses.append(losses.sum())

    def trained(self) -> None:
        """Stop the clock of the training alone, before a validation."""
        self._trained = time.perf_counter()

    def clipped(self, bound: float | None) -> list[float]:
        """Return what clipping has multiplied each step's gradient by, 1 where it did nothing."""
        return [min(1.0, (bound or math.inf) / max(norm, 1e-12)) for norm in torch.stack(self.norms).tolist()]

    def close(self) -> dict[str, float]:
        """Return the epoch's loss and times, over all ranks, and begin another."""
        now = time.perf_counter()
        figures = {
            "train_loss": float(self.loss.compute()),
            "train_seconds": round(self._trained - self._began, 3),
            "seconds": round(now - self._began, 3),
        }
        self.loss.reset()
        self.norms, self.losses = [], []
        return figures

    def sums(self) -> Tensor:
        """Return this rank's part of the losses, float32 (2 + steps,): the epoch's sum and weight, each step's sum."""
        return torch.stack([torch.as_tensor(each) for each in (self.loss.mean_value, self.loss.weight, *self.losses)])

    def state(self, sums: Tensor) -> dict[str, Any]:
        """Return what a state keeps, with the ranks' ``sums`` (ranks, 2 + steps)."""
        norms = torch.stack(self.norms) if self.norms else torch.zeros(0)
        elapsed = time.perf_counter() - self._began
        return {"sums": sums[:, :2], "losses": sums[:, 2:].sum(0), "norms": norms, "elapsed": elapsed}

    def load(self, state: dict[str, Any], rank: int, world: int, device: torch.device) -> None:
        """Take up a state; where there were other ranks, all that they had summed is rank 0's."""
        sums = state["sums"]
        if len(sums) != world:
            sums = torch.cat([sums.sum(0, keepdim=True), sums.new_zeros(world - 1, 2)])
        self.norms = list(state["norms"].to(device).unbind())
        self.losses = list((state["losses"] if rank == 0 else torch.zeros_like(state["losses"])).to(device).unbind())
        if self.norms:
            self.loss.update(torch.zeros(1, device=device), 0)  # the metric has been updated, in an earlier process
        self.loss.mean_value, self.loss.weight = sums[rank].to(device).unbind()
        self._began = time.perf_counter() - state["elapsed"]


def curve(
    epoch: int,
    first: int,
    losses: Sequence[float],
    norms: Sequence[float] | None,
    *,
    groups: Sequence[Group],
    factors: Sequence[float],
) -> list[dict[str, int | float]]:
    """Return rows that show how an epoch's steps went, each the mean over some steps, at most ``POINTS`` of them.

    Args:
        epoch: from 1.
        first: optimiser steps before it.
        losses: of each step, the mean over its images.
        norms: of each step's gradient, None where none is clipped.
        groups: of the optimiser; of several with one name the highest learning rate is shown.
        factors: on each group's learning rate, of each step.

    Returns:
        ``epoch``, ``step`` (optimiser steps taken), ``step/loss``, ``step/lr/<group>`` and ``step/gradient_norm``.
    """
    rates = {group.name: group.lr for group in sorted(groups, key=lambda group: group.lr)}
    columns = {"step/loss": losses}
    columns |= {f"step/lr/{name}": [rate * factor for factor in factors] for name, rate in rates.items()}
    if norms is not None:
        columns["step/gradient_norm"] = norms
    some = math.ceil(len(losses) / POINTS)
    return [
        {"epoch": epoch, "step": first + min(start + some, len(losses))}
        | {name: math.fsum(part := values[start : start + some]) / len(part) for name, values in columns.items()}
        for start in range(0, len(losses), some)
    ]


def make_ledger(
    groups: Sequence[Group],
    finetune: FinetuneConfig,
    phases: Sequence[set[str]],
    *,
    start: dict[str, Tensor],
    anchors: dict[str, Tensor],
) -> RegularizationLedger:
    """Open the ledger of a training, with the weights that it starts from and those that ``l2_sp`` stays near."""
    return RegularizationLedger(
        groups,
        finetune.l2.kind,
        start=start,
        anchors=anchors,
        first_phase={name: i for i, names in reversed(list(enumerate(phases))) for name in names},
        momentum=finetune.momentum if finetune.optimizer == "sgd" else ADAM_BETA_1,
        nesterov=finetune.nesterov,
    )


HistoryRow = dict[str, int | float]


class FineTuner(LightningModule):
    """Trains all of a model, or some of its parameters while the rest is frozen in every respect.

    Attributes:
        model: timm's.
        phases: names of the parameters that train in each phase; the last one has all.
        history: one row an epoch, kept with the state: epoch (from 1; 0 is before training), lr of the first group,
            train_loss (without the penalty), penalty, val_loss, val_accuracy, train_seconds, seconds (with validation).
        ledger: one row an epoch and group, kept with the state (``libraries/ledger.py``).
        curve: rows of steps, kept with the state (``epoch.curve``).
        saved_epochs: whole epochs that a saved state contains.
        schedule: factor on the learning rate by optimiser steps taken.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        finetune: FinetuneConfig,
        *,
        phases: Sequence[set[str]],
        anchored: set[str],
        config: dict[str, Any],
        class_weights: NDArray[Any] | None,
        batch_size: int,
        steps_per_epoch: int,
        freeze_statistics: bool,
    ) -> None:
        """Keep what the steps need.

        Args:
            model: timm's, with as many outputs as classes.
            groups: every parameter of the model, once.
            finetune: the section of params.
            phases: see above.
            anchored: names of the parameters that ``l2_sp`` keeps near their present values.
            config: timm's data config, for the normalisation.
            class_weights: float32 (classes,), or None.
            batch_size: images an optimiser step, over all processes.
            steps_per_epoch: optimiser steps.
            freeze_statistics: whether BatchNorm's running statistics stay as they are.
        """
        super().__init__()
        self.model, self.groups, self.finetune, self.phases = model, groups, finetune, phases
        self.normalize = Normalize(config)
        self.history, self.curve = list[HistoryRow](), list[HistoryRow]()
        self.ledger, self.saved_epochs = list[LedgerRow](), 0
        place = penalty_location(finetune.l2.kind, finetune.optimizer, clipped=finetune.clip is not None)
        self.penalty_in_loss = place == "loss"
        self.batch_size, self.steps_per_epoch, self.freeze_statistics = batch_size, steps_per_epoch, freeze_statistics
        _, *self.image_size = config["input_size"]
        self._start = {name: value.detach().clone() for name, value in model.named_parameters()}
        self._anchors = {name: self._start[name] for name in anchored}
        self._books = make_ledger(self.groups, finetune, phases, start=self._start, anchors=self._anchors)
        warmup, total = round(finetune.warmup_epochs * steps_per_epoch), finetune.epochs * steps_per_epoch
        self.schedule = partial(warmup_cosine, warmup=warmup, total=total)
        self._phase = len(phases) - 1
        self._epoch, self._loaded = EpochStatistics(), dict[str, Any]()
        # No buffer: an average of the weights averages buffers too, and rounds them.
        self._class_weights = None if class_weights is None else torch.from_numpy(class_weights)
        # Without their checks, each of which would wait for the device.
        self.val_loss = MeanMetric(nan_strategy="disable")
        self.val_accuracy = MulticlassAccuracy(get_head(model).out_features, average="micro", validate_args=False)

    def enter(self, phase: int) -> None:
        """Let this phase's parameters train, no others. Before ``fit``: DDP takes only what needs a gradient then."""
        self._phase = phase
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.phases[phase])

    def train(self, mode: bool = True) -> "FineTuner":  # noqa: FBT001, FBT002  (nn.Module's signature)
        """Set training mode, except where frozen: dropout off and statistics still."""
        super().train(mode)
        freeze_(self.model, statistics=self.freeze_statistics)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (n, classes) of uint8 pixels (n, height, width, 3)."""
        logits: Tensor = self.model(self.normalize(pixels))
        return logits

    def on_fit_start(self) -> None:
        """Have what is no parameter where the weights are."""
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(self.device)
        self._start.update({name: value.to(self.device) for name, value in self._start.items()})
        self._anchors.update({name: self._start[name] for name in self._anchors})
        if self._loaded:
            self._go_on(self._loaded)

    def _go_on(self, state: dict[str, Any]) -> None:
        """Take up what a state contains, on the device, in today's number of parts and ranks."""
        self.history, self.ledger, self.curve = (state[name] for name in ("history", "ledger", "curve"))
        self._books.load_state_dict(state["books"], self.device)
        self._epoch.load(state["epoch_so_far"], self.global_rank, self.trainer.world_size, self.device)
        if steps := len(self._epoch.norms):
            parts = self.trainer.accumulate_grad_batches
            place_loops(state["loops"], len(self.history), steps, self.steps_per_epoch, parts)

    def on_train_start(self) -> None:
        """Set the modes where an epoch is gone on with: then none starts."""
        self.train()

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return self.trainer.optimizers[0]

    def on_train_epoch_start(self) -> None:
        """Set the modes, which validation has changed, and start the clock."""
        self.train()
        self._books.start_epoch(self._optimizer)
        self._epoch.begin()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return this rank's part of the objective, so that the average over ranks and parts is the global batch's."""
        # What draws within the step (dropout, stochastic depth) follows from (seed, epoch, batch, rank).
        entropy = np.random.SeedSequence((self.finetune.seed, self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(entropy.generate_state(1)[0]))
        logits = self(batch.pixels)
        mixture = {"partners": batch.partners, "shares": batch.shares, "class_weights": self._class_weights}
        losses = cross_entropies(logits, batch.labels, **mixture, label_smoothing=self.finetune.label_smoothing)
        shares = self.trainer.world_size * self.trainer.accumulate_grad_batches
        loss = losses.sum() * (shares / self.batch_size)
        self._epoch.add(losses.detach(), part=batch_idx % self.trainer.accumulate_grad_batches)
        return loss + penalty(self.groups, self._anchors) if self.penalty_in_loss else loss

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,  # noqa: ARG002  (Lightning's signature)
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002  (Lightning's signature)
    ) -> None:
        """Clip by the norm, which is kept: Lightning calls this once before each step, whether it clips or not."""
        if gradient_clip_val is None:
            self._epoch.norms.append(torch.zeros((), device=self.device))
        else:
            self._epoch.norms.append(nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val))

    def on_validation_start(self) -> None:
        """Stop the clock of the training alone."""
        self._epoch.trained()

    def on_validation_epoch_start(self) -> None:
        """Have the BatchNorm statistics of rank 0, which are those that are saved, on all; an average's too."""
        if self.trainer.world_size > 1:
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  (Lightning's signature)
        """Count plain cross-entropy and accuracy: neither penalty, nor smoothing, nor class weights."""
        logits = self(batch.pixels)
        self.val_loss.update(F.cross_entropy(logits, batch.labels, reduction="none"))
        self.val_accuracy.update(logits, batch.labels)

    def on_validation_epoch_end(self) -> None:
        """Return the callbacks what they monitor, over all ranks."""
        for name, metric in (("val_loss", self.val_loss), ("val_accuracy", self.val_accuracy)):
            self.log(name, metric.compute(), rank_zero_only=False, sync_dist=False)
            metric.reset()

    def on_train_epoch_end(self) -> None:
        """Close the epoch's row before the state is saved."""
        metrics = self.trainer.callback_metrics
        first = self.current_epoch * self.steps_per_epoch
        factors = [self.schedule(first + step) for step in range(self.steps_per_epoch)]
        for factor, clipped in zip(factors, self._epoch.clipped(self.finetune.clip), strict=True):
            self._books.step(factor, clipped, self._phase, self._optimizer)
        self.curve.extend(self._steps(first, factors))
        figures = self._epoch.close()
        rows = self._books.end_epoch(self.current_epoch + 1, figures["train_loss"], self._optimizer)
        self.ledger.extend(rows)
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "lr": self._optimizer.param_groups[0]["lr"],
                "train_loss": figures.pop("train_loss"),
                "penalty": math.fsum(float(row["penalty"] or 0) for row in rows),
                "val_loss": float(metrics["val_loss"]),
                "val_accuracy": float(metrics["val_accuracy"]),
                **figures,
            }
        )

    def _steps(self, first: int, factors: list[float]) -> list[HistoryRow]:
        sums: Any = self.all_gather(torch.stack(self._epoch.losses))
        losses = sums.reshape(-1, self.steps_per_epoch).sum(0) / self.batch_size
        norms = None if self.finetune.clip is None else torch.stack(self._epoch.norms).tolist()
        return curve(self.current_epoch + 1, first, losses.tolist(), norms, groups=self.groups, factors=factors)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the history, what this epoch has counted, and the early stop: a run that has stopped stays stopped."""
        checkpoint["history"], checkpoint["stopped"] = self.history, self.trainer.should_stop
        checkpoint["ledger"], checkpoint["curve"] = self.ledger, self.curve
        checkpoint["books"] = self._books.state_dict(mid_epoch=bool(self._epoch.norms))
        sums: Any = self.all_gather(self._epoch.sums())
        checkpoint["epoch_so_far"] = self._epoch.state(sums.reshape(self.trainer.world_size, -1).cpu())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note it until the weights are on their device and the parts of a batch are known."""
        self._loaded = checkpoint

    def configure_optimizers(self) -> Any:
        """Return the optimiser, every group in it from the first step, and its schedule."""
        finetune = self.finetune
        optimizer = make_optimizer(
            self.groups,
            finetune.optimizer,
            finetune.l2.kind,
            clipped=finetune.clip is not None,
            momentum=finetune.momentum,
            nesterov=finetune.nesterov,
            # Under a scaler a fused optimiser unscales the gradients itself, after they would have been clipped.
            fused=self.device.type in {"cpu", "cuda"} and not (finetune.precision == "16-mixed" and finetune.clip),
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def place_loops(loops: dict[str, Any], epoch: int, step: int, steps_per_epoch: int, parts: int) -> None:
    """Write the place into a checkpoint's ``loops``.

    Args:
        loops: changed in place.
        epoch: from 0.
        step: optimiser steps taken in it, from 1 to ``steps_per_epoch``; after the last the validation is to be done.
        steps_per_epoch: optimiser steps.
        parts: batches a step, which may be others than when the state was saved.
    """
    fit = loops["fit_loop"]
    batches, before = step * parts, epoch * steps_per_epoch * parts
    whole = step == steps_per_epoch
    # Within an epoch Lightning expects a batch that is not quite completed: it saves at the end of one.
    done = batches if whole else batches - 1
    current = {"ready": batches, "started": batches, "processed": batches, "completed": done}
    total = {name: before + count for name, count in current.items()}
    fit["epoch_loop.batch_progress"] = {"total": total, "current": current, "is_last_batch": whole}
    if whole:
        # A validation that has begun with its first batch is gone on with, and begins with its first batch.
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        fit["epoch_loop.val_loop.batch_progress"] = {"total": begun, "current": {**begun}, "is_last_batch": False}
