import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torchvision.transforms import RandomResizedCrop, v2

from headstart.training.augment import DRAWS, MIX_DRAWS, Augment, crop_boxes, mix, torchvision_transforms, uniform

SCALE, RATIO, MEAN = (0.2, 0.8), (0.6, 1.5), (0.5, 0.4, 0.3)


def draws(count: int) -> NDArray[np.float64]:
    return uniform(DRAWS, 0, 0, np.arange(count))


def boxes(height: int, width: int, count: int) -> NDArray[np.int64]:
    return crop_boxes(np.array([[height, width]] * count), draws(count), SCALE, RATIO)


def random_image(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(40, 64), (33, 33), (100, 30), (1, 1), (2, 9)])
def test_the_box_is_inside_the_image(height: int, width: int) -> None:
    top, left, h, w = boxes(height, width, 300).T
    assert ((top >= 0) & (left >= 0) & (h > 0) & (w > 0) & (top + h <= height) & (left + w <= width)).all()


def test_images_of_different_sizes_have_the_boxes_that_each_has_alone() -> None:
    sizes = np.array([[40, 64], [100, 10], [33, 33]])
    together = crop_boxes(sizes, draws(3), SCALE, RATIO)
    alone = [crop_boxes(sizes[i : i + 1], draws(3)[i : i + 1], SCALE, RATIO)[0] for i in range(3)]
    assert together.tolist() == np.array(alone).tolist()


def test_area_and_ratio_are_in_their_ranges_within_rounding_and_reach_their_ends() -> None:
    height, width = 60, 70
    top, left, h, w = boxes(height, width, 2000).T
    assert ((h + 0.5) * (w + 0.5) >= SCALE[0] * height * width).all()
    assert ((h - 0.5) * (w - 0.5) <= SCALE[1] * height * width).all()
    assert ((w + 0.5) / (h - 0.5) >= RATIO[0]).all()
    assert ((w - 0.5) / (h + 0.5) <= RATIO[1]).all()
    fraction, ratio = h * w / (height * width), w / h
    assert fraction.min() < 0.25
    assert fraction.max() > 0.75
    assert ratio.min() < 0.65
    assert ratio.max() > 1.4
    assert {0} < set(top)
    assert (top + h).max() == height
    assert (left + w).max() == width


def test_boxes_are_distributed_as_torchvisions() -> None:
    height, width, count = 40, 64, 4000
    ours = boxes(height, width, count).astype(np.float64)
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
    every_attempt_is_too_tall = np.zeros((1, DRAWS))
    box = tuple(crop_boxes(np.array([[height, width]]), every_attempt_is_too_tall, scale, ratio)[0])
    if height != 31:
        assert box == tuple(theirs)
    assert box == {(10, 100): (0, 43, 10, 13), (100, 10): (43, 0, 13, 10)}.get((height, width), (0, 0, height, width))


TRANSFORMS = {
    "none": None,
    "randaugment": torchvision_transforms("randaugment", None, 0.0, MEAN),
    "trivialaugment": torchvision_transforms("trivialaugment", None, 0.0, MEAN),
    "jitter": torchvision_transforms("none", [0.4, 0.4, 0.4, 0.1], 0.0, MEAN),
    "erasing": torchvision_transforms("none", None, 1.0, MEAN),
}


@pytest.mark.parametrize("transforms", TRANSFORMS)
def test_an_image_is_a_pure_function_of_its_draws(transforms: str) -> None:
    augment = Augment((16, 24), SCALE, RATIO, 0.5, 0.5, "bicubic", TRANSFORMS[transforms])
    images = [random_image(40, 64, seed) for seed in range(12)]
    kept = [each.copy() for each in images]
    for each in images:
        each.setflags(write=False)
    rows = draws(12)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        made = augment(images, rows)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)  # neither the global generator matters, nor the order, nor the company
        backwards = augment(images[::-1], rows[::-1])
        alone = augment(images[5:6], rows[5:6])
    assert (made.shape, made.dtype) == ((12, 16, 24, 3), torch.uint8)
    assert torch.equal(backwards.flip(0), made)
    assert torch.equal(alone[0], made[5])
    others = augment(images, draws(24)[12:])
    assert not (others == made).flatten(1).all(1).any()
    assert all(np.array_equal(*pair) for pair in zip(images, kept, strict=True))
    plain = Augment((16, 24), SCALE, RATIO, 0.5, 0.5, "bicubic")(images, rows)
    assert torch.equal(plain, made) == (transforms == "none")


def test_the_seed_alone_changes_what_torchvision_draws() -> None:
    augment = Augment((16, 16), SCALE, RATIO, 0.0, 0.0, "bicubic", TRANSFORMS["jitter"])
    rows = np.repeat(draws(1), 2, axis=0)
    rows[1, -2] = 0.123
    one, other = augment([random_image(40, 64)] * 2, rows)
    assert not torch.equal(one, other)


def test_what_is_erased_has_the_mean_colour() -> None:
    whole = Augment((32, 32), (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "bicubic", TRANSFORMS["erasing"])
    black = np.zeros((32, 32, 3), np.uint8)
    (made,) = whole([black], draws(1)).numpy()
    erased = made.any(axis=-1)
    assert 0.02 <= erased.mean() <= 0.34
    assert (made[erased] == np.rint(255 * np.array(MEAN))).all()


@pytest.mark.parametrize(("flip", "axis"), [(0, 2), (1, 1)])
def test_a_flip_is_exact_and_as_probable_as_asked(flip: int, axis: int) -> None:
    def made(probability: float, row: NDArray[np.float64]) -> torch.Tensor:
        hflip, vflip = (probability * (kind == flip) for kind in (0, 1))
        return Augment((16, 24), SCALE, RATIO, hflip, vflip, "bilinear")([random_image(40, 64)], row)

    row = draws(1)
    straight, flipped = made(0.0, row), made(1.0, row)
    assert not torch.equal(straight, flipped)
    assert torch.equal(flipped, straight.flip(axis))
    for drawn, expected in ((0.0, flipped), (0.49, flipped), (0.5, straight), (0.99, straight)):
        row[0, flip - 4] = drawn
        assert torch.equal(made(0.5, row), expected)


def test_a_quarter_turn_goes_to_the_left_or_to_the_right_as_probably_as_asked() -> None:
    row = draws(1)

    def made(drawn: float) -> torch.Tensor:
        row[0, -1] = drawn
        augment = Augment((16, 16), SCALE, RATIO, 0.0, 0.0, "bilinear", quarter_turn=0.5)
        return augment([random_image(40, 64)], row)[0]

    straight = made(0.5)
    assert torch.equal(made(0.99), straight)
    for drawn, turns in ((0.0, 1), (0.24, 1), (0.25, -1), (0.49, -1)):
        assert torch.equal(made(drawn), straight.rot90(turns, (0, 1)))


def test_both_flips_are_a_half_turn() -> None:
    turned, straight = (
        Augment((16, 16), SCALE, RATIO, p, p, "bilinear")([random_image(40, 64)], draws(1))[0] for p in (1.0, 0.0)
    )
    assert torch.equal(turned, straight.flip(0, 1))


def test_the_resize_is_torchvisions() -> None:
    pixels, row = random_image(50, 70), draws(1)
    ((top, left, h, w),) = crop_boxes(np.array([[50, 70]]), row, SCALE, RATIO)
    crop = torch.from_numpy(pixels).permute(2, 0, 1)
    for name, mode in (("bicubic", "bicubic"), ("bilinear", "bilinear"), ("lanczos", "bicubic")):
        made = Augment((24, 20), SCALE, RATIO, 0.0, 0.0, name)([pixels], row)[0].permute(2, 0, 1)
        theirs = v2.functional.resized_crop(crop, top, left, h, w, [24, 20], v2.InterpolationMode(mode), antialias=True)
        # torch's kernels for the two memory layouts round differently.
        assert (made.int() - theirs.int()).abs().max() <= 1


def test_the_whole_image_at_its_own_size_is_unchanged() -> None:
    pixels = random_image(20, 20)
    whole = Augment((20, 20), (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "bicubic")
    assert np.array_equal(whole([pixels], draws(1))[0].numpy(), pixels)


def images_and_partners(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """White images and black partners: what shows is the fraction."""
    return torch.full((count, 32, 32, 3), 255, dtype=torch.uint8), torch.zeros(count, 32, 32, 3, dtype=torch.uint8)


def test_mixup_blends_by_a_beta_distributed_fraction() -> None:
    mixed, fractions = mix(*images_and_partners(2000), uniform(MIX_DRAWS, 0, np.arange(2000)), mixup=0.4, cutmix=0.0)
    assert torch.equal(mixed[:, 0, 0, 0], (255 * fractions).round().to(torch.uint8))
    assert (mixed == mixed[:, :1, :1, :1]).all()
    assert stats.kstest(fractions.numpy(), stats.beta(0.4, 0.4).cdf).pvalue > 0.01


def test_cutmix_shows_a_box_of_the_partner_and_counts_what_shows() -> None:
    rows = uniform(MIX_DRAWS, 0, np.arange(500))
    mixed, fractions = mix(*images_and_partners(500), rows, mixup=0.0, cutmix=1.0)
    shown = mixed[..., 0] == 255
    assert set(mixed.flatten().tolist()) == {0, 255}
    assert torch.equal(fractions, shown.float().mean(dim=(1, 2)))
    hidden = ~shown
    height, width = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(height * width, hidden.sum(dim=(1, 2)))  # a rectangle without holes
    # A box that lies inside has the area that was drawn, uniform for α = 1, but for the rounding to pixels.
    half = np.sqrt(1 - rows[:, 1]) / 2
    inside = (np.abs(rows[:, 2:] - 0.5).max(axis=1) + half) < 0.5
    assert inside.sum() > 30
    np.testing.assert_allclose(fractions[inside], rows[inside, 1], atol=0.04)


def test_each_mixture_follows_from_its_own_draws_and_both_kinds_come_by_halves() -> None:
    rows = uniform(MIX_DRAWS, 0, np.arange(400))
    images, partners = images_and_partners(400)
    mixed, fractions = mix(images, partners, rows, mixup=0.4, cutmix=1.0)
    alone, fraction = mix(images[7:8], partners[7:8], rows[7:8], mixup=0.4, cutmix=1.0)
    assert torch.equal(alone[0], mixed[7])
    assert fraction[0] == fractions[7]
    cut = rows[:, 0] < 0.5
    assert 150 < cut.sum() < 250
    for part, settings in ((cut, {"mixup": 0.0, "cutmix": 1.0}), (~cut, {"mixup": 0.4, "cutmix": 0.0})):
        chosen = torch.from_numpy(np.flatnonzero(part))
        only, _ = mix(images[chosen], partners[chosen], rows[part], **settings)
        assert torch.equal(only, mixed[chosen])
