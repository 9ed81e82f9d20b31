"""What figures depend on: the hardware, the thread settings and the versions.

python -m benchmarks.machine prints the versions of the interpreter that runs it, as JSON.
"""

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = (
    "headstart", "torch", "torchvision", "timm", "lightning", "transformers", "accelerate", "datasets", "fastai",
    "litdata", "webdataset", "autogluon.multimodal", "lightly-train", "pillow", "numpy",
)  # fmt: skip
SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "LD_PRELOAD")


def describe(peers: str) -> dict[str, Any]:
    """Return the hardware, the environment's settings, and the versions of both interpreters."""
    import torch  # noqa: PLC0415  (an interpreter of peers that only prints versions need not wait for it)

    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_native": bf16_native(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "versions": {"ours": versions(sys.executable), "peers": versions(peers)},
    }


def versions(python: str) -> dict[str, str]:
    """Return the versions of what an interpreter has of ``PACKAGES``, and its own."""
    done = subprocess.run([python, "-m", "benchmarks.machine"], cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def _cpu() -> str:
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def bf16_native() -> bool | None:
    """Say whether the CPU multiplies bfloat16 itself; None where the system does not tell."""
    flags = _cpuinfo().get("flags") or _cpuinfo().get("Features")
    return None if flags is None else bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags.split()))


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}


if __name__ == "__main__":
    found = {each.metadata["Name"].lower(): each.version for each in distributions()}
    print(json.dumps({"python": platform.python_version()} | {name: found[name] for name in PACKAGES if name in found}))
