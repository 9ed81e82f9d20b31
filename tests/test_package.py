"""What the wheel and the sdist hold, and a wheel in an empty environment, without any extra."""

import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from headstart.init_project import template
from helpers.images import ROOT

BUILD = [sys.executable, "-m", "hatchling", "build", "-d"]


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with this repository's wheel and sdist."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([*BUILD, folder], cwd=ROOT, check=True, capture_output=True)
    return folder


def wheel(dist: Path) -> Path:
    (found,) = dist.glob("headstart-*-py3-none-any.whl")
    return found


def files_of_wheel(dist: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel(dist)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def extracted(dist: Path, folder: Path) -> Path:
    with tarfile.open(next(dist.glob("headstart-*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


def files_below(folder: Path) -> dict[str, bytes]:
    files = {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_wheel_is_the_package_and_the_template_of_a_project(dist: Path) -> None:
    files = files_of_wheel(dist)
    package = {f"headstart/{name}": held for name, held in files_below(ROOT / "src" / "headstart").items()}
    project = {f"headstart/project/{name}": path.read_bytes() for name, path in template().items()}
    assert {name: held for name, held in files.items() if ".dist-info/" not in name} == package | project
    assert {"headstart/py.typed", "headstart/pretrained/resnet18d_64/model.safetensors"} <= set(package)
    assert (ROOT / "LICENSE").read_bytes() in files.values()


def test_the_base_is_what_predict_needs_and_the_rest_is_extra(dist: Path) -> None:
    (metadata,) = (held for name, held in files_of_wheel(dist).items() if name.endswith("/METADATA"))
    about = message_from_bytes(metadata)
    requirements = about.get_all("Requires-Dist", [])
    base = {requirement.partition(">=")[0] for requirement in requirements if "extra ==" not in requirement}
    assert base == {"click", "numpy", "onnxruntime", "pillow", "tqdm"}
    assert {"train", "serve", "parquet"} <= set(about.get_all("Provides-Extra", []))


def test_a_clone_that_was_used_gives_the_same_sdist_and_the_sdist_the_same_wheel(dist: Path, tmp_path: Path) -> None:
    clone, again = extracted(dist, tmp_path / "clone"), tmp_path / "again"
    before = files_below(clone)
    for name in ("data/raw/cat/1.png", "data/prepared/shard", "models/finetune/config.json", "reports/index.html"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).write_text("of the user")
    subprocess.run([*BUILD, again], cwd=clone, check=True, capture_output=True)
    assert files_below(extracted(again, tmp_path / "sdist")) == before
    assert files_of_wheel(again) == files_of_wheel(dist)


@pytest.fixture(scope="module")
def commands(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of programs of an environment that holds the wheel and what it requires, from pip's index."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([folder / "bin" / "python", *install, wheel(dist)], check=True)
    return folder / "bin"


def run(program: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["init", "--help"]], ids=" ".join)
def test_the_base_alone_answers(commands: Path, tmp_path: Path, arguments: list[str]) -> None:
    answer = run(commands / "headstart", *arguments, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("Usage: headstart")


@pytest.mark.slow
def test_the_base_alone_lays_out_a_project_and_says_how_to_run_it(commands: Path, dist: Path, tmp_path: Path) -> None:
    answer = run(commands / "headstart", "init", "project", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"pip install 'headstart[train] @ {wheel(dist).as_uri()}'" in answer.stdout
    laid_out = {name: held for name, held in files_below(tmp_path / "project").items() if not name.startswith(".git/")}
    assert laid_out == {name: path.read_bytes() for name, path in template().items()}


@pytest.mark.slow
@pytest.mark.parametrize(("command", "extra"), [("doctor", "train"), ("prepare", "train"), ("serve export", "serve")])
def test_a_command_of_an_extra_says_what_to_install(
    commands: Path, dist: Path, tmp_path: Path, command: str, extra: str
) -> None:
    answer = run(commands / "headstart", *command.split(), cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith(f"error: headstart {command.partition(' ')[0]} needs ")
    assert f"pip install 'headstart[{extra}] @ {wheel(dist).as_uri()}'" in answer.stderr
    assert answer.stderr.count("\n") == 1
