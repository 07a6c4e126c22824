"""The guard of a run: which recordings both models read, and what came of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kikitori.audio.waveform import to_float
from kikitori.config.targets import instantiate
from kikitori.corpora.types import Split
from kikitori.data.datamodule import SpeechDataModule
from kikitori.guard.figures import WORSE, Counts, compare, count
from kikitori.guard.reader import Jobs, Reader, jobs
from kikitori.guard.recordings import Recording, Speech, for_timestamps, of_corpus, of_others, without_speech
from kikitori.guard.table import describe_figure, guard_lines
from kikitori.model.processor import Processor, whisper_code
from kikitori.model.whisper import Whisper
from kikitori.runs.record import save, timed
from kikitori.runs.results import GUARD_ROW, guard_file
from kikitori.runtime.distributed import all_gather, is_main
from kikitori.runtime.errors import GuardFailed, shortened
from kikitori.runtime.files import read_lines, write_lines
from kikitori.steps.scoring import announce_scoring
from kikitori.steps.session import Session

log = logging.getLogger(__name__)

BASE, TUNED = "base", "tuned"


@dataclass(frozen=True)
class Guard:
    """The recordings that both models read, and what is needed to read them."""

    run: Session
    trainer: pl.Trainer
    data: SpeechDataModule
    recordings: Sequence[Recording]

    def read(self, who: str, whisper: Whisper) -> Counts:
        """Reads all recordings with a model, and writes what it reads into the run's folder. who: BASE or TUNED."""
        file = guard_file(self.run.folder, who)
        if self.run.config["resume"] and file.exists() and (rows := self._known(file)):
            return count(rows)
        announce_scoring(self.trainer, f"guard: {who} model, {len(self.recordings)} recordings")
        with timed(self.run.results, "guard_s"):
            every = jobs(self.recordings, whisper.processor, self.data.eval_batch_size)
            # Processes wait for each other, so one without a job of its own repeats the first.
            own = every[self.data.rank :: self.data.world_size] or every[:1]
            predicted: Any = self.trainer.predict(Reader(whisper), Jobs(own))
            read = chain.from_iterable(all_gather(list(chain.from_iterable(predicted))))
            rows = list({(row["set"], row["recording"], row["reading"]): row for row in read}.values())
        if is_main():
            write_lines(file, rows)
        return count(rows)

    def _known(self, file: Path) -> list[dict[str, Any]]:
        """What was read before the run was interrupted; nothing if that was of other recordings."""
        rows: list[dict[str, Any]] = read_lines(file, GUARD_ROW)
        read = {(row["set"], row["recording"], row["reference"]) for row in rows}
        now = {(recording.set, recording.name, recording.text) for recording in self.recordings}
        return rows if read == now else []

    def compare(self, base: Counts, tuned: Counts) -> None:
        """Adds the figures of both models to the results, and logs how many are better and worse."""
        figures = self.run.results["guard"] = compare(base, tuned)
        save(self.run.results, self.run.folder)
        for line in guard_lines(figures):
            log.info("%s", line)


def fail_if_worse(run: Session) -> None:
    """Raises GuardFailed if a figure is clearly worse than the base's and the configuration asks for that."""
    worse = [figure for figure in run.results.get("guard", []) if figure["verdict"] == WORSE]
    if worse and run.config["guard"]["fail_if_worse"]:
        raise GuardFailed(
            f"{len(worse)} figures are worse than the base's: {shortened([describe_figure(row) for row in worse])}; "
            f"everything is in {run.folder} (guard.fail_if_worse=true)"
        )


def make_guard(run: Session, trainer: pl.Trainer, data: SpeechDataModule, processor: Processor) -> Guard | None:
    """The guard of a run's configuration; None if it reads no clips."""
    settings = run.config["guard"]
    if not settings["clips"]:
        return None
    split: Split = "test" if "test" in data.splits else "validation"
    clips = speech_of(data, split, settings["clips"], processor.language)
    window_s, languages = processor.window_s, dict.fromkeys(clip.language for clip in clips)
    found = [*without_speech(window_s, processor.language)]
    for language in languages:
        alike, separator = [clip for clip in clips if clip.language == language], processor.of(language).separator
        found += of_corpus(alike, window_s, separator, f", {language}" * (len(languages) > 1))
        if processor.timestamp_begin is not None:
            found += for_timestamps(alike, window_s, separator)
    for name, node in settings["sets"].items():
        found += of_others(name, others(name, node, settings["clips"], processor))
    return Guard(run, trainer, data, found)


def speech_of(data: SpeechDataModule, split: Split, most: int, language: str) -> list[Speech]:
    """A sample of the clips of a split, the same for every run. language: of clips that state none, Whisper's code."""
    audio = data.prepared.audio_caches[split]
    clips = data.scored(split, most)
    return [Speech(clip.name, to_float(audio.pcm(clip.name)), clip.text, clip.language or language) for clip in clips]


def others(name: str, node: dict[str, Any], most: int, processor: Processor) -> list[Speech]:
    """The test clips of a set that the user names, read in the language of its node."""
    limit = {"test": most, "sample": True}
    data = instantiate({"limit": limit, **node}, f"guard.sets.{name}", load_splits=["test"])
    own = replace(processor, language=whisper_code(data.language))
    data = data.with_processor(own)
    return speech_of(data, "test", most, own.language)
