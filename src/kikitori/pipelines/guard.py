"""The guard: a tuned model next to its base on what its corpus does not show. Part of `train`, and `kikitori guard`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

from kikitori.audio.waveform import to_float
from kikitori.config.overrides import key_of, overrides, to_plain
from kikitori.config.targets import TARGET, instantiate
from kikitori.corpora.types import Split
from kikitori.data.datamodule import SpeechDataModule
from kikitori.guard.figures import WORSE, Counts, compare, count
from kikitori.guard.reader import Jobs, Reader, has_stamps, jobs
from kikitori.guard.recordings import Recording, Speech, for_timestamps, of_corpus, of_others, without_speech
from kikitori.metrics.normalizer import word_separator
from kikitori.model.loading import load_whisper
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper
from kikitori.pipelines.builders import build_data, configure_model, prepare_data
from kikitori.pipelines.evaluate import load_checkpoint
from kikitori.pipelines.scoring import announce_scoring
from kikitori.pipelines.session import Session, session
from kikitori.runs.guard_table import describe_figure, guard_lines
from kikitori.runs.record import save, timed
from kikitori.runs.results import GUARD_ROW, Results, folder_of_run, guard_file, read_results
from kikitori.runtime.distributed import all_gather, is_main
from kikitori.runtime.errors import ConfigError, GuardFailed, ModelError, shortened
from kikitori.runtime.files import read_lines, write_lines
from kikitori.training.trainer import build_trainer, hardware_facts

log = logging.getLogger(__name__)

BASE, TUNED = "base", "tuned"


def guard(cfg: DictConfig | dict[str, Any], folder: Path) -> Results:
    """Compares the model of `checkpoint` with that of `against`; all outputs are in `folder`."""
    with session("guard", complete(cfg), folder) as run:
        trainer = build_trainer(run.trainer_settings, folder, [], [])
        data = build_data(run.config, trainer)
        data.load_corpus()  # first, so that a missing corpus is found before a model is loaded
        tuned = load_model(run.config, "checkpoint")
        data = data.with_processor(tuned.processor)
        prepare_data(run.config, data, folder, run.results)
        configure_model(run, tuned)
        between = make_guard(run, trainer, data, tuned.processor)
        if between is None:
            raise ConfigError("guard.clips=0: there is nothing to compare; set it above 0")
        of_tuned = between.read(TUNED, tuned)
        own = {"language": tuned.processor.language, "task": tuned.processor.task}
        base = load_model({**run.config, "model": own}, "against")
        check_comparable(tuned.processor, base.processor)
        between.compare(between.read(BASE, base), of_tuned)
        run.results["cost"] |= hardware_facts(trainer)
    fail_if_worse(run)
    return run.results


def complete(cfg: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """The configuration with the corpus and the base of the run, where none is chosen. Raises ConfigError without."""
    values: Any = to_plain(cfg) if isinstance(cfg, DictConfig) else dict(cfg)
    if not (place := values["checkpoint"]):
        raise ConfigError("checkpoint: not set; pass the tuned model: kikitori guard outputs/my-run")
    run, config = {}, {}
    if folder := folder_of_run(Path(place)):
        run = read_results(folder)
        config = run.get("config", {})
    start = Path(run.get("cwd", "."))
    if TARGET not in values["data"]:
        if typed := [word for word in overrides() if key_of(word).startswith("data.")]:
            raise ConfigError(
                f"{typed[0]}: belongs to a corpus; choose it as well: data=common_voice, manifest, hub, demo"
            )
        if TARGET not in config.get("data", {}):
            raise ConfigError(f"data: not chosen, and {place} is no run that would name its corpus; pass data=...")
        # Folders outside of the corpus are typed, never read from a file.
        recorded = {**config["data"], "roots": None}
        values["data"] = {key: from_folder(start, key, value) for key, value in recorded.items()}
    base = config.get("model", {}).get("name")
    if not values["against"] and not base:
        raise ConfigError(f"against: not set, and {place} does not name its base; pass --against with a model")
    values["against"] = values["against"] or from_folder(start, "name", base)
    return dict(values)


def from_folder(start: Path, key: str, value: Any) -> Any:
    """A path of a run, absolute if it exists relative to the folder in which the run was started."""
    is_path = key in ("release", "manifest", "name") and isinstance(value, str)
    return str(start / value) if is_path and (start / Path(value).expanduser()).exists() else value


def load_model(config: dict[str, Any], key: str) -> Whisper:
    """The model of `checkpoint` or `against`: a folder, a .ckpt file, or a name on the Hub."""
    name, model = config[key], config["model"]
    if Path(name).expanduser().exists():
        whisper = load_checkpoint({**config, "checkpoint": name})
    else:
        try:
            default = config["data"]["language"]
            whisper = load_whisper(name, model["language"], model["task"], default_language=default)
        except ModelError as error:
            raise ModelError(str(error).replace("model.name=", f"{key}=")) from error
    whisper.configure_generation(**config["generation"])
    return whisper


def check_comparable(tuned: Processor, base: Processor) -> None:
    """Raises ModelError for models with other windows or vocabularies, which do not read the same recordings."""
    if (tuned.frames, len(tuned.tokenizer)) != (base.frames, len(base.tokenizer)):
        one, other = (f"a window of {p.window_s:g} s and {len(p.tokenizer)} tokens" for p in (tuned, base))
        raise ModelError(f"checkpoint has {one}, against {other}; give the model that was fine-tuned")


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
            own = every[self.data.rank :: self.data.world_size]
            predicted: Any = self.trainer.predict(Reader(whisper), Jobs(own)) if own else []
            rows = list(chain.from_iterable(all_gather(list(chain.from_iterable(predicted)))))
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
    separator, window_s = word_separator(processor.text_language), processor.window_s
    found = [*without_speech(window_s, processor.language), *of_corpus(clips, window_s, separator)]
    if has_stamps(processor):
        found += for_timestamps(clips, window_s, separator)
    for name, node in settings["sets"].items():
        found += of_others(name, others(name, node, settings["clips"], processor))
    return Guard(run, trainer, data, found)


def speech_of(data: SpeechDataModule, split: Split, most: int, language: str) -> list[Speech]:
    """A sample of the clips of a split, the same for every run. language: Whisper's code."""
    audio = data.prepared.audio_caches[split]
    clips = data.scored(split, most)
    return [Speech(clip.name, to_float(audio.pcm(clip.name)), clip.text, language) for clip in clips]


def others(name: str, node: dict[str, Any], most: int, processor: Processor) -> list[Speech]:
    """The test clips of a set that the user names, read in the language of its node."""
    limit = {"test": most, "sample": True}
    data = instantiate({"limit": limit, **node}, f"guard.sets.{name}", load_splits=["test"])
    own = replace(processor, language=data.language)
    data = data.with_processor(own)
    return speech_of(data, "test", most, own.language)
