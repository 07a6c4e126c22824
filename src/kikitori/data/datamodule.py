"""The LightningDataModule: prepares a corpus and serves its batches. One subclass per kind of corpus."""

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler
from transformers import WhisperForConditionalGeneration

from kikitori.augmentation.augmenter import Augmenter
from kikitori.augmentation.settings import FOLDERS, NOT_CACHEABLE, Augmentation
from kikitori.corpora import common_voice, manifest
from kikitori.corpora.manifest import Columns
from kikitori.corpora.splits import hold_out, present_splits
from kikitori.corpora.types import SPLITS, Clip, Corpus, Reject, Split
from kikitori.data.collate import Batch, collate
from kikitori.data.dataset import ExampleLists, SpeechDataset
from kikitori.data.encoder_cache import EncoderCache, build_encoder_caches, check_cacheable, key
from kikitori.data.filters import FilterRules, check_limit, subset
from kikitori.data.preparation import (
    PreparedData,
    Sounds,
    check_usable,
    decode,
    decode_sounds,
    prepare,
    sound_files,
    unreadable_rows,
)
from kikitori.data.sampler import SampledClip, ScoringBatches, StepSampler
from kikitori.joining.plan import Planner
from kikitori.joining.settings import Joining
from kikitori.model.features import FRAMES_PER_SECOND, HOP_LENGTH
from kikitori.model.processor import Processor, whisper_code
from kikitori.model.window import FULL, Window, make_window
from kikitori.runtime.errors import ConfigError, DataError, check_above_zero, check_fraction, check_not_negative
from kikitori.runtime.paths import DEMO, cache_folder
from kikitori.runtime.processes import exit_with_parent, kill_workers_at_exit, worker_start_method

ALL_CLIPS: Mapping[str, Any] = MappingProxyType({})
# Of the clips to score. Not that of the run: runs with different seeds are compared on the same clips.
SAMPLE_SEED = 0
HUB_SPLITS: Mapping[str, str] = MappingProxyType({split: split for split in SPLITS})


class SpeechDataModule(pl.LightningDataModule):
    """A corpus for Lightning: decoded once into a cache, filtered, and served in batches.

    A subclass adds `read`. The number of processes that share the clips, and this one's rank, are those of the Trainer.

    processor: the model's, as in `Demo(processor=whisper.processor)`; None if only the audio is to be prepared.
    language: of the corpus; None for the processor's, or else `ja`. A corpus may state a language for each clip, see
    `languages`.
    global_batch_size: clips of an optimizer step, over all processes. micro_batch_size: clips of it that a process
    computes at once, see `kikitori.training.batch_size_finder`. eval_batch_size: clips of the full window that a
    process transcribes at once; batches of shorter windows are proportionally larger.
    window, window_edges_s, window_margin_s: how far clips are padded, see `kikitori.model.window`; window=None for as
    the model was trained. full_window_share: share of the training steps that use the full window all the same.
    cache_encoder_outputs: whether the outputs of a frozen encoder are computed once and kept on disk.
    limit: clips to keep of each split (default: all), see `kikitori.data.filters.take_subset`.
    held_out: share of the training clips that becomes validation, and test, where the corpus has no such split; see
    `kikitori.corpora.splits`. roots: folders outside of the corpus in which its recordings may lie.
    augment: changes of the waveforms of training clips, see `kikitori.augmentation`; None for none.
    joining: how training clips are joined into windows, see `kikitori.joining.settings`; None for clips alone.
    seed: of the order of the training clips, of their changes, and of what is joined.
    load_splits: the splits to read; None for those that the corpus has.
    trainer: whose processes share the clips, until Lightning attaches one.
    Other arguments: see `kikitori.data.filters.FilterRules`.
    """

    def __init__(
        self,
        processor: Processor | None = None,
        language: str | None = None,
        global_batch_size: int = 16,
        micro_batch_size: int | Literal["auto"] | None = None,
        eval_batch_size: int = 16,
        window: Literal["full", "bucketed"] | None = None,
        window_edges_s: Sequence[float] = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20),
        window_margin_s: float = 1,
        full_window_share: float = 0.1,
        cache_encoder_outputs: bool = False,
        num_workers: int = 2,
        group_by_length: bool = True,
        limit: Mapping[str, Any] = ALL_CLIPS,
        held_out: float | None = None,
        roots: Sequence[str] | None = None,
        min_duration_s: float = 0.3,
        max_duration_s: float | None = None,
        silence_dbfs: float = -50,
        max_reject_rate: float = 0.05,
        allow_shared_speakers: bool = False,
        allow_shared_clips: bool = False,
        augment: Augmentation | None = None,
        joining: Joining | None = None,
        seed: int = 0,
        load_splits: Sequence[Split] | None = SPLITS,
        trainer: pl.Trainer | None = None,
    ) -> None:
        super().__init__()
        check_limit(limit)
        if window not in (None, "full", "bucketed"):
            raise ConfigError(f"data.window={window}: must be full, bucketed or None")
        if wrong := [split for split in load_splits or () if split not in SPLITS]:
            raise ConfigError(f"load_splits has no {wrong[0]!r}; the splits are {', '.join(SPLITS)}")
        if held_out is not None and not 0 < held_out < 0.5:
            raise ConfigError(f"data.held_out={held_out}: must be above 0 and below 0.5")
        counts: dict[str, Any] = {"global_batch_size": global_batch_size, "eval_batch_size": eval_batch_size}
        counts |= {} if micro_batch_size in (None, "auto") else {"micro_batch_size": micro_batch_size}
        check_above_zero("data", counts, whole=True)
        check_not_negative("data", {"num_workers": num_workers}, whole=True)
        check_not_negative("data", {"window_margin_s": window_margin_s})
        check_fraction("data", {"full_window_share": full_window_share})
        self.trainer = trainer
        self.window = make_window(window, window_edges_s, window_margin_s) if window else None
        self.processor = self._with_own_window(processor)
        self.language = language or (processor.language if processor else "ja")
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.eval_batch_size = eval_batch_size
        self.full_window_share = full_window_share
        self.cache_encoder_outputs = cache_encoder_outputs
        self.num_workers = num_workers
        self.group_by_length = group_by_length
        self.limit = dict(limit)
        self.held_out = held_out
        self.roots = roots or ()
        self.rules = FilterRules(
            min_duration_s=min_duration_s,
            max_duration_s=max_duration_s,
            silence_dbfs=silence_dbfs,
            max_reject_rate=max_reject_rate,
            allow_shared_speakers=allow_shared_speakers,
            allow_shared_clips=allow_shared_clips,
        )
        self.augment = augment or Augmentation()
        if cache_encoder_outputs and self.augment.is_on:
            raise ConfigError(f"data.cache_encoder_outputs: {NOT_CACHEABLE}")
        self.joining = joining if joining and joining.changes_training else None
        if self.joining and cache_encoder_outputs:
            raise ConfigError(
                "data.cache_encoder_outputs=true keeps the outputs of single clips; set it to false, or joining=none"
            )
        self.seed = seed
        # The splits that are served; those of `load_splits=None` are known when the corpus is read.
        self.splits = list(SPLITS if load_splits is None else load_splits)
        self._all_present = load_splits is None
        # The clips and rows left out so far; complete after `setup`, also if that fails.
        self.rejects: Sequence[Reject] = []
        self._corpus: Corpus | None = None
        self._prepared: PreparedData | None = None
        self._sounds: dict[str, Sounds] = {}
        self._planner: Planner | None = None
        self._encoder_caches: dict[Split, dict[Window, EncoderCache]] = {}
        # A hash of the weights and the precision that the encoder caches were built for.
        self._encoder: str | None = None

    def read(self) -> Corpus:
        """Reads the rows of the corpus, at least of `splits_to_read`; no audio. A subclass must define this alone."""
        raise NotImplementedError

    @property
    def languages(self) -> list[str]:
        """Whisper's codes of the clips' languages, that of `language` first, the others as the corpus lists them.

        Empty if the corpus states none: then all clips are of the model's language.
        """
        clips = self.load_corpus().clips
        found = dict.fromkeys(clip.language for clip in clips if clip.language and clip.split in self.splits)
        return sorted(found, key=lambda code: code != whisper_code(self.language))

    @property
    def splits_to_read(self) -> Sequence[Split]:
        """The splits that `read` should return if the corpus has them: more than are served if some are held out."""
        return SPLITS if self.held_out else self.splits

    def load_corpus(self) -> Corpus:
        """The rows of the corpus, read once. Fails early if something is missing, before a model is loaded."""
        if self._corpus is None:
            corpus = self.read()
            if self.held_out:
                corpus = hold_out(corpus, self.held_out)
            self.splits = present_splits(corpus, None if self._all_present else self.splits)
            for name, folder in self.augment.folders.items():
                sound_files(folder, name)
            self._corpus = corpus
        return self._corpus

    def with_processor(self, processor: Processor) -> Self:
        """A copy for a model's processor. The corpus is not read again."""
        other = copy.copy(self)
        other.processor = other._with_own_window(processor)
        other._prepared, other._planner, other._encoder_caches, other._encoder = None, None, {}, None
        return other

    def _with_own_window(self, processor: Processor | None) -> Processor | None:
        return replace(processor, window=self.window) if processor and self.window else processor

    def decode(self) -> None:
        """Decodes the audio into the cache, unless it is there already."""
        decode(self.load_corpus(), self.splits, self.limit)

    def setup(self, stage: str | None = None) -> None:
        """Reads, decodes and filters the corpus, once.

        Raises DataError if a split is left without clips, too many clips are left out, or splits share clips.
        """
        if self._prepared is None:
            corpus = self.load_corpus()
            if self.processor:
                self.processor.check_languages(self.languages)
            self.rejects = unreadable_rows(corpus, self.splits)
            prepared = prepare(corpus, self.splits, self.limit, self.rules, self.processor)
            self.rejects = prepared.rejects
            check_usable(prepared, self.rules)
            for name, folder in self.augment.folders.items():
                self._sounds[name] = decode_sounds(folder, name, self.roots, self.rules.max_reject_rate)
            if self.joining and self.processor and "train" in self.splits:
                self._planner = prepared.planner(self.joining, self.seed)
            self._prepared = prepared

    @property
    def prepared(self) -> PreparedData:
        """The clips and their audio, prepared now if they are not yet."""
        self.setup()
        assert self._prepared is not None
        return self._prepared

    @property
    def clips(self) -> Mapping[Split, Sequence[Clip]]:
        """The usable clips, by split."""
        return self.prepared.clips

    def summary(self) -> dict[str, Any]:
        """The `data` of results.json."""
        folders = {name: sounds.summary() for name, sounds in self._sounds.items()}
        stated = self.languages
        facts = self.prepared.summary(stated[0] if stated else self.language)
        return facts | ({"languages": stated} if stated else {}) | ({"augmentation": folders} if folders else {})

    def reject_rows(self) -> list[dict[str, str]]:
        """The rows of rejects.jsonl."""
        return [asdict(reject) for reject in self.rejects]

    def dataset(self, split: Split, window: Window | None = None) -> SpeechDataset:
        """The examples of a split. window: how far the clips are padded; None for the module's own."""
        return self._dataset(split, self._clips_of(split), window)

    def _clips_of(self, split: Split) -> Sequence[Clip]:
        if split not in self.splits:
            raise ConfigError(f"there is no split {split!r}; this data module has {', '.join(self.splits)}")
        return self.clips[split]

    def _dataset(self, split: Split, clips: Sequence[Clip], window: Window | None) -> SpeechDataset:
        processor = self.model_processor()
        if window is not None:
            processor = replace(processor, window=window)
        encoder_caches = self._encoder_caches.get(split) if self.cache_encoder_outputs else None
        augmenter = self._augmenter() if split == "train" and self.augment.is_on else None
        return SpeechDataset(clips, self.prepared.audio_caches[split], processor, encoder_caches, augmenter)

    def _augmenter(self) -> Augmenter:
        voices = Sounds(self.prepared.audio_caches["train"], [clip.name for clip in self.clips["train"]])
        noises, rooms = (self._sounds.get(name, ()) for name in FOLDERS)
        return Augmenter(self.augment, self.seed, voices, noises, rooms)

    def model_processor(self) -> Processor:
        """The model's processor, with the windows of this module. Raises ConfigError if there is none."""
        if self.processor is None:
            name = type(self).__name__
            raise ConfigError(f"{name} has no processor; pass the model's: {name}(..., processor=whisper.processor)")
        return self.processor

    def window_frames(self) -> set[int]:
        """The windows, in log-Mel frames, that occur in training."""
        dataset, processor = self.dataset("train"), self.model_processor()
        if self.joining and self.joining.non_speech:  # of any length
            return processor.window.all_frames(processor.frames)
        found = {*dataset.windows(), processor.frames}
        for samples in {round(seconds * FRAMES_PER_SECOND) * HOP_LENGTH for seconds in dataset.durations_s()}:
            found |= {processor.window_frames(round(samples / speed)) for speed in self.augment.speeds()}
        return found

    @property
    def planner(self) -> Planner | None:
        """Plans the training examples; None if each of them is one clip."""
        self.setup()
        return self._planner

    def trained_on(self) -> dict[str, float]:
        """What `Whisper.trained_on` keeps of a training with this data."""
        return self.prepared.trained_on(self.planner)

    @property
    def most_train_tokens(self) -> int:
        """The supervised tokens of the longest training example, at most."""
        return self.model_processor().max_label_tokens if self.planner else max(self.prepared.train_tokens)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch: those in which each training clip, or the example that begins with it, is read
        once; fewer for limit_train_batches.
        """
        steps = -(-len(self.clips["train"]) // self.global_batch_size)
        limit = self.trainer.limit_train_batches if self.trainer else None
        return min(limit, steps) if isinstance(limit, int) else int((limit or 1.0) * steps)

    @property
    def world_size(self) -> int:
        """The number of processes that share the clips."""
        return self.trainer.world_size if self.trainer else 1

    @property
    def rank(self) -> int:
        """The rank of this process."""
        return self.trainer.global_rank if self.trainer else 0

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the training batches, from the Trainer's current step on.

        For a Trainer without epochs (max_steps, and check_val_every_n_epoch=None), all steps are one epoch of
        Lightning's; for others its epoch reads each clip once.
        """
        dataset = self.dataset("train")
        sampler = StepSampler(
            dataset.durations_s(),
            dataset.windows(),
            self.prepared.train_tokens,
            self.global_batch_size,
            self._steps_without_epochs(),
            self.seed,
            self.group_by_length,
            self.full_window_share,
            self.world_size,
            self.rank,
            global_step=lambda: self.trainer.global_step if self.trainer else 0,
            steps_per_epoch=self.steps_per_epoch,
            plan=self.planner,
        )
        return self._loader(dataset, sampler, persistent_workers=self.num_workers > 0)

    def _steps_without_epochs(self) -> int | None:
        """The steps of a Trainer that has no epochs; None for one that has."""
        trainer = self.trainer
        if not trainer or trainer.check_val_every_n_epoch is not None or trainer.max_epochs not in (None, -1):
            return None
        return trainer.max_steps if trainer.max_steps > 0 else None

    def first_batch(self, split: Split) -> Batch:
        """The first clips of a split as a batch, without the workers and the pinned memory of a loader.

        If training clips are joined, the examples of the first step that begin with them.
        """
        dataset, planner = self.dataset(split), self.planner if split == "train" else None
        first: list[Any] = list(range(min(len(dataset), self.global_batch_size)))
        if planner:
            first = [SampledClip(i, 1.0, example=planner(0, i)) for i in first]
        return collate([dataset[key] for key in first])

    def val_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the validation clips."""
        return self.score_dataloader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the test clips."""
        return self.score_dataloader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """This process's share of the test clips, for `Trainer.predict`; other splits: `score_dataloader`."""
        return self.score_dataloader("test")

    def score_dataloader(
        self, split: Split, clips: int | None = None, window: Window | None = None
    ) -> DataLoader[Batch]:
        """This process's share of the `scored` clips. window: how far they are padded; None for the module's own."""
        return self._share(split, self._dataset(split, self.scored(split, clips), window))

    def scored(self, split: Split, clips: int | None = None) -> Sequence[Clip]:
        """The clips of a split, or a sample of `clips` of them: the same for every run, whatever its seed."""
        return subset(self._clips_of(split), clips, SAMPLE_SEED)

    def _share(self, split: Split, dataset: SpeechDataset) -> DataLoader[Batch]:
        if len(dataset) < self.world_size:
            raise DataError(
                f"{len(dataset)} clips of the {split} split cannot be shared by {self.world_size} processes; "
                "use fewer devices, or more clips (data.limit, score.train_clips)"
            )
        sizes = (dataset.durations_s(), dataset.windows(), dataset.processor.frames, self.eval_batch_size)
        return self._loader(dataset, ScoringBatches(*sizes, self.world_size, self.rank))

    def _loader(self, dataset: SpeechDataset, sampler: Sampler[Any], **options: Any) -> DataLoader[Batch]:
        kill_workers_at_exit()
        # A DataLoader yields what its collate function returns; its type does not express that.
        return DataLoader(
            cast(Any, ExampleLists(dataset)),
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            multiprocessing_context=worker_start_method() if self.num_workers else None,
            collate_fn=collate,
            worker_init_fn=partial(exit_with_parent, os.getpid()),
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def build_encoder_caches(self, trainer: pl.Trainer, model: WhisperForConditionalGeneration) -> None:
        """Computes a frozen encoder's outputs for every clip, in each window that occurs, or opens their cache.

        Datasets and loaders made after this hold the outputs instead of log-Mels.
        Raises ConfigError if the encoder is trained, or its outputs vary.
        """
        check_cacheable(model)
        # Of its weights, which may have been trained since the last call.
        encoder = key(model, {}, (), str(trainer.precision))
        if self._encoder == encoder:
            return
        own, full_too = self.model_processor().window, {FULL} if self.full_window_share else set()
        self._encoder_caches = {}
        datasets = {s: [self.dataset(s, w) for w in {own, *(full_too if s == "train" else ())}] for s in self.splits}
        self._encoder_caches = build_encoder_caches(trainer, model, datasets, self._share, cache_folder() / "encoder")
        self._encoder = encoder


class CommonVoice(SpeechDataModule):
    """`data=common_voice`: a Common Voice release as downloaded (.tar.gz), unpacked, or its language folder.

    release: or a list of those of several languages.
    """

    def __init__(
        self, release: str | Sequence[str], train_splits: str | Sequence[str] = ("train",), **loading: Any
    ) -> None:
        super().__init__(**loading)
        self.release = release
        self.train_splits = [train_splits] if isinstance(train_splits, str) else train_splits

    def read(self) -> Corpus:
        rest = (self.train_splits, cache_folder(), self.splits_to_read, self.roots, self.rules.allow_shared_speakers)
        if isinstance(self.release, str | Path):
            return common_voice.read(str(self.release), self.language, *rest)
        return common_voice.read_several(list(map(str, self.release)), *rest)


class Demo(SpeechDataModule):
    """`data=demo`: the small synthetic corpus that ships with kikitori. The same voices speak in all splits."""

    def __init__(self, allow_shared_speakers: bool = True, **loading: Any) -> None:
        super().__init__(allow_shared_speakers=allow_shared_speakers, **loading)

    def read(self) -> Corpus:
        shared = self.rules.allow_shared_speakers
        corpus = common_voice.read(
            str(DEMO), self.language, ["train"], cache_folder(), self.splits_to_read, allow_shared_speakers=shared
        )
        return replace(corpus, description="kikitori's demo corpus")


class Manifest(SpeechDataModule):
    """`data=manifest`: your own recordings, in a .csv, .tsv, .jsonl or .json list, or in one list per split.

    start_column, end_column: of lists of parts of recordings, in seconds. language_column: of each clip's language.
    """

    def __init__(
        self,
        manifest: str | Mapping[str, str],
        path_column: str = "path",
        text_column: str = "text",
        split_column: str | None = "split",
        speaker_column: str | None = None,
        start_column: str | None = None,
        end_column: str | None = None,
        language_column: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.manifest = manifest
        parts = (start_column, end_column)
        self.columns = Columns(path_column, text_column, split_column, speaker_column, *parts, language_column)

    def read(self) -> Corpus:
        files = self.manifest if isinstance(self.manifest, Mapping) else str(self.manifest)
        return manifest.read(files, self.columns, self.splits_to_read, self.roots)


class Hub(SpeechDataModule):
    """`data=hub`: an audio dataset on the Hugging Face Hub, or a folder in its layout.

    splits: the dataset's own names of train, validation and test; None for one that it does not have. language_column:
    of each clip's language.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        revision: str | None = None,
        splits: Mapping[str, str | None] = HUB_SPLITS,
        audio_column: str = "audio",
        text_column: str = "transcription",
        speaker_column: str | None = None,
        language_column: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.location = (name, config, revision, dict(splits))
        self.columns = (audio_column, text_column, speaker_column, language_column)

    def read(self) -> Corpus:
        from kikitori.corpora import hub  # here, because importing datasets takes most of a second

        return hub.read(*self.location, *self.columns, self.splits_to_read, self.roots)
