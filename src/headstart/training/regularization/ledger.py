"""The ledger: what the regulariser and the data did to each group's weights, epoch by epoch.

A step is linear in the gradient, so an epoch's change of the weights is the regulariser's part plus the data's.
The regulariser's part is ``−2λ τ_g F D``. D is its pull per unit of λ, averaged over the epoch's start and end: W − A
(A = 0, or W₀ for L2-SP), under Adam divided by ``√v̂ + ε``. F sums the schedule's factors, each times what momentum
makes of a constant push (``1/(1 − μ)`` in the long run) and times the clipping. So the weights are read twice an epoch
and not at each step; assumed is only that W moves in a straight line between. Compared with the exact split of every
step the shrink was right to 8 % (``tests/training/regularization/test_ledger.py``), except in L2-SP's first two epochs,
in which W leaves W₀ in a curve: there it was up to 2.7 times too large.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from headstart.core.text import text_table
from headstart.training.regularization.param_groups import Group
from headstart.training.regularization.penalty import RegularizerKind

LedgerRow = dict[str, str | int | float | None]
COLUMNS = (
    "epoch", "group", "norm", "distance", "penalty", "penalty_share", "shrink", "total_shrink", "data_movement",
    "equivalent_l2",
)  # fmt: skip


class RegularizationLedger:
    """Computes a row for each epoch and each group (all its layers together).

    - ``norm`` ‖W‖ and ``distance`` ‖W − W₀‖ at the epoch's end, W₀ being the weights before the first step;
    - ``penalty`` λ ‖W − A‖² there, and ``penalty_share``, its fraction of the training loss with all penalties;
    - ``shrink``, the fraction of ‖W − A‖ that the regulariser removed in this epoch; ``total_shrink``, in all so far;
    - ``data_movement``, how far everything else moved the group, as a fraction of ‖W‖ at the epoch's start;
    - ``equivalent_l2``, the λ of the penalty ``λ ‖W − W₀‖²`` whose minimum stopping after this epoch resembles:
      1 / (2 Σ τ), with momentum and clipping in τ. None under Adam, whose steps are no gradient flow.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        kind: RegularizerKind,
        *,
        start: Mapping[str, Tensor],
        anchors: Mapping[str, Tensor],
        first_phase: Mapping[str, int],
        momentum: float,
        nesterov: bool,
    ) -> None:
        # By a parameter's name: W₀, on the parameter's device; A, 0 where it is missing; and when it begins to train.
        # The momentum is SGD's μ, or Adam's β₁.
        self._groups, self._kind = groups, kind
        self._start, self._anchors, self._first_phase = start, anchors, first_phase
        self._momentum, self._nesterov = momentum, nesterov
        phases = max(first_phase.values()) + 1
        # For the parameters that begin in each phase: what a constant push of 1 has become in the momentum, the steps,
        # and the sum over steps of the schedule's factor times that push; of this epoch also the sum of the factors.
        self._push, self._steps, self._time = np.zeros(phases), np.zeros(phases), np.zeros(phases)
        self._factors_now, self._time_now = np.zeros(phases), np.zeros(phases)
        self._kept: dict[str, float] = dict.fromkeys((group.name for group in groups), 1.0)  # 1 − total_shrink
        self._before: dict[str, Tensor] = {}
        self._pull_before: dict[str, Tensor] = {}

    def start_epoch(self, optimizer: Optimizer) -> None:
        """Copy the weights before an epoch's first step."""
        self._factors_now[:], self._time_now[:] = 0, 0
        self._before = {name: value.detach().clone() for _, name, value in self._all()}
        self._pull_before = {
            name: self._pull(name, value, optimizer).clone()
            for _, name, value in self._all()
            if self._is_scaled(value, optimizer)
        }

    def step(self, factor: float, clipping: float, phase: int, optimizer: Optimizer) -> None:
        """Count one optimiser step: the schedule's factor on the learning rate, and clipping's on the gradient."""
        training, mu, adam = slice(phase + 1), self._momentum, isinstance(optimizer, Adam)
        self._steps[training] += 1
        self._push[training] = mu * self._push[training] + (1 - mu if adam else 1) * clipping
        if adam:
            push = self._push[training] / (1 - mu ** self._steps[training])
        else:
            push = clipping + mu * self._push[training] if self._nesterov else self._push[training]
        self._factors_now[training] += factor
        self._time_now[training] += factor * push

    @torch.no_grad()
    def end_epoch(self, epoch: int, loss: float, optimizer: Optimizer) -> list[LedgerRow]:
        """Return the epoch's rows, one for each group; it counts from 1, and its training loss is without penalty."""
        self._time += self._time_now
        sums: dict[str, Any] = defaultdict(lambda: torch.zeros(7, dtype=torch.float64))
        for group in self._groups:
            for name, value in group.parameters.items():
                sums[group.name] += self._parameter_sums(group, name, value, optimizer)
        figures = {name: total.tolist() for name, total in sums.items()}
        whole = loss + sum(penalty for _, _, penalty, *_ in figures.values())
        rows: list[LedgerRow] = []
        for name, (norm, distance, penalty, taken, base, moved, before) in figures.items():
            shrink = taken / base if base else 0.0
            self._kept[name] *= 1 - shrink
            values = (norm**0.5, distance**0.5, penalty, penalty / whole, shrink, 1 - self._kept[name])
            movement = (moved / before) ** 0.5 if before else 0.0
            equivalent = self._equivalent_l2(name, optimizer)
            rows.append(dict(zip(COLUMNS, (epoch, name, *values, movement, equivalent), strict=True)))
        return rows

    def _parameter_sums(self, group: Group, name: str, value: Tensor, optimizer: Optimizer) -> Tensor:
        """Return ‖W‖², ‖W − W₀‖², the penalty, ⟨W − A, taken⟩, ‖W − A‖², ‖data movement‖² and ‖W at the start‖²."""
        phase, before = self._first_phase[name], self._before[name]
        decoupled = self._kind == "decoupled"
        strength = group.decay * self._factors_now[phase] if decoupled else 2 * group.l2 * self._time_now[phase]
        pull_after = self._pull(name, value, optimizer)
        pull_before = self._pull_before.get(name, self._plain_pull(name, before))
        # Before Adam's first step there is no second moment.
        pull = pull_after if not self._steps_before(phase) else (pull_before + pull_after) / 2
        taken = group.lr * strength * pull
        anchor = self._anchors.get(name, torch.zeros((), device=value.device))
        middle = (before + value) / 2 - anchor
        moved = value - before + taken
        return torch.stack(
            [
                _squares(value),
                _squares(value - self._start[name]),
                group.l2 * _squares(value - anchor),
                (middle * taken).sum(dtype=torch.float64),
                _squares(middle),
                _squares(moved),
                _squares(before),
            ]
        ).cpu()

    def _steps_before(self, phase: int) -> bool:
        """Return whether parameters of this phase had taken a step when the epoch began."""
        return bool(self._time[phase] > self._time_now[phase])

    def _pull(self, name: str, value: Tensor, optimizer: Optimizer) -> Tensor:
        """Return by how much a unit of λ (or of decay) moves the weights towards A."""
        pull = self._plain_pull(name, value.detach())
        if not self._is_scaled(value, optimizer):
            return pull
        state, settings = optimizer.state[value], optimizer.param_groups[0]
        corrected: Tensor = state["exp_avg_sq"] / (1 - settings["betas"][1] ** state["step"])
        scaled: Tensor = pull / (corrected.sqrt() + settings["eps"])
        return scaled

    def _plain_pull(self, name: str, value: Tensor) -> Tensor:
        return value - self._anchors[name] if name in self._anchors else value

    def _is_scaled(self, value: Tensor, optimizer: Optimizer) -> bool:
        """Return whether Adam's second moment rescales the pull."""
        return self._kind != "decoupled" and isinstance(optimizer, Adam) and value in optimizer.state

    def _equivalent_l2(self, name: str, optimizer: Optimizer) -> float | None:
        """Return 1 / (2 Σ τ), Σ τ averaged over the group's scalars; None under Adam or before any step."""
        if isinstance(optimizer, Adam):
            return None
        times = [(g.lr * self._time[self._first_phase[n]], p.numel()) for g, n, p in self._all() if g.name == name]
        time = float(sum(time * count for time, count in times) / sum(count for _, count in times))
        return 1 / (2 * time) if time else None

    def _all(self) -> list[tuple[Group, str, Tensor]]:
        return [(group, name, value) for group in self._groups for name, value in group.parameters.items()]

    def state_dict(self, *, mid_epoch: bool) -> dict[str, Any]:
        """Return what later epochs need of those so far; within an epoch also what was copied at its start."""
        arrays = {"push": self._push, "steps": self._steps, "time": self._time}
        copies = {"before": self._before, "pull_before": self._pull_before} if mid_epoch else {}
        return {**{name: array.tolist() for name, array in arrays.items()}, "kept": dict(self._kept), **copies}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Resume from a ``state_dict``."""
        self._push, self._steps, self._time = (np.array(state[name]) for name in ("push", "steps", "time"))
        self._kept = dict(state["kept"])
        self._before, self._pull_before = (
            {name: value.to(device) for name, value in state.get(copies, {}).items()}
            for copies in ("before", "pull_before")
        )


def _squares(value: Tensor) -> Tensor:
    return value.square().sum(dtype=torch.float64)


def with_ledger(history: Sequence[dict[str, int | float]], rows: Sequence[LedgerRow]) -> list[dict[str, int | float]]:
    """Return a training's history, one row an epoch, with the ledger's figures in it, such as ``backbone/norm``."""
    flat: dict[int, dict[str, int | float]] = {int(row["epoch"]): {**row} for row in history}
    for row in rows:
        for name in COLUMNS[2:]:
            value = row[name]
            if value is not None:
                flat[int(row["epoch"] or 0)][f"{row['group']}/{name}"] = float(value)
    return list(flat.values())


def ledger_table(rows: Sequence[LedgerRow]) -> str:
    """Format one epoch's rows for a terminal."""
    lines = [("group", "‖W‖", "‖W − W₀‖", "share of loss", "shrunk by it", "moved by data in it", "early stop ≙ λ")]
    for row in rows:
        figures = {name: float(row[name] or 0) for name in COLUMNS[2:]}
        lines.append(
            (
                str(row["group"]),
                f"{figures['norm']:.3f}",
                f"{figures['distance']:.3f}",
                f"{figures['penalty_share']:.2%}",
                f"{figures['total_shrink']:.3%}",
                f"{figures['data_movement']:.2%}",
                f"{figures['equivalent_l2']:.1e}" if row["equivalent_l2"] else "-",
            )
        )
    return text_table(lines)
