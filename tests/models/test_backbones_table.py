"""docs/backbones.md, which docs/make_backbones.py makes."""

import pytest
import timm

import make_backbones
from helpers.images import ROOT

FAMILIES = {"byobnet": "test_byobnet", "levit": "levit_128s", "pit": "pit_ti_224", "dla": "dla46x_c"}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_published_table_is_what_is_measured(family: str) -> None:
    published = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    row = make_backbones.row_of(family, FAMILIES[family])
    assert make_backbones.table([row])[-1] in published.splitlines()


def test_the_published_table_has_every_family_of_this_timm() -> None:
    published = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    if f"timm {timm.__version__}" not in published:
        pytest.skip("the table is of another version of timm")
    rows = {line.split(" | ")[0].removeprefix("| ") for line in published.splitlines()}
    assert rows >= {family for family in timm.list_modules() if timm.list_models(module=family)}
