"""The image of the house: its layers, and that dvc.yaml, params.yaml and the stages say the same."""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from headstart.cli import STAGES as STAGE_COMMANDS
from headstart.cli import cli
from headstart.config.schema import Params

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "headstart"
STAGES = ["prepare", "features", "probe", "finetune", "evaluate", "export"]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
STAGE_MODULES = [f"headstart.stages.{stage}" for stage in STAGES]


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that a module imports anywhere, also in functions; ``from package import module`` is the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in TREES else str(node.module)


def test_the_modules_are_found() -> None:
    assert "headstart.data.dataset" in set(imported(TREES["headstart.stages.probe"]))
    found = {name for name in TREES if re.fullmatch(r"headstart\.stages\.\w+", name)}
    assert found == {*STAGE_MODULES, "headstart.stages.program"}


@pytest.mark.parametrize("name", ["wandb", "wandb_workspaces"])
def test_tracking_imports_wandb_only_when_it_is_used(name: str) -> None:
    """Which folder may import it is a contract in pyproject.toml."""
    top = [node for tree in TREES.values() for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert name not in {other.split(".")[0] for node in top for other in imported(node)}


@pytest.mark.parametrize("name", TREES)
def test_no_module_uses_anothers_underscore_names(name: str) -> None:
    modules: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("headstart"):
            assert [alias.name for alias in node.names if alias.name.startswith("_")] == []
            modules |= {alias.asname or alias.name for alias in node.names if f"{node.module}.{alias.name}" in TREES}
    used = [n for n in ast.walk(TREES[name]) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)]
    assert [ast.unparse(n) for n in used if n.attr.startswith("_") and ast.unparse(n.value) in modules] == []


def definitions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield name, node


def test_no_two_classes_share_a_name() -> None:
    modules: dict[str, list[str]] = {}
    for name, node in definitions():
        if isinstance(node, ast.ClassDef):
            modules.setdefault(node.name, []).append(name)
    assert {name: where for name, where in modules.items() if len(where) > 1} == {}


def test_docstrings_begin_with_the_usual_verbs() -> None:
    """Return, Compute, Write ...: these were once used for all of them, and had to be decoded."""
    unusual = ("Give", "Have", "Let", "Say", "Take", "Tell")
    found = [(name, node.name) for name, node in definitions() if (ast.get_docstring(node) or "").startswith(unusual)]
    assert found == []


def test_no_module_is_called_utils() -> None:
    vague = {"utils", "util", "helpers", "common", "misc", "base"}
    assert [name for name in TREES if name.rpartition(".")[2] in vague] == []


def test_packages_are_empty() -> None:
    assert all(path.read_text() == "" for path in SOURCE.rglob("__init__.py"))


def calls(tree: ast.AST, function: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == function:
            yield node


def test_only_evaluate_reads_test_labels() -> None:
    for name, tree in TREES.items():
        if name == "headstart.stages.evaluate":
            assert [ast.unparse(call.args[0]) for call in calls(tree, "read_values")] == ["'validation'", "'test'"]
            continue
        for call in calls(tree, "read_values"):
            assert isinstance(call.args[0], ast.Constant), f"{name}: which split's labels these are must be plain"
            assert call.args[0].value in {"train", "validation"}, name
        assert "'test'" not in [ast.unparse(call.args[0]) for call in calls(tree, "rows")], name
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert "test" not in constants or name.split(".")[1] in {"data", "evaluation"}, name


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_a_program_that_says_what_it_does(stage: str) -> None:
    tree = TREES[f"headstart.stages.{stage}"]
    docstring = ast.get_docstring(tree) or ""
    assert [
        word for word in ("reads", "writes", "params") if not re.search(rf"^{word}:? ", docstring, re.MULTILINE)
    ] == []
    assert ast.unparse(tree.body[-1]) == "if __name__ == '__main__':\n    main(run, PARAMS)"
    (run,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert ast.unparse(run.args) == "params: Params"
    module = importlib.import_module(f"headstart.stages.{stage}")
    assert {"PARAMS", "READS", "WRITES", "run"} <= set(vars(module))
    for key in module.PARAMS:
        assert key.split(".")[0] in docstring
    assert all(str(path) in docstring or "${" in str(path) for path in (*module.READS, *module.WRITES))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_uses_the_params_that_it_declares(stage: str) -> None:
    declared = importlib.import_module(f"headstart.stages.{stage}").PARAMS
    chains = {
        ast.unparse(node).split(".")[1]
        for node in ast.walk(TREES[f"headstart.stages.{stage}"])
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("params.")
    }
    used = chains & set(Params.model_fields) - {"run"}
    assert used == {key.split(".")[0] for key in declared}


def names_of(entries: list[Any]) -> list[str]:
    """DVC's outs and plots: a path, or a path with options."""
    return [path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)]


def pipeline() -> dict[str, Any]:
    stages: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    return stages


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_what_the_stage_declares(stage: str) -> None:
    entry, module = pipeline()[stage], importlib.import_module(f"headstart.stages.{stage}")
    assert entry["cmd"] == f"exec sh slurm/launch.sh {stage}"
    assert entry["params"] == list(module.PARAMS)
    assert entry["deps"] == [str(path) for path in module.READS]
    assert sorted(names_of(entry["outs"] + entry.get("plots", []))) == sorted(map(str, module.WRITES))
    assert entry["metrics"] == [f"reports/{stage}.json"]
    assert set(entry) <= {"cmd", "deps", "params", "outs", "metrics", "plots"}


def test_stage_commands_params_and_pipeline_have_the_same_names() -> None:
    assert list(pipeline()) == STAGES
    assert list(STAGE_COMMANDS) == list(cli.commands)[: len(STAGES)] == STAGES
    assert all(module in TREES for module in STAGE_MODULES)
    sections = YAML(typ="safe").load(ROOT / "params.yaml")
    assert list(sections) == list(Params.model_fields)
    assert set(sections) == {*STAGES, "backbone", "run"}


def test_every_key_of_params_yaml_has_a_comment() -> None:
    """Above it, or above the first of the keys that stand in a row; the keys of a block share its comment."""
    *lines, last = (ROOT / "params.yaml").read_text(encoding="utf-8").splitlines()
    without = []
    for above, line in pairwise([*lines, last]):
        is_key = re.match(r"  \w+:", line)
        if is_key and not re.match(r"  (# |\w+: \S)", above):
            without.append(line.strip())
    assert without == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["finetune", "--help"], ["predict", "--help"]], ids=" ".join
)
def test_help_imports_nothing_but_click(tmp_path: Path, arguments: list[str]) -> None:
    """So it answers at once."""
    code = (
        "import sys; before = set(sys.modules); from headstart.cli import cli; cli(standalone_mode=False); "
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(loaded - set(sys.stdlib_module_names)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stderr == "['click', 'headstart']\n"


IMPORTS = """
import importlib, logging, os, sys
sys.modules |= {"wandb": None, "dvc": None}  # whoever needs them fails; timm only tries

def heavy():
    return {"torch", "timm", "lightning", "numpy", "pydantic", "sklearn"} & set(sys.modules)

import headstart.cli
assert not heavy(), heavy()
import headstart.config.schema
assert not heavy() - {"pydantic"}, heavy()
import headstart.data.dataset, headstart.stages.program, headstart.stages.probe
import headstart.predict
assert not heavy() - {"pydantic", "numpy"}, heavy()
import lightning, numpy, random, timm, torch  # lightning draws from random's generator: not ours to mend
def state():
    kept = {name: value for name, value in os.environ.items() if name.startswith(("HEADSTART", "WANDB", "DVC", "HF_"))}
    return torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate(), kept
before = state()
for name in sys.argv[1:]:
    importlib.import_module(name)
assert state() == before
assert not torch.cuda.is_initialized()
assert not torch.distributed.is_initialized()
assert not logging.getLogger("headstart").handlers
assert not os.listdir("."), os.listdir(".")
"""


def test_nothing_happens_on_import(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", IMPORTS, *TREES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    assert (answer.stdout, answer.stderr) == ("", "")
    assert list(tmp_path.iterdir()) == []
