"""How many accumulation steps a batch needs to fit into memory; the optimiser's batch stays the same.

On a GPU that is tried. On a CPU the kernel kills whoever tries, so there it is estimated from a step of one image. And
the smallest part that training BatchNorm can take.
"""

import copy
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own convention)
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from headstart.core.errors import UserError
from headstart.data.loader import Normalize
from headstart.distributed.memory import images_that_fit, live_bytes
from headstart.distributed.process_group import ProcessGroup
from headstart.training.module import FineTuner
from headstart.training.phases import TrainingPlan

logger = logging.getLogger(__name__)

COPIES = 5
"""Of each parameter beside its gradient: Adam's two moments, and three of the ledger's."""
SLACK = 1.7
"""Memory that a CPU's step takes, over the tensors that live at once: what the allocator and the kernels keep. Measured
for 10 models, see docs/performance.md."""
UNLIMITED = 10**9
"""Images, where memory is not estimated."""


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

        smallest = 2 if trainer.world_size == 1 and pl_module.plan.trains_statistics(pl_module) else 1
        needed = fitting_accumulation(pl_module, trainer.world_size, asked, fits_on_all, smallest=smallest)
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
    module: FineTuner,
    world: int,
    accumulation_steps: int,
    fits_on_all: Callable[[bool], bool],
    *,
    smallest: int = 1,
) -> int:
    """Find in how many accumulation steps a rank's part of a batch fits into memory, by steps that leave no trace.

    ``accumulation_steps`` is doubled until they fit; ``fits_on_all`` reduces whether an attempt fits here to whether it
    fits on every rank. ``module`` is on its device and in its trainer. A part has ``smallest`` images or more, which is
    2 for training BatchNorm.

    Raises:
        UserError: not even the smallest parts fit.
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
        most = max(accumulation_steps, batch_size // (world * smallest))
        if accumulation_steps == most:
            what = "a single image" if smallest == 1 else f"{size} images, of which training BatchNorm needs {smallest}"
            raise UserError(f"the GPU's memory is too small for {what}: choose a smaller backbone.image_size")
        accumulation_steps = min(2 * accumulation_steps, most)


def _fits(module: FineTuner, size: int) -> bool:
    """Return whether a step on this many images fits, beside what is kept of each parameter."""
    try:
        pixels = torch.zeros(size, *module.image_size, module.channels, dtype=torch.uint8, device=module.device)
        copies = [torch.empty_like(each) for each in module.parameters() for _ in range(COPIES) if each.requires_grad]
        with module.trainer.precision_plugin.forward_context():
            logits = module(pixels)
            loss = F.cross_entropy(logits, torch.zeros(size, dtype=torch.int64, device=module.device))
        loss.backward()  # type: ignore[no-untyped-call]
        del copies
    except torch.OutOfMemoryError:
        return False
    return True


class Room(NamedTuple):
    """How many images of a step fit into the memory of every rank, and the bytes that each has for them and needs."""

    images: int
    free: float
    per_image: float


def room_for_images(
    model: nn.Module, config: dict[str, Any], plan: TrainingPlan, group: ProcessGroup, *, bf16: bool = False
) -> Room:
    """Estimate from one image how many a step can have on this machine's CPU; ``config`` is timm's, of the data."""
    if group.device.type != "cpu":
        return Room(UNLIMITED, 0, 0)
    normalize, (channels, *size) = Normalize(config), config["input_size"]
    model.eval()

    def live(count: int) -> int:
        pixels = torch.zeros(count, *size, channels, dtype=torch.uint8)

        def forward() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits: Tensor = model(normalize(pixels))
            return logits

        return live_bytes(forward, model)

    image = live(1)
    # Autocast's bf16 copies of the weights are made once a step, for one image as for many.
    once = max(0, 2 * image - live(2)) if bf16 else 0
    per_image = SLACK * (image - once)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    # And a copy of the weights at the start.
    fixed = once + weights * (1 + plan.finetune.copies_of_weights)
    images, free = images_that_fit(per_image, fixed, group.local_world)
    fewest = min(int(each) for each in group.gather(torch.tensor(images)))
    return Room(fewest, free, per_image)


def accumulation_on_cpu(room: Room, plan: TrainingPlan, world: int, *, trains_statistics: bool) -> int:
    """Return in how many accumulation steps a batch fits into memory; ``finetune.accumulate`` where that suffices.

    Raises:
        UserError: not even single images fit; or the parts would have BatchNorm statistics of their own, so that the
            result would follow from the memory.
    """
    asked, batch_size = plan.finetune.accumulate, plan.batch_size
    size = -(-batch_size // (world * asked))
    if size <= room.images:
        return asked
    what = f"{size} images at a time take about {size * room.per_image / 1e9:.3g} GB beside the weights' copies, and "
    what += f"{room.free / 1e9:.3g} GB of memory are free (limits of a container, a job or ulimit count)"
    if not room.images:
        what += ", too little for one: free some, or choose a smaller backbone.image_size"
        raise UserError(f"finetune.batch_size: {what}")
    needed = -(-batch_size // (world * room.images))
    if trains_statistics:
        raise UserError(
            f"finetune.batch_size: {what}: set it to {room.images * world * asked} or less, or finetune.batch_norm to "
            f"frozen, with which a batch is computed in parts by itself, or finetune.accumulate to {needed}: each part "
            "then has its own BatchNorm statistics"
        )
    logger.warning("finetune.batch_size: %s, so a batch is computed in %d parts instead of %d", what, needed, asked)
    return needed


def check_smallest_part(
    model: nn.Module, config: dict[str, Any], plan: TrainingPlan, world: int, *, trains_statistics: bool
) -> None:
    """Refuse parts of a batch that have one image, where a training BatchNorm would then see one value a channel.

    Raises:
        UserError: the message says which keys to change.
    """
    parts = world * plan.finetune.accumulate
    if not trains_statistics or plan.batch_size >= 2 * parts:
        return
    model = copy.deepcopy(model).train()
    try:
        with torch.no_grad():
            model(torch.zeros(1, *config["input_size"]))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        where = f"{plan.batch_size} in {plan.finetune.accumulate} parts on {world} processes" if parts > 1 else "1"
        raise UserError(
            f"finetune.batch_size: BatchNorm needs 2 images or more at a time, and {where} leaves it one: use "
            f"{2 * parts} or more, or finetune.batch_norm: frozen"
        ) from error
