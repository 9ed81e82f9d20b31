"""Checks of a batch script: against itself, ``params.yaml`` and the cluster's settings.

``sbatch --test-only`` is asked too, but scripts are also written on machines without Slurm, and sbatch says nothing of
directives that it ignores.
"""

import argparse
import difflib
import math
import netrc
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn
from urllib.parse import urlsplit

from headstart.config.schema import Params

SLURM_TIMEOUT_S = 10
SBATCH_OPTIONS = """
a/array= A/account= acctg-freq= b/begin= batch= bb= bbf= c/cpus-per-task= C/constraint= cluster-constraint= M/clusters=
comment= container= container-id= contiguous cores-per-socket= S/core-spec= cpu-freq= cpus-per-gpu= D/chdir=
d/dependency= deadline= delay-boot= m/distribution= e/error= exclusive? export= export-file= B/extra-node-info= extra=
F/nodefile= get-user-env? G/gpus= gid= gpu-bind= gpu-freq= gpus-per-node= gpus-per-socket= gpus-per-task= gres=
gres-flags= hint= H/hold ignore-pbs i/input= J/job-name= k/no-kill kill-on-invalid-dep L/licenses= mail-type= mail-user=
mcs-label= mem= mem-bind= mem-per-cpu= mem-per-gpu= mincpus= n/ntasks= N/nodes= network= nice? no-requeue
ntasks-per-core= ntasks-per-gpu= ntasks-per-node= ntasks-per-socket= o/output= oom-kill-step? open-mode= O/overcommit
s/oversubscribe parsable p/partition= power= prefer= priority= profile= propagate? q/qos= Q/quiet reboot requeue
reservation= resv-ports? segment= signal= sockets-per-node= spread-job stepmgr switches= test-only t/time= thread-spec=
threads-per-core= time-min= tmp= tres-bind= tres-per-task= uid= use-min-nodes v/verbose w/nodelist= W/wait
wait-all-nodes= wckey= wrap= x/exclude=
"""
"""All options of sbatch, Slurm 22.05 to 25.05, as ``[SHORT/]LONG``; ``=`` takes a value, ``?`` has an optional one."""


class Finding(NamedTuple):
    """One result of a check; an ``error`` costs hours, a ``warning`` less, ``info`` is a measurement.

    ``name`` is for scripts that read ``--json``; ``message`` is one line: what is wrong, where, and what to do.
    """

    severity: Literal["error", "warning", "info"]
    name: str
    message: str


@dataclass
class BatchScript:
    """What a script asks for, also on lines that Slurm ignores, so that one mistake gives one finding.

    Attributes:
        options: value by long name, the last one where an option is repeated; empty for a flag.
        lines: where each option stands, such as ``line 3: #SBATCH -n 4``; also of options whose value is invalid.
        findings: errors of single lines.
    """

    options: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    def error(self, name: str, option: str, message: str) -> Finding:
        """Return an error whose message begins with the line of the option."""
        return Finding("error", name, f"{self.lines.get(option, f'#SBATCH --{option}')}: {message}")

    def warning(self, name: str, option: str, message: str) -> Finding:
        """Return a warning whose message begins with the line of the option."""
        return self.error(name, option, message)._replace(severity="warning")


@dataclass(frozen=True)
class Resources:
    """What a job has, or will have: ``tasks`` on all nodes, ``gpus`` per node (None where none were requested)."""

    nodes: int
    tasks: int
    gpus: float | None

    @property
    def tasks_per_node(self) -> float:
        """Return the mean; Slurm may distribute them unequally."""
        return self.tasks / self.nodes


class Signal(NamedTuple):
    """The value of ``--signal``: to the batch shell (``B:``) or only to the steps; its name; seconds before the end."""

    batch: bool
    name: str
    seconds: int


def read_batch_script(text: str) -> BatchScript:
    """Read the options of a batch script; errors in its lines become ``findings``, nothing is raised."""
    script, parser, first_command = BatchScript(), _OptionParser(), 0
    if not text.startswith("#!"):
        what = "line 1: sbatch refuses a script without #!; write #!/bin/sh"
        script.findings.append(Finding("error", "no-interpreter", what))
    for number, line in enumerate(text.splitlines(), 1):
        if not first_command and line.strip() and not line.lstrip().startswith("#"):
            first_command = number
        directive = re.match(r"\s*#(\w+)(\s+-.*)", line)  # ##SBATCH and # SBATCH are commented out on purpose
        if not directive or not difflib.get_close_matches(directive[1].upper(), ["SBATCH"], cutoff=0.8):
            continue
        where = f"line {number}: {line.strip()}"
        if not line.startswith("#SBATCH"):
            what = f"{where}: Slurm ignores it; write #SBATCH at the line's start"
            script.findings.append(Finding("error", "directive-misspelt", what))
        elif first_command:
            what = f"{where}: Slurm ignores it, since line {first_command} is a command; move it above that"
            script.findings.append(Finding("error", "directive-ignored", what))
        script.findings += _read_options(parser, directive[2], where, script)
    return script


def check_line_ends(script: Path) -> Iterator[Finding]:
    """Check that a script has no Windows line ends, which neither a shell nor sbatch reads."""
    if os.access(script, os.R_OK) and script.is_file() and b"\r\n" in script.read_bytes():
        what = (
            f"{script}: has Windows line ends, which a shell can't read: sed -i 's/\\r$//' {shlex.quote(str(script))}"
        )
        yield Finding("error", "windows-line-ends", what)


class _OptionParser(argparse.ArgumentParser):
    """Accepts unique prefixes of names, as sbatch's getopt does."""

    def __init__(self) -> None:
        super().__init__(add_help=False, argument_default=argparse.SUPPRESS)
        for option in SBATCH_OPTIONS.split():
            short, _, long = option.rstrip("=?").rpartition("/")
            flag: dict[str, Any] = {"action": "store_const", "const": ""}
            kind: dict[str, Any] = {"=": {}, "?": {"nargs": "?", "const": ""}}.get(option[-1], flag)
            self.add_argument(*([f"-{short}"] if short else []), f"--{long}", dest=long, **kind)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _read_options(parser: _OptionParser, text: str, where: str, script: BatchScript) -> Iterator[Finding]:
    """Add the options of one line to the script; yield those that sbatch would refuse."""
    try:
        parsed, unknown = parser.parse_known_args(shlex.split(text, comments=True))
    except ValueError as error:
        yield Finding("error", "option-invalid", f"{where}: {error}")
        return
    for option in unknown:
        known = [f"--{name.rstrip('=?').rpartition('/')[2]}" for name in SBATCH_OPTIONS.split()]
        nearest = difflib.get_close_matches(option.partition("=")[0], known, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "see `sbatch --help`"
        yield Finding("error", "option-unknown", f"{where}: sbatch has no option {option}; {hint}")
        script.lines |= {name.removeprefix("--"): where for name in nearest}
    for name, value in vars(parsed).items():
        script.lines[name] = where
        try:
            _PARSERS.get(name, str)(value)
            script.options[name] = value
        except ValueError:
            yield Finding("error", "option-invalid", f"{where}: {value!r} is no value of --{name} for sbatch")


def parse_seconds(time: str) -> float:
    """Parse minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S (else ValueError); infinite for 0, INFINITE and UNLIMITED."""
    if time.upper() in {"0", "INFINITE", "UNLIMITED"}:
        return math.inf
    days, has_days, clock = time.rpartition("-")
    fields = [int(each) for each in clock.split(":")]
    if not has_days and len(fields) < 3:
        fields.insert(0, 0)
    hours, minutes, seconds = fields + [0] * (3 - len(fields))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_signal(value: str) -> Signal:
    """Parse ``[B:]SIGNAL[@SECONDS]``, where SIGNAL is a name or a number; raises ValueError where it is not that."""
    match = re.fullmatch(r"(?:([RB]+):)?(\w+)(?:@(\d+))?", value)
    if not match:
        raise ValueError(value)
    name = {"10": "USR1", "12": "USR2", "15": "TERM"}.get(match[2], match[2].upper().removeprefix("SIG"))
    return Signal("B" in (match[1] or ""), name, int(match[3] or 60))


def parse_nodes(value: str) -> int:
    """Return the least number of nodes of ``N``, ``N-M`` or a list of them; raises ValueError where it is none."""
    return min(int(each.partition("-")[0]) for each in value.split(","))


def count_gpus(value: str) -> int:
    """Count the GPUs of ``--gpus`` and its kin, ``4`` or ``a100:4,v100:2``; raises ValueError where it is neither."""
    return sum(int(each.rpartition(":")[2]) for each in value.split(","))


def count_gres_gpus(value: str) -> int:
    """Count the GPUs of ``--gres``: ``gpu``, ``gpu:4`` or ``gpu:a100:4,shard:1``."""
    resources = [each.split(":") for each in value.split(",")]
    return sum(int(each[-1]) if each[-1].isdigit() else 1 for each in resources if each[0] == "gpu")


_PARSERS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("ntasks", "ntasks-per-node", "cpus-per-task"), int),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), count_gpus),
    "nodes": parse_nodes,
    "time": parse_seconds,
    "signal": parse_signal,
}


def resources_of(options: Mapping[str, str]) -> Resources:
    """Compute the numbers as Slurm does from the options of sbatch, by their long names."""
    per_node = int(options.get("ntasks-per-node", 1))
    nodes = parse_nodes(options.get("nodes", "1"))
    if "nodes" not in options and {"ntasks", "ntasks-per-node"} <= options.keys():
        nodes = math.ceil(int(options["ntasks"]) / per_node)
    tasks = int(options.get("ntasks", nodes * per_node))
    if "gpus-per-node" in options:
        gpus: float | None = count_gpus(options["gpus-per-node"])
    elif "gpu" in options.get("gres", ""):
        gpus = count_gres_gpus(options["gres"])
    elif "gpus-per-task" in options:
        gpus = count_gpus(options["gpus-per-task"]) * tasks / nodes
    else:
        gpus = count_gpus(options["gpus"]) / nodes if "gpus" in options else None
    return Resources(nodes, tasks, gpus)


def check_script(script: BatchScript, cluster: Mapping[str, str]) -> Iterator[Finding]:
    """Check a batch script by itself; ``cluster`` is what ``cluster_settings`` returns."""
    yield from script.findings
    yield from _check_tasks(script, resources_of(script.options))
    yield from _check_end(script, cluster)
    for option in {"output", "error"} & set(script.options):
        folder = Path(script.options.get("chdir", "."), script.options[option]).parent
        if "%" not in str(folder) and not folder.is_dir():
            what = f"{folder} does not exist, and the job would fail without a word: mkdir -p {folder}"
            yield script.error("output-folder-missing", option, what)


def _check_tasks(script: BatchScript, resources: Resources) -> Iterator[Finding]:
    options, tasks, gpus = script.options, resources.tasks_per_node, resources.gpus
    if "ntasks-per-node" not in options and resources.tasks > max(1, resources.nodes) and options.get("nodes") != "1":
        what = "Slurm may put 3 tasks on one node and 1 on another: use --nodes and --ntasks-per-node instead"
        yield script.error("ntasks-per-node-missing", "ntasks", what)
    elif "ntasks-per-node" not in options and gpus is not None and gpus > tasks:
        what = f"missing, so {tasks:g} of {gpus:g} GPUs a node are used: add --ntasks-per-node={gpus:g}"
        yield script.error("ntasks-per-node-missing", "ntasks-per-node", what)
    elif tasks != int(options.get("ntasks-per-node", tasks)) or tasks % 1:
        what = f"{resources.tasks} tasks are not --ntasks-per-node times {resources.nodes} nodes: leave --ntasks out"
        yield script.error("ntasks-uneven", "ntasks", what)
    elif gpus is not None and tasks != gpus:
        name = "gpus-too-few" if tasks > gpus else "gpus-idle"
        what = f"{tasks:g} tasks and {gpus:g} GPUs a node, but each task uses one GPU: ask for as many tasks as GPUs"
        yield script.error(name, "ntasks-per-node", what)


def _check_end(script: BatchScript, cluster: Mapping[str, str]) -> Iterator[Finding]:
    """Check what happens at the time limit, at preemption and when a node dies."""
    options, mentioned = script.options, {*script.options, *script.lines}
    if "time" not in mentioned:
        yield script.warning("time-missing", "time", "missing, so the partition's default holds, often minutes: add it")
    if "signal" not in mentioned:
        what = "missing, so the time limit kills the job before it saves: add --signal=B:USR1@180"
        yield script.warning("signal-missing", "signal", what)
    elif "signal" in options:
        signal = parse_signal(options["signal"])
        if signal.name != "USR1":
            what = "training saves and is requeued on USR1: write --signal=B:USR1@180"
            yield script.error("signal-not-usr1", "signal", what)
        elif not signal.batch:
            what = "without B: it goes to srun's tasks alone, and only a job in finetune's training is then queued "
            what += "again: write --signal=B:USR1@180"
            yield script.warning("signal-not-batch", "signal", what)
        if parse_seconds(options.get("time", "0")) <= signal.seconds:
            what = f"no longer than the {signal.seconds} s before the end at which --signal is sent: raise --time"
            yield script.error("time-too-short", "time", what)
    if "no-requeue" in options:
        yield script.warning("requeue-off", "no-requeue", "a job that is stopped stays stopped: write --requeue")
    elif "requeue" not in mentioned and cluster.get("JobRequeue") != "1":
        yield script.warning("requeue-missing", "requeue", "missing, so a job that is stopped may stay stopped: add it")
    if options.get("open-mode") != "append" and cluster.get("JobFileAppend") != "1":
        what = "not append, so a requeue empties the job's output: use --open-mode=append"
        yield script.warning("open-mode-missing", "open-mode", what)


def check_params(script: BatchScript, params: Params) -> Iterator[Finding]:
    """Check a batch script against ``params.yaml``."""
    resources, finetune, run = resources_of(script.options), params.finetune, params.run
    if run.devices not in ("auto", resources.tasks_per_node):
        what = f"run.devices: {run.devices}, but the job has {resources.tasks_per_node:g} tasks a node: use auto"
        yield Finding("error", "devices-conflict", what)
    if finetune.batch_size < resources.tasks * finetune.accumulate:
        what = f"finetune.batch_size: {finetune.batch_size} images can't be divided among {resources.tasks} tasks with "
        what += f"finetune.accumulate: {finetune.accumulate}: raise it or ask for fewer tasks"
        yield Finding("error", "batch-too-small", what)
    if resources.gpus and run.accelerator == "cpu":
        what = f"run.accelerator: cpu would leave {resources.gpus:g} GPUs a node idle: use auto, or ask for none"
        yield Finding("error", "gpus-idle", what)
    cpus = script.options.get("cpus-per-task", "1" if "cpus-per-task" not in script.lines else "")
    if run.workers and cpus == "1" and not {"cpus-per-gpu", "exclusive"} & set(script.options):
        what = "a task has one core for training and for loading images: ask for more, such as --cpus-per-task=8"
        yield script.warning("cpus-per-task-missing", "cpus-per-task", what)


def check_tracking(params: Params) -> Iterator[Finding]:
    """Check that there is a key for wandb, without which an online run ends when training begins."""
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        has_login = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        has_login = False
    if params.run.tracking == "online" and not has_login and "WANDB_API_KEY" not in os.environ:
        what = f"run.tracking: online, but no WANDB_API_KEY and no {host} in ~/.netrc: `wandb login`, or use offline"
        yield Finding("error", "wandb-key-missing", what)


def check_by_sbatch(path: Path) -> Iterator[Finding]:
    """Check whether sbatch itself would accept the script, on this cluster's nodes."""
    tested = run_slurm("sbatch", "--test-only", str(path))
    if tested.returncode:
        what = " ".join(tested.stderr.split()).removeprefix("sbatch: error: ")
        yield Finding("error", "sbatch-refuses", f"sbatch would refuse it: {what}")


def cluster_settings() -> dict[str, str]:
    """Return Slurm's settings as `scontrol show config` names them; empty where there is no Slurm."""
    return dict(re.findall(r"^(\w+)\s*= (.*)$", run_slurm("scontrol", "show", "config").stdout, re.MULTILINE))


def allocated_options(options: Mapping[str, str]) -> dict[str, str]:
    """Replace a script's requests by what the job has: sbatch's command line takes precedence over the script."""
    variables = {
        "nodes": "SLURM_JOB_NUM_NODES",
        "ntasks": "SLURM_NTASKS",
        "ntasks-per-node": "SLURM_NTASKS_PER_NODE",
        "cpus-per-task": "SLURM_CPUS_PER_TASK",
        "gpus-per-node": "SLURM_GPUS_ON_NODE",
    }
    replaced = {*variables, "gres", "gpus", "gpus-per-task", "requeue", "no-requeue", "time"}
    actual = {option: os.environ[name] for option, name in variables.items() if name in os.environ}
    shown = run_slurm("scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]).stdout
    job = dict(re.findall(r"(\w+)=(\S+)", shown))
    actual |= {"time": job.get("TimeLimit", "UNLIMITED"), "requeue" if job.get("Requeue") == "1" else "no-requeue": ""}
    return {name: value for name, value in options.items() if name not in replaced} | actual


def run_slurm(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; where it is missing or hangs, the output is empty and the exit code 0."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SLURM_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return subprocess.CompletedProcess(command, 0, "", "")
