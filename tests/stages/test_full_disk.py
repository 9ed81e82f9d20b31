"""Stages in turn, each first where there is less and less room for what it writes, then with room again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from helpers.command import headstart
from helpers.images import params
from helpers.small_disk import largest_file

CHANGES = {
    "prepare.source": "imagefolder",
    "backbone.name": "test_resnet",
    "backbone.pretrained": False,
    "backbone.image_size": 32,
    "features.batch_size": 8,
    "probe.l2": [0.1, 0.01],
    "probe.heads": ["knn"],
    "run.cache": "cache",
}
LIMITS = (200, 700, 1200, 4000, 12_000, 40_000)
"""Bytes of a file: something small fails at the first, what is larger at the others."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for i, label in enumerate(("cat", "dog")):
        folder = Path("data/raw", label)
        folder.mkdir(parents=True)
        for j in range(20):
            noise = generator.integers(50 * i, 50 * i + 150, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{j}.png")
    YAML().dump(params(CHANGES).model_dump(), Path("params.yaml"))


@pytest.mark.usefixtures("project")
def test_a_stage_without_room_ends_with_one_line_and_goes_on_with_room() -> None:
    for stage in ("prepare", "features", "probe"):
        failed = 0
        for limit in LIMITS:
            with largest_file(limit):
                answer = headstart(stage)
            if answer.exit_code:
                assert (answer.exit_code, answer.stderr.count("\n")) == (1, 1), answer.stderr
                assert answer.stderr.startswith("error: ")
                assert ": file too large: raise `ulimit -f`" in answer.stderr
                failed += 1
            unfinished = set(Path().rglob("*.partial")) - {Path("data/.prepared.partial")}  # which is resumed
            assert not [path for path in unfinished if "data/.prepared.partial" not in str(path)]
        assert failed > 1, stage
        assert headstart(stage).exit_code == 0
    assert not list(Path().rglob("*.partial"))
