"""Validation images that are flipped or turned: from their features the probe tells which changes keep the label."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "hflip": lambda images: images.flip(3),
    "vflip": lambda images: images.flip(2),
    "quarter_turn": lambda images: images.rot90(1, (2, 3)),  # square images alone
}
"""By the key in ``finetune.augment``: the change of images (n, channels, height, width)."""
MOST_IMAGES = 256
"""Validation images that are changed: each change costs as much time as features of so many more images."""


def changed_features(features_of: Callable[[Tensor], Tensor], changes: Sequence[str], images: Tensor) -> Tensor:
    """Compute features after each change, side by side: from (n, channels, height, width) to (n, changes · width)."""
    return torch.cat([features_of(CHANGES[name](images)) for name in changes], dim=1)
