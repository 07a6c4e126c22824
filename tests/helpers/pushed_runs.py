"""Completed runs with a model, as training writes them, for tests that push them."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from kikitori.model.loading import build_whisper
from kikitori.runs.model_card import model_card
from kikitori.runtime.files import write_json

RATES = {"clips": 5, "cer": 0.25, "cer_ci95": [0.2, 0.3], "wer": 0.5, "wer_ci95": [0.4, 0.6]}


def results(base: str | None = "openai/whisper-base", **changes: Any) -> dict[str, Any]:
    """The record of a completed training."""
    data = {"full_window_share": 0.0, "global_batch_size": 16, "_target_": "kikitori.CommonVoice"}
    record = {
        "status": "completed",
        "command": "train",
        "cwd": "/home/somebody/asr",
        "model": {"name": "whisper-base", "window": "2 s, else the full window", "window_s": 30, "language": "ja"},
        "data": {"language": "ja", "corpus": "Common Voice, cv-corpus-27"},
        "scores": {"before": {"test": RATES}, "after": {"test": RATES}, "after_in_full_window": {"test": RATES}},
        "scoring": {"language": "ja", "normaliser": "nfkc-2", "segmenter": "sudachi C"},
        "config": {"seed": 3, "data": data, "optim": {"lr": 1e-5}, "model": {"name": base, "freeze": "none"}},
        "checkpoint": {"steps": 400},
        "versions": {"kikitori": "0.1.0"},
    }
    return {**record, **changes}


@cache
def saved_model() -> dict[str, bytes]:
    """The files of a very small model."""
    with TemporaryDirectory() as folder:
        build_whisper(32, 1, 1, 2, window_s=1, max_label_tokens=64).save(Path(folder))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_pushed_run(folder: Path, base: str | None = "openai/whisper-base", **changes: Any) -> Path:
    """A run's folder with its record, its model and its card, and what must never leave it."""
    record = results(base, **changes)
    (folder / "model").mkdir(parents=True)
    for name, content in saved_model().items():
        (folder / "model" / name).write_bytes(content)
    (folder / "model" / "README.md").write_text(model_card(record), encoding="utf-8")
    write_json(folder / "results.json", record)
    (folder / "predictions").mkdir()
    (folder / "predictions" / "test_after.jsonl").write_text('{"clip": "speaker-7.mp3"}\n')
    return folder
