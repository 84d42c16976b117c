"""A Hugging Face Hub on localhost: what `huggingface_hub` asks, answered from memory, with faults on demand.

Every file is taken in upload mode ``regular``, so all bytes travel in the commit and can be looked at; with ``lfs``,
weights go to a store of large files first, by the basic transfer. The Xet transfer is not spoken here.
"""

import base64
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_canaryCanaryCanaryCanary1234567890"
STEPS = ("look", "create", "branch", "validate", "preupload", "batch", "upload", "commit", "read", "discussions")


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool
    branches: dict[str, list[Commit]]
    gated: bool = False

    @property
    def main(self) -> list[Commit]:
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.main[-1].files

    @property
    def pulls(self) -> list[str]:
        return [name for name in self.branches if name.startswith("refs/pr/")]

    def find(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        return next((one for line in self.branches.values() for one in line if one.oid == revision), None)


@dataclass
class Fault:
    """The next ``times`` requests of a step go wrong."""

    step: str
    kind: int | str
    """A status; or reset, lost (acted on, then reset), silent, drip (a byte now and then, without end), garbage (acted
    on, no JSON), late (only ``before``), after (acted on, then ``before``, then answered)."""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "no"
    before: Callable[[], object] = lambda: None


@dataclass
class Request:
    step: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FakeHub:
    """Use as a context; ``url`` goes to HF_ENDPOINT."""

    def __init__(self, *, lfs: bool = False) -> None:
        self.lfs = lfs
        self.objects: dict[str, bytes] = {}
        """The store of large files, by sha256."""
        self.slow = 0.0
        """Seconds over which the store takes a file, a little at a time."""
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.count = 0
        self.closing = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def add_repo(self, name: str, *, private: bool = False, files: dict[str, bytes] | None = None) -> Repo:
        self.repos[name] = Repo(
            private, {"main": [self.new_commit("initial", {".gitattributes": b"", **(files or {})})]}
        )
        return self.repos[name]

    def new_commit(self, message: str, files: dict[str, bytes]) -> Commit:
        self.count += 1
        return Commit(hashlib.sha1(str(self.count).encode()).hexdigest(), message, files)

    def steps(self) -> list[str]:
        return [request.step for request in self.requests]

    def fault_for(self, step: str) -> Fault | None:
        for fault in self.faults:
            if fault.step == step and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """A client that died is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: FakeHub

    def log_message(self, *args: object) -> None:
        del args

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_HEAD = do_PUT = do_GET  # noqa: N815

    # ---- one request ----------------------------------------------------------------------------

    def _serve(self) -> None:
        hub = self.server_hub
        url = urlsplit(self.path)
        body = self._body(hub.slow if url.path.startswith("/store/") else 0.0)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        step, answer = self._route(parts, query, body)
        hub.requests.append(Request(step, self.command, self.path, dict(self.headers), body))
        fault = hub.fault_for(step)
        if fault is not None and fault.kind != "after":
            fault.before()
            if isinstance(fault.kind, int):
                return self._send(fault.kind, {"error": fault.message}, fault.headers)
            if fault.kind == "silent":
                hub.closing.wait()
                return self._reset()
            if fault.kind == "drip":
                return self._drip()
            if fault.kind == "reset":
                return self._reset()
        if step not in ("read", "upload") and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid credentials in Authorization header"})
        status, value, headers = answer()
        if fault is not None and fault.kind == "after":
            fault.before()
        if fault is not None and fault.kind == "lost":
            return self._reset()
        if fault is not None and fault.kind == "garbage":
            return self._send(200, b"<html>a proxy's page</html>", {})
        return self._send(status, value, headers)

    def _body(self, seconds: float) -> bytes:
        size, pieces = int(self.headers.get("Content-Length") or 0), 200 if seconds else 1
        found = b""
        for piece in range(pieces):
            time.sleep(seconds / pieces)
            found += self.rfile.read(size * (piece + 1) // pieces - len(found))
        return found

    def _route(self, parts: list[str], query: dict[str, str], body: bytes) -> tuple[str, Callable[[], Any]]:
        if parts[:3] == ["api", "repos", "create"]:
            return "create", lambda: self._create(json.loads(body))
        if parts[:2] == ["api", "validate-yaml"]:
            return "validate", lambda: (200, {"errors": [], "warnings": []}, {})
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            return "batch", lambda: self._batch(json.loads(body))
        if parts[0] == "store":
            return "upload", lambda: self._store(parts[1], body)
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), [*parts[4:], ""]
            routes: dict[str, tuple[str, Callable[[Repo], Any]]] = {
                "": ("look", lambda repo: self._look(name, repo, "main")),
                "revision": ("look", lambda repo: self._look(name, repo, rest[1])),
                "preupload": ("preupload", lambda repo: self._preupload(json.loads(body))),
                "commit": ("commit", lambda repo: self._commit(name, repo, rest[1], query, body)),
                "branch": ("branch", lambda repo: self._branch(repo, rest[1])),
                "tree": ("look", lambda repo: self._tree(repo, rest[1], "/".join(rest[2:-1]))),
                "discussions": ("discussions", lambda repo: self._discussions(name, repo)),
            }
            step, found = routes.get(rest[0], ("unknown", lambda _: _missing("EntryNotFound")))
            return step, lambda: self._with_repo(name, found)
        if len(parts) > 4 and parts[2] == "resolve":
            name = "/".join(parts[:2])
            return "read", lambda: self._with_repo(name, lambda repo: self._read(repo, parts[3], parts[4:]))
        return "unknown", lambda: _missing("EntryNotFound")

    def _with_repo(self, name: str, found: Callable[[Repo], Any]) -> Any:
        repo = self.server_hub.repos.get(name)
        if repo is None:
            return _missing("RepoNotFound")
        return found(repo)

    # ---- answers --------------------------------------------------------------------------------

    def _create(self, wanted: dict[str, Any]) -> Any:
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.server_hub.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.server_hub.url}/{name}"}, {}
        self.server_hub.add_repo(name, private=wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return 200, {"url": f"{self.server_hub.url}/{name}"}, {}

    def _look(self, name: str, repo: Repo, revision: str) -> Any:
        commit = repo.find(revision)
        if commit is None:
            return _missing("RevisionNotFound")
        siblings = [sibling(path, content) for path, content in commit.files.items()]
        return 200, {"id": name, "sha": commit.oid, "private": repo.private, "tags": [], "siblings": siblings}, {}

    def _tree(self, repo: Repo, revision: str, inside: str) -> Any:
        commit = repo.find(revision)
        if commit is None:
            return _missing("RevisionNotFound")
        listed = {
            path: content for path, content in commit.files.items() if path.startswith(f"{inside}/" if inside else "")
        }
        if inside and not listed:
            return _missing("EntryNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
            for path, content in listed.items()
        ]
        return 200, entries, {}

    def _preupload(self, wanted: dict[str, Any]) -> Any:
        paths = [entry["path"] for entry in wanted["files"]]
        modes = {path: "lfs" if self.server_hub.lfs and path.endswith(".safetensors") else "regular" for path in paths}
        return 200, {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}, {}

    def _batch(self, wanted: dict[str, Any]) -> Any:
        """Where the large files go; nowhere when the store has them."""
        hub = self.server_hub
        places = {one["oid"]: {"upload": {"href": f"{hub.url}/store/{one['oid']}"}} for one in wanted["objects"]}
        listed = [
            {"oid": one["oid"], "size": one["size"]}
            | ({} if one["oid"] in hub.objects else {"actions": places[one["oid"]]})
            for one in wanted["objects"]
        ]
        return 200, {"objects": listed, "transfer": "basic"}, {}

    def _store(self, name: str, content: bytes) -> Any:
        if hashlib.sha256(content).hexdigest() != name:
            return 400, {"error": "these bytes have another hash"}, {}
        self.server_hub.objects[name] = content
        return 200, b"", {}

    def _branch(self, repo: Repo, branch: str) -> Any:
        if branch in repo.branches:
            return 409, {"error": "Reference already exists"}, {}
        repo.branches[branch] = [repo.main[-1]]
        return 200, {}, {}

    def _commit(self, name: str, repo: Repo, revision: str, query: dict[str, str], body: bytes) -> Any:
        hub = self.server_hub
        header, *changes = [json.loads(line) for line in body.splitlines()]
        base = repo.find(revision)
        if base is None:
            return _missing("RevisionNotFound")
        if header["value"].get("parentCommit") not in (None, base.oid):
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        files = dict(base.files)
        for change in changes:
            path = change["value"]["path"]
            if change["key"] == "file":
                files[path] = base64.b64decode(change["value"]["content"])
            elif change["key"] == "lfsFile":
                if change["value"]["oid"] not in hub.objects:
                    return 400, {"error": f"{path} was never uploaded"}, {}
                files[path] = hub.objects[change["value"]["oid"]]
            else:
                del files[path]
        commit = hub.new_commit(header["value"]["summary"], files)
        answer = {"commitUrl": f"{hub.url}/{name}/commit/{commit.oid}", "commitOid": commit.oid, "success": True}
        if "create_pr" in query:
            number = len(repo.pulls) + 1
            repo.branches[f"refs/pr/{number}"] = [base, commit]
            answer["pullRequestUrl"] = f"{hub.url}/{name}/discussions/{number}"
        else:
            repo.branches[revision].append(commit)
        return 200, answer, {}

    def _discussions(self, name: str, repo: Repo) -> Any:
        entries = [
            {
                "num": number,
                "title": repo.branches[pull][-1].message,
                "status": "open",
                "isPullRequest": True,
                "createdAt": "2026-01-01T00:00:00.000Z",
                "author": {"name": "you"},
                "repo": {"name": name, "type": "model"},
            }
            for number, pull in enumerate(repo.pulls, 1)
        ]
        return 200, {"discussions": entries, "count": len(entries), "start": 0}, {}

    def _read(self, repo: Repo, revision: str, path: list[str]) -> Any:
        commit = repo.find(revision)
        content = None if commit is None else commit.files.get("/".join(path))
        if commit is None or content is None:
            return _missing("RevisionNotFound" if commit is None else "EntryNotFound")
        return 200, content, {"ETag": f'"{blob(content)}"', "X-Repo-Commit": commit.oid}

    # ---- the wire -------------------------------------------------------------------------------

    def _send(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _drip(self) -> None:
        """An answer that never ends and never pauses for long."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with suppress(OSError):
            while not self.server_hub.closing.wait(0.05):
                self.wfile.write(b" ")

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)


def blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sibling(path: str, content: bytes) -> dict[str, Any]:
    """How the real Hub lists a file; it keeps weights in its large storage, known there by sha256."""
    entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": blob(content)}
    if path.endswith(".safetensors"):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
        entry["blobId"] = blob(f"a pointer to {sha256}".encode())
    return entry


def _missing(code: str) -> Any:
    return 404, {"error": "not found"}, {"X-Error-Code": code, "X-Error-Message": "not found"}
