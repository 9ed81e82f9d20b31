"""How much memory a step needs on a CPU, and how much is free: the kernel kills who takes more, without a word."""

import math
import resource
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")


def free_memory(processes: int) -> float:
    """Return the bytes that one of so many processes of this machine may still take.

    That is its part of what the machine has, or its control groups (a container's, a job's), and what ``ulimit``
    leaves. Files that are cached can go, and count as free; swap does not.
    """
    free = min([psutil.virtual_memory().available, *_left_in_cgroups()]) / processes
    usage = psutil.Process().memory_info()
    for limit, used in ((resource.RLIMIT_AS, usage.vms), (resource.RLIMIT_DATA, getattr(usage, "data", 0))):
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            free = min(free, soft - used)
    return max(0.0, float(free))


def _left_in_cgroups() -> Iterator[int]:
    """Yield what this process's control groups and those above them leave, by version 2 and 1.

    Source: docs.kernel.org/admin-guide/cgroup-v2.html, and cgroup-v1/memory.html.
    """
    for line in OWN_CGROUPS.read_text(encoding="utf-8").splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, limit, usage, prefix = CGROUPS, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            base, limit, usage, prefix = CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        own = base / path.lstrip("/")
        for group in (own, *own.parents[: len(own.parts) - len(base.parts)]):  # a container sees the last alone
            try:
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                cached = sum(int(statistics[f"{prefix}{kind}_file"]) for kind in ("inactive", "active"))
                yield int((group / limit).read_text()) - int((group / usage).read_text()) + cached
            except (OSError, ValueError, KeyError):  # no such group here, or "max"
                continue


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are made inside and still live: ``now``, and at most, ``peak``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen = set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the operator, and count the storages that it made: views of its arguments, as of weights, make none."""
        self._seen.update(_key(argument.untyped_storage()) for argument in args if isinstance(argument, Tensor))
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and (key := _key(storage := tensor.untyped_storage())) not in self._seen:
                self._seen.add(key)
                self.now += (size := storage.nbytes())
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def _key(storage: torch.UntypedStorage) -> int:
    """Return what is the same for all Python objects of one storage while it lives."""
    return int(storage._cdata)  # noqa: SLF001  (data_ptr is 0 for all that are empty)


def live_bytes(forward: Callable[[], Tensor], model: nn.Module | None = None) -> int:
    """Return the largest sum of the tensors that live at once while ``forward`` computes one image, on the CPU.

    With a ``model`` those of its backward pass too, without the gradients of weights, which many images share: it is
    to be in evaluation mode, and keeps no gradients.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad] if model else []
    # A gradient is dropped as soon as it is there.
    hooks: list[Any] = [each.register_post_accumulate_grad_hook(_drop_gradient) for each in trained]  # type: ignore[no-untyped-call]
    counter = LiveBytes()
    try:
        with counter:
            output = forward()
            peak = counter.peak
            if trained:
                output.float().logsumexp(dim=1).mean().backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    return max(peak, counter.peak - max((each.nbytes for each in trained), default=0))


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def images_that_fit(per_image: float, fixed: float, processes: int) -> tuple[int, float]:
    """Return how many images fit beside ``fixed`` bytes, and the free bytes for them."""
    room = max(0.0, free_memory(processes) - fixed)
    return math.floor(room / max(1, per_image)), room
