"""Files that are read as plain values, and written as new ones."""

import json
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from kikitori.runtime.errors import ConfigError, DataError
from kikitori.runtime.files import (
    atomic_write,
    create,
    expanded,
    parse,
    plain,
    read_json,
    reserve_file,
    write_json,
    write_lines,
    write_text,
)
from kikitori.runtime.paths import check_owner, check_run_folder, private_folder


def test_the_home_folder_of_nobody_is_a_path_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/clips") == Path("/home/me/clips")
    assert expanded(Path("~nobody-here/clips")) == Path("~nobody-here/clips")
    assert expanded("clips") == Path("clips")


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


@pytest.mark.parametrize("name", ["a", ".a.partial"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "hard link", "pipe"])
def test_nothing_is_written_through_what_has_the_name(tmp_path: Path, name: str, kind: str) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a"
    victim.write_text("years of work")
    for write in (
        lambda: write_text(path, "new"),
        lambda: write_json(path, {}),
        lambda: write_lines(path, [{}]),
        lambda: reserve_file(path, 9),
    ):
        for planted in (tmp_path / "a", tmp_path / ".a.partial"):
            planted.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(tmp_path / name)
        elif kind == "hard link":
            os.link(victim, tmp_path / name)
        else:
            (tmp_path / name).symlink_to(victim if kind == "link" else tmp_path / "elsewhere")
        write()
        assert victim.read_text() == "years of work"
        assert not (tmp_path / "elsewhere").exists()
        assert stat.S_ISREG(path.lstat().st_mode)
        assert path.stat().st_nlink == 1


def test_a_name_that_is_taken_after_it_was_freed_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of the folder may be faster."""
    (tmp_path / "victim").write_text("years of work")
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: self.symlink_to(tmp_path / "victim"))
    with pytest.raises(FileExistsError):
        create(tmp_path / "a")
    assert (tmp_path / "victim").read_text() == "years of work"


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with suppress(RuntimeError), atomic_write(tmp_path / "a") as file:
        file.write(b"new")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


ROW = {
    "name!": str,
    "kind": ("a", "b").__contains__,
    "size": lambda size: type(size) in (int, float) and size > 0,
    "parts": {str.islower: [int]},
    "limit": (int, None),
}


@pytest.mark.parametrize(
    "value",
    [
        {"name": "x"},
        {"name": "x", "kind": "b", "size": 1, "parts": {"a": [1, 2]}, "limit": None, "unknown": [None]},
    ],
)
def test_a_value_of_the_type_stays_as_it_is(value: Any) -> None:
    assert parse(value, ROW) == value


def test_null_is_absent() -> None:
    assert parse({"name": "x", "kind": None, "parts": {"a": None}}, ROW) == {"name": "x", "parts": {}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"it is '\[\]'"),
        ({}, "it lacks name"),
        ({"name": None}, "it lacks name"),
        ({"name": 1}, r"it\.name is '1'"),
        ({"name": "x", "kind": "c"}, r"it\.kind is 'c'"),
        ({"name": "x", "size": -1}, r"it\.size is '-1'"),
        ({"name": "x", "size": True}, r"it\.size is 'True'"),
        ({"name": "x", "parts": {"a": [1, True]}}, r"it\.parts\.a\[1\] is 'True'"),
        ({"name": "x", "limit": "1"}, r"it\.limit is '1'"),
        ({"name": "x", "parts": {"A": [1]}}, r"a name in it\.parts is 'A'"),
    ],
)
def test_any_other_value_is_named(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        parse(value, ROW)


def test_json_becomes_values_that_can_be_written_and_compared() -> None:
    assert plain('[NaN, Infinity, 1e999, "\\ud800", 3]') == [None, None, None, "\\ud800", 3]


@pytest.mark.parametrize(
    "text",
    ["[" * 34 + "]" * 34, "[" * 10**5, f"[{10**30}]", json.dumps("x" * 10**6), f"[{'0,' * 10**6}0]", "{", "", "\\"],
)
def test_json_without_limits_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json cannot be read: .*; delete it"):
        read_json(tmp_path / "a.json")


def test_folders_of_caches_are_private(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir(mode=0o755)
    for folder in (tmp_path / "old", tmp_path / "cache" / "new"):
        assert stat.S_IMODE(private_folder(folder).stat().st_mode) == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_folder_of_another_user_is_no_cache(tmp_path: Path) -> None:
    own, other, link = (tmp_path / name for name in ("own", "other", "link"))
    own.mkdir()
    other.mkdir()
    os.chown(other, 12345, -1)
    link.symlink_to(own)
    os.chown(link, 12345, -1, follow_symlinks=False)
    for folder in (other, link):
        before = folder.stat().st_mode
        with pytest.raises(DataError, match=r"belongs to another user, .* set KIKITORI_CACHE"):
            private_folder(folder)
        assert folder.stat().st_mode == before
    check_owner(own)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_all_files_of_a_network_file_system_may_have_one_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def file_of_the_server(dir: Path) -> Any:
        file = tempfile.NamedTemporaryFile(dir=dir)  # noqa: SIM115
        os.chown(file.name, 4242, -1)
        return file

    for path in (tmp_path, tmp_path / "run", tmp_path / "run" / "train.log"):
        path.touch() if path.suffix else path.mkdir(exist_ok=True)
        os.chown(path, 4242, -1)
    with pytest.raises(DataError, match="belongs to another user"):
        check_owner(tmp_path / "run")
    monkeypatch.setattr("kikitori.runtime.paths.TemporaryFile", file_of_the_server)
    check_owner(tmp_path / "run" / "train.log")
    check_run_folder(tmp_path / "run", "hydra.run.dir")
    os.chown(tmp_path / "run" / "train.log", 12345, -1)
    with pytest.raises(ConfigError, match=r"train\.log belongs to another user"):
        check_run_folder(tmp_path / "run", "hydra.run.dir")


def test_a_file_system_without_modes_may_hold_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "chmod", refuse)
    assert private_folder(tmp_path / "cache").is_dir()
