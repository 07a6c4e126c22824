from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from data_modules import common_voice
from recordings import encoded, tone, write_common_voice
from run_folders import write_run

from kikitori.compare.formats import markdown as as_markdown
from kikitori.compare.leaderboard import build_leaderboards
from kikitori.inference.generate import Generated
from kikitori.metrics.error_rates import change, score_clips, summarise
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window
from kikitori.runs.results import FULL_WINDOW, RESULTS, predictions_file
from kikitori.runs.results_md import markdown
from kikitori.runtime.files import read_json, read_lines, write_json, write_lines
from kikitori.runtime.signals import Stop
from kikitori.steps.scoring import Scorer, read_scores
from kikitori.steps.session import Session
from kikitori.training.lightning_module import Prediction, WhisperModule

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


def test_a_number_has_one_interval_wherever_it_is_stated(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clips of a table are clip_8, clip_9, clip_10, ...; the bootstrap must resample them in one order."""

    def hypothesis(clip: str, text: str, lost: int) -> str:
        return text[: -(int("".join(filter(str.isdigit, clip.partition(".")[0]))) % 4 * lost) or None]

    def losing(characters: int) -> Callable[..., list[Prediction]]:
        return lambda module, batch, index: [
            Prediction(*row, hypothesis(*row, characters), False)
            for row in zip(batch["clips"], batch["texts"], strict=True)
        ]

    data = common_voice(write_common_voice(tmp_path / "ja", {"train": 8, "dev": 9, "test": 3}), micro)
    data.setup()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet)
    run = session(write_run(tmp_path / "run", config={"model": {"name": "openai/whisper-tiny"}}))
    scorer = Scorer(run, trainer, WhisperModule(micro), data)
    scores = {}
    for stage, lost in (("before", 2), ("after", 1)):
        monkeypatch.setattr(WhisperModule, "predict_step", losing(lost))
        scores[stage] = scorer.score(stage)
    rates = run.results["scores"]
    rates["change"] = {split: change(scores["before"][split], scores["after"][split]) for split in data.splits}
    results = {**read_json(run.folder / RESULTS), "scores": rates}
    write_json(run.folder / RESULTS, results)
    low, high = rates["after"]["validation"]["cer_ci95"]
    assert 0 < low < rates["after"]["validation"]["cer"] < high
    shown = f"{100 * rates['after']['validation']['cer']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    (table,), _ = build_leaderboards([str(run.folder)])
    trained, base = table.rows
    assert (trained.estimate["validation"].low, trained.estimate["validation"].high) == (low, high)
    assert [base.estimate["validation"].low, base.estimate["validation"].high] == (
        rates["before"]["validation"]["cer_ci95"]
    )
    # Of one pair of systems, which `compare` states the other way round.
    assert base.difference is not None
    assert [-base.difference.high, -base.difference.low] == pytest.approx(rates["change"]["validation"]["cer_ci95"])
    for page in (markdown(results), as_markdown([table], [])):
        assert shown in page


@pytest.mark.parametrize("language", ["ja", "zh-CN", "de"])
@pytest.mark.parametrize("task", ["transcribe", "translate"])
def test_validation_and_final_scores_follow_the_models_language_and_task(
    language: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """data.language, here ja, only finds the corpus."""
    whisper = build_whisper(32, 1, 1, 2, window_s=1, language=language, task=task, max_label_tokens=64)
    monkeypatch.setattr(
        "kikitori.training.lightning_module.generate",
        lambda whisper, states, seconds, **_: [Generated("一 つの、文", cut=False)] * len(states),
    )
    trainer, module, data = scored(tmp_path, whisper)
    run = session(tmp_path)
    Scorer(run, trainer, module, data).score("after", ["validation"])
    final = run.results["scores"]["after"]["validation"]
    (validation,) = trainer.validate(module, datamodule=data, verbose=False)
    rule = "en" if task == "translate" else language
    references = [clip.text for clip in data.clips["validation"]]
    expected = summarise(score_clips(references, ["一 つの、文"] * len(references), rule))
    assert final == {**expected, "cut": 0}
    assert (validation["val/cer"], validation["val/wer"]) == pytest.approx((expected["cer"], expected["wer"]))


def test_scores_before_an_interruption_are_by_todays_rules(tmp_path: Path) -> None:
    path = predictions_file(tmp_path, "test", "before")
    old = {
        "clip": "a",
        "reference": "葛\U000e0100の家",
        "hypothesis": "葛の家",
        "cer_edits": 1,
        "cer_length": 4,
        "cut": True,
    }
    write_lines(path, [old])
    run = session(tmp_path)
    scores = read_scores(run, ["test"], "before", "ja")
    assert scores["test"][0].cer_edits == 0
    assert run.results["scores"]["before"]["test"]["cer"] == 0
    (row,) = read_lines(path)
    assert (row["cer_edits"], row["cer_length"], row["wer_edits"], row["cut"]) == (0, 3, 0, True)


def test_transcripts_that_a_limit_cut_are_counted_and_marked(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, module, data = scored(tmp_path, micro)

    def read(whisper: Whisper, states: Any, seconds: list[float], **_: Any) -> list[Generated]:
        return [Generated("犬", cut=s > 0.75) for s in seconds]

    monkeypatch.setattr("kikitori.training.lightning_module.generate", read)
    run = session(tmp_path)
    Scorer(run, trainer, module, data).score("before", ["validation"])
    rows = read_lines(predictions_file(tmp_path, "validation", "before"))
    cut = [seconds > 0.75 for seconds in LENGTHS_S]
    assert [row["cut"] for row in rows] == cut
    scores = run.results["scores"]["before"]["validation"]
    assert (scores["cut"], scores["clips"]) == (sum(cut), len(cut))
    (validated,) = trainer.validate(module, data, verbose=False)
    assert validated["val/cut"] == pytest.approx(sum(cut) / len(cut))
    # A resumed run reads what it wrote.
    read_scores(run, ["validation"], "before", "ja")
    assert run.results["scores"]["before"]["validation"] == scores
    assert [row["cut"] for row in read_lines(predictions_file(tmp_path, "validation", "before"))] == cut


def test_a_model_with_short_windows_is_also_scored_in_the_full_window(
    micro: Whisper, tmp_path: Path, monkeypatch: Any
) -> None:
    micro.set_window(Window((0.6, 0.8), 0.05))
    micro.configure_generation(12, 1, max_tokens_per_s=3.0)
    trainer, module, data = scored(tmp_path, micro)
    calls: list[tuple[int, float | str]] = []

    def read(whisper: Whisper, states: Any, seconds: Any, **_: Any) -> list[Generated]:
        calls.append((states.shape[1], whisper.max_tokens_per_s))
        return [Generated("犬", cut=False)] * len(states)

    monkeypatch.setattr("kikitori.training.lightning_module.generate", read)
    run = session(tmp_path)
    Scorer(run, trainer, module, data).score_in_full_window(2)
    assert {split: rates["clips"] for split, rates in run.results["scores"][FULL_WINDOW].items()} == {
        "validation": 2,
        "test": 2,
    }
    assert set(calls) == {(50, inf)}
    calls.clear()
    Scorer(run, trainer, module, data).score("after", ["validation"])
    assert set(calls) == {(30, 3.0), (40, 3.0), (50, 3.0)}
