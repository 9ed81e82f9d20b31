"""The page of labels, numbers and grades: made by the stage itself, opened in Debian's chromium where there is one."""

import shutil
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from headstart.core import paths
from headstart.core.errors import UserError
from headstart.core.io import read_json, read_table, write_json, write_table
from headstart.data.dataset import PreparedDataset
from headstart.data.manifest import MANIFEST_COLUMNS, manifest_rows, write_manifest
from headstart.evaluation import bootstrap
from headstart.report.page import write_html_report
from headstart.stages import evaluate
from headstart.targets.number import QUANTILES
from helpers.images import params, write_finetune, write_prepared, write_probe
from helpers.reported import LABEL_ERROR_COLUMNS, write_stages

CHROMIUM = shutil.which("chromium")
KINDS = ("labels", "number", "quantiles", "grade")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders in which the stage has run, by kind."""
    found = {}
    for kind in KINDS:
        found[kind] = tmp_path_factory.mktemp(kind)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(found[kind])
            patch.setattr(bootstrap, "REPLICATES", 100)
            prepared = write_prepared(
                {"train": 12, "validation": 40, "test": 120}, kind="number" if kind == "quantiles" else kind
            )
            target: Any = prepared.target
            table = [[*(row[name] for name in MANIFEST_COLUMNS), str(i % 3)] for i, row in enumerate(manifest_rows())]
            write_manifest(paths.PREPARED, ["site"], table, len(table))
            write_stages(prepared)
            reports = {name: read_json(paths.report_of(name)) for name in ("finetune", "probe")}
            model = write_finetune(target=replace(target, quantiles=[*QUANTILES]) if kind == "quantiles" else target)
            write_probe(prepared, model)
            for name, report in reports.items():
                write_json(paths.report_of(name), read_json(paths.report_of(name)) | report)
            for path, columns in {
                paths.ODD_IMAGES: ("row", "source", "split", "problem", "value"),
                paths.DUPLICATES: ("kind", "row", "source", "split", "other_row", "other_source", "other_split",
                                   "cosine", "hash_distance"),
                paths.FEATURE_LABEL_ERRORS: LABEL_ERROR_COLUMNS,
            }.items():  # fmt: skip
                write_table(path, columns, [])
            evaluate.run(params({"evaluate.batch_size": 16}).declared(evaluate.PARAMS))
    return found


def text(folder: Path) -> str:
    return " ".join((folder / paths.HTML_REPORT).read_text(encoding="utf-8").replace("\xa0", " ").split())


def test_each_page_has_the_pictures_of_its_target(pages: dict[str, Path]) -> None:
    said = {
        "labels": ("Average precision", "Which labels are confused", "missed", "invented", "Labels found", "(none)"),
        "number": (
            "MAE [lux]",
            "Predicted against true",
            "Tenth by tenth",
            "Prediction intervals",
            "The largest errors",
        ),
        "quantiles": ("CQR", "MAE [lux]", "off by"),
        "grade": ("Quadratic kappa", "Which grades are confused", "grades off", "neighbouring grades", "OAPS"),
    }
    for kind, words in said.items():
        page = text(pages[kind])
        for each in words:
            assert each in page, (kind, each)
        shown = page[
            page.index("<main>") : page.index('<section id="run">')
        ]  # after it are the params, with their names
        assert "class" not in " ".join(part.partition(">")[2] for part in shown.split("<"))
        report = read_json(pages[kind] / paths.report_of("evaluate"))
        assert report["verdict"].partition(": ")[2].partition(";")[0].split(",")[0] in page
        assert page.count("data:image/webp") > 10
        assert len(page) < 1e6


def test_what_is_confused_is_counted_from_the_table(pages: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pages["labels"])
    pairs = read_table(paths.CONFUSION["finetune"])
    rows = read_table(paths.PREDICTIONS)
    for name in ("dark", "bright", "even"):
        found = sum(name in row["label"].split(";") and name in row["finetune"].split(";") for row in rows)
        missed = sum(name in row["label"].split(";") and name not in row["finetune"].split(";") for row in rows)
        assert sum(pair == {"actual": name, "predicted": name} for pair in pairs) == found
        assert sum(pair == {"actual": name, "predicted": "(none)"} for pair in pairs) == missed
    assert not any("?" in each for pair in pairs for each in pair.values())
    monkeypatch.chdir(pages["number"])
    rows = read_table(paths.PREDICTIONS)
    parts = read_table(paths.CONFUSION["finetune"])
    for column, numbers in (("actual", "label"), ("predicted", "finetune")):
        pairs_of = sorted((float(row[numbers]), part[column]) for row, part in zip(rows, parts, strict=True))
        by_number = [part for _, part in pairs_of]
        assert by_number == sorted(by_number)
    of_true = Counter(part["actual"] for part in parts)
    assert min(of_true).startswith("0: below ")
    most_equal = max(Counter(row["label"] for row in rows).values())  # which are in one part
    assert max(of_true.values()) <= len(rows) / 10 + most_equal


def test_the_same_files_give_the_same_bytes_and_damaged_ones_an_error(
    pages: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("labels", "number"):
        monkeypatch.chdir(pages[kind])
        before = paths.HTML_REPORT.read_bytes()
        assert write_html_report(PreparedDataset.open()).read_bytes() == before
    table = paths.PREDICTIONS.read_text(encoding="utf-8")
    rows = read_table(paths.PREDICTIONS)
    rows[0]["finetune"] = "much"
    write_table(paths.PREDICTIONS, tuple(rows[0]), [tuple(row.values()) for row in rows])
    with pytest.raises(UserError, match=r"predictions\.csv is damaged.*image .*much"):
        write_html_report(PreparedDataset.open())
    paths.PREDICTIONS.write_text(table, encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "corrected", "told"),
    [
        (
            "number",
            {"corrected_mae": {"value": 5.25, "interval": [4.5, 6.25]}, "val_mae": 4.75},
            "there its MAE [lux] is 4.75, and what is chosen in this way has about 5.25 on new images (4.5 to 6.25), ",
        ),
        (
            "grade",
            {"corrected_kappa": {"value": None, "interval": None}, "val_kappa": 0.5},
            "there its quadratic kappa is 0.500.</p>",
        ),
    ],
)
def test_what_choosing_cost_is_told_in_the_target_s_own_measure(
    pages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, kind: str, corrected: dict[str, Any], told: str
) -> None:
    monkeypatch.chdir(pages[kind])
    finetune = read_json(paths.RUN_INFO)["params"]["finetune"]
    write_json(paths.TUNING_REPORT, {"tries": 7, "finetune": finetune, **corrected})
    write_html_report(PreparedDataset.open())
    assert told in text(Path())
    paths.TUNING_REPORT.unlink()
    write_html_report(PreparedDataset.open())
    assert "headstart tune" not in text(Path())


def _note(said: list[Any], problem: Any) -> None:
    said.append(problem)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_they_open_in_a_browser(pages: dict[str, Path]) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for kind, folder in pages.items():
            page, said = browser.new_page(viewport={"width": 360, "height": 800}), list[Any]()
            page.on("console", partial(_note, said))
            page.on("pageerror", partial(_note, said))
            page.goto((folder / paths.HTML_REPORT).as_uri())
            page.evaluate("document.querySelectorAll('details').forEach(it => it.open = true)")
            assert said == [], kind
            assert page.evaluate("document.documentElement.scrollWidth") == 360, kind
            assert min(page.evaluate("[...document.images].map(it => it.naturalWidth)")) > 0
            assert page.evaluate("[...document.querySelectorAll('[role=img]')].every(it => /\\d/.test(it.ariaLabel))")
            page.locator("#leaderboard th button", has_text="Fitted in").first.click()
            assert page.locator("#leaderboard th[aria-sort]").count() == 1
            page.close()
        browser.close()
