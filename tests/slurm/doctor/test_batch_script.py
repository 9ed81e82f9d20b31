import math
import re

import pytest

from headstart.slurm.doctor.batch_script import (
    FLAGS,
    OPTIONAL,
    VALUED,
    Signal,
    gpus,
    gpus_of_gres,
    nodes,
    read_batch_script,
    seconds,
    signal,
)


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("2:00:01", 7201),
        ("1-2", 93_600),
        ("1-2:30", 95_400),
        ("1-0:0:5", 86_405),
        ("0", math.inf),
        ("UNLIMITED", math.inf),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(time: str, expected: float) -> None:
    assert seconds(time) == expected


@pytest.mark.parametrize("time", ["12h", "1:2:3:4", "", "1-2:3:4:5"])
def test_what_is_no_time_is_refused(time: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        seconds(time)


def test_signals_nodes_and_gpus_are_read() -> None:
    assert signal("B:USR1@180") == Signal(batch=True, name="USR1", seconds=180)
    assert signal("SIGUSR1") == signal("10") == Signal(batch=False, name="USR1", seconds=60)
    assert signal("RB:12@5") == Signal(batch=True, name="USR2", seconds=5)
    assert [nodes(text) for text in ("3", "2-4", "8,4")] == [3, 2, 4]
    assert [gpus(text) for text in ("4", "a100:2", "a100:2,v100:1")] == [4, 2, 3]
    assert [gpus_of_gres(text) for text in ("gpu", "gpu:a100", "gpu:a100:4", "shard:3,gpu:2", "shard:3")] == [
        1,
        1,
        4,
        2,
        0,
    ]


def test_options_are_found_as_sbatch_finds_them() -> None:
    """Short names, values after a space, several in a line, comments, beginnings of names; the last one wins."""
    script = read_batch_script(
        "#!/bin/sh\n"
        "#SBATCH -N 2 -t1:00:00 --job-name 'two words' # --requeue\n"
        "\n# a comment\n"
        "##SBATCH --ntasks=9\n# SBATCH --ntasks=8\n"
        "#SBATCH --nodes=3 --exclusive --open=append\n"
        "echo --gpus=1\n"
    )
    assert script.troubles == []
    assert script.options == {
        "nodes": "3",
        "time": "1:00:00",
        "job-name": "two words",
        "exclusive": "",
        "open-mode": "append",
    }
    assert script.lines["time"].startswith("line 2: #SBATCH -N 2")
    assert script.lines["nodes"].startswith("line 7: ")


@pytest.mark.parametrize(
    ("line", "name", "said"),
    [
        ("#SBATCH --cpu-per-task=4", "option-unknown", "line 2: .*did you mean --cpus-per-task?"),
        ("#SBATCH --ntask=4", "option-invalid", "ambiguous"),
        ("#SBATCH --ntasks=four", "option-invalid", "'four' as a value of --ntasks"),
        ("#SBATCH --time=12h", "option-invalid", "'12h'"),
        ("#SBATCH --job-name='open", "option-invalid", "No closing quotation"),
        ("#SBTACH --nodes=2", "directive-misspelt", "write #SBATCH"),
        ("  #SBATCH --nodes=2", "directive-misspelt", "write #SBATCH"),
        ("true\n#SBATCH --nodes=2", "directive-ignored", "line 3: .*since line 2 is a command"),
    ],
)
def test_a_line_that_does_not_do_what_it_says_is_named(line: str, name: str, said: str) -> None:
    script = read_batch_script(f"#!/bin/sh\n{line}\n")
    (trouble,) = script.troubles
    assert trouble.name == name
    assert re.search(said, trouble.message)
    # Read as it was meant, so that one mistake is one finding.
    assert script.options == ({"nodes": "2"} if name.startswith("directive") else {})


def test_a_file_without_an_interpreter_is_no_script() -> None:
    assert [trouble.name for trouble in read_batch_script("#SBATCH --nodes=2\n").troubles] == ["no-interpreter"]
    assert [trouble.name for trouble in read_batch_script("").troubles] == ["no-interpreter"]


def test_each_option_is_listed_once() -> None:
    names = [name.rpartition("/")[2] for name in f"{VALUED} {OPTIONAL} {FLAGS}".split()]
    assert len(names) == len(set(names))
