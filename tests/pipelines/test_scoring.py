from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from data_modules import common_voice
from recordings import encoded, tone, write_common_voice

from kikitori.model.whisper import Whisper
from kikitori.model.window import Window
from kikitori.pipelines.scoring import Scorer
from kikitori.pipelines.session import Session
from kikitori.runs.results import FULL_WINDOW, predictions_file
from kikitori.runtime.files import read_lines
from kikitori.runtime.signals import Stop
from kikitori.training.lightning_module import WhisperModule

LENGTHS_S = (0.4, 0.9, 0.5, 0.7, 0.8, 0.45)


def session(folder: Path) -> Session:
    return Session({"score": {"train_clips": 1}}, folder, {"scores": {}}, Stop(), {})


def scored(tmp_path: Path, whisper: Whisper) -> tuple[Any, Any, Any]:
    """Clips of several lengths, whose order by length is not their own."""
    folder = write_common_voice(tmp_path / "ja", {"train": 2, "dev": len(LENGTHS_S), "test": 3})
    for number, seconds in enumerate(LENGTHS_S, 2):
        (folder / "clips" / f"clip_{number}.mp3").write_bytes(encoded(tone(seconds, hertz=300 + number), "mp3"))
    data = common_voice(folder, whisper, eval_batch_size=2)
    data.setup()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet), WhisperModule(whisper), data


def test_predictions_keep_the_order_of_the_split(micro: Whisper, tmp_path: Path) -> None:
    trainer, module, data = scored(tmp_path, micro)
    run = session(tmp_path)
    Scorer(run, trainer, module, data).score("after")
    rows = read_lines(predictions_file(tmp_path, "validation", "after"))
    assert [(r["clip"], r["reference"]) for r in rows] == [(c.name, c.text) for c in data.clips["validation"]]
    assert {split: rates["clips"] for split, rates in run.results["scores"]["after"].items()} == {
        "train": 1,
        "validation": 6,
        "test": 3,
    }


def test_a_model_with_short_windows_is_also_scored_in_the_full_window(
    micro: Whisper, tmp_path: Path, monkeypatch: Any
) -> None:
    micro.set_window(Window((0.6, 0.8), 0.05))
    micro.configure_generation(12, 1, max_tokens_per_s=3.0)
    trainer, module, data = scored(tmp_path, micro)
    calls: list[tuple[int, list[int]]] = []

    def read(whisper: Whisper, states: Any, seconds: Any) -> list[str]:
        calls.append((states.shape[1], whisper.max_new_tokens_for(seconds)))
        return ["犬"] * len(states)

    monkeypatch.setattr("kikitori.training.lightning_module.generate_text", read)
    run = session(tmp_path)
    Scorer(run, trainer, module, data).score_in_full_window(2)
    assert {split: rates["clips"] for split, rates in run.results["scores"][FULL_WINDOW].items()} == {
        "validation": 2,
        "test": 2,
    }
    assert all(positions == 50 and set(caps) == {12} for positions, caps in calls)
    calls.clear()
    Scorer(run, trainer, module, data).score("after", ["validation"])
    assert {positions for positions, _ in calls} == {30, 40, 50}
    assert all(max(caps) <= 6 for _, caps in calls)
