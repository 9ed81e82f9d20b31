"""The recipes of targets: overlays on params.yaml that say what they need and what was measured."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.config.completion import complete_params
from headstart.config.loader import load_params
from headstart.data.dataset import PreparedDataset
from headstart.stages import prepare
from headstart.targets.kinds import KINDS
from helpers.images import ROOT

RECIPES = {path.stem: path for path in sorted((ROOT / "recipes/targets").glob("*.yaml"))}
FIELDS = ("command", "data", "backbone", "compare", "measured")


def test_there_is_one_for_each_target_but_classes() -> None:
    assert set(RECIPES) == set(KINDS) - {"class"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_its_command_and_its_figures_and_reads_its_table(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = RECIPES[name].read_text(encoding="utf-8")
    places = [text.index(f"# {field}:") for field in FIELDS]
    assert places == sorted(places)
    assert f"headstart params recipes/targets/{name}.yaml && dvc repro" in text

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    complete_params(Path("params.yaml"), RECIPES[name])
    params = load_params(Path("params.yaml"))
    assert params.prepare.target == name
    columns = params.prepare.target_columns
    if columns is not None:
        folder = Path("data/raw")
        folder.mkdir(parents=True)
        generator = np.random.default_rng(0)
        with (folder / params.prepare.source.removeprefix("csv:")).open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["image", *columns])
            for i in range(60):
                pixels = generator.integers(0, 255, (70, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
                table.writerow([f"{i}.png", *((i >> place) % 2 for place in range(len(columns)))])
    update = {"image_size": 32, "name": "bundled"}
    backbone = params.backbone.model_copy(update=update)
    prepare.run(params.model_copy(update={"backbone": backbone}))
    assert PreparedDataset.open().target.kind == name
