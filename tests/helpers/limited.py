"""Runs `headstart predict BUNDLE IMAGE` for one bundle after the other, each in a process of limited memory and time.

python tests/helpers/limited.py IMAGE BUNDLE... prints one line of JSON for each: exit code, stdout, stderr. The
processes are forked from this one, which has imported all that predict imports: 80 of them take seconds.
"""

import json
import os
import resource
import signal
import sys
import tempfile

import headstart.predict  # noqa: F401  (imported once for all)
from headstart.cli import main

MEMORY = 4 * 2**30  # bytes of address space
SECONDS = 20


def limited(bundle: str, image: str) -> dict[str, object]:
    """Run one; SIGALRM ends a process that hangs, and is its exit code."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            signal.alarm(SECONDS)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["headstart", "predict", bundle, image]
            try:
                main()
            except SystemExit as end:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else 1)
            except BaseException:  # noqa: BLE001  (a traceback is what the test looks for)
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(2)
            os._exit(3)  # main ends by SystemExit
        _, status = os.waitpid(child, 0)
        texts = [os.pread(file.fileno(), 10**6, 0).decode(errors="replace") for file in (out, err)]
    return {"code": os.waitstatus_to_exitcode(status), "stdout": texts[0], "stderr": texts[1]}


if __name__ == "__main__":
    for each in sys.argv[2:]:
        print(json.dumps(limited(each, sys.argv[1])), flush=True)
