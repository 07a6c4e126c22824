"""Errors of `kikitori transcribe` name its own options."""

from pathlib import Path

import pytest

from kikitori.cli import transcribe
from kikitori.model.whisper import Whisper
from kikitori.runtime.paths import DEMO

CLIP = sorted((DEMO / "clips").iterdir())[0]


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["kikitori", str(CLIP), *arguments])
    with pytest.raises(SystemExit) as caught:
        transcribe.main()
    return str(caught.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.json").write_text("{}")
    message = refusal(monkeypatch, "--model", str(tmp_path))
    assert message.startswith(f"ModelError: --model {tmp_path} holds no model: ")
    assert "language" not in message


def test_a_checkpoint_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.ckpt").touch()
    message = refusal(monkeypatch, "--model", str(tmp_path / "last.ckpt"))
    assert message.startswith(f"ModelError: --model {tmp_path}/last.ckpt is a checkpoint; give the folder of its run")


def test_an_unsupported_language_is_named(micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    micro.save(tmp_path / "model")
    message = refusal(monkeypatch, "--model", str(tmp_path), "--language", "japnese")
    assert message.startswith("ModelError: --language: 'japnese' is no language; did you mean ja (japanese)")
    message = refusal(monkeypatch, "--model", str(tmp_path), "--language", "ga-IE")
    assert message.startswith("ModelError: --language=ga")


def test_a_model_that_cannot_be_loaded_is_named_by_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, "--model", "openai/whisper-tinyy")
    assert message.startswith("ModelError: --model openai/whisper-tinyy cannot be loaded: ")
    assert "model.name" not in message


def test_a_run_folder_and_a_model_folder_give_the_same_text(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    micro.save(tmp_path / "model")
    texts = []
    for folder in (tmp_path, tmp_path / "model"):
        monkeypatch.setattr("sys.argv", ["kikitori", str(CLIP), "--model", str(folder), "--format", "jsonl"])
        transcribe.main()
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert str(CLIP) in texts[0]
