"""Tables of any size are read in limited memory."""

import json
import tracemalloc
from pathlib import Path

import pytest

from kikitori.corpora.table_reader import read_rows
from kikitori.runtime.errors import DataError


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".json"])
def test_a_line_that_would_fill_the_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("kikitori.corpora.table_reader.MAX_JSON", 2**20)
    table = tmp_path / f"table{suffix}"
    table.write_text(json.dumps({"path": "x" * 100}) + "\n")
    with table.open("r+b") as file:
        file.truncate(2**28)  # holes, which take no space on the disk
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"line 2 has over [\d,]+ characters; correct the table there"):
            list(read_rows(table, ["path"]))
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()
