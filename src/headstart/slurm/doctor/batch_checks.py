"""Checks what a batch script asks of Slurm: against itself, ``params.yaml`` and the cluster's settings."""

import math
import netrc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from headstart.config.schema import Params
from headstart.slurm.doctor.batch_script import BatchScript, gpus, gpus_of_gres, nodes, seconds, signal
from headstart.slurm.doctor.finding import Finding


@dataclass(frozen=True)
class Resources:
    """What a job has, or will have.

    Attributes:
        nodes: machines.
        tasks: processes on all of them.
        gpus: of each node; None where none were asked for.
    """

    nodes: int
    tasks: int
    gpus: float | None

    @property
    def tasks_a_node(self) -> float:
        """Return the mean; Slurm may share them out unequally."""
        return self.tasks / self.nodes


def resources_of(options: Mapping[str, str]) -> Resources:
    """Work the numbers out as Slurm does from the options of sbatch, by their long names."""
    a_node = int(options.get("ntasks-per-node", 1))
    if "nodes" in options or "ntasks" not in options:
        machines = nodes(options.get("nodes", "1"))
    else:
        machines = math.ceil(int(options["ntasks"]) / a_node) if "ntasks-per-node" in options else 1
    tasks = int(options.get("ntasks", machines * a_node))
    if "gpus-per-node" in options:
        asked: float | None = gpus(options["gpus-per-node"])
    elif "gpu" in options.get("gres", ""):
        asked = gpus_of_gres(options["gres"])
    elif "gpus-per-task" in options:
        asked = gpus(options["gpus-per-task"]) * tasks / machines
    else:
        asked = gpus(options["gpus"]) / machines if "gpus" in options else None
    return Resources(machines, tasks, asked)


def check_script(script: BatchScript, cluster: Mapping[str, str]) -> Iterator[Finding]:
    """Check a batch script by itself.

    Args:
        script: its options; in a job, those that the job really has.
        cluster: Slurm's settings, as `scontrol show config` names them; empty where they aren't known.

    Yields:
        Errors and warnings.
    """
    yield from (Finding("error", *trouble) for trouble in script.troubles)
    yield from _check_tasks(script, resources_of(script.options))
    yield from _check_end(script, cluster)
    for option in {"output", "error"} & set(script.options):
        folder = Path(script.options.get("chdir", "."), script.options[option]).parent
        if "%" not in str(folder) and not folder.is_dir():
            what = f"{folder} does not exist, and the job would fail without a word: mkdir -p {folder}"
            yield Finding("error", "output-folder-missing", f"{_where(script, option)}: {what}")


def check_params(script: BatchScript, params: Params) -> Iterator[Finding]:
    """Check a batch script against ``params.yaml``."""
    resources, finetune, run = resources_of(script.options), params.finetune, params.run
    if run.devices not in ("auto", resources.tasks_a_node):
        what = f"run.devices: {run.devices}, but the job has {resources.tasks_a_node:g} tasks a node: use auto"
        yield Finding("error", "devices-conflict", what)
    if finetune.batch_size < resources.tasks * finetune.accumulate:
        what = f"finetune.batch_size: {finetune.batch_size} images can't be shared by {resources.tasks} tasks in "
        what += f"{finetune.accumulate} parts (finetune.accumulate): raise it or ask for fewer tasks"
        yield Finding("error", "batch-too-small", what)
    if resources.gpus and run.accelerator == "cpu":
        what = f"run.accelerator: cpu, and {resources.gpus:g} GPUs a node would idle: use auto, or ask for none"
        yield Finding("error", "gpus-idle", what)
    cpus = script.options.get("cpus-per-task", "1" if "cpus-per-task" not in script.lines else "")
    if run.workers and cpus == "1" and not {"cpus-per-gpu", "exclusive"} & set(script.options):
        what = "a task has one core to compute and to load images: ask for more, such as --cpus-per-task=8"
        yield Finding("warning", "cpus-per-task-missing", f"{_where(script, 'cpus-per-task')}: {what}")


def check_tracking(params: Params) -> Iterator[Finding]:
    """Look for wandb's key, without which an online run ends when the long work begins."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    if params.run.tracking == "online" and not known and "WANDB_API_KEY" not in os.environ:
        what = f"run.tracking: online, but no WANDB_API_KEY and no {host} in ~/.netrc: `wandb login`, or use offline"
        yield Finding("error", "wandb-key-missing", what)


def _check_tasks(script: BatchScript, resources: Resources) -> Iterator[Finding]:
    options, a_node, gpus_a_node = script.options, resources.tasks_a_node, resources.gpus
    if "ntasks-per-node" not in options and resources.tasks > max(1, resources.nodes) and options.get("nodes") != "1":
        what = "Slurm may put 3 tasks on one node and 1 on another: give --nodes and --ntasks-per-node instead"
        yield Finding("error", "ntasks-per-node-missing", f"{_where(script, 'ntasks')}: {what}")
    elif "ntasks-per-node" not in options and gpus_a_node is not None and gpus_a_node > a_node:
        what = f"#SBATCH --ntasks-per-node: missing, so of {gpus_a_node:g} GPUs a node {a_node:g} are used: add it"
        yield Finding("error", "ntasks-per-node-missing", f"{what}, --ntasks-per-node={gpus_a_node:g}")
    elif a_node != int(options.get("ntasks-per-node", a_node)) or a_node % 1:
        what = f"{resources.tasks} tasks are not --ntasks-per-node times {resources.nodes} nodes: leave --ntasks out"
        yield Finding("error", "ntasks-uneven", f"{_where(script, 'ntasks')}: {what}")
    elif gpus_a_node is not None and a_node > gpus_a_node:
        what = f"{a_node:g} tasks a node but {gpus_a_node:g} GPUs: give as many tasks as GPUs"
        yield Finding("error", "gpus-too-few", f"{_where(script, 'ntasks-per-node')}: {what}")
    elif gpus_a_node is not None and a_node < gpus_a_node:
        what = f"{gpus_a_node:g} GPUs a node but {a_node:g} tasks, which use one each: give as many tasks as GPUs"
        yield Finding("error", "gpus-idle", f"{_where(script, 'ntasks-per-node')}: {what}")


def _check_end(script: BatchScript, cluster: Mapping[str, str]) -> Iterator[Finding]:
    """Check what happens at the time limit, at preemption and when a node dies."""
    options, given = script.options, {*script.options, *script.lines}
    if "time" not in given:
        what = "#SBATCH --time: missing, so the partition's default holds, often minutes: add it"
        yield Finding("warning", "time-missing", what)
    if "signal" not in given:
        what = "#SBATCH --signal: missing, so the time limit kills without a save: add --signal=B:USR1@180"
        yield Finding("warning", "signal-missing", what)
    elif "signal" in options:
        sent = signal(options["signal"])
        if sent.name != "USR1":
            what = f"{_where(script, 'signal')}: training saves and is requeued on USR1: write --signal=B:USR1@180"
            yield Finding("error", "signal-not-usr1", what)
        elif not sent.batch:
            what = "without B: srun's tasks alone get it, and only a job in finetune's training is then queued again: "
            what += "write --signal=B:USR1@180"
            yield Finding("warning", "signal-not-batch", f"{_where(script, 'signal')}: {what}")
        if seconds(options.get("time", "0")) <= sent.seconds:
            what = f"{_where(script, 'time')}: no longer than --signal's lead of {sent.seconds} s: raise --time"
            yield Finding("error", "time-too-short", what)
    if "no-requeue" in options:
        what = f"{_where(script, 'no-requeue')}: a job that is stopped stays stopped: write --requeue"
        yield Finding("warning", "requeue-off", what)
    elif "requeue" not in given and cluster.get("JobRequeue") != "1":
        what = "#SBATCH --requeue: missing, so a job that is stopped may stay stopped: add it"
        yield Finding("warning", "requeue-missing", what)
    if options.get("open-mode") != "append" and cluster.get("JobFileAppend") != "1":
        what = "#SBATCH --open-mode=append: missing, so a requeue empties the job's output: add it"
        yield Finding("warning", "open-mode-missing", what)


def _where(script: BatchScript, option: str) -> str:
    return script.lines.get(option, f"#SBATCH --{option}")
