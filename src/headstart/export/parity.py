"""The parity check: an exported format computes what the trained model computes, on real images, or is not written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

from headstart.config.schema import ExportConfig, RoundedConfig, RunConfig
from headstart.core.errors import UserError
from headstart.data.dataset import SPLITS, PreparedDataset, evenly, read_values
from headstart.data.image_info import SourceContent, content_sha256, to_image, to_pixels
from headstart.data.loader import Normalize, evaluation_pixels
from headstart.data.manifest import manifest_rows, sources_and_splits
from headstart.data.source_item import Source
from headstart.data.transforms import evaluation_transform
from headstart.distributed.process_group import ProcessGroup
from headstart.export.formats import ModelFunction
from headstart.features.extract import run_inference
from headstart.images.bands import Bands
from headstart.images.decode import UNLIMITED, BadImageError
from headstart.images.preprocess import Preprocessing
from headstart.models.backbone import features_of, get_head
from headstart.targets.target import Target, Values

PARITY_BATCH = 32

_Outputs = tuple[NDArray[np.float32], NDArray[np.float32], float]
"""Logits, (n, outputs); features, (n, width); the mean loss."""


@dataclass(frozen=True)
class _Difference:
    """The difference between a format's outputs and the trained model's."""

    logits: NDArray[np.float32]  # the largest of each image's logits, (n,)
    features: NDArray[np.float32]  # of each image, its norm as a fraction of the trained model's norm, (n,)
    agreement: NDArray[np.float64]  # ``Target.agreement``, such as whether the top class is the same, (n,)
    nll: float  # of ``Target.nll`` of the mean losses

    def violations(self, bound: float | RoundedConfig) -> NDArray[np.bool_]:
        """Return the images that violate a bound, bool (n,); NaN violates every bound.

        The bounds of a format that rounds hold for all images together; where one is violated, these are the images
        whose answer differs, or else those with the largest difference.
        """
        if not isinstance(bound, RoundedConfig):
            return ~((self.logits <= bound) & (self.features <= bound))
        if not np.isfinite(self.features).all():
            return ~np.isfinite(self.features)
        if self.agreement.mean() >= bound.agreement and self.nll <= bound.nll:
            return np.zeros(len(self.agreement), bool)
        differs = np.asarray(self.agreement < 1)
        return differs if differs.any() else ~(self.logits < self.logits.max())


class ParityChecker:
    """Compares formats with the trained model: on validation images, one at a time and in batches, and on noise.

    All run on the CPU, and so with the same arithmetic. ``rows`` are those of the images, int64 (n,).
    """

    def __init__(
        self,
        trained: nn.Module,
        target: Target,
        prepared: PreparedDataset,
        export: ExportConfig,
        run: RunConfig,
        *,
        fitted: Mapping[str, Any],
    ) -> None:
        """Compute the outputs of the trained model, in evaluation mode, on the CPU; they are the target's.

        ``fitted`` is what answers depend on beside the outputs.
        """
        self._target, self._fitted = target, fitted
        self._prepared, self._export, self._run = prepared, export, run
        self.rows, self._values = comparison_images(prepared, export.pictures)
        self._width = get_head(trained).in_features
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(PARITY_BATCH, *prepared.input["input_size"], generator=generator)

        def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
            return trained(pixels), features_of(trained, pixels)  # its own forward pass, as in training

        self._trained = self._outputs(forward, PARITY_BATCH, "trained")
        self._trained_on_noise = self._logits_of_noise(forward)

    def check(self, name: str, function: ModelFunction) -> dict[str, float]:
        """Compare a format, loaded from its file, with the trained model.

        The bounds are those of params: formats whose name ends in ``_fp16`` and ``_int8`` round, and have their own.

        Returns:
            The largest over all images and batch sizes: ``max_difference`` and ``noise_difference`` of the logits,
            ``features_difference`` as a fraction of their norm, ``nll_difference``, of ``Target.nll``; the smallest
            ``top1_agreement``, the mean of ``Target.agreement``.

        Raises:
            UserError: a difference is beyond its bound or NaN; the message names the first such image.
        """
        key = name.rpartition("_")[2]
        if key not in ("fp16", "int8"):
            key = "tolerance"
        bound: float | RoundedConfig = getattr(self._export, key)
        noise = float(np.abs(self._logits_of_noise(function) - self._trained_on_noise).max())
        if not noise <= (np.finfo(np.float32).max if isinstance(bound, RoundedConfig) else bound):
            raise UserError(f"export: {name}: logits of random input differ by {noise:.3g} from the trained model's")
        differences = []
        for batch_size in (1, PARITY_BATCH):
            difference = self._difference(self._outputs(function, batch_size, name))
            differences.append(difference)
            wrong = np.flatnonzero(difference.violations(bound))
            if len(wrong):
                first = wrong[0]
                row = int(self.rows[first])
                source, _ = sources_and_splits([row], self._prepared.folder)[row]
                raise UserError(
                    f"export: {name}, batch {batch_size}: the outputs are beyond export.{key}: "
                    f"{self._target.agreement_title} on {difference.agreement.mean():.2%} of {len(self.rows)} images, "
                    "the loss differs by "
                    f"{difference.nll:.3g} nats. Of {len(wrong)} images that differ the first is {source}: its "
                    f"logits by {difference.logits[first]:.3g}, its features by {difference.features[first]:.2%}"
                )
        return {
            "max_difference": max(float(each.logits.max()) for each in differences),
            "noise_difference": noise,
            "features_difference": max(float(each.features.max()) for each in differences),
            "top1_agreement": min(float(each.agreement.mean()) for each in differences),
            "nll_difference": max(each.nll for each in differences),
        }

    def _difference(self, exported: _Outputs) -> _Difference:
        (logits, features, nll), (trained_logits, trained_features, trained_nll) = exported, self._trained
        norms = np.maximum(np.linalg.norm(trained_features, axis=1), np.finfo(np.float32).tiny)
        return _Difference(
            np.abs(logits - trained_logits).max(axis=1),
            np.asarray(np.linalg.norm(features - trained_features, axis=1) / norms, np.float32),
            self._target.agreement(trained_logits, logits, self._values, self._fitted),
            abs(self._target.nll(nll) - self._target.nll(trained_nll)),
        )

    def _outputs(self, function: ModelFunction, batch_size: int, name: str) -> _Outputs:
        batches = run_inference(
            lambda pixels: torch.cat(function(pixels), dim=1),
            self._prepared,
            self.rows,
            batch_size=batch_size,
            run=self._run,
            process_group=ProcessGroup(),
            label=f"export, {name}, batch {batch_size}",
        )
        logits, features = np.split(np.concatenate(list(batches)), [-self._width], axis=1)
        losses = self._target.losses(logits.astype(np.float64), self._values)
        return logits, features, float(losses.mean())

    @torch.inference_mode()
    def _logits_of_noise(self, function: ModelFunction) -> NDArray[np.float32]:
        return function(self._noise)[0].numpy()


def comparison_images(prepared: PreparedDataset, count: int) -> tuple[NDArray[np.int64], Values]:
    """Choose images evenly over validation, and so of all classes; over train where there is no validation.

    Returns their row numbers, int64 (at most ``count``,), and their values.
    """
    rows, values = prepared.rows("validation"), read_values("validation", prepared.folder)
    if not len(rows):
        rows, values = prepared.rows("train"), read_values("train", prepared.folder)
    return evenly(rows, count), evenly(values, count)


PIXEL_TOLERANCE = 1e-5
"""Of a normalised pixel: float32 rounds, and neighbouring levels of the 256 are at least 1e-3 apart."""


def compare_preprocessing(source: Source, prepared: PreparedDataset, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Preprocess images, from the bytes of their files on, in every way that the project has, and compare.

    Returns:
        ``pictures``, and the largest difference of a normalised pixel from timm's own transform: of ``ours``, the
        stages' resize, crop and normalisation; of ``predict``; and of ``stored``, None where JPEGs or larger training
        images are stored, which are not quite the same.

    Raises:
        UserError: an image differs by more than ``PIXEL_TOLERANCE``, or its file was changed; the message names it.
    """
    exact = prepared.spec["store"] == "raw" and bool((prepared.splits[rows] != SPLITS.index("train")).all())
    ways = _ways_of_rgb(prepared) if prepared.bands is None else _ways_of_bands(prepared, prepared.bands)
    normalize, compared = Normalize(prepared.input), set(rows.tolist())
    largest: dict[str, float] = dict.fromkeys(("ours", "predict", *(["stored"] if exact else [])), 0.0)
    for row, entry in enumerate(manifest_rows(prepared.folder)):
        if row not in compared:
            continue
        expected, inputs = ways(_unchanged_content(source, entry))
        if exact:
            inputs["stored"] = normalize(evaluation_pixels(prepared, np.array([row])))[0].numpy()
        for way, each in inputs.items():
            difference = float(np.abs(each - expected).max())
            if not difference <= PIXEL_TOLERANCE:
                raise UserError(
                    f"export: {entry['source']} comes out otherwise as {way} than by timm's own transform: a "
                    f"normalised pixel differs by {difference:.3g}. Nothing was exported"
                )
            largest[way] = max(largest[way], difference)
    return {"pictures": len(rows), "stored": None, **largest}


Ways = Callable[[SourceContent], tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]]
"""From what a source returns to the model's input: as it must come out, and by each way that the project has."""


def _ways_of_rgb(prepared: PreparedDataset) -> Ways:
    timms = create_transform(**prepared.input, is_training=False)
    normalize, predicts = Normalize(prepared.input), Preprocessing.of(prepared.input)
    resize, crop = evaluation_transform(prepared.input)

    def ways(content: SourceContent) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        image = to_image(content, UNLIMITED)
        ours = normalize(crop(pil_to_tensor(resize(image))).permute(1, 2, 0)[None])[0].numpy()
        return timms(image).numpy(), {"ours": ours, "predict": predicts(image)}

    return ways


def _ways_of_bands(prepared: PreparedDataset, bands: Bands) -> Ways:
    """Compare with the definition, written out in float64: timm has no transform for such images."""
    predicts, normalize = Preprocessing.of(prepared.input), Normalize(prepared.input)
    low, high, mean, std = (np.array(each) for each in (bands.low, bands.high, bands.mean, bands.std))

    def ways(content: SourceContent) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        pixels, _ = to_pixels(content, bands.layout, UNLIMITED)
        cropped = predicts.crop(predicts.resized(pixels))
        scaled = (np.clip(cropped.astype(np.float64), low, high) - low) / (high - low)
        expected = ((scaled - mean) / std).transpose(2, 0, 1).astype(np.float32)
        ours = normalize(torch.from_numpy(cropped.astype(np.float32))[None])[0].numpy()
        return expected, {"ours": ours, "predict": predicts(pixels)}

    return ways


def _unchanged_content(source: Source, entry: dict[str, str]) -> SourceContent:
    """Read an image from its source; raises UserError where it is another than the one that was prepared."""
    try:
        content: SourceContent = source.read(entry["source"])
    except BadImageError as error:
        raise UserError(f"export: {entry['source']} can't be read any more: {error}. Run `dvc repro`") from error
    if content_sha256(content) != entry["sha256"]:
        raise UserError(f"export: {entry['source']} was changed since it was prepared: run `dvc repro`")
    return content
