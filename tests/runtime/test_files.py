"""Files whose space on the disk is taken when they are created."""

import os
from pathlib import Path

import pytest

from kikitori.runtime.files import reserve_file


@pytest.mark.parametrize("system", ["linux", "macos"])
@pytest.mark.parametrize("size", [1, 4096, 2**24, 2**24 + 5])
def test_a_reserved_file_takes_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str, size: int
) -> None:
    if system == "macos":
        monkeypatch.delattr(os, "posix_fallocate")
    reserve_file(tmp_path / "a", size)
    facts = (tmp_path / "a").stat()
    assert facts.st_size == size
    assert facts.st_blocks * 512 >= size
    assert (tmp_path / "a").read_bytes().count(0) == size
