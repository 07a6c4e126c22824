"""A small server of Weights & Biases on loopback: as much of its API as its client needs to download artifacts.

The server of test_wandb_server.py does not have the queries of today's client for this.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# The client accepts keys of 40 characters or more.
KEY = "loopback" + 32 * "0"
ENTITY, PROJECT = "team", "asr"


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content).digest()).decode()


class Version:
    """A version of an artifact: its files, and its manifest, which a test may change."""

    def __init__(self, number: int, aliases: list[str], files: Mapping[str, bytes]) -> None:
        self.number, self.aliases, self.files = number, aliases, dict(files)
        self.entries: dict[str, Any] = {
            name: {"digest": md5(content), "size": len(content), "birthArtifactID": "QXJ0aWZhY3Q6MQ=="}
            for name, content in files.items()
        }
        self.digest: str | None = None  # None: that of the entries

    def manifest(self) -> bytes:
        policy = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
        return json.dumps({"version": 1, **policy, "contents": self.entries}).encode()

    def stated_digest(self) -> str:
        lines = [f"{name}:{entry['digest']}\n" for name, entry in sorted(self.entries.items())]
        return self.digest or hashlib.md5(f"wandb-artifact-manifest-v1\n{''.join(lines)}".encode()).hexdigest()


class Artifacts:
    """The versions of each artifact of one project, and the requests so far."""

    def __init__(self) -> None:
        self.versions: dict[str, list[Version]] = {}
        self.requests: list[str] = []
        self.url = ""

    def add(self, name: str, files: Mapping[str, bytes], *aliases: str) -> Version:
        """Adds a version, which takes its aliases and `latest` from the earlier ones."""
        there = self.versions.setdefault(name, [])
        for version in there:
            version.aliases = [alias for alias in version.aliases if alias not in (*aliases, "latest")]
        there.append(Version(len(there), [*aliases, "latest"], files))
        return there[-1]

    def find(self, name: str, alias: str) -> Version | None:
        versions = self.versions.get(name, [])
        return next((one for one in versions if alias in (f"v{one.number}", *one.aliases)), None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer takes 40 ms
    artifacts: Artifacts

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.artifacts.requests.append(f"GET {self.path}")
        if found := re.fullmatch(r"/manifest/([^/]+)/(\d+)", self.path):
            self.answer(200, self.artifacts.versions[found[1]][int(found[2])].manifest())
        elif found := re.fullmatch(r"/artifactsV2/.*/([0-9a-f]+)/([^/]+)", self.path):
            contents = [c for vs in self.artifacts.versions.values() for v in vs for c in v.files.values()]
            held = {hashlib.md5(content).hexdigest(): content for content in contents}
            self.answer(200, held[found[1]]) if found[1] in held else self.answer(404, b"")
        else:
            self.answer(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/graphql":
            self.artifacts.requests.append(f"POST {self.path}")
            self.answer(404, b"")
            return
        asked = json.loads(body)
        query, variables = asked["query"], asked.get("variables") or {}
        operation = re.search(r"(?:query|mutation)\s*(\w*)", query)
        name = operation[1] if operation else ""
        self.artifacts.requests.append(f"query {name}")
        login = base64.b64encode(f"api:{KEY}".encode()).decode()
        if self.headers.get("Authorization") != f"Basic {login}":
            self.answer(401, json.dumps({"error": "invalid API key"}).encode())
            return
        self.answer(200, json.dumps({"data": self.result(name, query, variables)}).encode())

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def result(self, operation: str, query: str, variables: Mapping[str, Any]) -> Any:
        if operation == "ArtifactMembershipByName":
            return {"project": self.membership(*variables["name"].split(":")) if self.is_project(variables) else None}
        if operation == "FetchArtifactManifest":
            name, number = base64.b64decode(variables["id"]).decode().split("/")
            url = f"{self.artifacts.url}/manifest/{name}/{number}"
            return {"artifact": {"currentManifest": {"id": "m", "file": {"directUrl": url}}}}
        if operation == "ArtifactMembershipFiles":
            return self.files(variables)
        viewer = {"id": "VXNlcjox", "entity": ENTITY, "username": "tester", "flags": "{}", "email": "", "admin": False}
        viewer |= {"teams": {"edges": []}, "name": "tester", "deletedAt": None, "apiKeys": {"edges": []}}
        return {"viewer": viewer, "serverInfo": {"cliVersionInfo": {}, "features": []}}

    def is_project(self, variables: Mapping[str, Any]) -> bool:
        return (variables["entity"], variables["project"]) == (ENTITY, PROJECT)

    def membership(self, name: str, alias: str) -> Any:
        if (version := self.artifacts.find(name, alias)) is None:
            return {"artifactCollectionMembership": None}
        project = {"name": PROJECT, "entity": {"name": ENTITY}, "id": "p", "internalId": "1"}
        collection = {"__typename": "ArtifactSequence", "id": "c", "name": name, "project": project}
        aliases = [{"id": one, "alias": one, "artifactCollection": collection} for one in version.aliases]
        artifact = {
            "id": base64.b64encode(f"{name}/{version.number}".encode()).decode(),
            "artifactSequence": collection,
            "artifactType": {"id": "t", "name": "model"},
            "versionIndex": version.number,
            "description": None,
            "metadata": "{}",
            "ttlDurationSeconds": -2,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": "COMMITTED",
            "size": sum(map(len, version.files.values())),
            "digest": version.stated_digest(),
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": "",
            "fileCount": len(version.files),
            "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None,
            "aliases": aliases,
        }
        return {
            "artifactCollectionMembership": {
                "id": "m",
                "versionIndex": version.number,
                "createdAt": "2026-01-01T00:00:00",
                "aliases": aliases,
                "artifactCollection": collection,
                "artifact": artifact,
            }
        }

    def files(self, variables: Mapping[str, Any]) -> Any:
        names = {key: value for key, value in variables.items() if isinstance(value, str)}
        version = self.artifacts.find(names["collection"], names["alias"])
        assert version
        edges = [
            {
                "cursor": name,
                "node": {
                    "__typename": "File",
                    "id": name,
                    "name": name,
                    "url": "",
                    "directUrl": "",
                    "sizeBytes": len(content),
                    "storagePath": None,
                    "mimetype": None,
                    "updatedAt": None,
                    "digest": md5(content),
                    "md5": md5(content),
                },
            }
            for name, content in version.files.items()
        ]
        files = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}, "totalCount": len(edges)}
        return {
            "project": {
                "artifactCollection": {"__typename": "ArtifactSequence", "artifactMembership": {"files": files}}
            }
        }


@contextmanager
def running_artifacts() -> Iterator[Artifacts]:
    """A server on loopback until the block ends."""
    artifacts = Artifacts()
    handler = type("ArtifactHandler", (Handler,), {"artifacts": artifacts})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    artifacts.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield artifacts
    finally:
        server.shutdown()
        server.server_close()
