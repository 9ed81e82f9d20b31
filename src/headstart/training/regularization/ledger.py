"""What the regulariser and the data did to each group's weights, epoch by epoch.

A step is linear in the gradient, so an epoch's change of the weights is the regulariser's part and a rest, the data's.
The regulariser's is ``−2λ τ_g F D``: D is its pull per unit of λ, W − A (A = 0, or W₀ for L2-SP; under Adam
divided by ``√v̂ + ε``), averaged over the epoch's two ends, and F sums the schedule's factors, each times what momentum
makes of a constant push (``1/(1 − μ)`` in the long run) and of clipping. The weights are looked at twice an epoch and
not at each step: that W moves in a line between is all that is assumed. Against the split of every step that was right
to 8 % (``tests/libraries/test_ledger.py``), but for L2-SP's first two epochs, in which W leaves W₀ in a curve: there
its shrink was up to 2.7 times too large.
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
    """Keeps the books of one fine-tuning.

    A row, of one epoch and one group (all its layers together):

    - ``norm`` ‖W‖ and ``distance`` ‖W − W₀‖ at the epoch's end, W₀ being the weights before the first step;
    - ``penalty`` λ ‖W − A‖² there, and ``penalty_share``, its share of the training loss with all penalties;
    - ``shrink``, the share of ‖W − A‖ that the regulariser took away in this epoch, and ``total_shrink`` in all so far;
    - ``data_movement``, how far everything else moved the group, in shares of ‖W‖ at the epoch's start;
    - ``equivalent_l2``, the λ of the penalty ``λ ‖W − W₀‖²`` whose minimum stopping after this epoch resembles:
      1 / (2 Σ τ), momentum and clipping in τ. None under Adam, whose steps are no gradient flow.
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
        """Open the books.

        Args:
            groups: every parameter once.
            kind: of regulariser.
            start: W₀ by a parameter's name, where the parameters are.
            anchors: A by a parameter's name; 0 for those that it lacks.
            first_phase: the phase in which a parameter begins to train, by its name.
            momentum: SGD's μ, or Adam's β₁.
            nesterov: whether SGD looks ahead.
        """
        self._groups, self._kind = groups, kind
        self._start, self._anchors, self._first_phase = start, anchors, first_phase
        self._momentum, self._nesterov = momentum, nesterov
        phases = max(first_phase.values()) + 1
        # Of the parameters that begin in each phase: what a constant push of 1 has become in the momentum, the steps,
        # and the sums over steps of the schedule's factor, alone and times that push.
        self._push, self._steps, self._felt = np.zeros(phases), np.zeros(phases), np.zeros(phases)
        self._plain_now, self._felt_now = np.zeros(phases), np.zeros(phases)
        self._kept: dict[str, float] = dict.fromkeys((group.name for group in groups), 1.0)
        self._before: dict[str, Tensor] = {}
        self._pull_before: dict[str, Tensor] = {}

    def start_epoch(self, optimizer: Optimizer) -> None:
        """Take the weights down, before an epoch's first step."""
        self._plain_now[:], self._felt_now[:] = 0, 0
        self._before = {name: value.detach().clone() for name, value in self._parameters()}
        self._pull_before = {
            name: self._pull(name, value, optimizer).clone()
            for name, value in self._parameters()
            if self._is_scaled(value, optimizer)
        }

    def step(self, factor: float, clipped: float, phase: int, optimizer: Optimizer) -> None:
        """Note one optimiser step.

        Args:
            factor: the schedule's, on the learning rate.
            clipped: what clipping multiplied the gradient by, 1 where it did nothing.
            phase: the current one.
            optimizer: the one that steps.
        """
        mine, mu, adam = slice(phase + 1), self._momentum, isinstance(optimizer, Adam)
        self._steps[mine] += 1
        self._push[mine] = mu * self._push[mine] + (1 - mu if adam else 1) * clipped
        if adam:
            felt = self._push[mine] / (1 - mu ** self._steps[mine])
        else:
            felt = clipped + mu * self._push[mine] if self._nesterov else self._push[mine]
        self._plain_now[mine] += factor
        self._felt_now[mine] += factor * felt

    @torch.no_grad()
    def end_epoch(self, epoch: int, loss: float, optimizer: Optimizer) -> list[LedgerRow]:
        """Return the epoch's rows, one a group.

        Args:
            epoch: its number.
            loss: training loss without penalty.
            optimizer: for Adam's second moments.
        """
        self._felt += self._felt_now
        sums: dict[str, Any] = defaultdict(lambda: torch.zeros(7, dtype=torch.float64))
        for group in self._groups:
            for name, value in group.parameters.items():
                sums[group.name] += self._of_parameter(group, name, value, optimizer)
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

    def _of_parameter(self, group: Group, name: str, value: Tensor, optimizer: Optimizer) -> Tensor:
        """Return squared norm and distance, the penalty, ⟨W − A, taken⟩, ‖W − A‖², squared data movement and start."""
        phase, before = self._first_phase[name], self._before[name]
        decoupled = self._kind == "decoupled"
        strength = group.decay * self._plain_now[phase] if decoupled else 2 * group.l2 * self._felt_now[phase]
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
        """Say whether parameters of this phase had taken a step when the epoch began."""
        return bool(self._felt[phase] > self._felt_now[phase])

    def _pull(self, name: str, value: Tensor, optimizer: Optimizer) -> Tensor:
        """Return the direction in which a unit of λ (or of decay) moves the weights, up to the sign."""
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
        """Say whether Adam's second moment rescales the pull."""
        return self._kind != "decoupled" and isinstance(optimizer, Adam) and value in optimizer.state

    def _equivalent_l2(self, name: str, optimizer: Optimizer) -> float | None:
        """Return 1 / (2 Σ τ), Σ τ averaged over the group's numbers; None under Adam or before any step."""
        if isinstance(optimizer, Adam):
            return None
        parts = [(g.lr * self._felt[self._first_phase[n]], p.numel()) for g, n, p in self._all() if g.name == name]
        time = float(sum(flow * count for flow, count in parts) / sum(count for _, count in parts))
        return 1 / (2 * time) if time else None

    def _all(self) -> list[tuple[Group, str, Tensor]]:
        return [(group, name, value) for group in self._groups for name, value in group.parameters.items()]

    def _parameters(self) -> list[tuple[str, Tensor]]:
        return [(name, value) for _, name, value in self._all()]

    def state_dict(self, *, mid_epoch: bool) -> dict[str, Any]:
        """Return what the next epoch needs of those before it, and within one also what was taken down at its start."""
        arrays = {"push": self._push, "steps": self._steps, "felt": self._felt}
        taken_down = {"before": self._before, "pull_before": self._pull_before} if mid_epoch else {}
        return {**{name: array.tolist() for name, array in arrays.items()}, "kept": dict(self._kept), **taken_down}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from ``state_dict``'s."""
        self._push, self._steps, self._felt = (np.array(state[name]) for name in ("push", "steps", "felt"))
        self._kept = dict(state["kept"])
        self._before, self._pull_before = (
            {name: value.to(device) for name, value in state.get(kept, {}).items()}
            for kept in ("before", "pull_before")
        )


def _squares(value: Tensor) -> Tensor:
    return value.square().sum(dtype=torch.float64)


def with_curves(history: Sequence[dict[str, int | float]], rows: Sequence[LedgerRow]) -> list[dict[str, int | float]]:
    """Return a training's history, a row an epoch, with the ledger's figures in it, such as ``backbone/norm``."""
    flat: dict[int, dict[str, int | float]] = {int(row["epoch"]): {**row} for row in history}
    for row in rows:
        for name in COLUMNS[2:]:
            value = row[name]
            if value is not None:
                flat[int(row["epoch"] or 0)][f"{row['group']}/{name}"] = float(value)
    return list(flat.values())


def ledger_table(rows: Sequence[LedgerRow]) -> str:
    """Write one epoch's rows for a terminal."""
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
