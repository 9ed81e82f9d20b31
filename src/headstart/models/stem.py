"""The stem of a timm model, its layers that read the image, for other numbers of channels than its weights are for."""

from collections.abc import Sequence
from typing import Any

from timm.data.config import resolve_data_config
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from timm.models import adapt_input_conv, get_model_input_config
from torch import Tensor, nn

from headstart.config.schema import Params
from headstart.core.errors import UserError
from headstart.core.io import read_json
from headstart.core.paths import DATASET

STANDARDIZED = (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame)
"""Convolutions whose weights follow from all of them (NFNets, BiT's ResNets, ViT's hybrids)."""


def stem_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that read the image, as timm has them (``first_conv``): RepVGG has two of them.

    A model in which timm names none has none.
    """
    names = get_model_input_config(model)["first_conv"] or ()
    return [names] if isinstance(names, str) else list(names)


def channels_of(model: nn.Module) -> int:
    """Return the number of channels of a model's images, or of its weights', where it is not yet adapted to them."""
    config: Any = model.pretrained_cfg
    return int((config.get("input_size") or (3,))[0])


def expected_channels(params: Params) -> int:
    """Return how many bands images will have: where that is ``auto`` and none was prepared, as few as params admit."""
    channels, rgb = params.prepare.channels, params.backbone.rgb or ()
    if channels == "auto" and DATASET.exists():
        return int(read_json(DATASET)["input"]["input_size"][0])
    return channels if isinstance(channels, int) else max([3, *rgb])


def check_rgb(rgb: Sequence[int], in_chans: int, own: int) -> None:
    """Check ``backbone.rgb`` for images of ``in_chans`` bands and weights of ``own``; raises UserError."""
    key = f"backbone.rgb: {list(rgb)}"
    if own != 3:
        raise UserError(f"{key}: this model's weights are for {own} channels, not for colours: set it to null")
    if len(set(rgb)) != 3:
        raise UserError(f"{key}: red, green and blue are three bands: name each once")
    if not all(1 <= band <= in_chans for band in rgb):
        bands = "1 band" if in_chans == 1 else f"{in_chans} bands, counted from 1"
        raise UserError(f"{key}: images have {bands}; see prepare.channels")


def copy_weights(source: nn.Module, target: nn.Module, rgb: Sequence[int] | None) -> None:
    """Copy all weights into the same model for other channels.

    With ``rgb``, counted from 1, these channels get the stem's weights and all others 0; without, timm's own adaptation
    spreads them (``adapt_input_conv``: repeated, times 3 / channels; for one channel their sum).

    Raises:
        ValueError: the stem can't be adapted.
    """
    weights, expected = source.state_dict(), target.state_dict()
    own, channels = channels_of(source), channels_of(target)
    for layer in stem_layers(source):
        name = f"{layer}.weight"
        if rgb is not None and isinstance(source.get_submodule(layer), STANDARDIZED):
            raise ValueError("it standardizes its weights, zeros too, so backbone.rgb must be null")
        weights[name] = _spread(weights[name], own, channels, rgb)
        if weights[name].shape != expected[name].shape:
            raise ValueError(f"{name} does not follow the number of channels")
    target.load_state_dict(weights)


def _spread(weight: Tensor, own: int, channels: int, rgb: Sequence[int] | None) -> Tensor:
    """Return a convolution's weight (out, own · n, height, width) for other channels, (out, channels · n, …).

    Where a stem moves n pixels into the channels first (TResNet), those of one pixel stand together (``SpaceToDepth``).
    """
    if weight.ndim != 4 or weight.shape[1] % own:
        raise ValueError("it is no convolution")
    by_pixel = weight.reshape(-1, own, *weight.shape[2:])
    if rgb is None:
        spread: Tensor = adapt_input_conv(channels, by_pixel, base_chans=own)
    else:
        spread = weight.new_zeros(len(by_pixel), channels, *weight.shape[2:])
        spread[:, [band - 1 for band in rgb]] = by_pixel
    return spread.reshape(len(weight), -1, *weight.shape[2:])


def describe_channels(model: nn.Module, in_chans: int, rgb: Sequence[int] | None) -> None:
    """Write into a model's ``pretrained_cfg`` what its images have, as timm reads it: their size, means, deviations.

    The channels of ``rgb`` keep those of the weights, in their places. All others have the average of these, as in
    timm's ``resolve_input_data_config``; it stands for what only the images can tell.

    Raises:
        ValueError: timm names no layer that reads the image, so the model is for its own channels alone (CSATv2).
    """
    if not stem_layers(model):
        raise ValueError("timm can't adapt it")
    config: Any = model.pretrained_cfg
    own: dict[str, Any] = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    for key in ("mean", "std"):
        value = own[key]
        if rgb is not None or len(value) != in_chans:
            spread = [sum(value) / len(value)] * in_chans
            for band, number in zip(rgb or (), value, strict=rgb is not None):
                spread[band - 1] = number
            config[key] = tuple(spread)
    for key in ("input_size", "test_input_size"):
        if config.get(key):
            config[key] = (in_chans, *config[key][1:])
