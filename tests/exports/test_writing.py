"""What is refused before anything is written, and that an export is complete or not there."""

import errno
from dataclasses import replace
from pathlib import Path

import pytest

from kikitori.exports import transformers
from kikitori.exports.writing import (
    check_model,
    check_space,
    chosen,
    replaced_folder,
    restore,
    scratch_folder,
    write_errors,
)
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ConfigError, ExportFailed, ModelError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(target: Path, before: list[str]) -> None:
    """Begins an export in a folder that holds `before`."""
    with replaced_folder(target) as folder:
        assert names(folder) == before
        (folder / "file").write_text("half")
        raise KeyboardInterrupt


def test_each_format_is_combined_with_each_precision_or_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kikitori.exports.formats.find_spec", lambda name: name)

    def pairs(*arguments: list[str]) -> list[tuple[str, str]]:
        return [(of.name, precision) for of, precision in chosen(*arguments)]

    assert pairs(["openai", "transformers", "openai"], []) == [("openai", "float16"), ("transformers", "float32")]
    assert pairs(["openai"], ["float32", "float16", "float32"]) == [("openai", "float32"), ("openai", "float16")]
    with pytest.raises(ConfigError, match="quantize=int8: transformers has float32, float16, bfloat16"):
        chosen(["ctranslate2", "transformers"], ["float16", "int8"])
    with pytest.raises(ConfigError, match="to: not set; pass formats: kikitori export MODEL --to ctranslate2,ggml"):
        chosen([], [])


def test_a_model_with_a_window_of_its_own_is_refused(micro: Whisper) -> None:
    with pytest.raises(
        ModelError, match=r"checkpoint=a has a window of 1 s and 364 tokens; other engines read .* 30 s"
    ):
        check_model(micro, "a")


def test_a_disk_that_is_too_full_is_found_before_anything_is_written(tmp_path: Path) -> None:
    check_space(tmp_path, 10, [(transformers.FORMAT, "float16")])
    with pytest.raises(ExportFailed, match=r"GB are free, and about 6000000\.0 GB needed; free space"):
        check_space(tmp_path, 10**15, [(transformers.FORMAT, "float16")])


def test_an_export_is_replaced_once_the_new_one_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a"
    for text in ("first", "second"):
        with replaced_folder(target) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_text(text)
            assert not target.exists() or (target / "inner" / "file").read_text() == "first"
        assert (target / "inner" / "file").read_text() == text
        assert names(tmp_path) == ["a"]


def test_an_interrupted_export_leaves_the_earlier_one_and_no_part_of_itself(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with replaced_folder(target) as folder:
        (folder / "file").write_text("first")
    with pytest.raises(KeyboardInterrupt):
        interrupted(target, [])
    assert (names(tmp_path), (target / "file").read_text()) == (["a"], "first")


def test_what_a_kill_left_is_removed_or_put_back(tmp_path: Path) -> None:
    (tmp_path / ".a.earlier").mkdir()
    (tmp_path / ".a.earlier" / "file").write_text("first")
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "half").write_text("")
    (tmp_path / "b").mkdir()
    (tmp_path / ".b.earlier").mkdir()
    (tmp_path / ".b.partial").mkdir()
    restore(tmp_path)
    assert names(tmp_path) == ["a", "b"]
    assert names(tmp_path / "a") == ["file"]


def test_a_scratch_folder_begins_empty_and_is_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("")
    with scratch_folder(tmp_path / "a") as folder:
        assert names(folder) == []
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            "to=openai: a/b: No space left on device; free space",
        ),
        (
            RuntimeError("[enforce fail] PytorchStreamWriter failed: file write failed"),
            "no space left on the disk; free",
        ),
        (
            RuntimeError("[enforce fail] . unexpected pos 946816 vs 946768"),
            "to=openai: no space left on the disk; free",
        ),
        (ValueError("I/O error: No space left on device (os error 28)"), "no space left on the disk; free space"),
        (
            ImportError("libx.so: cannot open"),
            "to=openai: its engine cannot be imported: libx.so: .*; install it again",
        ),
    ],
)
def test_a_full_disk_and_a_broken_engine_are_named_whichever_library_finds_them(error: Exception, message: str) -> None:
    with pytest.raises(ExportFailed, match=message), write_errors("to=openai"):
        raise error


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(ZeroDivisionError), write_errors("to=openai"):
        1 / 0  # noqa: B018


def test_the_vocabulary_of_a_stock_model_is_enough(exported: Whisper) -> None:
    check_model(exported, "a")
    exported.model.config.vocab_size = 51_864
    with pytest.raises(ModelError, match="51,864 tokens"):
        check_model(exported, "a")
    exported.model.config.vocab_size = 51_865
    short = replace(exported, processor=replace(exported.processor, frames=1500))
    with pytest.raises(ModelError, match="a window of 15 s"):
        check_model(short, "a")
