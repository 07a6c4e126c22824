"""Reads the file of an offline W&B run, as `wandb sync` does: protobuf records in LevelDB's log format."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32768
HEADER = struct.Struct("<IHB")
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """Yield the records. One that crosses a block has several chunks; a block's end may be too short for a header."""
    content, at, part = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + HEADER.size <= len(content):
        room = BLOCK - at % BLOCK
        if room < HEADER.size:
            at += room
            continue
        _, length, kind = HEADER.unpack_from(content, at)
        at += HEADER.size + length
        part += content[at - length : at]
        if kind in (FULL, LAST):
            yield Record.FromString(part)
            part = b""


class OfflineRun:
    """The data that `wandb sync` would send: run record, config, history, summary, artifacts by type, exit code."""

    def __init__(self, folder: Path) -> None:
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        self.path = path
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: dict[str, list[Any]] = {}
        self.exit_code: int | None = None
        self.kinds: set[str] = set()
        self.files: list[Path] = []
        for record in records(path):
            kind = str(record.WhichOneof("record_type"))
            self.kinds.add(kind)
            if kind == "run":
                self.run = record.run
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "history":
                items = [(*item.nested_key, json.loads(item.value_json)) for item in record.history.item]
                self.history.append({item[0]: item[-1] for item in items if len(item) == 2})
            elif kind == "summary":
                for item in record.summary.update:
                    self.summary["/".join([item.key] if item.key else item.nested_key)] = json.loads(item.value_json)
            elif kind == "artifact":
                self.artifacts.setdefault(record.artifact.type, []).append(record.artifact)
            elif kind == "files":
                self.files += [Path(item.path) for item in record.files.files]
            elif kind == "exit":
                self.exit_code = record.exit.exit_code

    def logged(self, key: str) -> list[Any]:
        return [row[key] for row in self.history if key in row]

    def table(self, name: str) -> tuple[list[str], list[list[Any]], dict[str, Path]]:
        """Return the columns and rows of a table, and the files that its cells name."""
        (artifact,) = [a for a in self.artifacts["run_table"] if a.name.endswith(name)]
        files = {content.path: Path(content.local_path) for content in artifact.manifest.contents}
        table = json.loads(files[f"{name}.table.json"].read_text(encoding="utf-8"))
        return table["columns"], table["data"], files
