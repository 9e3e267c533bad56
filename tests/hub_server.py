"""A small Hugging Face hub on loopback: the part of its HTTP API that adapters are fetched over.

Private and gated repos, branches and tags, ranges, and connections that break in mid-file.
"""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1_000_000


@dataclass(slots=True, kw_only=True)
class Repo:
    """A repo: its files, its names for the one commit, and who may read it."""

    files: dict[str, bytes]
    revisions: set[str] = field(default_factory=lambda: {"main"})
    token: str | None = None
    gated: bool = False
    breaks: int = 0
    """How many more times a large file's connection ends in the middle."""
    lies: bool = False
    """Whether files are announced shorter than they are."""

    @property
    def commit(self) -> str:
        names = json.dumps({name: _sha256(data) for name, data in sorted(self.files.items())})
        return hashlib.sha1(names.encode(), usedforsecurity=False).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repos by name, and what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str | None] = set()
        self.sent_bytes = 0
        """Of files."""
        self.status: int | None = None
        """What every request is answered, if anything."""

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub on a free port."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
        yield hub
        hub.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path))
        self.server.tokens.add(self.headers.get("authorization"))
        if self.server.status is not None:
            self._refuse(self.server.status, None)
        elif path.startswith("/api/models/"):
            name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
            self._tell(name, revision or "main")
        else:
            name, _, rest = path.lstrip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            self._send_file(name, revision, file)

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The repo, when it is there and may be read; else the refusal has been sent."""
        repo = self.server.repos.get(name)
        sent = (self.headers.get("authorization") or "").removeprefix("Bearer ") or None
        if repo is None or (repo.token is not None and sent != repo.token and not repo.gated):
            # As the hub does: whether a private repo exists is nobody's business.
            self._refuse(401, "RepoNotFound")
        elif repo.gated and sent != repo.token:
            self._refuse(403, "GatedRepo")
        elif revision not in repo.revisions | {repo.commit}:
            self._refuse(404, "RevisionNotFound")
        else:
            return repo
        return None

    def _tell(self, name: str, revision: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        siblings = [
            {"rfilename": file, "size": len(data) // 2 if repo.lies else len(data)}
            for file, data in sorted(repo.files.items())
        ]
        body = json.dumps({"id": name, "sha": repo.commit, "siblings": siblings}).encode()
        self._send(200, body, {"Content-Type": "application/json"})

    def _send_file(self, name: str, revision: str, file: str) -> None:
        if (repo := self._repo(name, revision)) is None:
            return
        if file not in repo.files:
            self._refuse(404, "EntryNotFound")
            return
        data = repo.files[file]
        headers = {"ETag": f'"{_sha256(data)}"', "X-Repo-Commit": repo.commit}
        asked = self.headers.get("range")
        if asked is None:
            self._send(200, data, headers, repo=repo)
            return
        first = int(asked.removeprefix("bytes=").partition("-")[0])
        headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._send(206, data[first:], headers, repo=repo)

    def _refuse(self, status: int, code: str | None) -> None:
        self._send(status, b"", {} if code is None else {"X-Error-Code": code})

    def _send(
        self, status: int, body: bytes, headers: Mapping[str, str], *, repo: Repo | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        breaks = repo is not None and repo.breaks > 0 and len(body) > LARGE_BYTES
        sent = body[: len(body) // 2] if breaks else body
        if repo is not None:
            repo.breaks -= breaks
            self.server.sent_bytes += len(sent)
        self.wfile.write(sent)
        if breaks:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
