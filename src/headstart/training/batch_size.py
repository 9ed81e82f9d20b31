"""How many accumulation steps a batch needs to fit into a GPU's memory; the optimiser's batch stays the same."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from headstart.core.errors import UserError
from headstart.training.module import FineTuner

logger = logging.getLogger(__name__)

COPIES = 5
"""Of each parameter beside its gradient: Adam's two moments, and three of the ledger's."""


class AccumulationFinder(Callback):
    """Splits a GPU's part of a batch into as many accumulation steps as its memory needs."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try; every rank then takes the number of the rank that needs most."""
        assert isinstance(pl_module, FineTuner)
        asked = trainer.accumulate_grad_batches

        def fits_on_all(fits: bool) -> bool:  # noqa: FBT001  (one rank's answer)
            everywhere: Tensor = trainer.strategy.reduce(
                torch.tensor(int(fits), device=pl_module.device), reduce_op="min"
            )
            return bool(everywhere)

        needed = fitting_accumulation(pl_module, trainer.world_size, asked, fits_on_all)
        trainer.accumulate_grad_batches = needed
        if needed > asked and trainer.is_global_zero:
            logger.warning(
                "the GPU's memory is too small for a batch in %d parts, so it is computed in %d%s",
                *(asked, needed),
                ""
                if pl_module.plan.freeze_statistics
                else "; each has its own BatchNorm statistics, which changes the result: batch_norm: frozen does not",
            )


def fitting_accumulation(
    module: FineTuner, world: int, accumulation_steps: int, fits_on_all: Callable[[bool], bool]
) -> int:
    """Find in how many accumulation steps a rank's part of a batch fits into memory, by steps that leave no trace.

    ``accumulation_steps`` is doubled until they fit; ``fits_on_all`` reduces whether an attempt fits here to whether it
    fits on every rank. ``module`` is on its device and in its trainer.

    Raises:
        UserError: not even single images fit.
    """
    module.eval()  # BatchNorm's statistics stay, and ranks don't wait for each other's
    batch_size = module.plan.batch_size
    while True:
        size = -(-batch_size // (world * accumulation_steps))
        fits = fits_on_all(_fits(module, size))
        module.zero_grad(set_to_none=True)
        if fits:
            return accumulation_steps
        torch.cuda.empty_cache()
        if size == 1:
            raise UserError("the GPU's memory is too small for a single image: choose a smaller backbone.image_size")
        accumulation_steps = min(2 * accumulation_steps, batch_size // world)


def _fits(module: FineTuner, size: int) -> bool:
    """Return whether a step on this many images fits, beside what is kept of each parameter."""
    try:
        pixels = torch.zeros(size, *module.image_size, 3, dtype=torch.uint8, device=module.device)
        copies = [torch.empty_like(each) for each in module.parameters() for _ in range(COPIES) if each.requires_grad]
        with module.trainer.precision_plugin.forward_context():
            logits = module(pixels)
            loss = F.cross_entropy(logits, torch.zeros(size, dtype=torch.int64, device=module.device))
        loss.backward()  # type: ignore[no-untyped-call]
        del copies
    except torch.OutOfMemoryError:
        return False
    return True
