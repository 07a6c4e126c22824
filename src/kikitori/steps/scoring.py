"""Scores of whole splits, independent of the number of processes: each clip once, edits summed, then divided once."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from math import inf
from typing import Any

import pytorch_lightning as pl

from kikitori.corpora.types import Split
from kikitori.data.datamodule import SpeechDataModule
from kikitori.metrics.error_rates import ClipScore, prediction, rescored, score_clips, summarise
from kikitori.model.window import FULL, Window
from kikitori.runs.results import IN_FULL_WINDOW, PREDICTION, predictions_file, read_results
from kikitori.runtime.console import IN_BAR, duration
from kikitori.runtime.distributed import all_gather, is_main
from kikitori.runtime.files import read_lines, write_lines
from kikitori.steps.session import Session
from kikitori.training.callbacks import ProgressReport
from kikitori.training.lightning_module import WhisperModule

log = logging.getLogger(__name__)

Scores = dict[Split, list[ClipScore]]


@dataclass(frozen=True)
class Scorer:
    """Transcribes and scores whole splits with one model, and adds the rates to the run's results."""

    run: Session
    trainer: pl.Trainer
    module: WhisperModule
    data: SpeechDataModule

    def score(
        self,
        stage: str,
        splits: Sequence[Split] | None = None,
        sample: Mapping[Split, int | None] | None = None,
        window: Window | None = None,
    ) -> Scores:
        """Scores the clips of some splits and writes their predictions.

        stage: the key of the rates in the results. splits: None for all of the data's. sample: for a split, the number
        of clips to take at random (seeded); None, or a split that is missing, for all, but the training split has the
        configured number. window: how far clips are padded; None for the data's own.
        """
        sample = {"train": self.run.config["score"]["train_clips"], **(sample or {})}
        scores: Scores = {}
        rates = self.run.results["scores"][stage] = {}
        for split in splits or self.data.splits:
            announce_scoring(self.trainer, f"scoring {describe_stage(split, stage)}")
            began = time.monotonic()
            scores[split], cut = self._score_split(stage, split, sample.get(split), window)
            rates[split] = with_cut(summarise(scores[split]), scores[split], cut)
            shown = ", ".join(f"{rate.upper()} {100 * rates[split][rate]:.1f} %" for rate in ("cer", "wer"))
            seconds = duration(time.monotonic() - began)
            log.info("%s: %s; %d clips, %s", describe_stage(split, stage), shown, len(scores[split]), seconds)
            for language, of in rates[split].get("languages", {}).items():
                log.info("  %s: CER %.1f %%; %d clips", language, 100 * of["cer"], of["clips"])
        self.run.results.setdefault("scored", {})[stage] = {split: self.data.prepared.digest(split) for split in scores}
        return scores

    def score_in_full_window(
        self, clips: int | None, stage: str = "after", splits: Sequence[Split] = ("validation", "test")
    ) -> Scores:
        """Scores a model trained in shorter windows as stock tools read it, which always use the full window.

        clips: how many of each split but that of training; None for all.
        """
        whisper = self.module.whisper
        # Stock tools have no such limit either, which would hide text invented in the unfamiliar silence.
        rate, whisper.max_tokens_per_s = whisper.max_tokens_per_s, inf
        try:
            return self.score(f"{stage}{IN_FULL_WINDOW}", splits, self.some(clips, splits), FULL)
        finally:
            whisper.max_tokens_per_s = rate

    def some(self, clips: int | None, splits: Sequence[Split]) -> dict[Split, int | None]:
        """How many clips of each split to score, at least one per process; the training split has a number of its own.

        clips: None for all.
        """
        return {split: clips and max(clips, self.data.world_size) for split in splits if split != "train"}

    def _score_split(
        self, stage: str, split: Split, limit: int | None, window: Window | None
    ) -> tuple[list[ClipScore], list[bool]]:
        """The score of each clip, and whether its transcript was cut off."""
        batches: Any = self.trainer.predict(self.module, self.data.score_dataloader(split, limit, window))
        found = {row[:2]: row for row in gather_rows([row for batch in batches for row in batch])}
        # In the order in which `compare` resamples clips, so that both give the same intervals.
        listed = sorted(self.data.scored(split, limit), key=lambda clip: (clip.name, clip.text))
        clips, references, hypotheses, cut = zip(*(found[clip.name, clip.text] for clip in listed), strict=True)
        rules = [self.module.processor.of(clip.language).text_language for clip in listed]
        scores = score_clips(references, hypotheses, rules)
        if len(self.data.languages) > 1:
            scores = [replace(score, language=clip.language) for score, clip in zip(scores, listed, strict=True)]
        if is_main():
            predictions = map(prediction, clips, references, hypotheses, scores)
            rows = ({**row, "cut": was_cut} for row, was_cut in zip(predictions, cut, strict=True))
            write_lines(predictions_file(self.run.folder, split, stage), rows)
        return scores, list(cut)


def with_cut(rates: dict[str, Any], scores: Sequence[ClipScore], cut: Sequence[bool]) -> dict[str, Any]:
    """Rates with the number of transcripts that were cut off, of all clips and of those of each language."""
    for language, of in rates.get("languages", {}).items():
        of["cut"] = sum(was for score, was in zip(scores, cut, strict=True) if score.language == language)
    return {**rates, "cut": sum(cut)}


def announce_scoring(trainer: pl.Trainer, title: str) -> None:
    """Logs what is read next, and names it in the reports of progress."""
    log.info("%s", title, extra={IN_BAR: True})
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for report in (callback for callback in callbacks if isinstance(callback, ProgressReport)):
        report.title = title


def describe_stage(split: Split, stage: str) -> str:
    """A split and a stage in words, such as `validation after training`."""
    words = {"before": " before training", "after": " after training"}
    own = stage.removesuffix(IN_FULL_WINDOW)
    when = words.get(own, f" with {own.replace('_', ' ')}" if own.startswith("alpha") else "")
    return f"{split}{when}{', in the full window' * (own != stage)}"


def gather_rows(rows: list[Any]) -> list[Any]:
    """The rows of all processes, as plain tuples."""
    return list(chain.from_iterable(all_gather(list(map(tuple, rows)))))


def is_scored(run: Session, data: SpeechDataModule, stage: str, sample: Mapping[Split, int | None]) -> bool:
    """Whether the predictions of all splits were written before the run was interrupted, for these clips."""
    # From the file, which all processes see.
    recorded = read_results(run.folder).get("scored", {}).get(stage, {})

    def is_same(split: Split) -> bool:
        path = predictions_file(run.folder, split, stage)
        rows = (
            sorted((row["clip"], row["reference"]) for row in read_lines(path, PREDICTION)) if path.exists() else None
        )
        now = sorted((clip.name, clip.text) for clip in data.scored(split, sample.get(split)))
        # The digest covers the audio as well; earlier versions wrote none.
        return rows == now and recorded.get(split) in (None, data.prepared.digest(split))

    return all(map(is_same, data.splits))


def read_scores(run: Session, splits: Sequence[Split], stage: str, language: str) -> Scores:
    """Scores the transcripts that were written before the run was interrupted, as texts of a language.

    Of clips of several languages each is scored as a text of its own. The counts written next to them may be by the
    rules of another version; they are replaced.
    """
    scores: Scores = {}
    rates = run.results["scores"][stage] = {}
    several = "languages" in run.results.get("scoring", {})
    for split in splits:
        path = predictions_file(run.folder, split, stage)
        rows = sorted(read_lines(path, PREDICTION), key=lambda row: (row["clip"], row["reference"]))
        scores[split], rows = rescored(rows, language, several)
        if is_main():
            write_lines(path, rows)
        rates[split] = with_cut(summarise(scores[split]), scores[split], [row.get("cut", False) for row in rows])
    return scores
