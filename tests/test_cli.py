import subprocess
import sys
from pathlib import Path

import pytest

from headstart.cli import COMMANDS

START = [sys.executable, "-c", "from headstart.cli import main; main()"]
PARAMS = Path(__file__).parents[1] / "params.yaml"


def headstart(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*START, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(tmp_path: Path, flag: str) -> None:
    answer = headstart(flag, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: headstart COMMAND")
    listed = [line.split()[0] for line in answer.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(COMMANDS)
    assert all(does in answer.stdout for _, does in COMMANDS.values())


@pytest.mark.parametrize(
    ("arguments", "said"), [(["trian"], "error: no command 'trian'"), ([], "error: no command given")]
)
def test_no_such_command_is_an_error(tmp_path: Path, arguments: list[str], said: str) -> None:
    answer = headstart(*arguments, cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert said in answer.stderr
    assert "usage: headstart" in answer.stderr


def test_a_stages_help_is_its_docstring(tmp_path: Path) -> None:
    answer = headstart("probe", "--help", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.startswith("usage: headstart probe")
    assert "Find the linear head on the cached features" in answer.stdout
    assert "\nreads:   data/prepared" in answer.stdout
    assert "--params" in answer.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "params.yaml does not exist"),
        (
            PARAMS.read_text(encoding="utf-8").replace("patience: 5", "patience: five"),
            "finetune.early_stopping.patience",
        ),
        (PARAMS.read_text(encoding="utf-8"), "data/prepared/dataset.json does not exist: run `dvc repro`"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_no_traceback(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    answer = headstart("probe", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error: ")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_another_params_file_can_be_named(tmp_path: Path) -> None:
    answer = headstart("probe", "--params", "mine.yaml", cwd=tmp_path)
    assert answer.returncode == 1
    assert "mine.yaml does not exist" in answer.stderr


def test_an_unknown_flag_is_an_error(tmp_path: Path) -> None:
    answer = headstart("probe", "--parms", "mine.yaml", cwd=tmp_path)
    assert answer.returncode == 2
    assert "usage: headstart probe" in answer.stderr


def test_the_leaderboard_before_any_run_says_what_to_do(tmp_path: Path) -> None:
    answer = headstart("leaderboard", cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert "reports/evaluate.json does not exist: run `dvc repro`" in answer.stderr


def without(module: str, command: str, cwd: Path, *arguments: str) -> str:
    code = f"import sys; sys.modules[{module!r}] = None; from headstart.cli import main; main()"
    run = [sys.executable, "-c", code, command, *arguments]
    answer = subprocess.run(run, cwd=cwd, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (1, "")
    return answer.stderr


@pytest.mark.parametrize(
    ("module", "command", "arguments", "extra"),
    [
        ("pydantic", "doctor", [], "train"),
        ("fastapi", "serve", ["export"], "serve"),
        ("huggingface_hub", "push", ["export", "owner/name"], "train"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(
    tmp_path: Path, module: str, command: str, arguments: list[str], extra: str
) -> None:
    said = without(module, command, tmp_path, *arguments)
    assert said.startswith(f"error: headstart {command} needs {module}, which is not installed: pip install ")
    assert f"headstart[{extra}]" in said
    assert said.count("\n") == 1


def test_a_module_of_our_own_that_is_missing_is_no_extra(tmp_path: Path) -> None:
    assert "Traceback" in without("headstart.config.schema", "prepare", tmp_path)
