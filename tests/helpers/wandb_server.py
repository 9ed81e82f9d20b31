"""A wandb server on loopback that supports runs and artifacts, and keeps what it receives for tests."""

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import wandb

Json = dict[str, Any]
ENTITY, PROJECT = "somebody", "headstart"
FEATURES = ("CLIENT_IDS", "ARTIFACT_REGISTRY_SEARCH")


@dataclass
class TrackedRun:
    """What the server has received of a run.

    Attributes:
        about: group, job type, config, the latest of each.
        lines: of the history.
        summary: the latest.
        exit_codes: of the processes that reported their end.
        used: ids of the artifacts that it has read.
        files: names of the files that it has uploaded.
    """

    about: Json = field(default_factory=dict)
    lines: list[Json] = field(default_factory=list)
    summary: Json = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    used: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)

    @property
    def config(self) -> Json:
        """The config without what wandb itself adds."""
        config = json.loads(self.about.get("config") or "{}")
        return {name: value["value"] for name, value in config.items() if name != "_wandb"}

    @property
    def steps(self) -> list[int]:
        """wandb's step of each line of the history, in order of arrival."""
        return [line["_step"] for line in self.lines]


@dataclass
class WandbServer:
    """The runs by id, the artifacts by id, the workspaces by title, and every GraphQL operation's name."""

    runs: dict[str, TrackedRun] = field(default_factory=dict)
    artifacts: dict[str, Json] = field(default_factory=dict)
    workspaces: dict[str, Json] = field(default_factory=dict)
    operations: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make wandb use this server."""
        return {"WANDB_BASE_URL": f"http://127.0.0.1:{self.port}", "WANDB_API_KEY": "k" * 40}

    def answer(self, query: str, given: Json) -> Json:
        """Answer a GraphQL operation; an unknown one gets an empty answer."""
        operation = query.replace("(", " ").split()[1]
        self.operations.append(operation)
        handler = getattr(self, f"_{operation}", None)
        answer: Json = handler(given) if handler else {}
        return answer

    def _Viewer(self, _given: Json) -> Json:  # noqa: N802  (this and the others are named as GraphQL's)
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}", "teams": {"edges": []}}
        return {"viewer": viewer}

    _GetDefaultEntity = _Viewer

    def _ServerFeaturesQuery(self, _given: Json) -> Json:  # noqa: N802
        return {"serverInfo": {"features": [{"name": name, "isEnabled": True} for name in FEATURES]}}

    def _RunResumeStatus(self, given: Json) -> Json:  # noqa: N802
        run = self.runs.get(given["name"])
        about: Json = {**_named(PROJECT), "entity": _named(ENTITY), "bucket": None}
        if run is not None:
            tail = json.dumps([json.dumps(line) for line in run.lines[-1:]])
            counts = {"logLineCount": 0, "eventsLineCount": 0, "historyLineCount": len(run.lines)}
            about["bucket"] = {
                **_named(given["name"]),
                **counts,
                "displayName": given["name"],
                "historyTail": tail,
                "eventsTail": "[]",
                "summaryMetrics": json.dumps(run.summary),
                "config": run.about["config"],
                "tags": [],
                "notes": None,
                "wandbConfig": json.dumps({"t": {}}),  # by which wandb recognises a run that was started
            }
        return {"model": about}

    def _UpsertBucket(self, given: Json) -> Json:  # noqa: N802
        inserted = given["name"] not in self.runs
        run = self.runs.setdefault(given["name"], TrackedRun())
        run.about |= {name: value for name, value in given.items() if value is not None}
        project = {**_named(PROJECT), "entity": _named(ENTITY)}
        bucket = {**_named(given["name"]), "displayName": given["name"], "config": run.about["config"]}
        bucket |= {"project": project, "historyLineCount": len(run.lines)}
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _ArtifactType(self, given: Json) -> Json:  # noqa: N802
        name = given["name"].partition(":")[0]
        kinds = {known["artifactCollectionName"]: known["artifactTypeName"] for known in self.artifacts.values()}
        return {"project": {"artifact": {"artifactType": {"name": kinds[name]}} if name in kinds else None}}

    def _CreateArtifact(self, given: Json) -> Json:  # noqa: N802
        """Return the artifact of this name and content; like wandb's server, the same one for the same content."""
        wanted = given["input"]
        name, digest = wanted["artifactCollectionName"], wanted["digest"]
        same = [known for known in self.artifacts.values() if known["artifactCollectionName"] == name]
        found = next((known for known in same if known["digest"] == digest), None)
        if found is None:
            found = {**wanted, "id": f"{name}:v{len(same)}", "state": "PENDING", "files": []}
            self.artifacts[found["id"]] = found
        answer = {"id": found["id"], "state": found["state"], "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": answer}}

    def _CreateArtifactManifest(self, given: Json) -> Json:  # noqa: N802
        manifest = {"id": given["artifactID"], "file": self._file("manifest")}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _UpdateArtifactManifest(self, given: Json) -> Json:  # noqa: N802
        manifest = {"id": given["artifactManifestID"], "file": self._file("manifest")}
        return {"updateArtifactManifest": {"artifactManifest": manifest}}

    def _CreateArtifactFiles(self, given: Json) -> Json:  # noqa: N802
        asked = given["input"]["artifactFiles"]
        for each in asked:
            self.artifacts[each["artifactID"]]["files"].append(each["name"])
        edges = [
            {"node": {**each, **self._file(each["name"]), "artifact": {"id": each["artifactID"]}}} for each in asked
        ]
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _CommitArtifact(self, given: Json) -> Json:  # noqa: N802
        found = self.artifacts[given["artifactID"]]
        found["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": found["id"], "digest": found["digest"]}}}

    def _UseArtifact(self, given: Json) -> Json:  # noqa: N802
        used = given["input"]
        self.runs[used["runName"]].used.append(used["artifactID"])
        return {"useArtifact": {"artifact": {"id": used["artifactID"]}}}

    def _UpsertView2(self, given: Json) -> Json:  # noqa: N802
        self.workspaces[given["displayName"]] = given | {"spec": json.loads(given["spec"])}
        return {"upsertView": {"view": _named(given["name"]), "inserted": True}}

    def _file(self, name: str) -> Json:
        return {"id": name, "uploadUrl": self._upload(name), "uploadHeaders": [], "storagePath": name}

    def _CreateRunFiles(self, given: Json) -> Json:  # noqa: N802
        self.runs[given["run"]].files += given["files"]
        files = [{"name": name, "uploadUrl": self._upload(name)} for name in given["files"]]
        return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}

    def _upload(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/upload/{name}"

    def stream(self, run_id: str, sent: Json) -> None:
        """Store a piece of a run's file stream; its offset makes a piece that is sent twice appear once."""
        run = self.runs[run_id]
        for name, piece in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in piece["content"]] if name.endswith((".jsonl", ".json")) else []
            if name == "wandb-history.jsonl":
                run.lines[piece["offset"] :] = lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if sent.get("complete"):
            run.exit_codes.append(sent["exitcode"])


def _named(name: str) -> Json:
    return {"id": name, "name": name}


def without_wandb(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have neither a key nor any setting of wandb's.

    The service of an earlier test in this process ends first: its address, which is one of the variables, would come
    back at the end of the test, when the service is gone.
    """
    wandb.teardown()
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Serve on a free port while the block runs."""
    wandb.teardown()  # what an earlier test in this process began knows of no server
    state = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            answer: Json = {}
            if self.path == "/graphql":
                asked = json.loads(body)
                answer = {"data": state.answer(asked["query"], asked.get("variables") or {})}
            elif self.path.endswith("/file_stream"):
                state.stream(self.path.split("/")[-2], json.loads(body))
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = _answer  # noqa: N815  (the base class's names)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
