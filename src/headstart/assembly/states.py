"""When the state of a training is saved, from which it goes on at the very step."""

import logging
import math
import time
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from headstart.assembly.callbacks import FiniteLoss
from headstart.assembly.classifier import Classifier
from headstart.assembly.data import Pictures
from headstart.assembly.ranks import Ranks
from headstart.assembly.run_folder import RunFolder
from headstart.assembly.state_files import StateFiles
from headstart.assembly.stopping import Agreement, StopAgreed, StopFlag
from headstart.assembly.watchdog import Watchdog
from headstart.ground.errors import UserError
from headstart.ground.finetune import Finetune
from headstart.ground.params import Run

logger = logging.getLogger(__name__)

LARGEST_SHARE = 0.01
"""Of the time that may be spent on saving."""


class States(Checkpoint):
    """Saves when a stop is agreed on, when the interval is over, and after epochs; keeps the best.

    Attributes:
        folder: where the states are.
        files: by which a trainer saves them.
        finite: asked before a state is saved.
        average: of the weights, which takes their place while it is validated; or None.
    """

    def __init__(
        self,
        folder: RunFolder,
        finetune: Finetune,
        run: Run,
        ranks: Ranks,
        *,
        stop: StopFlag,
        watchdog: Watchdog,
        pictures: Pictures,
        average: WeightAveraging | None,
    ) -> None:
        """Say when and where.

        Args:
            folder: of the run.
            finetune: what early stopping monitors chooses the best epoch.
            run: ``save_minutes`` is used, and is more where to save takes over a hundredth of them.
            ranks: who agrees on it.
            stop: the flag that a signal sets.
            watchdog: told of each step.
            pictures: the data module.
            average: see above.
        """
        self.folder, self.files, self.finite, self.average = folder, StateFiles(folder), FiniteLoss(), average
        self._monitor, self._seconds = finetune.early_stopping.monitor, 60 * run.save_minutes
        self._ranks, self._stop, self._watchdog, self._pictures = ranks, stop, watchdog, pictures
        self._agreement = Agreement(ranks, 2)
        self._best: float | None = None  # of what is monitored, less being better
        self._owed = False
        self._saved, self._cost = time.monotonic(), 0.0

    def state_dict(self) -> dict[str, Any]:
        """Keep the best figure so far."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from it."""
        self._best = state_dict["best"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Know what the state that is gone on from contains."""
        assert isinstance(pl_module, Classifier)
        pl_module.saved_epochs = len(pl_module.history)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Agree after each optimiser step; save and stop where that is agreed on."""
        self._watchdog.beat(f"epoch {trainer.current_epoch + 1}, batch {batch_idx + 1}")
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = self._ranks.rank == 0 and self._is_due(self._seconds)
        if due:
            self._saved = time.monotonic()  # one announcement is enough
        number, agreed = self._agreement.exchange((self._stop.number, int(due)))
        if number or agreed:
            self._save(trainer, pl_module)
        if number:
            raise StopAgreed(number, self._watchdog.saved_steps)

    def on_validation_batch_end(  # noqa: PLR0917  (Lightning's signature)
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,  # noqa: ARG002
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Agree too, as long as all ranks have batches; the validation begins anew after a stop."""
        self._watchdog.beat(f"validation, batch {batch_idx + 1}")
        if batch_idx >= self._pictures.validation_batches_of_all():
            return
        number, agreed = self._agreement.exchange((self._stop.number, 0))
        self._owed |= bool(agreed)
        if number:
            if trainer.state.fn == TrainerFn.FITTING:
                if self.average is not None:
                    self.average.on_validation_epoch_end(trainer, pl_module)  # gives the weights back
                self._save(trainer, pl_module)
            raise StopAgreed(number, self._watchdog.saved_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best epoch, the last one, and any where the last save is long enough ago."""
        assert isinstance(pl_module, Classifier)
        cost = float(pl_module.history[-1][self._monitor]) * (1 if mode_of(self._monitor) == "min" else -1)
        better = self._best is None or cost < self._best
        if better:
            self._best = math.inf if math.isnan(cost) else cost
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if not (better or last or self._owed or self._ranks.from_rank_0(lambda: self._is_due(0))):
            return
        saved = self._save(trainer, pl_module, best=better)
        if not saved and (better or last):
            raise UserError(
                f"the state after epoch {len(pl_module.history)} can't be saved in {self.folder.path}: free some "
                "space there or set run.cache to another folder; the next start goes on from the state before"
            )

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException  # noqa: ARG002
    ) -> None:  # fmt: skip
        """Let the ranks part in peace."""
        if isinstance(exception, StopAgreed):
            self._agreement.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Let the ranks part in peace."""
        self._agreement.close()

    def _is_due(self, seconds: float) -> bool:
        return time.monotonic() - self._saved >= max(seconds, self._cost / LARGEST_SHARE)

    def _save(self, trainer: Trainer, pl_module: LightningModule, *, best: bool = False) -> bool:
        """Save on all ranks, unless the loss is not finite; say whether it went well."""
        assert isinstance(pl_module, Classifier)
        self.finite.check(trainer, pl_module)
        began = time.monotonic()
        self.files.best = best
        trainer.save_checkpoint(self.folder.last)
        error = self._ranks.from_rank_0(lambda: self.files.error)
        self._saved, self._owed = time.monotonic(), False
        self._cost = self._saved - began
        if error is None:
            self._watchdog.saved_steps = trainer.global_step
            pl_module.saved_epochs = len(pl_module.history)
        else:
            logger.warning("the state was not saved in %s (%s); the one before stays", self.folder.path, error)
        return error is None


def mode_of(monitor: str) -> Literal["min", "max"]:
    """Say whether less or more of a monitored figure is better."""
    return "min" if monitor.endswith("loss") else "max"
