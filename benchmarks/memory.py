"""What a program holds in memory."""

import psutil


def pss(process: psutil.Process) -> int:
    """Return the bytes of a process and those that it started, what they share counted once (proportional set size)."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except (psutil.Error, OSError):
            continue
    return total
