import ast
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click.testing import CliRunner

from headstart.cli import STAGES, cli
from headstart.core import command
from headstart.core.errors import UserError
from headstart.stages import program
from helpers.command import headstart
from helpers.images import ROOT

PARAMS = (ROOT / "params.yaml").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which is empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_every_command(flag: str) -> None:
    answer = headstart(flag)
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.startswith("Usage: headstart [OPTIONS] COMMAND")
    _, _, commands = answer.stdout.partition("Commands:\n")
    assert [line.split()[0] for line in commands.splitlines() if line[2] != " "] == list(cli.commands)
    said = " ".join(commands.split())
    assert all(does.removesuffix(".") in said for does in STAGES.values())
    assert "..." not in said


def test_the_version_is_the_packages() -> None:
    assert headstart("--version").stdout == f"headstart, version {version('headstart')}\n"


def test_a_shell_completes_commands_and_options() -> None:
    for words, expected in (("headstart lead", ["plain,leaderboard"]), ("headstart probe --par", ["plain,--params"])):
        environment = {
            "_HEADSTART_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        }
        assert CliRunner().invoke(cli, prog_name="headstart", env=environment).stdout.splitlines() == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["trian"], "No such command 'trian'"), ([], "Usage: headstart [OPTIONS] COMMAND"), (["study"], "early-stopping")],
)
def test_no_such_command_is_wrong_usage(arguments: list[str], said: str) -> None:
    answer = headstart(*arguments)
    assert (answer.exit_code, answer.stdout) == (2, "")
    assert said in answer.stderr
    assert "Usage: headstart" in answer.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_help_is_its_docstring(stage: str) -> None:
    answer = headstart(stage, "--help")
    assert (answer.exit_code, answer.stderr) == (0, "")
    assert answer.stdout.startswith(f"Usage: headstart {stage} [OPTIONS]")
    source = (ROOT / "src" / "headstart" / "stages" / f"{stage}.py").read_text(encoding="utf-8")
    assert f"\n{ast.get_docstring(ast.parse(source))}\n" in answer.stdout
    assert "\nreads:   data/" in answer.stdout or stage == "prepare"
    assert "--params" in answer.stdout


def run_stage_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a stage as slurm/launch.sh of older projects does: a process, since its end as ``__main__`` is tested."""
    command = [sys.executable, "-m", "headstart.stages.probe", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["--parms"], ["--params", "mine.yaml"]])
def test_a_stages_module_and_its_command_are_the_same(arguments: list[str]) -> None:
    done, answer = run_stage_module(*arguments), headstart("probe", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (answer.exit_code, answer.stdout, answer.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "params.yaml does not exist"),
        (PARAMS.replace("patience: auto", "patience: five"), "finetune.early_stopping.patience"),
        (PARAMS.replace("  ema: auto\n", ""), "finetune.ema: missing; add it with `headstart params`"),
        (PARAMS, "data/prepared/dataset.json does not exist: run `dvc repro`"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_no_traceback(text: str | None, said: str) -> None:
    if text is not None:
        Path("params.yaml").write_text(text, encoding="utf-8")
    answer = headstart("probe")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error: ")
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_another_params_file_can_be_named() -> None:
    answer = headstart("probe", "--params", "mine.yaml")
    assert answer.exit_code == 1
    assert "mine.yaml does not exist" in answer.stderr


def test_params_adds_missing_keys_and_lays_an_overlay_over_the_file() -> None:
    Path("params.yaml").write_text(PARAMS.replace("  ema: auto\n", ""), encoding="utf-8")
    Path("mine.yaml").write_text(PARAMS, encoding="utf-8")
    Path("overlay.yaml").write_text("finetune: {epochs: 3}\n", encoding="utf-8")
    for arguments, stdout in (
        ([], "added finetune.ema: auto\n"),
        (["overlay.yaml"], "changed finetune.epochs: auto → 3\n"),
        (["overlay.yaml", "--params", "mine.yaml"], "changed finetune.epochs: auto → 3\n"),
        (["overlay.yaml"], "params.yaml: nothing to change\n"),
    ):
        answer = headstart("params", *arguments)
        assert (answer.exit_code, answer.stdout, answer.stderr) == (0, stdout, "")
    Path("overlay.yaml").write_text("finetune: {epoch: 3}\n", encoding="utf-8")
    answer = headstart("params", "overlay.yaml")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert answer.stderr.startswith(
        "error: overlay.yaml over params.yaml:\n  finetune.epoch: unknown key; did you mean"
    )


def test_an_unknown_flag_is_wrong_usage() -> None:
    answer = headstart("probe", "--parms", "mine.yaml")
    assert answer.exit_code == 2
    assert "Usage: headstart probe" in answer.stderr


def fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have every stage raise an error as soon as it runs."""

    def run(*_: object) -> None:
        raise error

    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    monkeypatch.setattr(program, "load_params", run)


def test_another_rank_speaks_after_rank_0_and_says_who_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("headstart.core.command.time.sleep", slept.append)
    monkeypatch.setattr("headstart.core.command.socket.gethostname", lambda: "node-2")
    fail(monkeypatch, UserError("no such thing"))
    monkeypatch.setenv("RANK", "0")
    assert headstart("probe").stderr == "error: no such thing\n"
    assert slept == []
    monkeypatch.setenv("RANK", "1")
    answer = headstart("probe")
    assert (answer.exit_code, answer.stderr) == (1, "rank 1 on node-2: error: no such thing\n")
    assert slept == [command.SECONDS_FOR_RANK_0]


def test_what_a_loaders_worker_raised_comes_without_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raised = "Caught UserError in DataLoader worker process 0.\nTraceback …\nheadstart.core.errors.UserError: a shard"
    fail(monkeypatch, UserError(raised))
    assert headstart("probe").stderr == "error: a shard\n"


def test_ctrl_c_is_130_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    fail(monkeypatch, KeyboardInterrupt())
    answer = headstart("probe")
    assert (answer.exit_code, answer.stdout, answer.stderr) == (130, "", "")


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), EOFError()])
def test_a_worker_that_ends_too_early_is_no_silent_end(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Click alone would end without a message, as it does where nobody reads stdout."""
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")

    def run(_: object) -> None:
        raise error

    monkeypatch.setattr("headstart.stages.probe.run", run)
    with pytest.raises(RuntimeError, match="ended too early"):
        headstart("probe")


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [("sys.exit(3)", 3, ""), ("sys.exit()", 0, ""), ("1 / 0", 1, "ZeroDivisionError"), ("pass", 0, "taken apart")],
)
def test_a_command_ends_without_being_taken_apart(ending: str, code: int, said: str) -> None:
    """What it printed and what is registered with atexit is all there: only Python's own teardown is left out."""
    program = f"""
import atexit, sys
from headstart.core.command import quick_exit

class Object:
    def __del__(self):
        print("taken apart", file=sys.stderr)

thing = Object()
with quick_exit():
    atexit.register(print, "registered")
    print("printed")
    {ending}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "printed\nregistered\n")
    assert said in done.stderr
    assert ("taken apart" in done.stderr) == ("sys.exit" not in ending)


def test_the_leaderboard_before_any_run_says_what_to_do() -> None:
    answer = headstart("leaderboard")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "reports/evaluate.json does not exist: run `dvc repro`" in answer.stderr


def test_dvcs_own_options_are_dvcs(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".dvc").mkdir()
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    seen: list[list[str]] = []

    def run_dvc(arguments: list[str], _: str) -> tuple[int, list[int]]:
        seen.append(arguments)
        return 0, []

    monkeypatch.setattr("headstart.slurm.repro.run_dvc", run_dvc)
    assert headstart("repro", "-f", "finetune", "--no-commit").exit_code == 0
    assert headstart("repro", "-Sprobe.heads=[]", "--set-param", "prepare.seed=1", "-h=1").exit_code == 0
    assert seen == [
        ["repro", "-f", "finetune", "--no-commit"],
        ["exp", "run", "-Sprobe.heads=[]", "--set-param", "prepare.seed=1", "-h=1"],
    ]
    for flag in ("-h", "--help"):
        answer = headstart("repro", "-f", flag)
        assert answer.exit_code == 0
        assert "headstart repro -S KEY=VALUE" in answer.stdout
    assert len(seen) == 2


def without(module: str, command: str, *arguments: str) -> str:
    """Run a command in a process that has a module missing; the imports of this one can't be undone."""
    code = f"import sys; sys.modules[{module!r}] = None; from headstart.cli import main; main()"
    run = [sys.executable, "-c", code, command, *arguments]
    answer = subprocess.run(run, capture_output=True, text=True, check=False)
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
    module: str, command: str, arguments: list[str], extra: str
) -> None:
    said = without(module, command, *arguments)
    assert said.startswith(f"error: headstart {command} needs {module}, which is not installed: pip install ")
    assert f"headstart[{extra}]" in said
    assert said.count("\n") == 1


def test_a_module_of_our_own_that_is_missing_is_no_extra() -> None:
    assert "Traceback" in without("headstart.config.schema", "prepare")


def test_python_m_headstart_is_the_command() -> None:
    """A process, since how it starts is the point; slurm/launch.sh starts doctor and repro so."""
    run = [sys.executable, "-m", "headstart", "leaderboard"]
    answer = subprocess.run(run, capture_output=True, text=True, check=False, env=os.environ | {"COLUMNS": "80"})
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr.startswith("error: reports/evaluate.json does not exist")


@pytest.mark.parametrize("name", ["doctor", "repro"])
def test_projects_of_before_find_the_commands_of_their_launch_script(name: str) -> None:
    """In a process: as a module is what slurm/launch.sh of an older project calls."""
    done = subprocess.run(
        [sys.executable, "-m", f"headstart.{name}", "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: headstart {name}")


def test_only_what_lies_behind_a_url_has_a_lock() -> None:
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")
    answer = headstart("lock-source")
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert "prepare.source: digits has no URL: DVC watches prepare.path itself" in answer.stderr
