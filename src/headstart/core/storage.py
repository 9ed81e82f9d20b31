"""Disks that are full, read-only or another's: one line for each, whichever library has met them."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headstart.core.errors import UserError

ADVICE = {
    errno.ENOSPC: "free some space there, then start again",
    errno.EDQUOT: "`quota -s` shows it: free some of it or ask for more, then start again",
    errno.EROFS: "mount it for writing, or work in another folder",
    errno.EACCES: "`ls -ld` shows who may use it: ask its owner, or work in another folder",
    errno.EPERM: "`ls -ld` shows who may use it: ask its owner, or work in another folder",
    errno.EMFILE: "raise `ulimit -n`, then start again",
    errno.ENFILE: "this machine's limit, `sysctl fs.file-max`: close other programs, then start again",
    errno.EFBIG: "raise `ulimit -f`, or use a disk that holds larger files",
    errno.ENAMETOOLONG: "give it a shorter name, or work in a folder with a shorter path",
    errno.ENOTDIR: "a file is where a folder is needed: move it away",
    errno.EEXIST: "a file is where a folder is needed: move it away",
    errno.EISDIR: "a folder is where a file is needed: move it away",
    errno.EBUSY: "it is in use, or a disk is mounted there: mount the folder above it instead",
    errno.EIO: "the disk or its server fails, and its administrator should know",
    errno.ESTALE: "its file server has lost it: mount it anew, then start again",
}
"""What to do about the errors of operating systems that a user can mend."""
PROBE_BYTES = 2**20
FEW_INODES = 1000


def storage_message(error: OSError) -> str | None:
    """Return one line: the path, what is wrong with its disk, what to do, the error's notes; None for other errors."""
    advice = "; ".join([*filter(None, [ADVICE.get(error.errno or 0)]), *getattr(error, "__notes__", [])])
    if not advice:
        return None
    path = os.fsdecode(error.filename) if error.filename else "the output"
    path = re.sub(r"\.([^/]+)\.partial(?=/|$)", r"\1", path)  # what is written aside has the name that it will get
    free = ""
    if error.filename and error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next((each for each in Path(path).absolute().parents if each.is_dir()), Path("/"))
        disk = os.statvfs(folder)
        inodes = f" and {disk.f_favail} inodes" if disk.f_files and disk.f_favail < FEW_INODES else ""
        free = f" ({disk.f_bavail * disk.f_frsize / 1e6:.1f} MB{inodes} free on its disk)"
    return f"{path}: {os.strerror(error.errno or 0).lower()}{free}: {advice}"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what is raised inside into an OSError with a number and a path, where the disk of ``path`` is to blame.

    SQLite, safetensors, torch and ONNX have errors of their own for a full disk, NumPy's has no number, and that of a
    file which is open has no path. Whether the disk is to blame is read in the error's text, or else tried: by writing
    a mebibyte there.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(path)
            raise
        import tempfile  # noqa: PLC0415  (commands start without it)

        try:
            for number in ADVICE:
                if os.strerror(number) in str(error):
                    raise OSError(number, os.strerror(number))
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as failure:
            if failure.errno in ADVICE:
                raise OSError(failure.errno, failure.strerror, str(path)) from error
        raise
