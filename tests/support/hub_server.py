"""A Hugging Face Hub on loopback: it serves local folders as model repositories and records what was asked for.

It takes commits too; see `hub_uploads`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from hub_uploads import UploadRoutes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest

_ROUTES = {
    "info": re.compile(r"/api/models/(?P<repo>[^/]+(?:/[^/]+)?)(?:/revision/(?P<revision>[^/]+))?"),
    "file": re.compile(r"/(?P<repo>[^/]+(?:/[^/]+)?)/resolve/(?P<revision>[^/]+)/(?P<name>.+)"),
    "blob": re.compile(r"/cdn/(?P<repo>[^/]+(?:/[^/]+)?)/(?P<revision>[^/]+)/(?P<name>.+)"),
}


@dataclass(frozen=True)
class Request:
    """One request as it came; `name` is the file that it asks for, empty for the repository's description."""

    method: str
    path: str
    name: str
    authorization: str | None
    range: str | None


@dataclass
class Hub:
    """The server's state; tests change it while it runs.

    Attributes:
        url: What to give as HF_ENDPOINT.
        cdn_url: Another origin, where large files are redirected to.
        requests: All requests, in order.
        private: The token of each repository that only its token can see.
        gated: The repositories whose files need a token that was granted access.
        granted: The tokens that were granted access to gated repositories.
        failures: A status that all requests to the route "info", "file" or "blob" are answered with.
        cuts: How many bytes of a large file's body to send before the connection breaks, one entry a response.
        missing_bytes: How much less than the announced size a large file has.
        writers: The namespaces that each token may write to, the user's own first.
        ignored: The names of files that a repository's `.gitignore` keeps out of commits.
        moves: Whether another commit comes first, whenever one is sent.
    """

    url: str = ""
    cdn_url: str = ""
    requests: list[Request] = field(default_factory=list)
    private: dict[str, str] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    granted: set[str] = field(default_factory=set)
    failures: dict[str, HTTPStatus] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    missing_bytes: int = 0
    writers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ignored: set[str] = field(default_factory=set)
    moves: bool = False
    lfs: dict[str, bytes] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    _commits: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    _branches: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def downloads(self) -> list[str]:
        """The names of the files whose bodies were asked for, sorted."""
        return sorted(request.name for request in self.requests if request.method == "GET" and request.name)

    def push(self, repo: str, folder: Path, branch: str = "main") -> str:
        """Commit a folder's files to a branch, and return the commit."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add_commit(repo, files, branch)

    def add_commit(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit files, by name, to a branch, and return the commit."""
        digest = hashlib.sha1(repo.encode())
        for name, content in sorted(files.items()):
            digest.update(b"\0".join((name.encode(), content)))
        commit = digest.hexdigest()
        self._commits[repo, commit] = files
        self._branches[repo, branch] = commit
        return commit

    def commit(self, repo: str, revision: str) -> str | None:
        """Return the commit that a branch or commit stands for, or None where there is no such revision."""
        return revision if (repo, revision) in self._commits else self._branches.get((repo, revision))

    def files(self, repo: str, commit: str) -> dict[str, bytes]:
        return self._commits[repo, commit]


@contextlib.contextmanager
def hub_server(repos: Mapping[str, Path]) -> Iterator[Hub]:
    """Serve folders as the main branches of repositories, by "organization/name", until the block ends."""
    hub = Hub()
    for repo, folder in repos.items():
        hub.push(repo, folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with _serve(handler) as hub.url, _serve(handler) as hub.cdn_url:
        yield hub


def use_hub(url: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process and its children take `url` for the Hub, and keep its cache below `home`."""
    for name, value in {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    constants = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # its protocol is another server's
    }
    for name, constant in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", constant)


@contextlib.contextmanager
def _serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Handler(UploadRoutes, BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        for route, pattern in _ROUTES.items():
            match = pattern.fullmatch(path)
            if match:
                self._answer(route, **{key: unquote(value or "") for key, value in match.groupdict().items()})
                return
        self._error(HTTPStatus.NOT_FOUND, "", "no such page")

    def _answer(self, route: str, repo: str, revision: str, name: str = "") -> None:
        hub = self.hub
        authorization = self.headers["Authorization"]
        hub.requests.append(Request(self.command, self.path, name, authorization, self.headers["Range"]))
        token = (authorization or "").removeprefix("Bearer ")
        commit = hub.commit(repo, revision or "main")
        # The Hub tells nobody without a token which repositories exist: 401 stands for absent and for private.
        denied = HTTPStatus.NOT_FOUND if token else HTTPStatus.UNAUTHORIZED
        if route in hub.failures:
            self._send(hub.failures[route], {"Content-Type": "text/html"}, b"<html>a gateway's page</html>")
        elif route == "blob":
            self._send_blob(hub.files(repo, revision)[name])
        elif token == "invalid":
            self._error(HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header")
        elif hub.commit(repo, "main") is None or (repo in hub.private and token != hub.private[repo]):
            self._error(denied, "RepoNotFound", "Repository not found")
        elif commit is None:
            self._error(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif route == "info":
            siblings = [{"rfilename": file} for file in hub.files(repo, commit)]
            description = {"id": repo, "sha": commit, "siblings": siblings, "private": repo in hub.private}
            content = json.dumps(description).encode()
            self._send(HTTPStatus.OK, {"Content-Type": "application/json"}, content)
        elif repo in hub.gated and token not in hub.granted:
            status = HTTPStatus.FORBIDDEN if token else HTTPStatus.UNAUTHORIZED
            self._error(status, "GatedRepo", f"Access to model {repo} is restricted")
        elif name not in hub.files(repo, commit):
            self._error(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        else:
            self._send_file(repo, commit, name)

    def _send_file(self, repo: str, commit: str, name: str) -> None:
        content = self.hub.files(repo, commit)[name]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if Path(name).suffix == ".json":
            blob = b"blob %d\0" % len(content) + content  # git's own id of a file
            headers["ETag"] = f'"{hashlib.sha1(blob).hexdigest()}"'
            self._send(HTTPStatus.OK, headers, content)
        else:
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            headers["Location"] = f"{self.hub.cdn_url}/cdn/{repo}/{commit}/{name}"
            self._send(HTTPStatus.FOUND, headers, b"")

    def _send_blob(self, content: bytes) -> None:
        size = len(content) - self.hub.missing_bytes
        match = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        start = int(match[1]) if match else 0
        headers = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if match else {}
        status = HTTPStatus.PARTIAL_CONTENT if match else HTTPStatus.OK
        sent = self.hub.cuts.pop(0) if self.hub.cuts else None
        self._send(status, headers, content[start:size], sent)

    def _error(self, status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        content = json.dumps({"error": message}).encode()
        self._send(status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}, content)

    def _send(self, status: HTTPStatus, headers: Mapping[str, str], content: bytes, sent: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""
