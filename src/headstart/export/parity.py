"""The gate that every exported format passes: it answers images as the trained model does, or is not written."""

import io
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from headstart.config.schema import ExportConfig, RoundedConfig, RunConfig
from headstart.core.errors import UserError
from headstart.data.dataset import SPLITS, PreparedDataset, evenly, manifest_rows, read_labels
from headstart.data.image_info import LabelledImage, content_sha256
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.sources import Source
from headstart.data.transforms import evaluation_transform
from headstart.distributed.process_group import ProcessGroup
from headstart.export.formats import Function
from headstart.features.extract import run_inference
from headstart.images.decode import BadImageError, decode
from headstart.images.preprocess import Preprocessing
from headstart.models.backbone import features_of, get_head

BATCH = 32


@dataclass(frozen=True)
class _Answers:
    """Logits float32 (n, classes), features float32 (n, width), and the mean loss of the labels."""

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    nll: float


@dataclass(frozen=True)
class _Difference:
    """What an image's answers differ by: the largest of its logits, its features as a share of their norm.

    ``same`` tells whether the top class is the same; all three are (n,). ``nll`` is of all images.
    """

    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    same: NDArray[np.bool_]
    nll: float

    @classmethod
    def between(cls, found: _Answers, trained: _Answers) -> "_Difference":
        scale = np.maximum(np.linalg.norm(trained.features, axis=1), np.finfo(np.float32).tiny)
        return cls(
            np.abs(found.logits - trained.logits).max(axis=1),
            np.asarray(np.linalg.norm(found.features - trained.features, axis=1) / scale, np.float32),
            found.logits.argmax(1) == trained.logits.argmax(1),
            abs(found.nll - trained.nll),
        )

    def beyond(self, bound: float | RoundedConfig) -> NDArray[np.bool_]:
        """Point at the images to look at where the bound is not kept; none where it is. No number keeps no bound."""
        if not isinstance(bound, RoundedConfig):
            return ~((self.logits <= bound) & (self.features <= bound))
        if not np.isfinite(self.features).all():
            return ~np.isfinite(self.features)
        if self.same.mean() >= bound.agreement and self.nll <= bound.nll:
            return np.zeros(len(self.same), bool)
        return ~(self.logits < self.logits.max()) if self.same.all() else ~self.same


class ParityChecker:
    """Compares formats with the trained model: on validation images, one at a time and in batches, and on noise.

    All run on the CPU, so with the same arithmetic.

    Attributes:
        prepared: the images.
        rows: which of them are asked about.
    """

    def __init__(self, trained: nn.Module, prepared: PreparedDataset, export: ExportConfig, run: RunConfig) -> None:
        """Ask the trained model, in evaluation mode: its answers are the measure."""
        self.prepared, self._export, self._run = prepared, export, run
        self.rows, self._labels = comparison_images(prepared, export.pictures)
        self._width = get_head(trained).in_features
        self._noise = torch.randn(BATCH, *prepared.input["input_size"], generator=torch.Generator().manual_seed(0))

        def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
            return trained(pixels), features_of(trained, pixels)  # its own forward pass, as it was trained

        self._answers, self._answers_to_noise = self._ask(forward, BATCH, "trained"), self._ask_noise(forward)

    def check(self, name: str, function: Function) -> dict[str, float]:
        """Compare a format with the trained model.

        Args:
            name: of the format; those that end in ``_fp16`` and ``_int8`` round, and have bounds of their own.
            function: the format as it was written.

        Returns:
            The worst of all: ``max_difference`` and ``noise_difference`` of the logits, ``features_difference`` as a
            share of their norm, ``top1_agreement``, ``nll_difference``.

        Raises:
            UserError: the answers are beyond the bounds, or no numbers; the message names the first image.
        """
        by_name = {"fp16": self._export.fp16, "int8": self._export.int8}
        bound = by_name.get(name.rpartition("_")[2], self._export.tolerance)
        noise = float(np.abs(self._ask_noise(function) - self._answers_to_noise).max())
        if not noise <= (np.finfo(np.float32).max if isinstance(bound, RoundedConfig) else bound):
            raise UserError(
                f"export: {name}: logits of random input differ by {noise:.3g} from the trained model's. "
                "Nothing was exported"
            )
        found = [self._checked(name, function, size, bound) for size in (1, BATCH)]
        return {
            "max_difference": max(float(each.logits.max()) for each in found),
            "noise_difference": noise,
            "features_difference": max(float(each.features.max()) for each in found),
            "top1_agreement": min(float(each.same.mean()) for each in found),
            "nll_difference": max(each.nll for each in found),
        }

    def _checked(self, name: str, function: Function, batch_size: int, bound: float | RoundedConfig) -> _Difference:
        found = _Difference.between(self._ask(function, batch_size, name), self._answers)
        wrong = np.flatnonzero(found.beyond(bound))
        if len(wrong):
            limit = f"export.{name.rpartition('_')[2]}" if isinstance(bound, RoundedConfig) else "export.tolerance"
            first = wrong[0]
            source = _source_of(self.prepared, int(self.rows[first]))
            raise UserError(
                f"export: {name}, batch {batch_size}: the answers are beyond {limit}: the top class is the same on "
                f"{found.same.mean():.2%} of {len(self.rows)} images, the loss differs by {found.nll:.3g}. Of "
                f"{len(wrong)} images that differ the first is {source}: its logits by {found.logits[first]:.3g}, "
                f"its features by {found.features[first]:.2%}. Nothing was exported"
            )
        return found

    @torch.inference_mode()
    def _ask(self, function: Function, batch_size: int, name: str) -> _Answers:
        def both(pixels: Tensor) -> Tensor:
            return torch.cat(function(pixels), dim=1)

        label = f"export, {name}, batch {batch_size}"
        batches = run_inference(
            both,
            self.prepared,
            self.rows,
            batch_size=batch_size,
            run=self._run,
            process_group=ProcessGroup(),
            label=label,
        )
        found = np.concatenate(list(batches))
        logits = found[:, : -self._width]
        losses = -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(logits)), self._labels]
        return _Answers(logits, found[:, -self._width :], float(losses.mean()))

    @torch.inference_mode()
    def _ask_noise(self, function: Function) -> NDArray[np.float32]:
        return function(self._noise)[0].numpy()


def comparison_images(prepared: PreparedDataset, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose images evenly over validation, which meets all classes; over train where there is no validation.

    Returns:
        Their row numbers and their class numbers, int64 (at most ``count``,).
    """
    rows, labels = prepared.rows("validation"), read_labels("validation", prepared.folder)
    if not len(rows):
        rows, labels = prepared.rows("train"), read_labels("train", prepared.folder)
    return evenly(rows, count), evenly(labels, count)


def _source_of(prepared: PreparedDataset, row: int) -> str:
    """Name an image as its source does."""
    return next(itertools.islice(manifest_rows(prepared.folder), row, None))["source"]


TOLERANCE = 1e-5
"""Of a normalised pixel: float32 rounds, and no level of 255 is nearer than 1e-3."""


def compare_preparation(source: Source, prepared: PreparedDataset, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Prepare images from their files' bytes in every way, and compare.

    Args:
        source: of the images.
        prepared: the same images as ``prepare`` stored them.
        rows: which of them.

    Returns:
        ``pictures``, and the largest difference of a normalised pixel from timm's own transform: of ``ours``, the
        stages' resize, crop and normalisation; of ``predict``; and of ``stored``, None where JPEGs or larger training
        images are stored, which are not quite the same.

    Raises:
        UserError: an image differs by more than ``TOLERANCE``, or is no longer what it was; the message names it.
    """
    exact = prepared.store == "raw" and bool((prepared.splits[rows] != SPLITS.index("train")).all())
    timms = create_transform(**prepared.input, is_training=False)
    normalize, predicts = Normalize(prepared.input), Preprocessing.of(prepared.input)
    resize, crop = evaluation_transform(prepared.input)
    wanted = set(rows.tolist())
    worst: dict[str, float] = dict.fromkeys(("ours", "predict", *(["stored"] if exact else [])), 0.0)
    for row, told in enumerate(manifest_rows(prepared.folder)):
        if row not in wanted:
            continue
        picture = decode(_bytes(source, told))
        expected = timms(picture).numpy()
        pixels = {"ours": crop(pil_to_tensor(resize(picture))).permute(1, 2, 0)[None]}
        if exact:
            pixels["stored"] = evaluation_pixels(prepared, np.array([row]))
        found = {name: normalize(each)[0].numpy() for name, each in pixels.items()} | {"predict": predicts(picture)}
        for name, each in found.items():
            difference = float(np.abs(each - expected).max())
            if not difference <= TOLERANCE:
                raise UserError(
                    f"export: {told['source']} comes out otherwise as {name} than by timm's own transform: a "
                    f"normalised pixel differs by {difference:.3g}. Nothing was exported"
                )
            worst[name] = max(worst[name], difference)
    return {"pictures": len(rows), "stored": None, **worst}


def _bytes(source: Source, told: dict[str, str]) -> bytes:
    """Read an image's file, or make one of what stands in for it; raises UserError where it is not as it was."""
    try:
        content = source.read(told["source"])
    except BadImageError as error:
        raise UserError(f"export: {told['source']} can't be read any more: {error}. Run `dvc repro`") from error
    if content_sha256(content).hex() != told["sha256"]:
        raise UserError(f"export: {told['source']} was changed since it was prepared: run `dvc repro`")
    if not isinstance(content, LabelledImage):
        return content
    file = io.BytesIO()
    content.image.save(file, "PNG")
    return file.getvalue()
