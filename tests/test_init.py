"""A project that `headstart init` lays out, as git and DVC see it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headstart import init_project
from headstart.config.loader import load_params
from headstart.core.errors import UserError
from headstart.init_project import lay_out, template
from helpers.command import headstart
from helpers.images import ROOT

IDENTITY = {f"GIT_{role}_{what}": "t@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
DVC = (sys.executable, "-m", "dvc")


def output(*command: str, cwd: Path) -> str:
    return subprocess.run(
        command, cwd=cwd, env=os.environ | IDENTITY, check=True, capture_output=True, text=True
    ).stdout


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_git_and_dvc_take_the_project_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = headstart("init", "new/my project")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert "cd 'new/my project'" in answer.stdout
    project = tmp_path / "new" / "my project"
    output("git", "add", "-A", cwd=project)
    output("git", "commit", "-qm", "start", cwd=project)
    assert set(output("git", "ls-files", cwd=project).splitlines()) == set(template())
    stages = output(*DVC, "stage", "list", "--name-only", cwd=project).splitlines()
    assert stages == ["prepare", "features", "probe", "finetune", "evaluate", "export"]
    assert "prepare:" in output(*DVC, "status", cwd=project)
    assert output("git", "status", "--porcelain", cwd=project) == ""
    assert load_params(project / "params.yaml").prepare.source == "digits"


def test_a_clone_of_windows_git_has_the_same_bytes_and_starts_its_stages(tmp_path: Path) -> None:
    project, clone = tmp_path / "mein Projekt ä", tmp_path / "the clone"
    lay_out(project)
    (project / "data" / "raw" / "labels.csv").write_bytes(b"path,label\r\n")
    output("git", "add", "-A", "-f", cwd=project)
    output("git", "commit", "-qm", "start", cwd=project)
    output("git", "clone", "-q", "-c", "core.autocrlf=true", str(project), str(clone), cwd=tmp_path)
    tracked = [*template(), "data/raw/labels.csv"]
    assert {name: (clone / name).read_bytes() for name in tracked} == {
        name: (project / name).read_bytes() for name in tracked
    }
    assert "usage" in output("sh", "slurm/launch.sh", "doctor", "--help", cwd=clone).lower()
    script = clone / "slurm" / "launch.sh"
    script.write_bytes(script.read_bytes().replace(b"\n", b"\r\n"))  # an editor's
    output("git", "add", "-A", cwd=clone)
    assert output("git", "diff", "--cached", "--stat", cwd=clone) == ""


def test_a_backbone_is_written_into_its_params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert headstart("init", "mine", "--backbone", "pip:tf_efficientnet_lite0").exit_code == 0
    params = load_params(Path("mine/params.yaml"))
    assert (params.backbone.name, params.prepare.source) == ("pip:tf_efficientnet_lite0", "digits")


def test_a_folder_of_images_becomes_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answer = headstart("init", "mine", "--images", "my photos")
    assert (answer.exit_code, Path("mine").exists()) == (1, False)
    assert answer.stderr.startswith("error: --images: my photos is not a folder")
    Path("my photos/cat").mkdir(parents=True)
    answer = headstart("init", "mine", "--images", "my photos")
    assert (answer.exit_code, "prepare.source" in answer.stdout) == (0, False)
    params = load_params(Path("mine/params.yaml"))
    assert (params.prepare.source, params.prepare.path) == ("imagefolder", str(tmp_path / "my photos"))
    assert params.backbone.name == "bundled"


def test_images_without_class_folders_need_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my photos").mkdir()
    Path("my photos/labels.csv").write_text("path,label\n")
    answer = headstart("init", "mine", "--images", "my photos")
    assert answer.exit_code == 0
    assert "my photos has no class folders: name your table in params.yaml, prepare.source: csv:FILE" in answer.stdout


def test_it_is_this_repositorys_pipeline(tmp_path: Path) -> None:
    lay_out(tmp_path)
    tracked = output("git", "ls-files", cwd=ROOT).splitlines()
    files = ("dvc.yaml", "params.yaml", "sweep.yaml", ".gitignore", ".gitattributes", ".dvcignore")
    folders = ("slurm/", ".dvc/", "data/", "models/", "reports/")
    assert set(template()) == {name for name in tracked if name in files or name.startswith(folders)}
    assert all((tmp_path / name).read_bytes() == (ROOT / name).read_bytes() for name in template())


def test_nothing_is_overwritten_and_nothing_half_laid_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("mine too")
    before = files_below(tmp_path)
    answer = headstart("init", ".")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error: params.yaml is there already: ")
    assert files_below(tmp_path) == before
    (tmp_path / "params.yaml").unlink()
    lay_out(tmp_path)
    assert (tmp_path / "data" / "notes.txt").read_text() == "mine too"


@pytest.mark.parametrize("name", ["slurm", "data/raw"])
def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is there already"):
        lay_out(tmp_path)
    assert files_below(tmp_path) == {name: b"mine"}


def test_what_fails_on_the_way_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_project, "template", lambda: template() | {"slurm/last": tmp_path / "missing"})
    with pytest.raises(UserError, match="can't be written"):
        lay_out(tmp_path / "new" / "project")
    assert list(tmp_path.iterdir()) == []


def test_without_git_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is not on the PATH"):
        lay_out(tmp_path / "project")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ignored", [False, True])
def test_a_repository_is_made_where_none_would_have_the_project(tmp_path: Path, *, ignored: bool) -> None:
    output("git", "init", "-q", cwd=tmp_path)
    (tmp_path / ".gitignore").write_text("/mine\n" if ignored else "")
    lay_out(tmp_path / "mine")
    assert (tmp_path / "mine" / ".git").is_dir() == ignored
    assert "prepare" in output(*DVC, "stage", "list", "--name-only", cwd=tmp_path / "mine")


@pytest.mark.skipif(sys.platform != "linux", reason="slurm/launch.sh asks /proc")
def test_dvc_by_its_path_runs_the_stages_in_its_own_environment(tmp_path: Path) -> None:
    """Not in the first Python of the PATH, which need not have the package."""
    lay_out(tmp_path)
    output(sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", "an environment", cwd=tmp_path)
    python = tmp_path / "an environment" / "bin" / "python"
    (tmp_path / "stage.sh").write_text((tmp_path / "slurm" / "launch.sh").read_text().replace("exec ", "echo "))
    start = "import subprocess; subprocess.run('exec sh stage.sh prepare', shell=True, check=True)"  # as DVC does
    outside = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    said = subprocess.run([python, "-c", start], cwd=tmp_path, env=outside, check=True, capture_output=True, text=True)
    assert f"{python} -m headstart prepare" in said.stdout
