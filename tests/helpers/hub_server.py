"""A hub of models on this machine, with scripted faults: uploads by git and LFS, downloads."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

TOKEN = "hf_a_token_of_the_tests_1234567890"
SIGNATURE = "a-secret-signature"
REPOSITORY = r"([\w.-]+/[\w.-]+)"


@dataclass
class HubServer:
    """Repositories in memory. `fault` is the status of requests whose path contains `fault_at`, 0: none.

    `private` and `files` have one entry for each repository; `requests` are methods and paths, in order.
    """

    fault: int = 0
    fault_at: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # of LFS, by SHA-256
    requests: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                status, headers, content = hub.answer(self.command, unquote(self.path), self.headers, body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = handle_any

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home: object) -> dict[str, str]:
        """Return the variables of a process that uses this hub. Xet, read at import, has a protocol of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.requests.append(f"{method} {path}")
        if self.fault and self.fault_at in path:
            message = f"fault for {headers.get('Authorization')}"  # a server may repeat the token
            return self.fault, {"X-Error-Message": message}, json.dumps({"error": message}).encode()
        if path.startswith("/lfs/"):  # signed addresses, without a token
            self.objects[path.removeprefix("/lfs/").partition("?")[0]] = body
            return 200, {}, b""
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {}, b'{"error": "no token"}'
        if path == "/api/repos/create":
            row = json.loads(body)
            repo = f"{row['organization']}/{row['name']}"
            status = 409 if repo in self.private else 200
            self.private.setdefault(repo, row["visibility"] == "private")
            self.files.setdefault(repo, {})
            return self.json({"url": f"{self.url}/{repo}"}, status)
        if path == "/api/validate-yaml":
            return self.json({"errors": [], "warnings": []})
        for pattern, reply in (
            (rf"/api/models/{REPOSITORY}/preupload/main", lambda repo: self.preupload(body)),
            (rf"/api/models/{REPOSITORY}/commit/main", lambda repo: self.commit(repo, body)),
            (rf"/api/models/{REPOSITORY}(?:/revision/\w+)?", self.info),
            (rf"/{REPOSITORY}\.git/info/lfs/objects/batch", lambda repo: self.batch(body)),
            (rf"/{REPOSITORY}/resolve/\w+/(.+)", self.resolve),
        ):
            if match := re.fullmatch(pattern, path.partition("?")[0]):
                return reply(*match.groups())
        return 404, {}, b"{}"

    def json(self, value: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
        return status, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def preupload(self, body: bytes):
        modes = {True: "lfs", False: "regular"}
        rows = json.loads(body)["files"]
        files = [{"path": row["path"], "uploadMode": modes[row["path"].endswith(".safetensors")]} for row in rows]
        return self.json({"files": [{**row, "shouldIgnore": False, "oid": None} for row in files]})

    def batch(self, body: bytes):
        rows = json.loads(body)["objects"]
        urls = {row["oid"]: f"{self.url}/lfs/{row['oid']}?signature={SIGNATURE}" for row in rows}
        objects = [{**row, "actions": {"upload": {"href": urls[row["oid"]]}}} for row in rows]
        return self.json({"transfer": "basic", "objects": objects})

    def commit(self, repo: str, body: bytes):
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                self.files[repo][value["path"]] = content
        oid = "a" * 40
        return self.json({"success": True, "commitOid": oid, "commitUrl": f"{self.url}/{repo}/commit/{oid}"})

    def info(self, repo: str):
        if repo not in self.private:
            return self.json({"error": "Repository not found"}, 404)
        names = [{"rfilename": name} for name in self.files[repo]]
        return self.json({"id": repo, "sha": "a" * 40, "private": self.private[repo], "siblings": names})

    def resolve(self, repo: str, name: str):
        if (content := self.files.get(repo, {}).get(name)) is None:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        etag = hashlib.sha256(content).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40, "Accept-Ranges": "none"}, content
