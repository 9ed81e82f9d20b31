import hashlib
import re
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from headstart.core.errors import UserError
from headstart.core.io import read_json, read_table, write_json, write_table
from headstart.data.dataset import PreparedDataset
from headstart.report.page import write_html_report
from helpers import images
from helpers.command import headstart
from helpers.reported import EVALUATE, write_reported

CLASSES = ("cat", "dog", "owl", "yak", "eel")
HEADER = "id,source,label,finetune,finetune_probability"
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "\"quoted\" & 'co'",
    "\U0001f98a fox",
    "tab\tand\u202eturned",
    "{{ 7 * 7 }}",
)


HISTORY_COLUMNS = "epoch,train_loss,val_loss,val_refined_loss,val_accuracy"


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PreparedDataset:
    monkeypatch.chdir(tmp_path)
    return write_reported(CLASSES, 120)


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def changed(name: str, **changes: Any) -> None:
    path = Path("reports") / name
    write_json(path, read_json(path) | changes)


def test_the_same_files_give_the_same_bytes(prepared: PreparedDataset) -> None:
    first = write_html_report(prepared).read_bytes()
    assert write_html_report(PreparedDataset.open()).read_bytes() == first


def test_it_is_one_file_that_names_no_other(prepared: PreparedDataset) -> None:
    page = text(write_html_report(prepared))
    targets = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {target.partition("/")[0] for target in targets if not target.startswith("#")} == {"data:image", "data:,"}
    assert re.search(r"https?:|@import|\burl\((?!#)", page) is None


def test_figures_are_those_of_the_files(prepared: PreparedDataset) -> None:
    page = text(write_html_report(prepared))
    assert "<h1>Not shown to be worth it.</h1>" in page
    assert "finetune has 80.0% right and probe 70.0%." in page
    assert "75.0 to 85.0\N{NO-BREAK SPACE}%" in page
    assert "0.200 after epoch 4, which was kept" in page
    assert "stopping is like λ = 1.2e-1" in page
    assert re.search(r"<th scope=\"row\">finetune.epochs</th><td>\d+</td><td>of 40 images</td>", page)
    history = read_table(Path("reports/finetune/history.csv"))
    start, *epochs = (float(row["val_refined_loss"]) for row in history)
    below = [str(epoch) for epoch, loss in enumerate(epochs, 1) if loss > start]
    assert below
    assert f"less well than at the start after epoch {', '.join(below)}." in page
    assert '<th scope="row">hflip</th><td>kept</td>' in page
    wrong = [line.split(",") for line in text(EVALUATE / "predictions.csv").splitlines()[1:]]
    mistakes = sum(line[2] != line[-2] for line in wrong)
    assert f"{mistakes}\N{NO-BREAK SPACE}mistakes on 120\N{NO-BREAK SPACE}test images" in page
    assert "The 24 most alike:" in page


def test_an_image_is_in_the_page_once(prepared: PreparedDataset) -> None:
    page = text(write_html_report(prepared))
    embedded = re.findall(r'id="image-(\d+)"', page)
    again = re.findall(r'data-same="image-(\d+)"', page)
    assert len(set(embedded)) == len(embedded) == page.count("data:image/webp")
    assert again
    assert set(again) <= set(embedded)


def test_names_of_others_are_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    page = text(write_html_report(write_reported(HOSTILE_NAMES, 60)))
    assert page.count("<script>") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&#34;quoted&#34; &amp; &#39;co&#39;" in page
    assert "tab\\tand\\u202eturned" in page
    assert not set("\t\u202e") & set(page)
    assert "{{ 7 * 7 }}" in page


def test_the_browser_is_told_the_hash_of_the_only_script(prepared: PreparedDataset) -> None:
    page = text(write_html_report(prepared)).encode()
    script = page[page.index(b"<script>") + 8 : page.index(b"</script>")]
    digest = b64encode(hashlib.sha256(script).digest()).decode()
    assert f"script-src 'sha256-{digest}'".encode() in page
    assert b"default-src 'none'" in page


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("evaluate/trust.json", None, "trust.json does not exist: run `dvc repro`"),
        ("evaluate/predictions.csv", None, "predictions.csv does not exist: run `dvc repro`"),
        ("finetune.json", "{", "reports/finetune.json is damaged"),
        ("prepare.json", '{"pictures": 3}', "it has no 'splits'"),
        ("prepare.json", "[]", "reports/prepare.json is damaged"),
        ("finetune/history.csv", f"{HISTORY_COLUMNS}\n", "it has no epoch 4"),
        ("probe/l2_path.csv", "log10_l2,val_loss\n", "it has no lines"),
        ("finetune/history.csv", "epoch,train_loss\n", "reports/finetune/history.csv is damaged"),
        (
            "finetune/history.csv",
            "epoch,train_loss,val_loss,val_refined_loss,val_accuracy\n0,,much,1,1\n",
            "could not convert",
        ),
        ("features/duplicates.csv", "row,cosine\n1,1\n", "it has no column 'kind'"),
        ("evaluate/predictions.csv", "id,source\n", "predictions.csv is damaged"),
        ("evaluate/predictions.csv", f"{HEADER}\n1,x,cat,ape,0.5\n", "'ape'"),
        (
            "evaluate/predictions.csv",
            f"{HEADER}\nfff,x,cat,dog,0.5\n",
            "no image",
        ),
        ("evaluate/predictions.csv", f"{HEADER}\n1,x\n", "line 2"),
        ("evaluate/predictions.csv", b"\xff\xfe\x00", "predictions.csv is damaged"),
    ],
)
def test_what_is_missing_or_damaged_is_named(
    prepared: PreparedDataset, name: str, content: str | bytes | None, said: str
) -> None:
    path = Path("reports") / name
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(said)) as error:
        write_html_report(prepared)
    assert "dvc repro" in str(error.value)
    assert not Path("reports/index.html").exists()


def test_figures_of_other_classes_are_not_shown(prepared: PreparedDataset) -> None:
    changed("evaluate.json", classes=["cat", "dog"])
    with pytest.raises(UserError, match=r"evaluate\.json .* classes"):
        write_html_report(prepared)


def test_a_row_that_is_not_there_is_an_error(prepared: PreparedDataset) -> None:
    columns = ("row", "source", "split", "problem", "value")
    write_table(Path("reports/prepare/odd_pictures.csv"), columns, [(9999, "x", "train", "tiny", 1)])
    with pytest.raises(UserError, match="names image 9999"):
        write_html_report(prepared)


def test_sections_with_nothing_to_show_say_so(prepared: PreparedDataset) -> None:
    for name in (
        "prepare/odd_pictures",
        "features/duplicates",
        "features/suspicious_labels",
        "evaluate/suspicious_labels",
        "evaluate/slices",
    ):
        path = Path(f"reports/{name}.csv")
        path.write_text(text(path).splitlines()[0] + "\n", encoding="utf-8")
    header, *lines = text(EVALUATE / "predictions.csv").splitlines()
    right = [",".join([*cells[:-2], cells[2], cells[-1]]) for cells in (line.split(",") for line in lines)]
    (EVALUATE / "predictions.csv").write_text("\n".join([header, *right]) + "\n", encoding="utf-8")
    page = text(write_html_report(prepared))
    for said in (
        "No image is tiny or blank",
        "No two images of different splits are equal, or nearly so (cosine of their features at least 0.97)",
        "No likely label error was found in train and validation",
        "No likely label error was found in test",
        "The source has no metadata columns",
        "every test image is classified correctly",
    ):
        assert said in page
    assert "data:image/webp" not in page


def test_checks_that_are_switched_off_say_so(prepared: PreparedDataset) -> None:
    page = text(write_html_report(prepared))
    assert "Looked for among all pairs, in 1.2\N{NO-BREAK SPACE}s." in page
    assert "Judged in 2\N{NO-BREAK SPACE}min, by heads trained on 240\N{NO-BREAK SPACE}images of them." in page
    off = {"duplicates": "switched off", "labels": "switched off"}
    changed("features.json", duplicates_across_splits=None, suspicious_labels=None, check_seconds=off)
    for name in ("features/duplicates", "features/suspicious_labels"):
        path = Path(f"reports/{name}.csv")
        path.write_text(text(path).splitlines()[0] + "\n", encoding="utf-8")
    page = text(write_html_report(prepared))
    assert "<code>features.checks.duplicates</code> is switched off" in page
    assert "Not looked for in train and validation: <code>features.checks.labels</code> is switched off" in page
    for said in ("No two images of different splits", "No likely label error was found in train", "Looked for among"):
        assert said not in page


def test_noise_which_no_format_makes_small_stays_below_5_mb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "STORED", 96)
    classes = tuple(f"a name of a class as long as they are {i}" for i in range(200))
    prepared = images.write_prepared({"train": 200, "validation": 1, "test": 1500}, classes)
    page = write_html_report(write_reported(classes, 1500, prepared))
    assert text(page).count("data:image/webp") > 250
    assert page.stat().st_size < 5e6


def test_without_a_model_or_params_or_torch(prepared: PreparedDataset) -> None:
    code = "from headstart.cli import cli; cli(['report'], standalone_mode=False); "
    code += "import sys; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines() == ["reports/index.html", "False"]
    assert prepared.folder.exists()


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = headstart("report")
    assert answer.exit_code == 1
    assert answer.stderr.startswith("error: data/prepared/dataset.json does not exist: run `dvc repro`")


def test_what_may_be_absent_is_said(prepared: PreparedDataset) -> None:
    """The start was kept, Adam has no gradient flow, nothing can be promised, no git, random weights, no top-k."""
    changed("finetune.json", best_epoch=0, stopped_early=False)
    ledger = Path("reports/finetune/ledger.csv")
    rows = [{**row, "equivalent_l2": ""} for row in read_table(ledger)]
    write_table(ledger, tuple(rows[0]), [tuple(row.values()) for row in rows])
    changed("evaluate/run.json", git=None, weights_sha256=None, gpu="H100")
    trust = read_json(EVALUATE / "trust.json")
    conformal = [{**entry, "threshold": None} for entry in trust["conformal"]]
    ood = {"score": "1 - cosine", "thresholds": {}, "flagged": {}}
    changed("evaluate/trust.json", conformal=conformal, out_of_distribution=ood)
    models = read_json(Path("reports/evaluate.json"))["models"]
    for figures in models.values():
        del figures["top_3_accuracy"]
    changed("evaluate.json", models=models)
    changed("prepare.json", bad=[{"source": "broken.png", "problem": "cut off"}])
    page = text(write_html_report(prepared))
    for said in (
        "No epoch was better on validation than the start, which was kept.",
        "Training ran through all its epochs.",
        "the early stop has no equivalent λ",
        "too few validation images for a threshold",
        "AMD EPYC, 2 cores, H100",
        "<dt>Git</dt><dd>none</dd>",
        "<dt>Pretrained weights</dt><dd>random</dd>",
        '<span class="path">broken.png</span>',
    ):
        assert said in page
    assert "Top-" not in page


def test_it_says_what_choosing_cost_where_tune_has_chosen_these_params(prepared: PreparedDataset) -> None:
    without = text(write_html_report(prepared))
    assert "headstart tune" not in without
    finetune = read_json(EVALUATE / "run.json")["params"]["finetune"]
    estimate = {"value": 0.913, "interval": [0.88, 0.94]}
    tuned = {"tries": 23, "val_accuracy": 0.937, "corrected_accuracy": estimate, "finetune": finetune}
    write_json(Path("reports/tune.json"), tuned)
    page = " ".join(text(write_html_report(prepared)).replace("\xa0", " ").split())
    assert "the best of 23 that <code>headstart tune</code> tried" in page
    assert (
        "there its accuracy is 93.7 %, and what is chosen in this way has about 91.3 % on new images (88.0 to 94.0 %)"
        in page
    )
    changed("tune.json", finetune={"of": "other params"})
    assert text(write_html_report(prepared)) == without
