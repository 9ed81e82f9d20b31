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
exec "$python" -m "headstart.stages.$1"
