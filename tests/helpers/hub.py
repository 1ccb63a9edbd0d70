"""A real HTTP server on 127.0.0.1 that plays the Hugging Face hub, and misbehaves on demand.

Large files are redirected to a second server on another port, as the hub redirects to its CDN.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
import time
import urllib.parse

LARGE = (
    ".safetensors",
    ".bin",
    ".npz",
    ".parquet",
)  # git-lfs has them; the rest are files of git itself

TOKEN = "hf_of_the_tests"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub, handler: type):
        super().__init__(("127.0.0.1", 0), handler)
        self.hub = hub
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """Connections that the tests cut are no news."""


class Hub:
    """Has ``repositories`` {OWNER/NAME: {file: bytes}}, each at one commit of its branch main.

    datasets/OWNER/NAME is a data set, and datasets/OWNER/NAME@refs/convert/parquet that branch.

    ``access`` {OWNER/NAME: "gated" or "private"} asks for `TOKEN`. ``faults`` are taken off one a
    request of the hub, ``cdn_faults`` one a GET of the CDN: a status, a (status, headers), a body,
    "drop", "wrong bytes" (of the right length), "html", "slow" (ten seconds without a byte).
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]):
        self.repositories, self.access = repositories, {}
        self.faults, self.cdn_faults = [], []
        self.requests: list[tuple[str, str, str | None]] = []  # (method, path, Range) of both
        self.uploaded: dict[str, bytes] = {}
        self.server, self.cdn = _Server(self, HubHandler), _Server(self, CdnHandler)

    @property
    def address(self) -> str:
        return self.server.address

    def commit(self, name: str) -> str:
        """Return the commit of a repository, which its content decides."""
        parts = (f"{file} {digest(data)}" for file, data in self.repositories[name].items())
        return hashlib.sha1("\n".join(sorted(parts)).encode()).hexdigest()

    def asked(self, method: str, ending: str = "") -> list[str]:
        return [path for verb, path, _ in self.requests if verb == method and ending in path]

    def close(self) -> None:
        for server in (self.server, self.cdn):
            server.shutdown()
            server.server_close()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        """Keep the tests' output clean."""

    def answer(self, status: int, body: bytes | dict = b"", **headers: object) -> None:
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers["Content_Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def noted(self) -> str:
        self.path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        return self.path

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def fail(self, faults: list) -> bool:
        fault = faults.pop(0) if faults else None
        if fault == "html":
            self.answer(200, b"<html>Please log in</html>")
        elif isinstance(fault, bytes):
            self.answer(200, fault)
        elif isinstance(fault, (int, tuple)):
            status, headers = fault if isinstance(fault, tuple) else (fault, {})
            self.answer(status, **headers)
        return fault is not None


class HubHandler(_Handler):
    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path, hub = self.noted(), self.server.hub
        if path == "/api/agent-harnesses":  # a list that huggingface_hub 2 asks for once
            self.answer(404)
            return
        if self.fail(hub.faults):
            return
        api = path.startswith("/api/")
        words = path.removeprefix("/api/models/").removeprefix("/api/").strip("/").split("/")
        start = 3 if words[0] == "datasets" else 2
        name, kind, rest = "/".join(words[:start]), "".join(words[start:][:1]), words[start + 1 :]
        files = hub.repositories.get(name)
        signed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        access = None if signed else hub.access.get(name)
        if files is None or access == "private":
            self.answer(404 if signed else 401, x_error_code="RepoNotFound")
            return
        if access == "gated":
            self.answer(401 if "Authorization" not in self.headers else 403,
                        x_error_code="GatedRepo")  # fmt: skip
            return
        branch = "/".join(rest[:3])
        if f"{name}@{branch}" in hub.repositories:
            name, rest = f"{name}@{branch}", ["main", *rest[3:]]
            files = hub.repositories[name]
        commit, revision = hub.commit(name), (rest or ["main"])[0]
        if revision not in ("main", "v1", commit):
            self.answer(404, x_error_code="RevisionNotFound")
        elif api:
            self.answer(
                200,
                {
                    "id": "/".join(words[start - 2 : start]),
                    "sha": commit,
                    "siblings": _siblings(files),
                },
            )
        elif kind != "resolve" or "/".join(rest[1:]) not in files:
            self.answer(404, x_error_code="EntryNotFound", x_repo_commit=commit)
        else:
            self.resolve("/".join(rest[1:]), files, commit)

    def resolve(self, file: str, files: dict[str, bytes], commit: str) -> None:
        content, hub = files[file], self.server.hub
        if file.endswith(LARGE):
            self.answer(
                302,
                Location=f"{hub.cdn.address}/{digest(content)}",
                x_repo_commit=commit,
                x_linked_etag=f'"{digest(content)}"',
                x_linked_size=len(content),
                ETag='"of the redirection"',
            )
        else:
            self.answer(200, content, ETag=f'"{_blob(content)}"', x_repo_commit=commit)

    def do_POST(self):
        path, hub, body = self.noted(), self.server.hub, self.body()
        if self.fail(hub.faults):
            return
        if path == "/api/validate-yaml":  # of a model card; asks for no token
            self.answer(200, {"errors": [], "warnings": []})
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in hub.repositories else 200
            hub.repositories.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":  # 1.x or 2.x
                hub.access[name] = "private"
            self.answer(status, {"url": f"{hub.address}/{name}", "id": name})
        elif "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.cdn.address}/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self.commit("/".join(path.split("/")[3:5]), body)
        else:
            self.answer(404)

    def commit(self, name: str, body: bytes) -> None:
        hub = self.server.hub
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                hub.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.repositories[name][value["path"]] = hub.uploaded[value["oid"]]
        url = f"{hub.address}/{name}/commit/{hub.commit(name)}"
        self.answer(200, {"commitUrl": url, "commitOid": hub.commit(name), "success": True})


class CdnHandler(_Handler):
    def do_GET(self):
        path, hub = self.noted(), self.server.hub
        fault = hub.cdn_faults[0] if hub.cdn_faults else None
        if isinstance(fault, (int, tuple)) or fault == "html":
            self.fail(hub.cdn_faults)
            return
        hub.cdn_faults[:1] = []
        assert "Authorization" not in self.headers, "the token left the hub"
        content = next(
            data
            for files in hub.repositories.values()
            for data in files.values()
            if digest(data) == path[1:]
        )
        wanted = self.headers.get("Range")
        start = int(wanted[len("bytes=") :].split("-")[0]) if wanted else 0
        body = content[start:]
        headers = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        if fault == "wrong bytes":
            body = bytes(len(body))
        if fault not in ("drop", "slow"):
            self.answer(206 if start else 200, body, **headers if start else {})
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", headers["Content_Range"])
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        time.sleep(0.05 if fault == "drop" else 10)
        self.close_connection = True
        self.connection.close()

    def do_PUT(self):
        self.noted()
        content = self.body()
        self.server.hub.uploaded[digest(content)] = content
        self.answer(200)


def _blob(content: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _siblings(files: dict[str, bytes]) -> list[dict]:
    return [
        {
            "rfilename": file,
            "size": len(content),
            "blobId": _blob(content),
            **(
                {"lfs": {"sha256": digest(content), "size": len(content), "pointerSize": 134}}
                if file.endswith(LARGE)
                else {}
            ),
        }
        for file, content in files.items()
    ]
