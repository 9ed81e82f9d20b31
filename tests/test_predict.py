"""`headstart predict` as it is used: what it takes, what it writes, what it says."""

import csv
import io
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headstart.predict import Predictor
from helpers.bundles import CLASSES, copy_bundle
from helpers.command import headstart

COLUMNS = ["picture", "label", "probability", "label_2", "probability_2", "set", "distance", "unusual", "error"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and images at several depths."""
    root = tmp_path_factory.mktemp("predict")
    copy_bundle(root / "export")
    generator = np.random.default_rng(0)
    for name in ("b/2.png", "b/1.JPG", "b/deep/3.webp", "a.bmp"):
        path = root / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    (root / "pictures" / "b" / "notes.txt").write_text("no image")
    (root / "pictures" / "bad.jpg").write_text("no image either")
    (root / "empty").mkdir()
    return root


PREDICT = [sys.executable, "-m", "headstart", "predict"]


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


ALL = ["pictures/a.bmp", "pictures/b/1.JPG", "pictures/b/2.png", "pictures/b/deep/3.webp", "pictures/bad.jpg"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["pictures"], ALL),
        (["pictures/b", "pictures/a.bmp"], [*ALL[1:4], ALL[0]]),
        (["pictures/*.[bj]*"], [ALL[0], ALL[4]]),
        (["pictures/**/*.webp"], [ALL[3]]),
    ],
)
def test_files_folders_and_patterns(arguments: list[str], expected: list[str]) -> None:
    answer = headstart("predict", "export", *arguments)
    assert answer.exit_code == 0, answer.stderr
    assert [row["picture"] for row in rows(answer.stdout)] == expected


def test_paths_on_stdin() -> None:
    """A process, with a true stdin, and a name that is not UTF-8 on it."""
    names = b"\n".join([b"\xef\xbb\xbf" + ALL[2].encode(), b"", b"nowhere.jpg", b"\xff.jpg"])
    done = subprocess.run([*PREDICT, "export", "-"], input=names, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    said = rows(done.stdout.decode())
    assert [row["picture"] for row in said] == [ALL[2], "nowhere.jpg", r"\xff.jpg"]
    assert [bool(row["error"]) for row in said] == [False, True, True]


def test_the_rows_say_what_the_predictor_says(folder: Path) -> None:
    done = headstart("predict", "export", "pictures", "--top", "2")
    found, predictor = rows(done.stdout), Predictor(folder / "export")
    assert list(found[0]) == COLUMNS
    assert done.stderr == "1 of 5 images are bad: the reasons stand with them as their error\npassed over: 1 text\n"
    for row in found[:4]:
        said = predictor(folder / row["picture"])
        assert (row["label"], row["label_2"]) == (said.top[0][0], said.top[1][0])
        assert float(row["probability"]) == pytest.approx(said.probability, abs=1e-5)
        assert json.loads(row["set"]) == said.set
        assert float(row["distance"]) == pytest.approx(said.distance, abs=1e-5)
        assert row["unusual"] == ("" if said.unusual is None else str(said.unusual))
        assert row["error"] == ""
    assert list(found[4].values()) == [
        ALL[4],
        *[""] * 7,
        "text, not an image that Pillow can read: remove it, or fetch the image again",
    ]


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("x.csv", "x.jsonl", "x.parquet")]
    for name in names:
        done = headstart("predict", "export", "pictures", "--out", name)
        assert (done.exit_code, done.stdout) == (0, "")
        assert f"{name}: 5 images in " in done.stderr
    as_csv, lines = rows(Path(names[0]).read_text(encoding="utf-8")), Path(names[1]).read_text(encoding="utf-8")
    as_json = [json.loads(line) for line in lines.splitlines()]
    as_parquet: list[dict[str, Any]] = pq.read_table(names[2]).to_pylist()
    for one, two, three in zip(as_csv, as_json, as_parquet, strict=True):
        assert three == two | {"top": [{"label": label, "probability": p} for label, p in two["top"]]}
        assert one["picture"] == two["picture"]
        assert one["label"] == (two["label"] or "")
        assert one["set"] == ("" if two["set"] is None else json.dumps(two["set"]))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.jsonl", "x.parquet"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing", "pictures"], "nothing is no folder"),
        (["export", "empty"], "empty: no image is there"),
        (["export", "*.jpg"], "*.jpg: no image is there"),
        (["export", "-"], "no path came on stdin"),
        (["export", "pictures", "--conformal", "0.5"], "it has 0.9 by LAC, 0.95 by LAC, 0.9 by APS"),
        (["export", "pictures", "--out", "x.xlsx"], "must end in one of .csv, .jsonl, .parquet"),
        (["export", "pictures", "--out", "empty.csv"], "is a folder"),
        (["export", "pictures", "--model", "model.int8.onnx"], "lists no model.int8.onnx"),
    ],
)
def test_what_a_user_can_mend_is_one_message(folder: Path, arguments: list[str], said: str) -> None:
    (folder / "empty.csv").mkdir(exist_ok=True)
    done = headstart("predict", *arguments)
    assert done.exit_code == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["export", "pictures", "--top", "0"], "Invalid value for '--top': 0 is not in the range x>=1"),
        (["export", "pictures", "--threads", "0"], "Invalid value for '--threads': 0 is not in the range x>=1"),
        (["export", "pictures", "--device", "tpu"], "Invalid value for '--device': 'tpu' is not one of"),
        (["export"], "Missing argument 'IMAGES...'"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str) -> None:
    done = headstart("predict", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_run_that_fails_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    out.write_text("earlier")
    done = headstart("predict", "export", "-", "--out", str(out))
    assert done.exit_code == 1
    assert out.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [out]


def test_a_terminal_gets_lines_and_no_codes_from_names(folder: Path, tmp_path: Path) -> None:
    odd = tmp_path / "\x1b[31mred.png"
    odd.write_bytes((folder / ALL[2]).read_bytes())
    ours, theirs = pty.openpty()
    subprocess.run([*PREDICT, "export", ALL[1], str(odd)], stdout=theirs, stderr=theirs, check=True)
    os.close(theirs)
    text = os.read(ours, 10_000).decode()
    os.close(ours)
    first, second = text.splitlines()
    assert first.startswith(f"{ALL[1]}  |  ")
    assert any(label in first for label in CLASSES)
    assert "set: " in first
    assert "\x1b" not in text
    assert r"\x1b[31mred.png" in second


def test_a_terminal_sees_a_bar_and_is_left_clean(tmp_path: Path) -> None:
    out = tmp_path / "rows.csv"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))  # tqdm draws nothing in no columns
    subprocess.run([*PREDICT, "export", "pictures", "--out", str(out)], stderr=theirs, check=True)
    os.close(theirs)
    text = os.read(ours, 10_000).decode().replace("\r\n", "\n")
    os.close(ours)
    bar, _, after = text.rpartition("\r")
    assert "predict: " in bar
    assert bar.endswith(" ")  # over the bar
    assert after.splitlines()[1].startswith(f"{out}: 5 images in ")


def test_who_reads_may_stop(folder: Path) -> None:
    for reader in ("true", "head -1"):
        command = f"{shlex.join(PREDICT)} export {'pictures ' * 20} | {reader}"
        done = subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr


def test_parquet_without_pyarrow_and_torch_without_torch(folder: Path) -> None:
    """What the base install lacks is named, with what installs it."""
    without = "import sys; sys.modules |= {'pyarrow': None, 'torch': None, 'timm': None}; "
    start = "from headstart.cli import main; main()"
    for arguments, said in (
        (["--out", "x.parquet"], "headstart[parquet]"),
        (["--device", "torch"], "headstart[train]"),
    ):
        command = [sys.executable, "-c", without + start, "predict", "export", ALL[1], *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert said in done.stderr


@pytest.mark.parametrize(
    ("start", "further"),
    [
        (f"from headstart.predict import Predictor; print(Predictor('export')({ALL[1]!r}).label)", []),
        (f"from headstart.cli import cli; cli(['predict', 'export', {ALL[1]!r}], standalone_mode=False)", ["click"]),
    ],
    ids=["Predictor", "the command"],
)
def test_predicting_loads_the_base_install_alone(start: str, further: list[str]) -> None:
    """In a process, since this one has imported everything. Without a terminal tqdm stays out too: it is slow."""
    code = (
        f"import sys; before = set(sys.modules); {start}; "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(name for name in loaded - set(sys.stdlib_module_names) if 'cython' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, answer, loaded = done.stdout.splitlines()
    assert any(label in answer for label in CLASSES)
    assert loaded == str(sorted(["PIL", *further, "headstart", "numpy", "onnxruntime"]))


def test_the_content_decides_in_a_folder_as_it_does_for_a_file(folder: Path) -> None:
    odd = folder / "odd"
    odd.mkdir()
    image = folder / ALL[2]
    for name in ("a.jfif", "b.jpe", "c", "d.apng", "e.img", "f.jpg.1"):
        shutil.copy(image, odd / name)
    Image.open(image).save(odd / "g.pbm", "PPM")
    Image.open(image).save(odd / "h.tga")
    Image.open(image).save(odd / "i.j2k")
    (odd / "slice").write_bytes(bytes(128) + b"DICM")
    for name in ("notes.txt", "list.csv", "paper.pdf"):
        (odd / name).write_bytes(b"%PDF-1.7" if name == "paper.pdf" else b"words")
    (odd / "broken.jpg").write_bytes(image.read_bytes()[:600])
    done = headstart("predict", "export", "odd")
    found = {row["picture"]: row for row in rows(done.stdout)}
    named = "a.jfif b.jpe broken.jpg c d.apng e.img f.jpg.1 g.pbm h.tga i.j2k slice"
    assert list(found) == [f"odd/{name}" for name in named.split()]
    assert done.stderr.splitlines()[1:] == ["passed over: 2 text, 1 PDF"]
    assert {name for name, row in found.items() if row["error"]} == {"odd/broken.jpg", "odd/slice"}
    singly = {row["picture"]: row for row in rows(headstart("predict", "export", *found).stdout)}
    assert {name: row["label"] for name, row in singly.items()} == {name: row["label"] for name, row in found.items()}
    assert rows(headstart("predict", "export", "odd/notes.txt").stdout)[0]["error"].startswith("text, not an image")


def test_the_limits_can_be_moved(tmp_path: Path) -> None:
    Image.new("RGB", (60, 2)).save(tmp_path / "line.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "scan.png")
    found = rows(headstart("predict", "export", str(tmp_path), "--max-pixels", "1599").stdout)
    assert "60 x 2 pixels: longer than 20 times its width" in found[0]["error"]
    assert "40 x 40 pixels are more than 1599: " in found[1]["error"]
    done = headstart("predict", "export", str(tmp_path), "--max-pixels", "1600", "--max-aspect-ratio", "30")
    assert [row["error"] for row in rows(done.stdout)] == ["", ""]
