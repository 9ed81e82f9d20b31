"""Stages in turn, each first where there is less and less room for what it writes, then with room again."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from helpers.command import headstart
from helpers.images import SMALL_PROJECT, draw_brightness_classes, params
from helpers.small_disk import largest_file

CHANGES = SMALL_PROJECT | {"probe.heads": ["knn"]}
LIMITS = (200, 700, 1200, 4000, 12_000, 40_000)
"""Bytes of a file: something small fails at the first, what is larger at the others."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw_brightness_classes(Path("data/raw"), ("cat", "dog"))
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
