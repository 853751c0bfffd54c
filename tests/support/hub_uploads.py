"""The part of the Hub on loopback that takes commits: repositories, branches, large files by Git LFS, and commits."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from hub_server import Hub

_REPO = "(?P<repo>[^/]+/[^/]+)"
_ROUTES = {
    "create": re.compile("/api/repos/create"),
    "card": re.compile("/api/validate-yaml"),
    "branch": re.compile(f"/api/models/{_REPO}/branch/(?P<revision>[^/]+)"),
    "preupload": re.compile(f"/api/models/{_REPO}/preupload/(?P<revision>[^/]+)"),
    "commit": re.compile(f"/api/models/{_REPO}/commit/(?P<revision>[^/]+)"),
    "batch": re.compile(f"/{_REPO}\\.git/info/lfs/objects/batch"),
}
_LARGE = (".onnx", ".safetensors")


class UploadRoutes(BaseHTTPRequestHandler):
    """The Hub's handling of POST and PUT."""

    hub: Hub

    def _send(self, status: HTTPStatus, headers: Mapping[str, str], content: bytes, sent: int | None = None) -> None:
        raise NotImplementedError

    def do_PUT(self) -> None:
        """A large file, to the address that a batch gave; no token comes along."""
        oid, content = self.path.rpartition("/")[2], self._body()
        assert self.headers["Authorization"] is None
        if hashlib.sha256(content).hexdigest() != oid:
            self._refuse(HTTPStatus.BAD_REQUEST, "the checksum is another one")
            return
        self.hub.lfs[oid] = content
        self._json({})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        route, match = next((name, match) for name, row in _ROUTES.items() if (match := row.fullmatch(path)))
        body, token = self._body(), (self.headers["Authorization"] or "").removeprefix("Bearer ")
        arguments = match.groupdict()
        if route in self.hub.failures:
            self._refuse(self.hub.failures[route], "the test says so")
        elif token not in self.hub.writers:
            self._refuse(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
        elif "repo" in arguments and arguments["repo"].partition("/")[0] not in self.hub.writers[token]:
            self._refuse(HTTPStatus.FORBIDDEN, "You don't have the rights to write here")
        elif route == "commit":
            self._commit([json.loads(line) for line in body.splitlines()], **arguments)
        elif route == "create":
            self._create(json.loads(body), token)
        else:
            getattr(self, f"_{route}")(json.loads(body), **arguments)

    def _create(self, asked: dict[str, Any], token: str) -> None:
        namespace = asked["organization"] or self.hub.writers[token][0]
        repo = f"{namespace}/{asked['name']}"
        if namespace not in self.hub.writers[token]:
            self._refuse(HTTPStatus.FORBIDDEN, "You don't have the rights to create a model under this namespace")
            return
        exists = self.hub.commit(repo, "main") is not None
        if not exists:
            self.hub.add_commit(repo, {".gitattributes": b"*.onnx filter=lfs\n"})
            if asked.get("visibility") == "private" or asked.get("private"):
                self.hub.private[repo] = token
        self._json({"url": f"{self.hub.url}/{repo}"}, HTTPStatus.CONFLICT if exists else HTTPStatus.OK)

    def _card(self, asked: dict[str, Any]) -> None:
        _, *parts = asked["content"].split("---\n", 2)
        if not parts:
            self._json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata"}]})
            return
        data = yaml.safe_load(parts[0])
        known = {"library_name", "pipeline_tag", "tags", "base_model", "base_model_relation"}
        wrong = [{"message": f'"{key}" is not allowed'} for key in data if key not in known]
        self._json({"errors": wrong, "warnings": []}, HTTPStatus.BAD_REQUEST if wrong else HTTPStatus.OK)

    def _branch(self, asked: dict[str, Any], repo: str, revision: str) -> None:
        exists = self.hub.commit(repo, revision) is not None
        if not exists:
            self.hub.add_commit(repo, self.hub.files(repo, str(self.hub.commit(repo, "main"))), revision)
        self._json({}, HTTPStatus.CONFLICT if exists else HTTPStatus.OK)

    def _preupload(self, asked: dict[str, Any], repo: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(_LARGE) else "regular",
                "shouldIgnore": file["path"] in self.hub.ignored,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self._json({"files": files})

    def _batch(self, asked: dict[str, Any], repo: str) -> None:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.hub.cdn_url}/lfs/{each['oid']}"}}}
            if each["oid"] not in self.hub.lfs
            else each
            for each in asked["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, lines: list[dict[str, Any]], repo: str, revision: str) -> None:
        if self.hub.moves:
            self.hub.add_commit(repo, {"moved": b""}, revision)
        parent = str(self.hub.commit(repo, revision))
        if lines[0]["value"].get("parentCommit", parent) != parent:
            self._refuse(HTTPStatus.PRECONDITION_FAILED, "A commit has happened since")
            return
        files = dict(self.hub.files(repo, parent))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        commit = self.hub.add_commit(repo, files, revision)
        self.hub.messages[commit] = lines[0]["value"]["summary"]
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def _body(self) -> bytes:
        if self.headers["Transfer-Encoding"] != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"] or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, content: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": message}
        self._send(status, headers, json.dumps({"error": message}).encode())
