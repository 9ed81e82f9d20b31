"""Data sets that libraries bring: scikit-learn's digits, and torchvision's, downloaded, with their official splits."""

import difflib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets

from headstart.ground.errors import UserError
from headstart.libraries.decoding import BadImageError
from headstart.libraries.images import LabelledImage
from headstart.libraries.sources import SPLIT_NAMES, Picture, Source


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grey values 0..16, which become uint8 0..255."""

    in_memory = True

    def __init__(self) -> None:
        """Load them from the installed package."""
        from sklearn.datasets import load_digits  # noqa: PLC0415  (slow to import, and only this source needs it)

        digits = load_digits()
        self._images, self._labels = np.round(digits.images * (255 / 16)).astype(np.uint8), digits.target

    def pictures(self) -> Iterator[Picture]:
        """List the digits, ``digits/0000`` and on."""
        for i, label in enumerate(self._labels):
            yield Picture(f"digits/{i:04d}", str(label))

    def read(self, source: str) -> LabelledImage:
        """Give a digit by its source name."""
        i = int(source.removeprefix("digits/"))
        return LabelledImage(Image.fromarray(self._images[i]), str(self._labels[i]))


class Torchvision(Source):
    """A classification data set of torchvision; a picture's source name is ``NAME/split/number``."""

    def __init__(self, name: str, folder: Path) -> None:
        """Download the data set where it is not in the folder yet.

        Args:
            name: of a class in torchvision.datasets.
            folder: for the downloads of all data sets.

        Raises:
            UserError: no such data set, one that is not for classification, or a download that failed.
        """
        self.name = name
        self._splits = _official_splits(_class_named(name), name, folder)
        some = next(iter(self._splits.values()))
        # CIFAR10 and its like hold all pixels: sending them to worker processes would cost more than the work.
        self.in_memory = isinstance(getattr(some, "data", None), np.ndarray) or hasattr(
            getattr(some, "data", None), "numpy"
        )
        self._names = _class_names(getattr(some, "classes", None))

    def pictures(self) -> Iterator[Picture]:
        """List the pictures, without labels: to ask for one is to decode its picture."""
        for split, dataset in self._splits.items():
            given = SPLIT_NAMES["train" if split == "trainval" else split] if split != "all" else None
            for i in range(len(dataset)):
                yield Picture(f"{self.name}/{split}/{i:07d}", None, given)

    def read(self, source: str) -> LabelledImage:
        """Give a picture and its label by its source name; raises BadImageError."""
        _, split, number = source.split("/")
        try:
            image, target = self._splits[split][int(number)]
        except Exception as error:  # noqa: BLE001  (a data set's own code, on files that may be damaged)
            raise BadImageError(f"damaged: {error or type(error).__name__}") from None
        if not isinstance(image, Image.Image) or isinstance(target, tuple | list | dict):
            raise BadImageError(f"torchvision:{self.name} is no classification of pictures")
        return LabelledImage(image, self._names[int(target)] if self._names else str(int(target)))


def _class_named(name: str) -> Any:
    known = [
        each for each in datasets.__all__ if each not in ("FakeData", "ImageFolder", "DatasetFolder", "VisionDataset")
    ]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(nearest)}?" if nearest else "see torchvision.datasets"
        raise UserError(f"prepare.source: torchvision has no data set {name!r}; {hint}")
    return getattr(datasets, name)


def _official_splits(kind: Any, name: str, folder: Path) -> dict[str, Any]:
    """Build every official split; ``all`` where there are none."""
    takes = inspect.signature(kind).parameters
    download = {"download": True} if "download" in takes else {}
    try:
        if "train" in takes:
            return {split: kind(folder, train=split == "train", **download) for split in ("train", "test")}
        if "split" not in takes:
            return {"all": kind(folder, **download)}
        splits: dict[str, Any] = {}
        for split in ("train", "trainval", "val", "valid", "test"):
            try:
                splits[split] = kind(folder, split=split, **download)
            except ValueError as error:
                if "split" not in str(error).lower():
                    raise
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision:{name} can't be had ({error}). Run this once where the network is in reach and copy "
            f"{folder}, or put the files there as torchvision lays them out"
        ) from error
    except (TypeError, ValueError, ImportError) as error:
        raise UserError(f"torchvision:{name} can't be read as a classification of pictures: {error}") from error
    if "train" in splits:
        splits.pop("trainval", None)
    if not {"train", "trainval"} & set(splits):
        raise UserError(f"torchvision:{name} has no training split")
    return splits


def _class_names(classes: Any) -> list[str]:
    """Write the classes' names as strings, none twice; nothing where the data set has none."""
    names = [each if isinstance(each, str) else ", ".join(each) for each in classes or ()]
    return names if len(set(names)) == len(names) else [f"{i} {name}" for i, name in enumerate(names)]
