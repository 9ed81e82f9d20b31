"""Files behind a URL: in object stores, on web servers and on the hub, read through fsspec.

Every request is tried again before it fails, and one that brings fewer bytes than were asked for has failed: an image
is whole or not there. A network that fails ends the stage, it never makes an image bad.
"""

import io
import itertools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from headstart.core.errors import UserError, first_line, requirement
from headstart.core.io import read_json, write_json
from headstart.core.problems import list_problems

ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds before the second attempt, doubled before each further one
STALLED = 30  # seconds without a byte
REQUESTS = 16  # at once, for the sizes of many files
BUFFER = 2**20  # bytes of a request, where less is asked for
CHECKSUMS = ("ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "Last-Modified", "LastModified")
"""Where fsspec's file systems have what changes with a file's content, the most reliable first."""

Result = TypeVar("Result")


class RemoteFile(NamedTuple):
    """A file's URL, its size in bytes, and a text that changes with its content, empty where the server gives none."""

    url: str
    size: int
    version: str


def is_url(text: str) -> bool:
    """Return whether a text is the URL of a file that lies elsewhere; ``file:`` URLs are paths."""
    return re.match(r"(?!file:)[a-z][a-z0-9+.-]+://", text) is not None


def list_files(patterns: Iterable[str]) -> list[RemoteFile]:
    """Return the files that URLs name, sorted by URL; ``*``, ``**`` and ``[...]`` stand for parts of names.

    Raises UserError: a file is not there, its server gives no size, or the server can't be reached.
    """
    with ThreadPoolExecutor(REQUESTS) as threads:
        found = dict(itertools.chain.from_iterable(threads.map(_matching, patterns)))
        return sorted(threads.map(_described, found.keys(), found.values()))


def read_url(url: str) -> bytes:
    """Return a whole file; raises FileNotFoundError, and UserError if the server can't be reached."""
    system, path = _file_system(url)
    content: bytes = _with_retries(url, lambda: system.cat_file(path))
    return content


def open_url(file: RemoteFile) -> io.BufferedReader:
    """Open a file of which only the parts that are read are fetched."""
    return io.BufferedReader(_Ranges(file), BUFFER)


class _Ranges(io.RawIOBase):
    """A file read by ranges."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._position = file, 0
        self._system, self._path = _file_system(file.url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        end = min(self._position + len(buffer), self._file.size)
        if end <= self._position:
            return 0
        content = _with_retries(self._file.url, partial(self._fetch, self._position, end))
        buffer[: len(content)] = content
        self._position = end
        return len(content)

    def _fetch(self, start: int, end: int) -> bytes:
        content: bytes = self._system.cat_file(self._path, start=start, end=end)
        if len(content) == self._file.size != end - start:
            raise UserError(f"{self._file.url}: its server knows no ranges, and sends the whole file for a part of it")
        if len(content) != end - start:
            raise ConnectionError(f"{len(content):,} of {end - start:,} bytes came")
        return content


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path there; raises UserError where a package is missing."""
    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        import fsspec  # noqa: PLC0415  (only remote sources need it)

        if protocol in {"http", "https"}:
            import aiohttp  # noqa: PLC0415

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(sock_connect=STALLED, sock_read=STALLED)}
        elif protocol == "s3":
            timeouts = {"connect_timeout": STALLED, "read_timeout": STALLED}
            options["config_kwargs"] = timeouts | {"retries": {"max_attempts": 1}}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(f"{url}: {first_line(error)}: pip install '{requirement('remote')}'") from error
    except ValueError as error:
        raise UserError(
            f"{url}: {first_line(error)}: s3, gs, https and hf are what the extra `remote` brings"
        ) from error
    return system, path


def _with_retries(url: str, action: Callable[[], Result]) -> Result:
    """Call until it succeeds; raises FileNotFoundError at once, and UserError after the last attempt."""
    for attempt in itertools.count(1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # aiohttp, botocore and gcsfs have errors of their own
            cause = error.__cause__  # fsspec's HTTP has a FileNotFoundError for whatever keeps a file from it
            status = _status(cause or error)
            if status == 404 or (isinstance(error, FileNotFoundError) and not cause):
                raise FileNotFoundError(url) from error
            if isinstance(error, PermissionError) or status in {401, 403}:
                raise UserError(f"{url}: may not be read: {first_line(error)}: check your credentials") from error
            if attempt == ATTEMPTS:
                raise UserError(
                    f"{url} can't be read, after {ATTEMPTS} attempts: {first_line(cause or error)}. Start again when "
                    "the network is there; what is packed is kept"
                ) from error
            time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
    raise AssertionError


def _status(error: BaseException) -> int | None:
    """Return the status of an HTTP answer that was an error, as aiohttp or the hub's library has it; None of others."""
    return getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)


def _matching(pattern: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the URLs that a pattern stands for, with what the listing says of each, which may be nothing."""
    if not set("*[") & set(pattern):
        return [(pattern, {})]
    system, path = _file_system(pattern)
    try:
        infos = _with_retries(pattern, lambda: system.glob(path, detail=True))
    except FileNotFoundError:
        return []
    return [(system.unstrip_protocol(name), info) for name, info in infos.items() if info["type"] == "file"]


def _described(url: str, info: dict[str, Any]) -> RemoteFile:
    if info.get("size") is None:
        system, path = _file_system(url)
        try:
            info = _with_retries(url, lambda: system.info(path))
        except FileNotFoundError:
            raise UserError(f"{url}: there is no such file") from None
    if info.get("size") is None:
        raise UserError(f"{url}: its server does not say how large it is, so a cut answer would not be noticed")
    return RemoteFile(url, int(info["size"]), next((str(info[key]) for key in CHECKSUMS if info.get(key)), ""))


def write_lock(path: Path, source: str, files: Sequence[RemoteFile]) -> None:
    """Write down the files of a source, for ``check_lock``."""
    write_json(path, {"source": source, "files": [list(file) for file in files]})


def check_lock(path: Path, source: str, list_there: Callable[[], list[RemoteFile]]) -> list[RemoteFile]:
    """Return the files of a source, which ``list_there`` lists; raise UserError unless they are those written down."""
    advice = "`headstart lock-source` writes down what is there now; DVC then prepares it anew"
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(
            f"prepare.path: {path} {what}. Of a source that lies elsewhere it is the file in which DVC sees what is "
            "there: set prepare.path: data/source.lock, and run `headstart lock-source`"
        )
    lock = read_json(path)
    if lock["source"] != source:
        raise UserError(f"{path} was written for prepare.source: {lock['source']}: {advice}")
    locked = {each.url: each for each in itertools.starmap(RemoteFile, lock["files"])}
    there = {each.url: each for each in list_there()}
    problems = [
        (url, "is new" if url not in locked else "is gone" if url not in there else "has changed")
        for url in sorted(locked.keys() | there.keys())
        if locked.get(url) != there.get(url)
    ]
    if problems:
        raise UserError(list_problems(f"prepare: what {source} has is not what {path} says:", problems, advice))
    return list(there.values())
