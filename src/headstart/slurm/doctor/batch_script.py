"""Reads the ``#SBATCH`` lines of a batch script as sbatch does, and says what it would refuse or silently ignore."""

import argparse
import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

# The options of sbatch, Slurm 22.05 to 25.05: those with a value, those that may have one, those without.
VALUED = """
a/array A/account acctg-freq b/begin batch bb bbf c/cpus-per-task C/constraint cluster-constraint M/clusters comment
container container-id cores-per-socket S/core-spec cpu-freq cpus-per-gpu D/chdir d/dependency deadline delay-boot
m/distribution e/error export export-file B/extra-node-info extra F/nodefile G/gpus gid gpu-bind gpu-freq gpus-per-node
gpus-per-socket gpus-per-task gres gres-flags hint i/input J/job-name L/licenses mail-type mail-user mcs-label mem
mem-bind mem-per-cpu mem-per-gpu mincpus n/ntasks N/nodes network ntasks-per-core ntasks-per-gpu ntasks-per-node
ntasks-per-socket o/output open-mode p/partition power prefer priority profile q/qos reservation segment signal
sockets-per-node switches t/time thread-spec threads-per-core time-min tmp tres-bind tres-per-task uid w/nodelist
wait-all-nodes wckey wrap x/exclude
"""
OPTIONAL = "exclusive get-user-env nice oom-kill-step propagate resv-ports"
FLAGS = """
contiguous H/hold ignore-pbs k/no-kill kill-on-invalid-dep no-requeue O/overcommit s/oversubscribe parsable Q/quiet
reboot requeue spread-job stepmgr test-only use-min-nodes v/verbose W/wait
"""
DIRECTIVE = "#SBATCH"


class Trouble(NamedTuple):
    """A line that sbatch refuses, or that does not do what it says.

    Attributes:
        name: ``no-interpreter``, ``option-unknown``, ``option-invalid``, ``directive-ignored`` or
            ``directive-misspelt``.
        message: which line, and what to do.
    """

    name: str
    message: str


@dataclass
class BatchScript:
    """What a script asks for.

    Attributes:
        options: value by long name, the last one where an option is given twice; empty for a flag. Those of lines that
            Slurm ignores are there too, so that one mistake is one finding.
        lines: where each of them stands, such as ``line 3: #SBATCH -n 4``, and those whose value can't be read.
        troubles: what is wrong with single lines.
    """

    options: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)


class Signal(NamedTuple):
    """What ``--signal`` says: for the batch shell (``B:``) or the steps alone; its name; seconds before the end."""

    batch: bool
    name: str
    seconds: int


def read_batch_script(text: str) -> BatchScript:
    """Read the options of a batch script; what is wrong with its lines is in ``troubles``, nothing raises."""
    script, parser, command = BatchScript(), _parser(), 0
    lines = text.splitlines()
    if not lines or not lines[0].startswith("#!"):
        script.troubles.append(Trouble("no-interpreter", "line 1: sbatch refuses a script without #!; write #!/bin/sh"))
    for number, line in enumerate(lines, 1):
        where = f"line {number}: {line.strip()}"
        if line.strip() and not line.lstrip().startswith("#"):
            command = command or number
        # ##SBATCH and # SBATCH are ways to leave a line out.
        found = re.match(r"\s*#(\w+)(\s+-.*)", line)
        if not found or not difflib.get_close_matches(found[1].upper(), ["SBATCH"], cutoff=0.8):
            continue
        if not line.startswith(DIRECTIVE):
            what = f"{where}: Slurm ignores it; write {DIRECTIVE} at the line's start"
            script.troubles.append(Trouble("directive-misspelt", what))
        elif command:
            what = f"{where}: Slurm ignores it, since line {command} is a command; move it above that"
            script.troubles.append(Trouble("directive-ignored", what))
        script.troubles += _read_options(parser, found[2], where, script)
    return script


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> _Parser:
    """Take unique beginnings of names too, as sbatch's getopt does."""
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS)
    kinds: list[tuple[str, dict[str, Any]]] = [
        (VALUED, {}),
        (OPTIONAL, {"nargs": "?", "const": ""}),
        (FLAGS, {"action": "store_const", "const": ""}),
    ]
    for names, how in kinds:
        for name in names.split():
            short, _, long = name.rpartition("/")
            parser.add_argument(*([f"-{short}"] if short else []), f"--{long}", dest=long, **how)
    return parser


def _read_options(parser: _Parser, text: str, where: str, script: BatchScript) -> Iterator[Trouble]:
    try:
        found, unknown = parser.parse_known_args(shlex.split(text, comments=True))
    except ValueError as error:
        yield Trouble("option-invalid", f"{where}: {error}")
        return
    for option in unknown:
        known = [f"--{name.rpartition('/')[2]}" for name in f"{VALUED} {OPTIONAL} {FLAGS}".split()]
        nearest = difflib.get_close_matches(option.partition("=")[0], known, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else "; see `sbatch --help`"
        yield Trouble("option-unknown", f"{where}: sbatch has no option {option}{hint}")
        script.lines |= {name.removeprefix("--"): where for name in nearest}
    for name, value in vars(found).items():
        script.lines[name] = where
        try:
            _READERS.get(name, str)(value)
            script.options[name] = value
        except ValueError:
            yield Trouble("option-invalid", f"{where}: sbatch can't read {value!r} as a value of --{name}")


def seconds(time: str) -> float:
    """Read a time limit: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; infinite for 0, INFINITE and UNLIMITED.

    Raises:
        ValueError: it is none of these.
    """
    if time.upper() in {"0", "INFINITE", "UNLIMITED"}:
        return math.inf
    days, with_days, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not with_days and len(parts) < 3:
        parts.insert(0, 0)
    hours, minutes, rest = parts + [0] * (3 - len(parts))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def signal(value: str) -> Signal:
    """Read ``[B:]SIGNAL[@SECONDS]``, where SIGNAL is a name or a number; raises ValueError where it is not that."""
    found = re.fullmatch(r"(?:([RB]+):)?(\w+)(?:@(\d+))?", value)
    if not found:
        raise ValueError(value)
    name = {"10": "USR1", "12": "USR2", "15": "TERM"}.get(found[2], found[2].upper().removeprefix("SIG"))
    return Signal("B" in (found[1] or ""), name, int(found[3] or 60))


def nodes(value: str) -> int:
    """Read the least number of nodes from ``N``, ``N-M`` or a list of them; raises ValueError where it is none."""
    return min(int(part.partition("-")[0]) for part in value.split(","))


def gpus(value: str) -> int:
    """Count what ``--gpus`` and its kin ask for: ``4`` or ``a100:4,v100:2``; raises ValueError where none is said."""
    return sum(int(item.rpartition(":")[2]) for item in value.split(","))


def gpus_of_gres(value: str) -> int:
    """Count the GPUs of ``--gres``: ``gpu``, ``gpu:4`` or ``gpu:a100:4,shard:1``."""
    counts = [item.split(":") for item in value.split(",")]
    return sum(int(count[-1]) if count[-1].isdigit() else 1 for count in counts if count[0] == "gpu")


_READERS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("ntasks", "ntasks-per-node", "cpus-per-task"), int),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task"), gpus),
    "nodes": nodes,
    "time": seconds,
    "signal": signal,
}
