"""One training of one contestant: what it gets, what it gives back, and the process that it runs in.

python -m benchmarks.accuracy.job MODULE FUNCTION JOB_AS_JSON calls the function, which takes a ``Job`` and returns
``Answers``, and writes these to ``answers.npz`` in the job's folder. All that this module needs is NumPy.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANSWERS = "answers.npz"


@dataclass(frozen=True)
class Job:
    """What a contestant gets.

    Attributes:
        images: folder with train/, val/ and test/, each with a folder of images a class.
        weights: folder with pretrained weights in timm's ``local-dir`` format, and the same without the classifier
            as ``pytorch_model.bin``.
        model: timm's name of the architecture.
        size: side of the model's input, in pixels.
        amount: epochs; seconds for a contestant that takes a time limit.
        seed: of whatever is drawn at random.
        work: a new folder for whatever the contestant writes.
    """

    images: str
    weights: str
    model: str
    size: int
    amount: int
    seed: int
    work: str

    @property
    def classes(self) -> list[str]:
        """The classes' names, sorted."""
        return sorted(folder.name for folder in Path(self.images, "train").iterdir())

    def files(self, split: str) -> list[Path]:
        """Return the images of ``train``, ``val`` or ``test``, sorted."""
        return sorted(Path(self.images, split).glob("*/*"))


@dataclass(frozen=True)
class Answers:
    """What a contestant says of the test images.

    Attributes:
        files: the n images, as paths below the folder ``test``.
        classes: the classes' names, in the order of the columns.
        probabilities: float (n, classes), as the library gives them to its user.
        epochs: that it trained for, where the library says it.
    """

    files: Sequence[str]
    classes: Sequence[str]
    probabilities: NDArray[np.floating[Any]]
    epochs: int | None = None


def names(files: Sequence[Path]) -> list[str]:
    """Return test images' paths below the folder ``test``."""
    return [f"{path.parent.name}/{path.name}" for path in files]


def main() -> None:
    """Do one job."""
    module, function, content = sys.argv[1:]
    job = Job(**json.loads(content))
    answers: Answers = getattr(importlib.import_module(f"benchmarks.accuracy.{module}"), function)(job)
    np.savez(
        Path(job.work) / ANSWERS,
        files=np.array(answers.files),
        classes=np.array(answers.classes),
        probabilities=np.asarray(answers.probabilities, np.float64),
        epochs=np.array(-1 if answers.epochs is None else answers.epochs),
    )


if __name__ == "__main__":
    main()
