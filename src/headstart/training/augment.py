"""Augmentation of training images, each a pure function of its own random numbers, whatever batch or process it is in.

Crops are cut and resized by torch's kernels, one image at a time: of uint8 on one core of an AVX-512 CPU 120 µs for an
image of 224 px, several times less than the step takes for it. Bands are resized as floating-point numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.transforms import v2

from headstart.images.bands import Bands, Pixels

ATTEMPTS = 10
DRAWS = 2 * ATTEMPTS + 6
"""Uniform numbers of one image: area and shape of each attempt, the crop's corner, both flips, a seed, the turn."""
MIX_DRAWS = 4
"""Uniform numbers of one mixture: mixup or cutmix, the fraction, the box's centre."""


@dataclass(frozen=True)
class Augment:
    """RandomResizedCrop (Szegedy et al. 2015, "Going deeper with convolutions"), flips, torchvision's transforms."""

    size: tuple[int, int]  # height and width of the result, in pixels
    scale: Sequence[float]  # least and largest fraction of the image's area
    ratio: Sequence[float]  # least and largest ratio of width to height
    hflip: float  # probability of a flip from left to right
    vflip: float  # probability of a flip from top to bottom
    interpolation: str  # timm's name; all but bilinear are done as bicubic, for which torch has a uint8 kernel
    transforms: v2.Transform | None = None  # of an image (channels, *size), with torch's generator seeded for it
    quarter_turn: float = 0.0  # probability of a turn by 90 degrees, to the left or to the right, of a square result
    bands: Bands | None = None  # of the images; None: they are 8-bit RGB

    def __call__(self, images: Sequence[Pixels], draws: NDArray[np.float64]) -> Tensor:
        """Augment n images, uint8 (height, width, 3) of any sizes, into uint8 (n, *size, 3).

        Images with ``bands``, (height, width, bands) at their own depth, become float32 (n, *size, bands) in the same
        units, between each band's ``low`` and ``high``: the model sees nothing beyond, and what a mixture is made of,
        or the bicubic filter makes at an edge, should be no other. ``draws`` is float64 (n, DRAWS), uniform in [0, 1).
        """
        boxes = crop_boxes(np.array([image.shape[:2] for image in images]), draws, self.scale, self.ratio)
        flips, seeds = draws[:, -4:-2] < (self.hflip, self.vflip), (draws[:, -2] * 2**53).astype(np.int64)
        turns, to_the_left = (draws[:, -1] < each for each in (self.quarter_turn, self.quarter_turn / 2))
        mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
        channels, dtype = (3, torch.uint8) if self.bands is None else (self.bands.layout.channels, torch.float32)
        out = torch.empty(len(images), *self.size, channels, dtype=dtype)
        planes = out.permute(0, 3, 1, 2)
        with torch.random.fork_rng(devices=[]):
            for i, (top, left, height, width) in enumerate(boxes.tolist()):
                # The batch's dimension comes first: without it torch takes its slower kernel for planar images.
                crop = torch.tensor(images[i][None, top : top + height, left : left + width], dtype=dtype)
                image = interpolate(crop.permute(0, 3, 1, 2), self.size, mode=mode, antialias=True)[0]
                if flips[i].any():
                    image = image.flip([dimension for dimension, flip in zip((2, 1), flips[i], strict=True) if flip])
                if turns[i]:
                    image = image.rot90(1 if to_the_left[i] else -1, (1, 2))
                if self.transforms is not None:
                    torch.default_generator.manual_seed(int(seeds[i]))
                    image = self.transforms(image)
                planes[i] = image
        if self.bands is not None:
            # Whole rows at once, which is several times as fast as the bands of one pixel at a time.
            ends = (self.bands.low, self.bands.high)
            out.flatten(2).clamp_(*(torch.tensor(each, dtype=dtype).repeat(self.size[1]) for each in ends))
        return out


def crop_boxes(
    sizes: NDArray[np.int64], draws: NDArray[np.float64], scale: Sequence[float], ratio: Sequence[float]
) -> NDArray[np.int64]:
    """Choose boxes as torchvision's RandomResizedCrop does: the first of ten attempts that fits, else the centre.

    Own code, since ``v2.RandomResizedCrop.make_params`` under a seed for each image took 22 to 24 µs an image where
    this takes 10 in batches of 8 and 2 in batches of 64.

    Returns:
        int64 (n, 4): top, left, height, width of each box, for images of ``sizes`` (n, 2), height and width in pixels.
    """
    heights, widths = sizes.T
    low, high = np.log(ratio)
    area = (heights * widths)[:, None] * (scale[0] + (scale[1] - scale[0]) * draws[:, :ATTEMPTS])
    shape = np.exp(low + (high - low) * draws[:, ATTEMPTS : 2 * ATTEMPTS])
    tried = np.rint(np.sqrt(np.stack([area / shape, area * shape], axis=-1))).astype(np.int64)
    fits = ((tried > 0) & (tried <= sizes[:, None])).all(axis=-1)
    box = tried[np.arange(len(sizes)), fits.argmax(axis=1)]
    corner = (draws[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2] * (sizes - box + 1)).astype(np.int64)
    # Where no attempt fits: the whole image, cut to the nearest allowed ratio.
    widest, highest = np.rint(heights * ratio[1]).astype(np.int64), np.rint(widths / ratio[0]).astype(np.int64)
    middle = np.stack([np.minimum(heights, highest), np.minimum(widths, widest)], axis=1)
    drawn, centre = np.hstack([corner, box]), np.hstack([(sizes - middle) // 2, middle])
    return np.where(fits.any(axis=1)[:, None], drawn, centre)


def torchvision_transforms(
    policy: Literal["none", "randaugment", "trivialaugment"],
    color_jitter: Sequence[float] | None,
    erasing: float,
    mean: Sequence[float],
) -> v2.Transform | None:
    """Compose torchvision's augmentations in timm's order; None where there are none.

    Args:
        policy: RandAugment (Cubuk et al. 2020) or TrivialAugment (Müller and Hutter 2021), as torchvision sets them.
        color_jitter: largest change of brightness, contrast, saturation and hue.
        erasing: probability of random erasing (Zhong et al. 2020).
        mean: colour in [0, 1] of erased boxes, and of what is rotated or shifted in from outside.
    """
    fill: list[float] = [round(255 * value) for value in mean]
    steps: list[v2.Transform] = []
    if policy != "none":
        kind = v2.RandAugment if policy == "randaugment" else v2.TrivialAugmentWide
        steps.append(kind(interpolation=v2.InterpolationMode.BILINEAR, fill=fill))
    if color_jitter is not None:
        steps.append(v2.ColorJitter(*color_jitter))
    if erasing:
        steps.append(v2.RandomErasing(erasing, value=fill))
    return v2.Compose(steps) if steps else None


class BandChanges(nn.Module):
    """Random gain and offset of each band, and noise, of an image (bands, height, width) in its own units.

    A band's values are taken as fractions of its range, from ``low`` to ``high``: x becomes (1 + g) x + o + σ ε, with
    g and o uniform up to ``gain`` and ``offset`` either way, one each for a band, and normal ε, one for a value.
    """

    def __init__(self, bands: Bands, *, gain: float, offset: float, noise: float) -> None:
        super().__init__()
        low, high = (torch.tensor(each, dtype=torch.float64)[:, None, None] for each in (bands.low, bands.high))
        self._low, self._range = low.float(), (high - low).float()
        self._gain, self._offset, self._noise = gain, offset, noise

    def forward(self, image: Tensor) -> Tensor:
        """Draw from torch's generator: first the gains, then the offsets, then the noise."""
        gain, offset = 2 * torch.rand(2, *self._low.shape) - 1
        image = torch.addcmul(image, image - self._low, self._gain * gain) + self._offset * offset * self._range
        return image.addcmul_(torch.randn(image.shape), self._noise * self._range) if self._noise else image


def band_transforms(bands: Bands, *, gain: float, offset: float, noise: float, erasing: float) -> v2.Transform | None:
    """Compose what changes the values of bands, then random erasing; None where there is nothing.

    What is erased has each band's mean; ``BandChanges`` has the others.
    """
    low, high, mean = (np.array(each) for each in (bands.low, bands.high, bands.mean))
    steps: list[nn.Module] = []
    if gain or offset or noise:
        steps.append(BandChanges(bands, gain=gain, offset=offset, noise=noise))
    if erasing:
        steps.append(v2.RandomErasing(erasing, value=(low + mean * (high - low)).tolist()))
    return v2.Compose(steps) if steps else None


def mix(
    images: Tensor, partners: Tensor, draws: NDArray[np.float64], *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Mix each image with another, by mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019); by halves where both.

    Args:
        images: uint8 or float32 (n, height, width, channels).
        partners: likewise.
        draws: float64 (n, MIX_DRAWS), uniform in [0, 1).
        mixup: α of the Beta(α, α) that the image's fraction is drawn from; 0: no mixup.
        cutmix: likewise.

    Returns:
        The mixtures, like the images and rounded where these are uint8, and how much of each is the image itself,
        float32 (n,): under cutmix the fraction of its area that shows.
    """
    _, height, width, _ = images.shape
    which, quantile, *centre = draws.T
    cut = which < bool(cutmix) / (bool(mixup) + bool(cutmix))
    alpha = np.where(cut, cutmix, mixup)
    fraction = betaincinv(alpha, alpha, quantile)
    half = np.sqrt(1 - fraction) / 2

    def covered(middle: NDArray[np.float64], length: int) -> NDArray[np.bool_]:
        low, high = (np.rint(length * (middle + sign * half)) for sign in (-1, 1))
        along = np.arange(length)
        return np.asarray((along >= low[:, None]) & (along < high[:, None]))

    box = covered(centre[0], height)[:, :, None] & covered(centre[1], width)[:, None, :]
    shown = torch.from_numpy(np.where(cut[:, None, None], ~box, fraction[:, None, None]).astype(np.float32))
    mixed = torch.lerp(partners.float(), images.float(), shown[..., None])
    if images.dtype == torch.uint8:
        mixed = mixed.round_().to(torch.uint8)
    return mixed, shown.mean(dim=(1, 2))


_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIERS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(count: int, *key: ArrayLike) -> NDArray[np.float64]:
    """Draw uniform numbers in [0, 1): float64 (n, count), with the 53 first of ``random_bits``."""
    return np.asarray((random_bits(count, *key) >> np.uint64(11)) * 2.0**-53, np.float64)


def random_bits(count: int, *key: ArrayLike) -> NDArray[np.uint64]:
    """Draw 64 random bits at a time by SplitMix64: a counter-based generator, so every key has its own numbers.

    Args:
        count: numbers for each key.
        key: non-negative integers or arrays of n of them, broadcast against each other: the key of each row.

    Returns:
        uint64 (n, count).
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = mixed_bits(state ^ mixed_bits(np.atleast_1d(np.asarray(part, np.uint64)) + _GAMMA))
    return mixed_bits(state[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))


def mixed_bits(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64 bits: a bijection whose every output bit depends on every input bit."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MULTIPLIERS[0]
    bits = (bits ^ (bits >> np.uint64(27))) * _MULTIPLIERS[1]
    return bits ^ (bits >> np.uint64(31))
