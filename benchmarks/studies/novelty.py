"""Compare scores that tell images unlike the training ones, on a folder of photographs with one folder a class.

    python -m benchmarks.studies.novelty FOLDER

The features are the bundled backbone's. Two classes in turn are left out; a linear head is fitted to half of the
others' images, and each score has to tell the other half from the classes left out, from scikit-learn's digits and
from noise. The figure is the area under the ROC curve; 0.5 is chance.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import logsumexp
from sklearn.covariance import LedoitWolf
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from timm.data.transforms_factory import create_transform

from headstart.core.text import text_table
from headstart.inference.scores import distances
from headstart.models.backbone import BUNDLED, create_backbone, features_of, input_config

Features = NDArray[np.float32]
Score = Callable[[Features], NDArray[np.floating]]
A_CLASS, OTHERS, LEFT_OUT = 250, 300, 2


class Backbone:
    """The bundled one, frozen."""

    def __init__(self) -> None:
        """Load it, and its evaluation transform."""
        self.model = create_backbone(BUNDLED, pretrained=True, image_size=None, args={}).eval()
        self.transform = create_transform(**input_config(self.model))

    @torch.inference_mode()
    def features(self, pictures: list[Image.Image]) -> Features:
        """Return float32 (n, width)."""
        pixels = torch.stack([self.transform(image.convert("RGB")) for image in pictures])
        return features_of(self.model, pixels).numpy()


def scores(features: Features, labels: NDArray[np.int64]) -> dict[str, Score]:
    """Fit what each score needs to the training images; higher means less usual."""
    head = LogisticRegression(C=0.1, max_iter=500).fit(features, labels)
    means = np.stack([features[labels == label].mean(0) for label in np.unique(labels)])
    covariance = LedoitWolf().fit(features - means[np.searchsorted(np.unique(labels), labels)])

    def mahalanobis(others: Features) -> NDArray[np.floating]:
        nearest: NDArray[np.floating] = np.min([covariance.mahalanobis(others - mean) for mean in means], axis=0)
        return nearest

    return {
        "nearest neighbours": lambda others: distances(others, features),
        "Mahalanobis": mahalanobis,
        "energy": lambda others: -logsumexp(head.decision_function(others), axis=1),
        "softmax": lambda others: -head.predict_proba(others).max(1),
    }


def main() -> None:
    """Print a row for each pair of classes left out and each kind of unusual image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder of class folders, at least four")
    classes = sorted(path for path in parser.parse_args().folder.iterdir() if path.is_dir())
    generator, backbone = np.random.default_rng(0), Backbone()
    own = []
    for folder in classes:
        paths = sorted(folder.iterdir())
        chosen = generator.permutation(len(paths))[:A_CLASS]
        own.append(backbone.features([Image.open(paths[i]) for i in chosen]))
    unusual = {
        "digits": backbone.features([Image.fromarray(np.uint8(15 * each)) for each in load_digits().images[:OTHERS]]),
        "noise": backbone.features(
            [Image.fromarray(generator.integers(0, 256, (64, 64, 3), np.uint8)) for _ in range(OTHERS)]
        ),
    }
    labels = np.repeat(np.arange(len(own)), [len(each) for each in own])
    features, rows = np.concatenate(own), []
    for first in range(0, len(classes) - 1, LEFT_OUT):
        left_out = np.isin(labels, range(first, first + LEFT_OUT))
        shuffled = generator.permutation(np.flatnonzero(~left_out))
        train, test = np.array_split(shuffled, 2)
        found = scores(features[train], labels[train])
        for kind, others in {"classes left out": features[left_out], **unusual}.items():
            truth = np.repeat([0, 1], [len(test), len(others)])
            areas = [roc_auc_score(truth, np.r_[each(features[test]), each(others)]) for each in found.values()]
            rows.append([f"{first}, {first + 1}: {kind}", *(f"{area:.3f}" for area in areas)])
    print(text_table([["left out: told from", *found], *rows]))


if __name__ == "__main__":
    main()
