"""A small Hugging Face Hub on loopback, which speaks the protocol of the real client: accounts, repositories, commits,
large files, pull requests and downloads. Written after the client's requests; it checks what the real one checks.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

TOKEN = "hf_loopback_0123456789"
ORGANISATIONS = ("team",)
USER = "tester"
# Files that are kept beside the commits, by their checksum.
LARGE = (".safetensors", ".bin")

Files = dict[str, bytes]


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Repository:
    """Commits, each with all its files, and the branches that name them."""

    def __init__(self, private: bool) -> None:
        self.private = private
        first = "0" * 39 + "1"
        self.commits: dict[str, Files] = {first: {".gitattributes": b"*.safetensors filter=lfs\n"}}
        self.branches = {"main": first}

    def commit_of(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None

    def commit(self, revision: str, files: Files, branch: str) -> str:
        parent = self.branches[revision]
        listed = sorted((name, git_hash(content)) for name, content in files.items())
        oid = hashlib.sha1(repr((parent, listed)).encode()).hexdigest()
        self.commits[oid] = self.commits[parent] | files
        self.branches[branch] = oid
        return oid


class Hub:
    """What the server holds.

    faults: (method and part of the path, status, headers), each used for one request; requests: all so far. hold: of
    requests that are not answered until `released`, once `held` is set.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[tuple[str, int, dict[str, str]]] = []
        self.requests: list[str] = []
        self.hold, self.held, self.released = "", threading.Event(), threading.Event()
        self.url = ""

    def fault(self, line: str) -> tuple[int, dict[str, str]] | None:
        for fault in self.faults:
            if re.search(fault[0], line):
                self.faults.remove(fault)
                return fault[1], fault[2]
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer takes 40 ms
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_request()

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        line = f"{self.command} {path}"
        self.hub.requests.append(line)
        self.body = self.read_body()
        if self.hub.hold and re.search(self.hub.hold, line):
            self.hub.held.set()
            self.hub.released.wait()
            self.close_connection = True
            return
        if found := self.hub.fault(line):
            status, headers = found
            if status == 0:  # the connection breaks
                self.close_connection = True
                return
            self.answer(status, {"error": f"made to fail with {status}"}, headers)
            return
        for pattern, serve in ROUTES:
            if match := re.fullmatch(pattern, line):
                serve(self, *match.groups())
                return
        self.refuse(404, "no such page")

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str) -> Repository | None:
        """The repository, or None after a refusal: a private one does not exist for strangers."""
        found = self.hub.repositories.get(name)
        if found is None or (found.private and not self.is_known()):
            self.refuse(404 if self.is_known() else 401, "Repository not found", "RepoNotFound")
            return None
        return found

    def revision(self, name: str, revision: str) -> tuple[Repository, str] | None:
        if (found := self.repository(name)) is None:
            return None
        if (commit := found.commit_of(revision)) is None:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return found, commit

    # Accounts and repositories

    def root(self) -> None:
        self.answer(200, b"")

    def whoami(self) -> None:
        if not self.is_known():
            self.refuse(401, "Invalid credentials in Authorization header")
            return
        self.answer(200, {"type": "user", "name": USER, "orgs": [{"name": name} for name in ORGANISATIONS]})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or USER
        name = f"{owner}/{asked['name']}"
        if not self.is_known():
            self.refuse(401, "Invalid credentials in Authorization header")
        elif owner not in (USER, *ORGANISATIONS):
            self.refuse(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        elif name in self.hub.repositories:
            self.answer(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        else:
            self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
            self.answer(200, {"name": name, "id": name, "url": f"{self.hub.url}/{name}"})

    def info(self, name: str, revision: str | None = None) -> None:
        if found := self.revision(name, revision or "main"):
            repository, commit = found
            files = [{"rfilename": file} for file in repository.commits[commit]]
            self.answer(200, {"id": name, "sha": commit, "private": repository.private, "siblings": files, "tags": []})

    def validate(self) -> None:
        try:
            yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
            self.answer(200, {"errors": [], "warnings": []})
        except (IndexError, yaml.YAMLError) as error:
            self.answer(400, {"errors": [{"message": str(error)}], "warnings": []})

    # Commits

    def preupload(self, name: str, revision: str) -> None:
        if not (found := self.revision(name, revision)):
            return
        there = found[0].commits[found[1]]
        rows = []
        for file in json.loads(self.body)["files"]:
            path, old = file["path"], there.get(file["path"])
            is_large = path.endswith(LARGE)
            oid = None if old is None else hashlib.sha256(old).hexdigest() if is_large else git_hash(old)
            mode = "lfs" if is_large else "regular"
            rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": rows})

    def batch(self, name: str) -> None:
        if not self.repository(name):
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.url}/large/{asked['oid']}", "header": {}}
            missing = asked["oid"] not in self.hub.large
            objects.append({**asked, **({"actions": {"upload": upload}} if missing else {})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.answer(400, {"error": "the checksum is another"})
            return
        self.hub.large[oid] = self.body
        self.answer(200, b"")

    def commit(self, name: str, revision: str) -> None:
        if not self.is_known():
            self.refuse(401, "Invalid credentials in Authorization header")
            return
        if not (found := self.revision(name, revision)):
            return
        repository, files = found[0], Files()
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        number = sum(branch.startswith("refs/pr/") for branch in repository.branches) + 1
        request = f"{self.hub.url}/{name}/discussions/{number}" if "create_pr" in self.query else None
        oid = repository.commit(revision, files, f"refs/pr/{number}" if request else revision)
        url = f"{self.hub.url}/{name}/commit/{oid}"
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": url, "pullRequestUrl": request})

    # Reading

    def entry(self, path: str, content: bytes) -> dict[str, Any]:
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        more = {"lfs": large} if path.endswith(LARGE) else {}
        return {"type": "file", "path": path, "size": len(content), "oid": git_hash(content), **more}

    def tree(self, name: str, revision: str, folder: str = "") -> None:
        if found := self.revision(name, revision):
            files = found[0].commits[found[1]].items()
            inside = [self.entry(path, content) for path, content in files if path.startswith(folder)]
            if inside:
                self.answer(200, inside)
            else:
                self.refuse(404, f"{folder} does not exist", "EntryNotFound")

    def resolve(self, name: str, revision: str, path: str) -> None:
        if not (found := self.revision(name, revision)):
            return
        repository, commit = found
        headers = {"X-Repo-Commit": commit}
        content = repository.commits[commit].get(path)
        if content is None:
            self.answer(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else git_hash(content)
        self.answer(200, content, {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"})


NAME, REVISION = r"([\w.-]+/[\w.-]+)", r"(refs/pr/\d+|[^/]+)"
ROUTES: list[tuple[str, Any]] = [
    (r"HEAD /?", Handler.root),
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/models/{NAME}", Handler.info),
    (rf"GET /api/models/{NAME}/revision/(.+)", Handler.info),
    (rf"POST /api/models/{NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /large/(\w+)", Handler.store),
    (rf"POST /api/models/{NAME}/commit/(.+)", Handler.commit),
    (rf"GET /api/models/{NAME}/tree/{REVISION}", Handler.tree),
    (rf"GET /api/models/{NAME}/tree/{REVISION}/(.+)", Handler.tree),
    (rf"(?:GET|HEAD) /{NAME}/resolve/{REVISION}/(.+)", Handler.resolve),
]


@contextmanager
def running_hub(port: int = 0) -> Iterator[Hub]:
    """A Hub on loopback until the block ends."""
    hub = Hub()
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """The variables with which a command uses this Hub."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(cache / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def use(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Makes the client of this process, which read the environment when it was imported, use this Hub."""
    import huggingface_hub
    from huggingface_hub import constants

    huggingface_hub.close_session()
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr("huggingface_hub.hf_api.api.endpoint", hub.url)
    patch.setattr("transformers.utils.hub._hf_api", None)  # made anew, with this address
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setenv("HF_TOKEN", TOKEN)


if __name__ == "__main__":  # for trying commands by hand
    with running_hub(8765) as shown:
        print(shown.url, flush=True)
        threading.Event().wait()
