"""What is done beside the steps: to report epochs, to notice a loss that is not finite, to fit into a GPU's memory."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from headstart.core.errors import UserError
from headstart.training.module import FineTuner

logger = logging.getLogger(__name__)

KEPT = 5
"""Copies of each parameter beside its gradient: Adam's two moments, and three of the ledger's."""


class AccumulationFinder(Callback):
    """Computes a GPU's share of a batch in as many parts as its memory needs: the batch of a step stays what it is."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try parts out; every rank then takes the number of the one that needs most."""
        if pl_module.device.type != "cuda":
            return
        assert isinstance(pl_module, FineTuner)
        asked = trainer.accumulate_grad_batches

        def fit_everywhere(fits: bool) -> bool:  # noqa: FBT001  (what is agreed on)
            everywhere: Tensor = trainer.strategy.reduce(
                torch.tensor(int(fits), device=pl_module.device), reduce_op="min"
            )
            return bool(everywhere)

        parts = fitting_accumulation(pl_module, trainer.world_size, asked, fit_everywhere)
        trainer.accumulate_grad_batches = parts
        if parts > asked and trainer.is_global_zero:
            logger.warning(
                "the GPU's memory is too small for a batch in %d parts, so it is computed in %d%s",
                *(asked, parts),
                ""
                if pl_module.freeze_statistics
                else "; each has its own BatchNorm statistics, which changes the result: batch_norm: frozen does not",
            )


def fitting_accumulation(classifier: FineTuner, world: int, parts: int, agreed: Callable[[bool], bool]) -> int:
    """Find in how many parts a rank's share of a batch fits into memory, by steps that leave no trace.

    Args:
        classifier: on its device, in its trainer.
        world: number of processes.
        parts: to begin with; doubled until they fit.
        agreed: tells of an attempt that fits here whether it fits on every rank.

    Raises:
        UserError: not even single images fit.
    """
    classifier.eval()  # BatchNorm's statistics stay, and ranks don't wait for each other's
    while True:
        size = -(-classifier.batch_size // (world * parts))
        fits = agreed(_fits(classifier, size))
        classifier.zero_grad(set_to_none=True)
        if fits:
            return parts
        torch.cuda.empty_cache()
        if size == 1:
            raise UserError("the GPU's memory is too small for a single image: choose a smaller backbone.image_size")
        parts = min(2 * parts, classifier.batch_size // world)


def _fits(classifier: FineTuner, size: int) -> bool:
    """Tell whether a step on this many images fits, beside what is kept of each parameter."""
    try:
        pixels = torch.zeros(size, *classifier.image_size, 3, dtype=torch.uint8, device=classifier.device)
        kept = [torch.empty_like(each) for each in classifier.parameters() for _ in range(KEPT) if each.requires_grad]
        with classifier.trainer.precision_plugin.forward_context():
            logits = classifier(pixels)
            loss = F.cross_entropy(logits, torch.zeros(size, dtype=torch.int64, device=classifier.device))
        loss.backward()  # type: ignore[no-untyped-call]
        del kept
    except torch.OutOfMemoryError:
        return False
    return True
