"""Images to predictions, by a bundle alone: one image, or many on all cores."""

import io
import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from headstart.core.errors import UserError, first_line
from headstart.images.arrays import read_array
from headstart.images.decode import MAX_ASPECT_RATIO, BadImageError, ImageLimits, decode, to_upright_rgb
from headstart.images.files import ImageFile, read_file, utf8_name
from headstart.images.preprocess import Preprocessing
from headstart.inference.bundle import ONNX, Bundle, open_bundle
from headstart.inference.onnx_runtime import InferenceFn, cuda_available, open_session
from headstart.inference.postprocess import Postprocessor, Prediction

BATCH_SIZE = 16
"""Images that a thread decodes and runs the model on together: more was no faster, and takes more memory."""
BATCH_BYTES = 64 * 2**20
"""Of a batch as the model's input: with large inputs a batch has fewer images."""

FileInput = str | os.PathLike[str] | bytes
"""A file: its path, or its content."""
InMemory = Image.Image | NDArray[Any]
ImageInput = FileInput | Sequence[FileInput] | InMemory | ImageFile
"""An image: a file, a list of the files with its bands, Pillow's image, pixels (height, width, bands), or an entry of
``find_images``."""


class Predictor:
    """A bundle's model, ready to predict.

    Many threads may use one predictor at once: nothing in it changes after it was made.

    Example:
        >>> prediction = Predictor("export")("cat.jpg")
        >>> prediction.label, prediction.probability, prediction.prediction_set, prediction.ood_distance
        ('cat', 0.98, ['cat'], 0.12)

    ``bundle`` has the model's files and config, ``preprocessing`` goes from an image to the model's input.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        device: str = "cpu",
        model: str = ONNX,
        calibrated: bool = False,
        conformal: float | None = None,
        conformal_method: str | None = None,
        top: int | None = None,
        threads: int | None = None,
        max_pixels: int | None = None,
        max_aspect_ratio: float = MAX_ASPECT_RATIO,
        heic: bool = True,
    ) -> None:
        """Check the bundle and load its model.

        Args:
            folder: the bundle.
            device: ``cpu``, ``cuda`` (by onnxruntime-gpu or else torch), or ``torch`` (torch on the CPU).
            model: the bundle's ONNX file to run.
            calibrated: divide the logits by the bundle's temperatures; prediction sets, and which labels are given,
                stay as they were measured. Numbers have no temperature.
            conformal: level of the prediction sets or intervals, one that the bundle has; None takes its first, if any.
            conformal_method: such as ``LAC`` or ``APS``; None takes the first that the bundle has of that level.
            top: how many of the likeliest classes, labels or grades ``Prediction.top`` lists; None: 5. Not of numbers.
            threads: that decode and compute; None is one for each core that this process may use.
            max_pixels: of an image; more are refused. None is Pillow's own limit, 178,956,970.
            max_aspect_ratio: the longest side of an image over the shortest; a narrower one is refused.
            heic: whether HEIC is read, where pillow-heif is installed.

        Raises:
            UserError: the bundle fails a check, or has no such level, temperature, file or likeliest ones.
        """
        self.bundle: Bundle = open_bundle(Path(folder))
        self.preprocessing = Preprocessing.of(self.bundle.config.input)
        self._limits = ImageLimits(max_pixels, max_aspect_ratio, heic)
        self._threads = cores() if threads is None else threads
        if self._threads < 1:
            raise UserError(f"threads must be at least 1, not {threads}")
        self._postprocess = Postprocessor(
            self.bundle, calibrated=calibrated, level=conformal, method=conformal_method, top=top
        )
        self._run = _runtime(self.bundle, model, device, self._threads)

    def __call__(self, image: ImageInput) -> Prediction:
        """Predict one image; raises BadImageError where it is no usable one, UserError where the model can't be run."""
        (prediction,) = self.predict(self.prepare(image)[None])
        if prediction.error:
            raise BadImageError(prediction.error)
        return replace(prediction, image=_name(image))

    def predict_many(self, images: Iterable[ImageInput]) -> Iterator[Prediction]:
        """Predict images on all threads and yield the predictions in the images' order.

        An image that can't be read yields a prediction with its ``error``. However many there are, only a few batches
        are in memory. Raises UserError where the model can't be run.
        """
        remaining = iter(images)
        fitting = BATCH_BYTES // (4 * math.prod(self.bundle.config.input["input_size"]))
        # The first batch is of one image, so that the first answer comes at once.
        batch_sizes = itertools.chain([1], itertools.repeat(max(1, min(BATCH_SIZE, fitting))))
        pending: deque[Future[list[Prediction]]] = deque()
        pool = ThreadPoolExecutor(self._threads, "predict")
        try:
            for size in batch_sizes:
                batch = list(itertools.islice(remaining, size))
                if not batch:
                    break
                pending.append(pool.submit(self._predict_batch, batch))
                while pending and (len(pending) > 2 * self._threads or pending[0].done()):
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    many = predict_many  # its former name

    def prepare(self, image: ImageInput) -> NDArray[np.float32]:
        """Read an image and return it as the model's input, float32 (bands, height, width); raises BadImageError."""
        if isinstance(image, ImageFile):
            if image.problem:
                raise BadImageError(image.problem)
            image = image.bands or image.path
        bands = self.preprocessing.bands
        try:
            if bands is None:
                return self.preprocessing(self._rgb(image))
            return self.preprocessing(read_array(_content(image), bands.layout, self._limits).pixels)
        except MemoryError:
            raise BadImageError("there is not enough memory to decode it") from None

    def _rgb(self, image: FileInput | Sequence[FileInput] | InMemory) -> Image.Image:
        if isinstance(image, str | os.PathLike | bytes):
            return decode(_read(image), self._limits)
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
                what = f"an array of {image.dtype} of shape {image.shape}"
                raise BadImageError(f"{what}: this model sees uint8 of (height, width, 3), or grey (height, width)")
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return to_upright_rgb(image)
        raise BadImageError("several files for one image: this model sees 8-bit RGB of one file")

    def predict(self, inputs: NDArray[np.float32]) -> list[Prediction]:
        """Run the model on prepared images, float32 (n, bands, height, width).

        Where the outputs are no finite numbers, the prediction has an ``error``; raises UserError where none come.
        """
        return self._postprocess(*self._run(inputs))

    def _predict_batch(self, images: list[ImageInput]) -> list[Prediction]:
        inputs: dict[int, NDArray[np.float32]] = {}
        predictions: dict[int, Prediction] = {}
        for i, image in enumerate(images):
            try:
                inputs[i] = self.prepare(image)
            except BadImageError as error:
                predictions[i] = Prediction(error=str(error))
        if inputs:
            predictions |= zip(inputs, self.predict(np.stack(list(inputs.values()))), strict=True)
        return [replace(predictions[i], image=_name(image)) for i, image in enumerate(images)]


def _runtime(bundle: Bundle, model: str, device: str, threads: int) -> InferenceFn:
    if device == "cpu" or (device == "cuda" and cuda_available()):
        return open_session(bundle, model, device=device, threads=threads)
    if device not in ("cuda", "torch"):
        raise UserError(f"device {device!r}: must be cpu, cuda or torch")
    if model != ONNX:
        raise UserError(
            f"{model} needs ONNX Runtime on --device cpu, or onnxruntime-gpu; torch runs the bundle's weights"
        )
    from headstart.inference.torch_runtime import open_torch  # noqa: PLC0415  (predict's base install has no torch)

    return open_torch(bundle, "cuda" if device == "cuda" else "cpu")


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(file: FileInput) -> bytes:
    return file if isinstance(file, bytes) else read_file(Path(file))


def _content(image: FileInput | Sequence[FileInput] | InMemory) -> bytes | list[bytes]:
    """Return a file's content, or those of several files; what is in memory as a file would have it."""
    file = io.BytesIO()
    if isinstance(image, Image.Image):
        try:
            ImageOps.exif_transpose(image).save(file, "TIFF", compression="raw")
        except (OSError, SyntaxError, ValueError) as error:
            raise BadImageError(f"Pillow's image can't be read: {first_line(error)}") from None
    elif isinstance(image, np.ndarray):
        try:
            np.save(file, image, allow_pickle=False)
        except ValueError:
            raise BadImageError("an array of Python objects: give numbers") from None
    elif isinstance(image, str | os.PathLike | bytes):
        return _read(image)
    else:
        return [_read(each) for each in image]
    return file.getvalue()


def _name(image: ImageInput) -> str:
    """Return what a file is called; of several the first."""
    if isinstance(image, ImageFile):
        image = image.path
    if isinstance(image, bytes | Image.Image | np.ndarray):
        return ""
    if isinstance(image, str | os.PathLike):
        return utf8_name(os.fspath(image))
    return _name(image[0]) if image else ""
