"""Images to predictions, from a bundle alone: many at once on all cores, or one."""

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headstart.core.errors import UserError
from headstart.images.decode import BadImageError, decode, to_upright_rgb
from headstart.images.files import ImageFile, read_file, utf8_name
from headstart.images.preprocess import Preprocessing
from headstart.inference.bundle import ONNX, Bundle, open_bundle
from headstart.inference.onnx_runtime import InferenceFn, cuda_available, open_session
from headstart.inference.postprocess import Postprocessor, Prediction

BATCH = 16
"""Images that a thread decodes and gives to the model together: more was no faster, and takes more memory."""
BATCH_BYTES = 64 * 2**20
"""What they may take as the model's input: of large images there are fewer in a batch."""

ImageInput = str | os.PathLike[str] | bytes | Image.Image | ImageFile
"""An image: the path of a file, a file's content, Pillow's image of it, or what was found in a folder."""


class Predictor:
    """A bundle's model, ready to say what is on images.

    Many threads may use one predictor at once: nothing in it changes after it was made.

    Example:
        >>> prediction = Predictor("export")("cat.jpg")
        >>> prediction.label, prediction.probability, prediction.set, prediction.distance
        ('cat', 0.98, ['cat'], 0.12)

    Attributes:
        bundle: what it was made from.
        preprocessing: how an image becomes the model's input.
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
        top: int = 5,
        threads: int | None = None,
    ) -> None:
        """Check the bundle and load its model.

        Args:
            folder: the bundle.
            device: ``cpu``, ``cuda`` (by onnxruntime-gpu or else torch), or ``torch`` (torch on the CPU).
            model: the bundle's ONNX file to run.
            calibrated: give probabilities after the bundle's temperature; conformal sets stay as they were measured.
            conformal: level of the sets of classes, one that the bundle has; None takes its first, if any.
            conformal_method: ``LAC`` or ``APS``; None takes the first that the bundle has of that level.
            top: how many of the likeliest classes ``Prediction.top`` lists.
            threads: that decode and compute; None is one for each core that this process may use.

        Raises:
            UserError: the bundle is refused, or has no such level, temperature or file.
        """
        self.bundle: Bundle = open_bundle(Path(folder))
        self.preprocessing = Preprocessing.of(self.bundle.config.input)
        self._threads = cores() if threads is None else threads
        if self._threads < 1:
            raise UserError(f"threads must be at least 1, not {threads}")
        self._judge = Postprocessor.of(self.bundle, calibrated, conformal, conformal_method, top)
        self._run = _runtime(self.bundle, model, device, self._threads)

    def __call__(self, image: ImageInput) -> Prediction:
        """Predict one image.

        Raises:
            BadImageError: it can't be read, or is no usable image.
            UserError: the model can't be run.
        """
        (found,) = self.predict(self.prepare(image)[None])
        if found.error:
            raise BadImageError(found.error)
        return replace(found, image=_name(image))

    def many(self, pictures: Iterable[ImageInput]) -> Iterator[Prediction]:
        """Predict images one after the other as they come, on all threads, in their order.

        An image that can't be read is a prediction with its ``error``. However many there are, only a few batches are
        in memory.

        Raises:
            UserError: the model can't be run.
        """
        left = iter(pictures)
        most = BATCH_BYTES // (12 * self.preprocessing.height * self.preprocessing.width)
        # The first batch is of one image, so that the first answer comes at once.
        batches = itertools.chain([1], itertools.repeat(max(1, min(BATCH, most))))
        waiting: deque[Future[list[Prediction]]] = deque()
        pool = ThreadPoolExecutor(self._threads, "predict")
        try:
            for size in batches:
                batch = list(itertools.islice(left, size))
                if batch:
                    waiting.append(pool.submit(self._batch, batch))
                while waiting and (not batch or len(waiting) > 2 * self._threads or waiting[0].done()):
                    yield from waiting.popleft().result()
                if not batch:
                    return
        finally:
            pool.shutdown(cancel_futures=True)

    def prepare(self, image: ImageInput) -> NDArray[np.float32]:
        """Read an image and make it the model's input, float32 (3, height, width); raises BadImageError."""
        if isinstance(image, ImageFile):
            if image.problem:
                raise BadImageError(image.problem)
            image = image.path
        if isinstance(image, Image.Image):
            return self.preprocessing(to_upright_rgb(image))
        content = image if isinstance(image, bytes) else read_file(Path(image))
        return self.preprocessing(decode(content))

    def predict(self, inputs: NDArray[np.float32]) -> list[Prediction]:
        """Run the model on prepared images, float32 (n, 3, height, width), and judge what it gives.

        Where its outputs are no finite numbers, a prediction has an ``error``.

        Raises:
            UserError: the model can't be run.
        """
        return self._judge(*self._run(inputs))

    def _batch(self, pictures: list[ImageInput]) -> list[Prediction]:
        inputs, problems = [], {}
        for i, image in enumerate(pictures):
            try:
                inputs.append(self.prepare(image))
            except BadImageError as error:
                problems[i] = str(error)
            except MemoryError:
                problems[i] = "there is not the memory to decode it"
        good = iter(self.predict(np.stack(inputs)) if inputs else [])
        return [
            Prediction(_name(image), error=problems[i]) if i in problems else replace(next(good), image=_name(image))
            for i, image in enumerate(pictures)
        ]


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


def _name(image: ImageInput) -> str:
    if isinstance(image, bytes | Image.Image):
        return ""
    return utf8_name(os.fspath(image.path if isinstance(image, ImageFile) else image))
