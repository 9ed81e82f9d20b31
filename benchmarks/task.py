"""What every contestant does: the same images, model, augmentation, optimiser, batch size and precision."""

import math
from dataclasses import dataclass

CLASSES = 10
LR = 0.01
MOMENTUM = 0.9  # Nesterov's, as timm's `sgd`
WEIGHT_DECAY = 2e-5  # timm's default, on weights alone; a λ of half as much
SCALE, RATIO, HFLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5  # timm's and torchvision's defaults


@dataclass(frozen=True)
class Task:
    """The matched work, and how one contestant does it.

    Attributes:
        images: folder with train/, val/ and test/, each with a folder of JPEGs a class.
        work: folder that contestants may keep their own form of the images in.
        count: training images, a multiple of ``batch_size``.
        model: timm's name; random weights.
        size: side of the model's input, in pixels.
        interpolation: of every resize, ``bilinear`` or ``bicubic``.
        mean: of each channel, for pixels in [0, 1].
        std: of each channel, for pixels in [0, 1].
        crop_pct: side of the evaluation crop as a share of the short side that it is cut from.
        train_side: short side at which Headstart stores training images, in pixels; smaller ones stay as they are.
        batch_size: images a step.
        epochs: passes over the images; the first is a warm-up where there are several.
        precision: 32-true, or bf16-mixed (autocast).
        device: cpu or cuda.
        workers: processes that load images; where 0, the one that trains does.
        tuned: whether a library's documented faster settings are taken, rather than its defaults.
        processes: that train together (Headstart alone).
    """

    images: str
    work: str
    count: int
    model: str
    size: int
    interpolation: str
    mean: list[float]
    std: list[float]
    crop_pct: float
    train_side: int
    batch_size: int
    epochs: int
    precision: str
    device: str
    workers: int = 0
    tuned: bool = False
    processes: int = 1

    @property
    def evaluation_side(self) -> int:
        """Short side at which evaluation sees images before its crop, as timm rounds it."""
        return math.floor(self.size / self.crop_pct)
