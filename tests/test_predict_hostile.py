"""Nothing from a bundle or an image is executed, and none of them ends predict otherwise than it should."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from headstart.images.files import is_image_name, utf8_name
from helpers.bundles import copy_bundle
from helpers.hostile_bundles import HOSTILE, make_hostile
from helpers.hostile_images import make_hostile_images

End = dict[str, Any]
LIMITED = Path(__file__).parent / "helpers" / "limited.py"


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, End]:
    """What became of each bundle."""
    root = tmp_path_factory.mktemp("hostile")
    image = root / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(image)
    folders = [copy_bundle(root / "good")]
    folders += [make_hostile(root / str(i), name) for i, name in enumerate(HOSTILE)]
    done = subprocess.run(
        [sys.executable, LIMITED, image, *folders], cwd=root, check=True, capture_output=True, text=True
    )
    assert not (root / "executed").exists()
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip(["good", *HOSTILE], found, strict=True))


def test_the_good_one_is_good(ends: dict[str, End]) -> None:
    assert (ends["good"]["code"], ends["good"]["stderr"]) == (0, "")
    assert len(ends["good"]["stdout"].splitlines()) == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_with_a_reason(ends: dict[str, End], name: str) -> None:
    end = ends[name]
    assert (end["code"], end["stderr"].count("\n")) == (1, 1), end
    assert end["stderr"].startswith("error: ")


def test_every_hostile_image_is_a_row(tmp_path: Path) -> None:
    good, pictures, out = copy_bundle(tmp_path / "good"), tmp_path / "pictures", tmp_path / "rows.jsonl"
    make_hostile_images(pictures, 1000)
    command = [sys.executable, "-W", "error", "-m", "headstart", "predict", str(good), str(pictures), "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=300)
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    named = [row["picture"] for row in rows]
    assert len(set(named)) == len(named)
    found = {utf8_name(str(path)) for path in pictures.rglob("*") if is_image_name(path.name)}
    assert found <= set(named)
    assert len(found) > 900
    assert all((row["error"] is None) == (row["label"] is not None) for row in rows)
    bad = sum(row["error"] is not None for row in rows)
    assert done.stderr.splitlines()[0].startswith(f"{bad} of {len(rows)} images are bad")
    assert bad > 700
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "pictures", "rows.jsonl"]
