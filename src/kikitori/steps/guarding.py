"""The guard of a run: which recordings both models read, and what came of it."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kikitori.audio.waveform import to_float
from kikitori.config.targets import instantiate
from kikitori.corpora.types import Speech, Split
from kikitori.data.datamodule import SpeechDataModule
from kikitori.guard.digest import reading_digest
from kikitori.guard.figures import Counts, certainly_worse, compare, count, timestamp_facts
from kikitori.guard.reader import Jobs, Reader, jobs
from kikitori.guard.recordings import (
    READINGS,
    Recording,
    for_timestamps,
    of_corpus,
    of_others,
    without_speech,
)
from kikitori.guard.table import describe_figure, guard_lines
from kikitori.inference.reading import choose_reading
from kikitori.model.processor import Processor, whisper_code
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window
from kikitori.runs.record import save, timed
from kikitori.runs.results import GUARD_ROW, guard_file, read_results
from kikitori.runs.summary import long_recordings_lines
from kikitori.runtime.distributed import all_gather, is_main
from kikitori.runtime.errors import ConfigError, DataError, GuardFailed, KikitoriError, shortened
from kikitori.runtime.files import read_lines, write_lines
from kikitori.steps.scoring import announce_scoring
from kikitori.steps.session import Session

log = logging.getLogger(__name__)

BASE, TUNED = "base", "tuned"
# The key of the digests of what was read, among those of what was scored.
GUARD = "guard"


@dataclass(frozen=True)
class Guard:
    """The recordings that both models read, and what is needed to read them."""

    run: Session
    trainer: pl.Trainer
    data: SpeechDataModule
    recordings: Sequence[Recording]

    def read(
        self, who: str, whisper: Whisper, window: Window | None = None, readings: Sequence[str] = READINGS
    ) -> Counts:
        """Reads all recordings with a model, and writes what it reads into the run's folder.

        who: BASE, TUNED or another name for the file. window: the model's own windows; None for those it has.
        """
        if window is not None:
            whisper = replace(whisper, processor=replace(whisper.processor, window=window))
        file, digest = guard_file(self.run.folder, who), reading_digest(whisper, self.recordings, readings)
        if self.run.config["resume"] and self._digest_of(who) == digest and (rows := _read(file)):
            return count(rows)
        announce_scoring(self.trainer, f"guard: {who.replace('_', ' ')} model, {len(self.recordings)} recordings")
        with timed(self.run.results, "guard_s"):
            every = jobs(self.recordings, whisper.processor, self.data.eval_batch_size, readings)
            # Processes wait for each other, so one without a job of its own repeats the first.
            own = every[self.data.rank :: self.data.world_size] or every[:1]
            predicted: Any = self.trainer.predict(Reader(whisper), Jobs(own))
            read = chain.from_iterable(all_gather(list(chain.from_iterable(predicted))))
            rows = list({(row["set"], row["recording"], row["reading"]): row for row in read}.values())
        if is_main():
            write_lines(file, rows)
        self.run.results.setdefault("scored", {}).setdefault(GUARD, {})[who] = digest
        save(self.run.results, self.run.folder)
        return count(rows)

    def _digest_of(self, who: str) -> str | None:
        """The digest of what was read before the run was interrupted, from the file, which all processes see."""
        digest: str | None = read_results(self.run.folder).get("scored", {}).get(GUARD, {}).get(who)
        return digest

    def compare(self, base: Counts, tuned: Counts, whisper: Whisper) -> None:
        """Adds the figures of both models to the results, and what they say of its timestamps to the tuned model."""
        self.run.results["guard"] = compare(base, tuned)
        if facts := timestamp_facts(base, tuned):
            whisper.set_timestamps(facts)
            self.run.results["long_recordings"] = choose_reading(whisper)._asdict()
        save(self.run.results, self.run.folder)
        for line in [*guard_lines(self.run.results["guard"]), *long_recordings_lines(self.run.results)]:
            log.info("%s", line)


def _read(file: Path) -> list[dict[str, Any]]:
    """What was read before the run was interrupted; nothing where the file is missing or damaged."""
    try:
        return read_lines(file, GUARD_ROW)
    except DataError:
        return []


def fail_if_worse(run: Session) -> None:
    """Raises GuardFailed if a figure is worse than the base's, not by chance, and the configuration asks for that."""
    if not run.config["guard"]["fail_if_worse"]:
        return
    if worse := certainly_worse(run.results.get("guard", [])):
        raise GuardFailed(
            f"{len(worse)} figures are worse than the base's: {shortened([describe_figure(row) for row in worse])}; "
            f"everything is in {run.folder} (guard.fail_if_worse=true)"
        )


def make_guard(run: Session, trainer: pl.Trainer, data: SpeechDataModule, processor: Processor) -> Guard | None:
    """The guard of a run's configuration; None if it reads no clips."""
    settings = run.config["guard"]
    if not settings["clips"]:
        return None
    among: tuple[Split, ...] = ("test", "validation")
    split = next((split for split in among if split in data.splits), None)
    if split is None:
        raise ConfigError(
            f"splits: the guard reads clips of test or validation, got {data.splits}; add one of them, or set "
            "guard.clips=0"
        )
    clips = speech_of(data, split, settings["clips"], processor.language)
    window_s, languages = processor.window_s, dict.fromkeys(clip.language for clip in clips)
    found = [*without_speech(window_s, processor.language)]
    for language in languages:
        alike, separator = [clip for clip in clips if clip.language == language], processor.of(language).separator
        found += of_corpus(alike, window_s, separator, f", {language}" * (len(languages) > 1))
        if processor.timestamp_begin is not None:
            found += for_timestamps(alike, window_s, separator)
    for name, node in settings["sets"].items():
        try:
            found += of_others(name, others(name, node, settings["clips"], processor))
        except KikitoriError as error:
            # Its keys are those of `data`, but stand below its name.
            raise type(error)(re.sub(r"(?<![\w/.-])data\.(?=\w)", f"guard.sets.{name}.", str(error))) from error
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
    own = processor.of(whisper_code(data.language))
    data = data.with_processor(own)
    return speech_of(data, "test", most, own.language)
