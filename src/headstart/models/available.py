"""The backbones that can be had here without a network: the bundled one, pip's, and what the hub's cache holds."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import timm
import torch
from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from headstart.core.errors import UserError
from headstart.models import pip_weights
from headstart.models.backbone import BUNDLED, create_backbone, features_of, input_config

WEIGHTS = {"model.safetensors", "pytorch_model.bin"}
BATCH_SIZE = 16
SECONDS = 1.0


class Backbone(NamedTuple):
    """A backbone, as it is wanted in ``backbone.name``.

    Attributes:
        name: its name.
        side: of its input, in pixels.
        parameters: how many it has, without a head.
        accuracy: top-1 on ImageNet as a fraction, where it is known.
        images_per_second: whose features are computed here, measured.
    """

    name: str
    side: int
    parameters: int
    accuracy: float | None
    images_per_second: float


def list_backbones() -> Iterator[Backbone]:
    """Yield the backbones whose weights are here; each is measured for about a second, in evaluation mode."""
    for name in (BUNDLED, *_installed(), *_in_hub_cache()):
        with suppress(UserError):  # a model in the cache that this timm does not have
            yield _measure(name)


def _installed() -> Iterator[str]:
    for architecture in pip_weights.PACKAGES:
        with suppress(UserError):
            pip_weights.find_weights(name := pip_weights.PREFIX + architecture)
            yield name


def _in_hub_cache() -> Iterator[str]:
    """Yield the names of timm's own models, and ``hf-hub:`` names of others that have weights for timm to read."""
    with suppress(CacheNotFound):
        for repository in sorted(scan_cache_dir().repos, key=lambda each: each.repo_id):
            files = {file.file_name for revision in repository.revisions for file in revision.files}
            if repository.repo_type != "model" or "config.json" not in files or not files & WEIGHTS:
                continue
            owner, _, name = repository.repo_id.partition("/")
            yield name if owner == "timm" and timm.is_model(name) else f"hf-hub:{repository.repo_id}"


@torch.inference_mode()
def _measure(name: str) -> Backbone:
    model = create_backbone(name, pretrained=False, image_size=None, args={}, num_classes=1, in_chans=None).eval()
    channels, height, width = input_config(model)["input_size"]
    images = torch.zeros(BATCH_SIZE, channels, height, width).to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    features_of(model, images)
    began, batches = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < SECONDS:
        features_of(model, images)
        batches += 1
    parameters = sum(each.numel() for each in model.parameters())
    published = {pip_weights.PREFIX + name: package.accuracy for name, package in pip_weights.PACKAGES.items()}
    return Backbone(name, height, parameters, published.get(name), BATCH_SIZE * batches / seconds)
