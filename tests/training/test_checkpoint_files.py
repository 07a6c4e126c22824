"""Checkpoints are written atomically and verified before use."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest
import torch

from kikitori.runtime import files
from kikitori.runtime.errors import DataError, TrainingError
from kikitori.training import checkpoints

FILES = checkpoints.CheckpointFiles()


def saved(folder: Path, name: str, step: int) -> Path:
    path = folder / "checkpoints" / f"{name}.ckpt"
    FILES.save_checkpoint(
        {"global_step": step, "optimizer_states": [], "state_dict": {"w": torch.arange(1000.0) + step}}, path
    )
    return path


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_checkpoint_has_a_checksum_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = saved(tmp_path, "last", 3)
    saved(tmp_path, "last", 4)
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
    assert subprocess.run(["sha256sum", "-c", "last.ckpt.sha256"], cwd=path.parent).returncode == 0
    assert checkpoints.read_checkpoint(path)["global_step"] == 4
    FILES.remove_checkpoint(path)
    assert not any(path.parent.iterdir())


def complete(folder: Path, name: str, step: int, **more: Any) -> Path:
    path = folder / "checkpoints" / f"{name}.ckpt"
    FILES.save_checkpoint({"global_step": step, "state_dict": {}, "optimizer_states": [], **more}, path)
    return path


def test_a_complete_checkpoint_of_the_same_step_gets_a_second_name(tmp_path: Path) -> None:
    last, best = complete(tmp_path, "last", 3), complete(tmp_path, "step-4", 4)
    assert checkpoints.link_to_equal(last, [best], 4)
    assert last.samefile(best)
    assert {p.name for p in last.parent.iterdir()} == {
        f"{n}.ckpt{s}" for n in ("last", "step-4") for s in ("", ".sha256")
    }
    assert subprocess.run(["sha256sum", "-c", "last.ckpt.sha256"], cwd=last.parent).returncode == 0
    # Removing or replacing one leaves the other.
    complete(tmp_path, "last", 5)
    assert checkpoints.read_checkpoint(best)["global_step"] == 4
    FILES.remove_checkpoint(best)
    assert checkpoints.latest_valid(last.parent) == last


@pytest.mark.parametrize("why", ["another step", "only weights", "no such file", "no hard links"])
def test_without_an_equal_checkpoint_or_hard_links_nothing_changes(
    tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last, best = complete(tmp_path, "last", 3), complete(tmp_path, "step-4", 4)
    if why == "only weights":
        FILES.save_checkpoint({"global_step": 4, "state_dict": {}}, best)
    elif why == "no such file":
        best.unlink()
    elif why == "no hard links":
        monkeypatch.setattr(os, "link", Mock(side_effect=OSError(1, "Operation not permitted")))
    before = {path.name: path.read_bytes() for path in last.parent.iterdir()}
    assert not checkpoints.link_to_equal(last, [best], 5 if why == "another step" else 4)
    assert {path.name: path.read_bytes() for path in last.parent.iterdir()} == before


def test_a_link_that_cannot_take_the_name_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the next save would write through it into the other checkpoint."""
    last, best = complete(tmp_path, "last", 3), complete(tmp_path, "step-4", 4)
    names, replace = {path.name for path in last.parent.iterdir()}, os.replace

    def fails(source: Path, target: Path) -> None:
        if target == last:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    assert not checkpoints.link_to_equal(last, [best], 4)
    assert {path.name for path in last.parent.iterdir()} == names
    assert all(checkpoints.matches_checksum(path) for path in (last, best))


@pytest.mark.parametrize("call", ["link", "replace", "fsync"])
def test_a_kill_while_it_is_linked_leaves_both_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    class Killed(BaseException):
        pass

    for moment in range(4):
        last, best = complete(tmp_path, "last", 3), complete(tmp_path, "step-4", 4)
        calls, real = iter(range(100)), getattr(os, call)

        def killed(*arguments: Any, calls: Any = calls, real: Any = real, moment: int = moment) -> Any:
            if next(calls) == moment:
                raise Killed
            return real(*arguments)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(os, call, killed)
            # A kill runs no cleanup, so the link is still there when the run is resumed.
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
            checkpoints.link_to_equal(last, [best], 4)
        assert checkpoints.matches_checksum(last)
        assert checkpoints.read_checkpoint(best)["global_step"] == 4
        checkpoints.remove_stale(last.parent, {last, best})
        complete(tmp_path, "last", 5)
        assert checkpoints.read_checkpoint(best)["global_step"] == 4


def test_the_latest_checkpoint_is_the_one_with_the_most_steps_not_the_newest_file(tmp_path: Path) -> None:
    paths = [saved(tmp_path, "step-9", 9), saved(tmp_path, "last", 10), saved(tmp_path, "step-5", 5)]
    for age, path in enumerate(paths):
        os.utime(path, (1e9 + age, 1e9 + age))
    assert checkpoints.latest_valid(tmp_path / "checkpoints") == paths[1]
    assert checkpoints.latest_valid(tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "no checksum", "another's"])
def test_a_damaged_checkpoint_is_named_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    older, path = saved(tmp_path, "step-5", 5), saved(tmp_path, "last", 9)
    if damage == "flip":
        flip(path, path.stat().st_size // 2)  # in the weights, where loading alone detects nothing
    elif damage == "no checksum":
        path.with_name("last.ckpt.sha256").unlink()
    elif damage == "another's":
        torch.save({"global_step": 10, "optimizer_states": []}, path)
    else:
        path.write_bytes(path.read_bytes()[: -100 if damage == "cut" else 0])
    assert checkpoints.latest_valid(path.parent) == older
    assert "last.ckpt" in caplog.text
    assert "is skipped" in caplog.text


def test_any_flipped_byte_is_detected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = saved(tmp_path, "last", 9)
    whole = path.read_bytes()
    for at in range(0, len(whole), 61):
        flip(path, at)
        assert checkpoints.latest_valid(path.parent) is None, at
        assert "training starts from step 0" in caplog.text
        caplog.clear()
        path.write_bytes(whole)
    assert checkpoints.latest_valid(path.parent) == path


@pytest.mark.parametrize("moment", range(9))
def test_a_save_interrupted_anywhere_leaves_the_old_or_the_new_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The process ends at the nth system call; each of the three files takes two fsyncs and a rename."""
    path = saved(tmp_path, "last", 1)
    calls = iter(range(100))

    class Killed(BaseException):
        pass

    def once(call: Any) -> Any:
        def maybe(*arguments: Any) -> Any:
            if next(calls) == moment:
                raise Killed
            return call(*arguments)

        return maybe

    monkeypatch.setattr(files.os, "fsync", once(os.fsync))
    monkeypatch.setattr(files.os, "replace", once(os.replace))
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)  # nothing is cleaned up after a kill
    with pytest.raises(Killed):
        saved(tmp_path, "last", 2)
    monkeypatch.undo()
    assert checkpoints.latest_valid(path.parent) == path
    assert checkpoints.read_checkpoint(path)["global_step"] in (1, 2)
    saved(tmp_path, "last", 3)
    checkpoints.remove_stale(path.parent, [path])
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
    assert checkpoints.checksums(path) == [checkpoints.checksums(path)[0]]


def test_a_failed_save_is_an_error_and_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, "last", 1)

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.digest = file, None

        def write(self, data: bytes) -> int:
            raise OSError(28, os.strerror(28))

        def flush(self) -> None: ...

    monkeypatch.setattr(checkpoints, "_Hashing", Full)
    message = rf"{path} cannot be written: .*No space left.*; earlier checkpoints are intact: .* resume={tmp_path}$"
    with pytest.raises(TrainingError, match=message):
        saved(tmp_path, "last", 2)
    monkeypatch.undo()
    assert checkpoints.read_checkpoint(path)["global_step"] == 1


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    path = saved(tmp_path, "last", 1)
    saved(tmp_path, "step-1", 1)
    torch.save({"global_step": 1}, path.parent / "mine.ckpt")
    for name in (".last.ckpt.partial", ".last.ckpt.sha256.partial", "gone.ckpt.sha256"):
        (path.parent / name).write_bytes(b"half")
    checkpoints.remove_stale(path.parent, [path])
    assert {p.name for p in path.parent.iterdir()} == {"last.ckpt", "last.ckpt.sha256", "mine.ckpt"}


def test_a_file_that_is_no_checkpoint_is_reported(tmp_path: Path) -> None:
    path = saved(tmp_path, "last", 1)
    flip(path, 100)
    with pytest.raises(DataError, match=r"last\.ckpt is damaged: it does not match last\.ckpt\.sha256; use another"):
        checkpoints.read_checkpoint(path)
    torch.save([1], tmp_path / "a.ckpt")
    with pytest.raises(DataError, match=r"\(the checkpoint is '\[1\]'\); use another"):
        checkpoints.read_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"nothing")
    with pytest.raises(
        DataError, match=r"b\.ckpt is damaged, or holds more than weights and plain values \(\w+\); use"
    ):
        checkpoints.read_checkpoint(tmp_path / "b.ckpt")


def test_the_best_weights_are_verified_by_one_process_and_read_without_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, module = saved(tmp_path, "step-5", 5), torch.nn.Module()
    module.w = torch.nn.Parameter(torch.zeros(1000))
    callback = SimpleNamespace(best_model_path=str(best), best_model_score=None, monitor="val/cer")
    read: list[Path] = []
    checked = checkpoints.matches_checksum
    monkeypatch.setattr(checkpoints, "matches_checksum", lambda path: read.append(path) or checked(path))
    loaded: list[bool] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **how: loaded.append(how.get("mmap", False)) or load(*a, **how))
    for rank in range(3):
        trainer: Any = SimpleNamespace(checkpoint_callback=callback, is_global_zero=rank == 0)
        checkpoints.load_best_weights(trainer, cast(Any, module))
        assert torch.equal(module.w, torch.arange(1000.0) + 5)
    assert (read, loaded) == ([best], [True] * 3)
    flip(best, best.stat().st_size // 2)
    trainer.is_global_zero = True
    with pytest.raises(DataError, match="is damaged"):
        checkpoints.load_best_weights(
            cast(Any, SimpleNamespace(checkpoint_callback=callback, is_global_zero=True)), cast(Any, module)
        )
