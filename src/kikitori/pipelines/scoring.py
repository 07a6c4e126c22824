"""Scores of whole splits, exact however many processes read them: every clip once, edits summed, divided once."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kikitori.corpora.types import Split
from kikitori.data.datamodule import SpeechDataModule
from kikitori.metrics.error_rates import ClipScore, prediction, score_clips, summarise
from kikitori.model.window import FULL, Window
from kikitori.runs.results import FULL_WINDOW, Results, predictions_file
from kikitori.runtime.distributed import all_gather, is_main
from kikitori.runtime.files import read_lines, write_lines
from kikitori.training.lightning_module import WhisperModule

log = logging.getLogger(__name__)

Scores = dict[Split, list[ClipScore]]


def score(
    trainer: pl.Trainer,
    module: WhisperModule,
    data: SpeechDataModule,
    sampled: Mapping[Split, int | None],
    folder: Path,
    stage: str,
    results: Results,
    splits: Sequence[Split] | None = None,
) -> Scores:
    """Read the clips of the data's splits, write the predictions, put the rates under `stage`.

    sampled: splits of which so many clips are read only. splits: fewer than the data has.
    """
    scores: Scores = {}
    rates: dict[str, Any] = {}
    for split in splits or data.splits:
        log.info("scoring %s %s", split, stage.replace("_", " "))
        limit = sampled.get(split)
        batches: Any = trainer.predict(module, data.score_dataloader(split, limit))
        rows = {row[:2]: row for row in gathered([row for batch in batches for row in batch])}
        # Read in the order of their length, and written in the split's own.
        ordered = [rows[clip.name, clip.text] for clip in data.scored(split, limit)]
        clips, references, hypotheses = zip(*ordered, strict=True)
        scores[split] = score_clips(references, hypotheses, data.language)
        if is_main():
            predictions = map(prediction, clips, references, hypotheses, scores[split])
            write_lines(predictions_file(folder, split, stage), predictions)
        rates[split] = summarise(scores[split])
    results["scores"][stage] = rates
    return scores


def score_in_full_window(
    trainer: pl.Trainer,
    module: WhisperModule,
    data: SpeechDataModule,
    clips: int | None,
    folder: Path,
    results: Results,
) -> None:
    """How stock tools, which know the whole window only, read a model that was trained in others."""
    generation = module.model.generation_config
    # Nor do they know this cap, which hides what a model babbles in a silence that it was not trained with.
    rate, generation.max_tokens_per_s = generation.max_tokens_per_s, None
    # At least one for each process.
    some = clips and max(clips, data.processes)
    sampled: dict[Split, int | None] = {"validation": some, "test": some}
    with use_window(data, FULL):
        score(trainer, module, data, sampled, folder, FULL_WINDOW, results, ("validation", "test"))
    generation.max_tokens_per_s = rate


@contextmanager
def use_window(data: SpeechDataModule, window: Window) -> Iterator[None]:
    """The clips are heard in these windows for the time being."""
    own = data.processor
    assert own is not None
    data.processor = replace(own, window=window)
    try:
        yield
    finally:
        data.processor = own


def gathered(rows: list[Any]) -> list[Any]:
    """The rows of all processes."""
    return list(chain.from_iterable(all_gather(rows)))


def is_scored(folder: Path, splits: Sequence[Split], stage: str) -> bool:
    """Whether a run wrote the predictions of all these splits before it was stopped."""
    return all(predictions_file(folder, split, stage).exists() for split in splits)


def earlier(folder: Path, splits: Sequence[Split], stage: str, results: Results) -> Scores:
    """The scores of predictions that a run wrote before it was stopped, put under `stage`."""
    scores: Scores = {}
    for split in splits:
        rows = read_lines(predictions_file(folder, split, stage))
        kept = [{k: v for k, v in row.items() if k.endswith(("_edits", "_length"))} for row in rows]
        scores[split] = [ClipScore(**row) for row in kept]
    results["scores"][stage] = {split: summarise(scores[split]) for split in splits}
    return scores
