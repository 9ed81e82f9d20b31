#!/bin/sh
# Fetches the experiments of all sweeps from their clones, for `dvc exp show`; may be repeated while they run.
# The clones, .headstart/sweep, can be deleted after it.
set -eu
for clone in .headstart/sweep/*/*/; do
  git fetch --quiet "$clone" 'refs/exps/*:refs/exps/*' '^refs/exps/exec/*'
done
