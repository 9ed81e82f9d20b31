"""Training on images with bands: each augmentation at each depth is what NumPy computes, and the batches keep it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader

from headstart.config.loader import parse_params
from headstart.core.errors import UserError
from headstart.data.dataset import PreparedDataset
from headstart.data.loader import Normalize, blank_pixels
from headstart.distributed.process_group import ProcessGroup
from headstart.features.changes import CHANGES, changed_features
from headstart.images.bands import DEPTHS, Bands, Depth, Pixels
from headstart.targets.classes import Classes
from headstart.training import autotune
from headstart.training.augment import DRAWS, MIX_DRAWS, Augment, band_transforms, crop_boxes, mix, uniform
from headstart.training.batch_size import room_for_images
from headstart.training.datamodule import Batch, FineTuneDataModule, GlobalBatchSampler
from headstart.training.module import FineTuner
from headstart.training.phases import TrainingPlan, make_plan
from helpers.bands import bands_of, give_bands, random_pixels
from helpers.images import CLASSES, params, write_prepared

SCALE, RATIO, SIZE = (0.2, 0.8), (0.6, 1.5), (20, 20)
CHANGED: dict[str, Any] = {"gain": 0.3, "offset": 0.1, "noise": 0.05, "erasing": 0.7}
OFF = dict.fromkeys(CHANGED, 0.0)
REFUSALS: dict[str, tuple[Any, str]] = {
    "policy": ("randaugment", r"finetune\.augment\.policy is of 8-bit RGB.*set it to none.*gain, offset and noise"),
    "color_jitter": ([0.4, 0.4, 0.4, 0.1], r"finetune\.augment\.color_jitter is of 8-bit RGB.*set it to null"),
    "gain": (0.1, r"finetune\.augment\.gain is of images that keep their own depth \(prepare\.channels\).*to 0"),
    "offset": (0.1, r"finetune\.augment\.offset is of images that keep their own depth"),
    "noise": (0.1, r"finetune\.augment\.noise is of images that keep their own depth"),
}
OF_RGB = ("policy", "color_jitter")


def draws(count: int) -> NDArray[np.float64]:
    return uniform(DRAWS, 0, 0, np.arange(count))


def augment(bands: Bands, interpolation: str = "bicubic", flips: float = 0.5, **changes: float) -> Augment:
    transforms = band_transforms(bands, **{**OFF, **changes})
    return Augment(SIZE, SCALE, RATIO, flips, flips, interpolation, transforms, flips, bands)


def weights(count: int, size: int, interpolation: str) -> NDArray[np.float64]:
    """Return the antialiased filter (size, count) from ``count`` pixels to ``size``; the bicubic is Keys', a = -1/2."""
    stretch = max(count / size, 1.0)
    distance = np.abs((np.arange(count) + 0.5 - (np.arange(size)[:, None] + 0.5) * count / size) / stretch)
    if interpolation == "bilinear":
        filtered = np.maximum(0, 1 - distance)
    else:
        near, far = (1.5 * distance - 2.5) * distance**2 + 1, ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        filtered = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return np.asarray(filtered / filtered.sum(1, keepdims=True))


def written_out(image: Pixels, row: NDArray[np.float64], bands: Bands, mode: str, **changes: float) -> Any:
    """Return what ``augment`` should make of an image but for erasing, float64, one pixel value after the other."""
    ((top, left, height, width),) = crop_boxes(np.array([image.shape[:2]]), row[None], SCALE, RATIO)
    crop = image[top : top + height, left : left + width].astype(np.float64)
    made = np.einsum("yi,xj,ijb->yxb", weights(height, SIZE[0], mode), weights(width, SIZE[1], mode), crop)
    made = made[:, ::-1] if row[-4] < 0.5 else made
    made = made[::-1] if row[-3] < 0.5 else made
    made = np.rot90(made, 1 if row[-1] < 0.25 else -1) if row[-1] < 0.5 else made
    low, high = np.array(bands.low), np.array(bands.high)
    generator = torch.Generator().manual_seed(int(row[-2] * 2**53))
    if any(changes.values()):
        gain, offset = (2 * torch.rand(2, len(low), generator=generator).numpy() - 1).astype(np.float64)
        made = low + (high - low) * ((1 + changes["gain"] * gain) * (made - low) / (high - low))
        made += changes["offset"] * offset * (high - low)
    if changes.get("noise"):
        noise = torch.randn(len(low), *SIZE, generator=generator).numpy()
        made += changes["noise"] * (high - low) * noise.transpose(1, 2, 0)
    return np.clip(made, low, high)


@pytest.mark.parametrize("name", ["none", "gain", "offset", "noise", "all"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 13])
@pytest.mark.parametrize("dtype", DEPTHS)
def test_what_is_made_of_bands_is_what_numpy_computes(dtype: Depth, channels: int, mode: str, name: str) -> None:
    bands, rows = bands_of(dtype, channels), draws(6)
    changes = {key: CHANGED[key] if name in ("all", key) else 0.0 for key in ("gain", "offset", "noise")}
    images = [random_pixels(30 + 9 * i, 61, channels, dtype, i) for i in range(6)]  # larger and smaller than the result
    made = augment(bands, mode, **changes)(images, rows)
    assert (made.dtype, made.shape) == (torch.float32, (6, *SIZE, channels))
    scale = np.subtract(bands.high, bands.low)
    for image, row, got in zip(images, rows, made.numpy(), strict=True):
        np.testing.assert_allclose(got / scale, written_out(image, row, bands, mode, **changes) / scale, atol=5e-6)
    flat = made.flatten(0, 2).numpy()
    # What is clipped occurs; below the low end of a first band the noise has nothing.
    assert channels == 1 or (flat.min(0) == np.array(bands.low, np.float32)).any()
    assert (flat.max(0) == np.array(bands.high, np.float32)).any()


@pytest.mark.parametrize("dtype", DEPTHS)
def test_an_image_with_bands_is_a_pure_function_of_its_draws(dtype: Depth) -> None:
    images, rows = [random_pixels(40, 64, 5, dtype, seed) for seed in range(12)], draws(12)
    for each in images:
        each.setflags(write=False)
    changed = augment(bands_of(dtype, 5), **CHANGED)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        state = torch.get_rng_state()
        made = changed(images, rows)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)  # neither the global generator matters, nor the order, nor the company
        assert torch.equal(changed(images[::-1], rows[::-1]).flip(0), made)
        assert torch.equal(changed(images[5:6], rows[5:6])[0], made[5])
    others = changed(images, draws(24)[12:])
    assert not (others == made).flatten(1).all(1).any()
    rows[:, -2] = draws(24)[12:, -2]
    assert not (changed(images, rows) == made).flatten(1).all(1).any()  # the seed alone decides on the values


def test_bands_stay_apart_and_each_has_its_own_gain_and_offset() -> None:
    bands = bands_of("uint16", 13)
    flat = np.broadcast_to(np.arange(30_000, 43_000, 1000).astype(np.uint16), (40, 64, 13))
    plain = augment(bands)([flat] * 8, draws(8))
    np.testing.assert_allclose(plain, torch.from_numpy(flat[0, 0].astype(np.float32)).expand_as(plain), rtol=1e-6)
    for name in ("gain", "offset"):
        changes: dict[str, Any] = {name: 0.1}
        made = augment(bands, **changes)([flat] * 200, draws(200)).double()
        np.testing.assert_allclose(made, made[:, :1, :1].expand_as(made), rtol=1e-6)  # one for the whole band
        size = torch.tensor(bands.high if name == "offset" else flat[0, 0].astype(np.float64)) - torch.tensor(bands.low)
        change = (made[:, 0, 0] - torch.from_numpy(flat[0, 0].astype(np.float64))) / size
        assert (change.abs() <= 0.1 + 1e-6).all()
        assert (change.amin(0) < -0.09).all()
        assert (change.amax(0) > 0.09).all()
        together = torch.corrcoef(change.T) - torch.eye(13)
        assert together.abs().max() < 0.35  # of 200 independent pairs: 5 standard errors


def test_noise_has_the_deviation_that_was_asked_for_in_every_band() -> None:
    bands = bands_of("float32", 4)
    middle = np.broadcast_to((np.array(bands.low) + bands.high) / 2, (40, 64, 4)).astype(np.float32)
    made = augment(bands, noise=0.05)([middle] * 40, draws(40)).flatten(0, 2).numpy()
    deviation = (made - middle[0, 0]).std(0) / np.subtract(bands.high, bands.low)
    np.testing.assert_allclose(deviation, 0.05, rtol=0.03)  # of 16,000 values: 5 standard errors


@pytest.mark.parametrize("dtype", DEPTHS)
def test_what_is_erased_of_bands_has_their_means(dtype: Depth) -> None:
    bands = bands_of(dtype, 7)
    images, rows = [random_pixels(40, 40, 7, dtype)] * 20, draws(20)
    plain, erased = augment(bands)(images, rows), augment(bands, erasing=1.0)(images, rows)
    low, high, mean = (np.array(each) for each in (bands.low, bands.high, bands.mean))
    fill = torch.tensor(low + mean * (high - low), dtype=torch.float32)
    box = (erased == fill).all(-1)
    assert ((box.float().mean((1, 2)) > 0.01) & (box.float().mean((1, 2)) < 0.4)).all()
    assert torch.equal(erased[~box], plain[~box])


def test_an_edge_does_not_ring_beyond_what_the_model_sees() -> None:
    bands = bands_of("int16", 1)
    edge = np.full((48, 48, 1), -1000, np.int16)
    edge[:, 24:] = 3000
    whole = Augment((64, 64), (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "bicubic", bands=bands)
    made = whole([edge], draws(1))
    assert (made.min().item(), made.max().item()) == (-1000, 3000)
    own_size = Augment((48, 48), (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, "bicubic", bands=bands)
    assert np.array_equal(own_size([edge], draws(1))[0].numpy(), edge)


@pytest.mark.parametrize("kind", [{"mixup": 0.4, "cutmix": 0.0}, {"mixup": 0.0, "cutmix": 1.0}])
def test_a_mixture_of_bands_is_not_rounded_and_is_that_of_the_models_inputs(kind: dict[str, float]) -> None:
    bands = bands_of("float32", 5)
    made = augment(bands)([random_pixels(40, 40, 5, "float32", seed) for seed in range(8)], draws(8))
    images, partners, normalize = (
        made[:4],
        made[4:],
        Normalize({"mean": bands.mean, "std": bands.std, "bands": bands.record()}),
    )
    mixed, fractions = mix(images, partners, uniform(MIX_DRAWS, 0, np.arange(4)), **kind)
    assert mixed.dtype == torch.float32
    if kind["mixup"]:
        shares = fractions[:, None, None, None]
        expected = shares * normalize(images) + (1 - shares) * normalize(partners)
        torch.testing.assert_close(normalize(mixed), expected, rtol=1e-4, atol=1e-4)
    else:
        shows = (mixed == images).all(-1)
        assert torch.equal(mixed[~shows], partners[~shows])
        torch.testing.assert_close(shows.float().mean((1, 2)), fractions)


@pytest.fixture(params=["uint16", "float32"])
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> PreparedDataset:
    monkeypatch.chdir(tmp_path)
    return give_bands(write_prepared(), request.param, 5)


ALL = {"quarter_turn": 0.5, "vflip": 0.5, "mixup": 0.4, "cutmix": 1.0, **CHANGED}


def images_of(
    prepared: PreparedDataset, rank: int = 0, world: int = 1, workers: int = 0, **changes: Any
) -> FineTuneDataModule:
    section = {f"finetune.augment.{name}": value for name, value in changes.items()}
    chosen = params({"finetune.batch_size": 4, "run.workers": workers, **section})
    made = FineTuneDataModule(prepared, chosen.finetune, chosen.run, ProcessGroup(rank, world))
    trainer: Any = SimpleNamespace(accumulate_grad_batches=1)
    made.trainer = trainer
    return made


def epoch_of(loader: DataLoader[Batch]) -> list[Batch]:
    assert isinstance(loader.sampler, GlobalBatchSampler)
    loader.sampler.set_epoch(1)
    return list(loader)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than this machine has cores
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (1, 2), (2, 2)])
def test_batches_of_bands_are_the_same_bytes_whoever_loads_them(
    prepared: PreparedDataset, world: int, workers: int
) -> None:
    whole = epoch_of(images_of(prepared, **ALL).train_dataloader())
    parts = [epoch_of(images_of(prepared, rank, world, workers, **ALL).train_dataloader()) for rank in range(world)]
    assert len(whole) == 3
    for batch, *shares in zip(whole, *parts, strict=True):
        assert (batch.pixels.dtype, batch.pixels.shape) == (torch.float32, (4, 32, 32, 5))
        for name, value in batch._asdict().items():
            assert torch.equal(torch.cat([getattr(share, name) for share in shares]), value)
    module = images_of(prepared)
    assert module.train.image_bytes == whole[0].pixels[0].nbytes == 5 * 32 * 32 * 4


def test_what_bands_can_not_have_is_refused_before_an_image_is_read(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreparedDataset, "pixels", None)  # reading one would fail
    for name in OF_RGB:
        value, message = REFUSALS[name]
        with pytest.raises(UserError, match=message):
            images_of(prepared, **{name: value})
    images_of(prepared, **ALL)


def test_what_rgb_can_not_have_is_refused_before_an_image_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rgb = write_prepared()
    for name in REFUSALS.keys() - OF_RGB:
        value, message = REFUSALS[name]
        with pytest.raises(UserError, match=message):
            images_of(rgb, **{name: value})


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("channels", ["auto", "rgb", 4])
def test_params_that_name_the_channels_are_refused_at_once(name: str, channels: str | int) -> None:
    value, message = REFUSALS[name]
    content = {"prepare": {"channels": channels}, "finetune": {"augment": {name: value}}}
    if channels in ("auto", "rgb" if name in OF_RGB else 4):
        parse_params(content, partial=True)
    else:
        with pytest.raises(UserError, match=message):
            parse_params(content, partial=True)


def small_model(channels: int) -> tuple[nn.Module, TrainingPlan]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model("test_resnet", num_classes=4, in_chans=channels)
    size: Any = {"train_images": 12, "train_bytes": 10**6}
    return model, make_plan(model, params().finetune, target=Classes(CLASSES), **size, pretrained=True)


@pytest.mark.parametrize("prepared", ["uint16"], indirect=True)
def test_blank_batches_are_like_those_that_are_loaded(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is planned and measured with them is of these images."""
    assert prepared.bands is not None
    (batch, *_) = epoch_of(images_of(prepared).train_dataloader())
    model, plan = small_model(5)
    module = FineTuner(model, plan, image_config=prepared.input)
    blank = module.blank_pixels(4)
    assert (blank.dtype, blank.shape) == (batch.pixels.dtype, batch.pixels.shape)
    assert module(blank).shape == module(batch.pixels).shape == (4, 4)
    expected = prepared.bands.normalize(batch.pixels.numpy()).transpose(0, 3, 1, 2)
    torch.testing.assert_close(module.normalize(batch.pixels), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(autotune, "TRIAL_S", 600)  # whatever else the machine does
    one, group = torch.device("cpu"), ProcessGroup()
    assert len(autotune.seconds_a_step(model, prepared.input, one, 2, (False,))) == 1
    assert autotune.affordable_size(model, prepared.input, one, 2, (False,)) == 2
    room = room_for_images(model, prepared.input, plan, group)
    assert room.per_image > 4 * 5 * 32 * 32  # an input at least
    rgb = blank_pixels(2, {"input_size": [3, 8, 6]})
    assert (rgb.dtype, rgb.shape) == (torch.uint8, (2, 8, 6, 3))


def test_flips_and_turns_for_the_probe_are_of_every_band() -> None:
    images = torch.randn(3, 6, 8, 8)
    changed = changed_features(lambda inputs: inputs.flatten(1), [*CHANGES], images).view(3, 3, 6, 8, 8)
    for i, turned in enumerate((images.numpy()[..., ::-1], images.numpy()[:, :, ::-1], np.rot90(images, 1, (2, 3)))):
        assert np.array_equal(changed[:, i], turned)
