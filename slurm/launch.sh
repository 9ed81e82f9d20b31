#!/bin/sh
# Starts one stage for dvc.yaml, with the environment's Python wherever that is: $VIRTUAL_ENV, .venv or python3.
# usage: sh slurm/launch.sh STAGE
set -eu
if [ -n "${VIRTUAL_ENV:-}" ]; then
  python="$VIRTUAL_ENV/bin/python"
elif [ -x .venv/bin/python ]; then
  python=.venv/bin/python
else
  python=python3
fi
# glibc gives every large tensor back to the system and asks for it again; keeping them made steps on a CPU 1.1 to 2
# times as fast. Harmless elsewhere, and what the user has set wins.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_--1}"
exec "$python" -m "headstart.stages.$1"
