"""`python -m headstart.doctor`, as slurm/launch.sh of older projects calls it."""

import sys

from headstart.cli import cli

if __name__ == "__main__":
    cli(["doctor", *sys.argv[1:]], prog_name="headstart")
