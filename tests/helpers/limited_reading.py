"""Reads one file after the other with `read_array`, each in a process of limited memory and time.

python tests/helpers/limited_reading.py FILE... prints one line of JSON for each: exit code (0: read, 1: refused), what
was said, what went to stdout or stderr, and the peak of its memory beyond what the libraries take, in bytes.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import traceback

import imagecodecs  # noqa: F401  (imported once for all)
import pydicom.pixels  # noqa: F401
import tifffile  # noqa: F401

from headstart.images.arrays import describe_array, read_array
from headstart.images.bands import PixelLayout, Planes
from headstart.images.decode import BadImageError

MEMORY = 6 * 2**30  # bytes of address space
SECONDS = 60


def limited(name: str) -> dict[str, object]:
    """Read one; SIGALRM ends a process that hangs, and is its exit code."""
    with open(name, "rb") as file:  # noqa: PTH123
        content = file.read()
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as printed:
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(SECONDS)
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            code, text = 0, ""
            try:
                info = describe_array(content)
                planes: Planes | None = "first" if info.planes > 1 else None
                text = f"{info} {read_array(content, PixelLayout(info.channels, info.dtype, planes)).note}"
            except BadImageError as error:
                code, text = 1, str(error)
            except BaseException:  # noqa: BLE001  (what the test looks for)
                code, text = 2, traceback.format_exc()
            os.pwrite(said.fileno(), text.encode(errors="backslashreplace"), 0)
            os._exit(code)
        _, status, usage = os.wait4(child, 0)
        texts = [os.pread(file.fileno(), 10**6, 0).decode(errors="replace") for file in (said, printed)]
    grown = 1024 * (usage.ru_maxrss - resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    end = {"code": os.waitstatus_to_exitcode(status), "said": texts[0], "printed": texts[1]}
    return end | {"grown": grown, "seconds": usage.ru_utime + usage.ru_stime}


if __name__ == "__main__":
    for each in sys.argv[1:]:
        print(json.dumps({"name": os.path.basename(each)} | limited(each)), flush=True)  # noqa: PTH119
