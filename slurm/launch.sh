#!/bin/sh
# Starts a stage, for dvc.yaml: in a Slurm allocation on all of its tasks, elsewhere as one process.
# usage: sh slurm/launch.sh STAGE
#        sh slurm/launch.sh doctor|repro [ARGUMENTS]    the other commands that the batch scripts need
set -eu

# Which Python: the active environment's, else .venv's, else the one that runs DVC, for a DVC that was started by its
# path (Linux), else the first on the PATH. Adapt this where yours comes from a module or a container.
if [ -n "${VIRTUAL_ENV:-}" ]; then
  python="$VIRTUAL_ENV/bin/python"
elif [ -x "$(dirname "$0")/../.venv/bin/python" ]; then
  python="$(dirname "$0")/../.venv/bin/python"
else
  python=$({ tr '\0' '\n' <"/proc/$PPID/cmdline" | sed 1q; } 2>/dev/null)
  case "${python##*/}" in
  python*) ;;
  *) python=python3 ;;
  esac
fi

command=$1
shift
set -- "$python" -m headstart "$command" "$@"
case "$command" in
prepare | features | probe | finetune | evaluate) tasks=all ;; # these stages use any number of processes
export) tasks=one ;;
*) exec "$@" ;;
esac

# In an allocation, but not yet within a step (4294967290 is the shell that salloc may open on the first node).
if [ "$tasks" = all ] && [ -n "${SLURM_JOB_ID:-}" ] && [ "${SLURM_STEP_ID:-4294967290}" = 4294967290 ]; then
  # As many tasks as were asked for: one a GPU; the number per node is passed on where it is the same for all nodes.
  case "${SLURM_TASKS_PER_NODE:-,}" in
  *,*) ;;
  *) set -- --ntasks-per-node="${SLURM_TASKS_PER_NODE%%(*}" "$@" ;;
  esac
  # Since Slurm 22.05 srun takes its CPUs per task from here alone.
  [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
  # --mpi=none: the ranks connect without MPI. --kill-on-bad-exit: when one fails, the others are ended. --wait=0: but not
  # when one is done before rank 0 has written everything. --disable-status: Ctrl-C reaches all. --unbuffered: output at once.
  export PYTHONUNBUFFERED=1
  set -- srun --mpi=none --kill-on-bad-exit=1 --wait=0 --disable-status --unbuffered "$@"
fi

# A signal kills DVC, but not the stage that it runs: then the stage gets SIGTERM, saves and exits.
if command -v setpriv >/dev/null; then
  set -- setpriv --pdeathsig TERM "$@"
fi
exec "$@"
