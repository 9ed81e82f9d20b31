import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from headstart.core.errors import UserError
from headstart.core.paths import REQUEUES
from headstart.core.run_state import slurm_job
from headstart.slurm.requeue import MAX_STARTS_WITHOUT_PROGRESS, requeue
from helpers.images import params


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project where no Slurm answers; with a real Slurm: test_jobs.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    YAML().dump(params({"run.cache": "cache"}).model_dump(), Path("params.yaml"))


def refusal(steps: int | None = None) -> str:
    with pytest.raises(UserError) as caught:
        requeue(slurm_job() or "", steps)
    return str(caught.value)


def test_where_slurm_does_not_requeue_the_message_says_what_to_do() -> None:
    assert refusal().startswith("job 12 is not queued again")
    assert "submit it again, best with #SBATCH --requeue" in refusal()


def test_an_arrays_task_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert refusal().startswith("job 12_3 is")


def test_starts_without_progress_are_counted() -> None:
    for _ in range(MAX_STARTS_WITHOUT_PROGRESS):
        assert "submit it again" in refusal()
    assert refusal() == (
        "job 12 is not queued again: its last 3 starts made no progress; repair what stops it, then sbatch again"
    )


@pytest.mark.parametrize(
    "further", ["dvc.lock", "data/.prepared.partial/pixels-00000.bin", "cache/features/a/b.safetensors"]
)
def test_whatever_a_stage_adds_is_progress(further: str) -> None:
    for _ in range(MAX_STARTS_WITHOUT_PROGRESS):
        refusal()
    Path(further).parent.mkdir(parents=True, exist_ok=True)
    Path(further).write_text("one")
    assert "submit it again" in refusal()
    assert json.loads(REQUEUES.read_text())["count"] == 1


def test_a_step_is_progress_and_so_is_another_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(MAX_STARTS_WITHOUT_PROGRESS):
        refusal(7)
    assert "made no progress" in refusal(7)
    assert "submit it again" in refusal(8)
    for _ in range(MAX_STARTS_WITHOUT_PROGRESS - 1):
        refusal(8)
    assert "made no progress" in refusal(8)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert "submit it again" in refusal(8)
