#!/bin/bash
# What only a GPU can show, in under ten minutes: bash benchmarks/gpu.sh [FOLDER]
#
# Epochs and features of a ResNet-50 and a ViT-S at 224 px in bf16, beside timm and the bare step; resuming; fp16's
# scaler; a batch that the memory is too small for; compiling; the λ path at ImageNet's size. Each part has a time
# limit and a line of result, and one that fails does not stop the next. Without a GPU the same parts run small, as a
# test of this script; PATIENCE=20 gives them 20 times as long, on a machine that is busy.
# It needs Python (PYTHON, else python3) with torch, torchvision, timm, lightning, torchmetrics and the small packages of
# the extra `train`; no dvc, no wandb, no network. The package itself need not be installed.
# FOLDER (default: /tmp/headstart-gpu) gets results.txt, and the output of each part.
set -u
python=${PYTHON:-python3}
results=$(realpath -m "${1:-${TMPDIR:-/tmp}/headstart-gpu}")
mkdir -p "$results"
cd "$(dirname "$0")/.." || exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work PYTHONPATH="$PWD/src:$work/site:${PYTHONPATH:-}" WANDB_MODE=disabled HF_HUB_OFFLINE=1
: >"$results/results.txt"

say() { echo "$*" | tee -a "$results/results.txt"; }

part() { # NAME SECONDS COMMAND...: run it, and say how it ended and its result, a table or its last line
  local name=$1 limit=$((patience * $2)) began=$SECONDS code table
  shift 2
  timeout --kill-after=5 "$limit" "$@" >"$results/$name.txt" 2>"$results/$name.err"
  code=$?
  case $code in
  0)
    say "$name: done in $((SECONDS - began)) s"
    table=$(sed -n '/images\/s  *range/,$p' "$results/$name.txt" | grep -v '^/')
    say "${table:-$(tail -n 1 "$results/$name.txt")}"
    ;;
  124 | 137) say "$name: not done in $limit s" ;;
  *) say "$name: failed ($code): $(tail -n 1 "$results/$name.err")" ;;
  esac
}

# Where the package is not installed, its version is looked for all the same.
if ! "$python" -c 'import importlib.metadata as m; m.version("headstart")' 2>/dev/null; then
  mkdir -p "$work/site/headstart-0.1.0.dist-info"
  printf 'Metadata-Version: 2.1\nName: headstart\nVersion: 0.1.0\n' >"$work/site/headstart-0.1.0.dist-info/METADATA"
fi
say "$("$python" -c 'import torch, timm, sys
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, so small sizes"
print(f"{gpu}; Python {sys.version.split()[0]}, torch {torch.__version__}, timm {timm.__version__}")')"
for module in lightning torchmetrics joblib pydantic ruamel.yaml array_api_compat imagehash platformdirs pathspec filelock psutil sklearn scipy; do
  "$python" -c "import $module" 2>/dev/null || say "$module is missing: it and what follows from it will fail"
done

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  models="resnet50 vit_small_patch16_224" size=224 small=resnet50 steps=64 patience=1
  task="--count 4096 --batch-size 256 --precision bf16-mixed"
  solver="--pictures 1280000 --width 2048 --classes 1000 --device cuda"
else
  models="test_resnet test_vit" size=64 small=test_resnet steps=8 patience=${PATIENCE:-2}
  task="--count 64 --batch-size 16 --precision 32-true"
  solver="--pictures 2000 --width 64 --classes 10"
fi
timm="timm, channels_last, $("$python" -c 'import os; print(os.cpu_count())') workers, allocator"
for model in $models; do
  # shellcheck disable=SC2086  (words)
  part "epoch-$model" 120 "$python" -m benchmarks epoch --model "$model" --size $size $task --rounds 1 --epochs 3 \
    --only headstart "limit: the" "timm, train" "$timm" --work "$work/benchmarks"
  # shellcheck disable=SC2086
  part "features-$model" 50 "$python" -m benchmarks features --model "$model" --size $size $task --rounds 1 \
    --only headstart limit "timm, channels_last" --work "$work/benchmarks"
done
part resume 45 "$python" -m benchmarks.gpu resume --model $small
part fp16 45 "$python" -m benchmarks.gpu fp16 --model $small
part memory 45 "$python" -m benchmarks.gpu memory --model $small
part compile 75 "$python" -m benchmarks.gpu compile --model $small --size $size --batch-size $steps
# shellcheck disable=SC2086
part solver 300 "$python" benchmarks/studies/linear_path.py --only-ours --tolerance 1e-6 $solver
