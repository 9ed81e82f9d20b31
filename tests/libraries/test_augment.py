import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop

from headstart.libraries.augment import DRAWS, CropAndFlip, crop_box
from headstart.libraries.randomness import uniform

SCALE, RATIO = (0.2, 0.8), (0.6, 1.5)


def draws(count: int) -> NDArray[np.float64]:
    return uniform(DRAWS, 0, 0, np.arange(count))


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (33, 33), (100, 30), (1, 1), (2, 9)])
def test_the_box_is_inside_the_picture(height: int, width: int) -> None:
    for row in draws(300):
        top, left, h, w = crop_box(height, width, row, SCALE, RATIO)
        assert 0 <= top <= top + h <= height
        assert 0 <= left <= left + w <= width
        assert h > 0
        assert w > 0


def test_area_and_ratio_are_in_their_ranges_within_rounding_and_reach_their_ends() -> None:
    height, width = 60, 70
    boxes = np.array([crop_box(height, width, row, SCALE, RATIO) for row in draws(2000)])
    h, w = boxes[:, 2], boxes[:, 3]
    assert ((h + 0.5) * (w + 0.5) >= SCALE[0] * height * width).all()
    assert ((h - 0.5) * (w - 0.5) <= SCALE[1] * height * width).all()
    assert ((w + 0.5) / (h - 0.5) >= RATIO[0]).all()
    assert ((w - 0.5) / (h + 0.5) <= RATIO[1]).all()
    share, ratio = h * w / (height * width), w / h
    assert share.min() < 0.25
    assert share.max() > 0.75
    assert ratio.min() < 0.65
    assert ratio.max() > 1.4
    assert {0} < set(boxes[:, 0])
    assert (boxes[:, 0] + h).max() == height
    assert (boxes[:, 1] + w).max() == width


def test_boxes_are_distributed_as_torchvisions() -> None:
    height, width, count = 40, 64, 4000
    ours = np.array([crop_box(height, width, row, SCALE, RATIO) for row in draws(count)], np.float64)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)], float)

    def figures(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        top, left, h, w = boxes.T
        return np.stack([h * w / (height * width), np.log(w / h), top, left, top + h, left + w], axis=1)

    one, other = figures(ours), figures(theirs)
    for power in (1, 2):
        difference = (one**power).mean(0) - (other**power).mean(0)
        error = np.sqrt(((one**power).var(0) + (other**power).var(0)) / count)
        assert (np.abs(difference) < 4 * error).all()


@pytest.mark.parametrize(("height", "width"), [(10, 100), (100, 10), (30, 30), (31, 30)])
def test_where_nothing_fits_it_is_the_middle_at_an_allowed_ratio(height: int, width: int) -> None:
    scale, ratio = (1.0, 1.0), (0.75, 4 / 3)
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), list(scale), list(ratio))
    box = crop_box(height, width, np.zeros(DRAWS), scale, ratio)  # every attempt is a tall one that sticks out
    if height != 31:
        assert box == tuple(theirs)
    assert box == {(10, 100): (0, 43, 10, 13), (100, 10): (43, 0, 13, 10)}.get((height, width), (0, 0, height, width))


def test_a_picture_is_a_pure_function_of_its_draws() -> None:
    augment = CropAndFlip((16, 24), SCALE, RATIO, 0.5, "bicubic")
    pixels, first, second = picture(40, 64), *draws(2)
    kept = pixels.copy()
    pixels.setflags(write=False)
    made = augment(pixels, first)
    assert (made.shape, made.dtype) == ((16, 24, 3), torch.uint8)
    assert torch.equal(made, augment(pixels, first))
    assert not torch.equal(made, augment(pixels, second))
    assert np.array_equal(pixels, kept)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  (the global generator must not matter)
        assert torch.equal(made, augment(pixels, first))


def test_a_flip_is_exact_and_as_probable_as_asked() -> None:
    pixels, row = picture(40, 64), draws(1)[0]
    never, always, half = (CropAndFlip((16, 24), SCALE, RATIO, p, "bilinear") for p in (0.0, 1.0, 0.5))
    straight, flipped = never(pixels, row), always(pixels, row)
    assert not torch.equal(straight, flipped)
    assert torch.equal(flipped, straight.flip(1))
    for last, expected in ((0.0, flipped), (0.49, flipped), (0.5, straight), (0.99, straight)):
        row[-1] = last
        assert torch.equal(half(pixels, row), expected)
        assert torch.equal(never(pixels, row), straight)
        assert torch.equal(always(pixels, row), flipped)


def test_the_whole_picture_at_its_own_size_is_unchanged() -> None:
    pixels = picture(20, 20)
    whole = CropAndFlip((20, 20), (1.0, 1.0), (1.0, 1.0), 0.0, "bicubic")
    assert np.array_equal(whole(pixels, draws(1)[0]).numpy(), pixels)
