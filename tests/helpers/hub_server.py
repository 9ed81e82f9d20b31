"""A Hugging Face hub on loopback that serves the calls of pushing and loading a model, and records them for tests."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

Json = dict[str, Any]
USER, TOKEN = "somebody", "hf_" + "t" * 34
LARGE = (".safetensors", ".onnx")
"""Suffixes of large files, which are uploaded apart; others are part of the commit."""


class RefusedError(Exception):
    """An error answer: its status, the hub's code for it, and its text."""

    def __init__(self, status: int, code: str = "", text: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.text = status, code, text


@dataclass
class Repository:
    """The files of each branch, by name, and the messages of all commits."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)

    @property
    def head(self) -> str:
        """The last commit's hash."""
        return f"{len(self.commits):040x}"


@dataclass
class HubServer:
    """The repositories by name, the large files that were uploaded, and every request.

    Attributes:
        breaks_off: whether a download ends in its middle.
        full: whether large files are refused as by a full disk.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requested: list[str] = field(default_factory=list)
    breaks_off: bool = False
    full: bool = False
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def publish(self, name: str, folder: Path) -> None:
        """Put a folder's files, at any depth, into a repository's main branch."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        self.repositories[name] = Repository(branches={"main": files})

    def create(self, body: Json) -> Json:
        owner = body["organization"] or USER
        name = f"{owner}/{body['name']}"
        if owner != USER:
            raise RefusedError(403, text=f"you don't have the rights to create a model under {owner}")
        url = {"url": f"{self.endpoint}/{name}"}
        if name in self.repositories:
            raise RefusedError(409, text=json.dumps({"error": "You already created this model repo", **url}))
        self.repositories[name] = Repository(private=body.get("visibility") == "private")
        return url

    def info(self, name: str, branch: str) -> Json:
        """Return a repository's state and files."""
        files = [{"rfilename": file} for file in self.files(name, branch)]
        return {"id": name, **self.state(name), "siblings": files}

    def tree(self, name: str, branch: str) -> list[Json]:
        """Return a repository's files, as the listing of a folder and all below it has them."""
        files = self.files(name, branch).items()
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha256(content).hexdigest()}
            for path, content in files
        ]

    def state(self, name: str) -> Json:
        return {"private": self.repositories[name].private, "sha": self.repositories[name].head}

    def files(self, name: str, branch: str) -> dict[str, bytes]:
        if name not in self.repositories:
            raise RefusedError(404, "RepoNotFound")
        if branch not in self.repositories[name].branches:
            raise RefusedError(404, "RevisionNotFound")
        return self.repositories[name].branches[branch]

    def branch(self, name: str, branch: str) -> Json:
        """Create a branch at the head of main."""
        branches = self.repositories[name].branches
        if branch in branches:
            raise RefusedError(409)
        branches[branch] = dict(branches["main"])
        return {}

    def upload_modes(self, name: str, branch: str, body: Json) -> Json:
        self.files(name, branch)
        modes = [("lfs" if file["path"].endswith(LARGE) else "regular", file["path"]) for file in body["files"]]
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for mode, path in modes]}

    def upload_addresses(self, body: Json) -> Json:
        """Return the upload address of each large file that is not here yet."""
        objects: list[Json] = [{key: each[key] for key in ("oid", "size")} for each in body["objects"]]
        for each in objects:
            if each["oid"] not in self.large:
                each["actions"] = {"upload": {"href": f"{self.endpoint}/large/{each['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def keep(self, oid: str, content: bytes) -> Json:
        if self.full or hashlib.sha256(content).hexdigest() != oid:
            raise RefusedError(400, text="not kept")
        self.large[oid] = content
        return {}

    def commit(self, name: str, branch: str, lines: list[Json]) -> Json:
        """Apply the lines of a commit to a branch, all at once."""
        files = dict(self.files(name, branch))
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header":
                    self.repositories[name].commits.append(value["summary"])
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        self.repositories[name].branches[branch] = files
        head = self.repositories[name].head
        return {"commitUrl": f"{self.endpoint}/{name}/commit/{head}", "commitOid": head}


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[HubServer]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.requested.append(f"{self.command} {self.path}")
        try:
            known = self.headers["Authorization"] == f"Bearer {TOKEN}"
            if parts[0] == "datasets" and parts[3] == "resolve":
                self._send_file("/".join(parts[1:3]), parts[4], "/".join(parts[5:]), known=known)
                return
            if len(parts) == 5 and parts[2] == "resolve":
                self._send_file("/".join(parts[:2]), *parts[3:], known=known)
                return
            if not known and parts[0] != "large":
                raise RefusedError(401, text="Invalid credentials in Authorization header")
            self._send(200, json.dumps(self._result(parts, body)).encode())
        except RefusedError as refused:
            self._send(refused.status, refused.text.encode(), {"X-Error-Code": refused.code})

    def _result(self, parts: list[str], body: bytes) -> Json | list[Json]:  # noqa: PLR0911  (one for each address)
        match [self.command, *parts]:
            case ["PUT", "large", oid]:
                return self.hub.keep(oid, body)
            case ["POST", "api", "repos", "create"]:
                return self.hub.create(json.loads(body))
            case ["POST", "api", "validate-yaml"]:
                return {"errors": [], "warnings": []}
            case ["GET", "api", "models" | "datasets", owner, name, *rest]:
                what = self.hub.tree if rest[:1] == ["tree"] else self.hub.info
                return what(f"{owner}/{name}", rest[1] if rest else "main")
            case ["POST", "api", "models", owner, name, "branch", branch]:
                return self.hub.branch(f"{owner}/{name}", branch)
            case ["POST", "api", "models", owner, name, "preupload", branch]:
                return self.hub.upload_modes(f"{owner}/{name}", branch, json.loads(body))
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                return self.hub.upload_addresses(json.loads(body))
            case ["POST", "api", "models", owner, name, "commit", branch]:
                return self.hub.commit(f"{owner}/{name}", branch, [json.loads(line) for line in body.splitlines()])
        raise RefusedError(404)

    def _send_file(self, repository: str, branch: str, file: str, *, known: bool) -> None:
        files = self.hub.files(repository, branch)
        if self.hub.repositories[repository].private and not known:
            raise RefusedError(401, "RepoNotFound")
        if file not in files:
            raise RefusedError(404, "EntryNotFound")
        content = files[file]
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self.hub.repositories[repository].head,
        }
        if span := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or ""):
            self._send(206, content[int(span[1]) : int(span[2]) + 1], headers)
            return
        self._send(200, content, headers, sent=len(content) // 2 if self.hub.breaks_off else len(content))

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

    def log_message(self, *_: object) -> None:
        """Suppress the log."""


def ask(port: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point huggingface_hub to this port of the loopback alone, with a cache and a login of the test's own."""
    endpoint = f"http://127.0.0.1:{port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Serve until the test is done."""
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.port = server.server_port
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        huggingface_hub.close_session()
        server.shutdown()
        server.server_close()
        thread.join()
