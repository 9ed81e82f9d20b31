#!/bin/sh
# Brings the experiments of all sweeps home from their clones, for `dvc exp show`; may be repeated while they run.
# The clones can be deleted after it: .headstart/sweep
set -eu
for clone in .headstart/sweep/*/*/; do
  git fetch --quiet "$clone" 'refs/exps/*:refs/exps/*' '^refs/exps/exec/*'
done
