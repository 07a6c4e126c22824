"""The LightningDataModule: owns splits and loaders. One subclass a kind of corpus."""

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Any, Literal, cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import WhisperForConditionalGeneration

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora import common_voice, manifest
from kikitori.corpora.types import SPLITS, Clip, Corpus, Reject, Split
from kikitori.data import encoder_cache
from kikitori.data.audio_cache import AudioCache, build_audio_cache
from kikitori.data.collate import Batch, collate
from kikitori.data.dataset import SpeechDataset
from kikitori.data.encoder_cache import EncoderCache
from kikitori.data.filters import FilterRules, check_rate, check_split_leakage, select, take_subset
from kikitori.data.sampler import ScoringBatches, StepSampler
from kikitori.model import window as windows
from kikitori.model.processor import Processor
from kikitori.model.window import Window
from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import DataError
from kikitori.runtime.paths import DEMO, cache_folder
from kikitori.runtime.processes import exit_with_parent
from kikitori.runtime.rng import seeded_sample

log = logging.getLogger(__name__)


class SpeechDataModule(pl.LightningDataModule):
    """Reads a corpus, decodes it once, leaves out what cannot be used, and serves batches.

    limit: clips to keep of each split (None: all), the first or a seeded sample. global_batch_size: clips of an optimizer
    step, over all processes. micro_batch_size: clips of it that a process computes at a time, see `kikitori.training.batch_size_finder`.
    eval_batch_size: clips that one process reads at a time in the whole window, and more in shorter ones. window,
    window_edges_s, window_margin_s: how much silence clips are heard with, see `kikitori.model.window`; None: as the model
    was trained. full_window_share: of the training steps, those that hear their clips in the whole window all the
    same. cache_encoder_outputs: whether a frozen encoder hears each clip only once. front_end: None where only the audio is
    to be prepared. Other arguments: see `kikitori.data.filters.FilterRules`.
    """

    def __init__(
        self,
        language: str,
        global_batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        group_by_length: bool,
        window: Literal["full", "bucketed"] | None,
        window_edges_s: Sequence[float],
        window_margin_s: float,
        full_window_share: float,
        micro_batch_size: int | Literal["auto"] | None,
        cache_encoder_outputs: bool,
        limit: Mapping[str, Any],
        min_duration_s: float,
        max_duration_s: float | None,
        silence_dbfs: float,
        max_reject_rate: float,
        allow_shared_speakers: bool,
        allow_shared_clips: bool,
        processor: Processor | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.language = language
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.group_by_length = group_by_length
        self.window = windows.make_window(window, window_edges_s, window_margin_s) if window else None
        self.full_window_share = full_window_share
        self.micro_batch_size = micro_batch_size
        self.cache_encoder_outputs = cache_encoder_outputs
        self.limit = limit
        self.rules = FilterRules(
            min_duration_s=min_duration_s,
            max_duration_s=max_duration_s,
            silence_dbfs=silence_dbfs,
            max_reject_rate=max_reject_rate,
            allow_shared_speakers=allow_shared_speakers,
            allow_shared_clips=allow_shared_clips,
        )
        self.processor = processor
        self.seed = seed
        # Which splits are read; whoever only scores the test split needs no other.
        self.splits: Sequence[Split] = SPLITS
        # Which share of the clips this process reads, where several score together.
        self.processes, self.rank = 1, 0
        self.corpus: Corpus | None = None
        self.clips: dict[Split, list[Clip]] = {}
        self.rejects: list[Reject] = []
        self.stores: dict[Split, AudioCache] = {}
        self.states: dict[Split, dict[Window, EncoderCache]] = {}

    def read(self) -> Corpus:
        """The rows of the corpus: what a subclass adds."""
        raise NotImplementedError

    def load_corpus(self) -> Corpus:
        """The corpus; reading it finds what is missing before a model is loaded."""
        if self.corpus is None:
            self.corpus = self.read()
        return self.corpus

    def setup(self, stage: str | None = None) -> None:
        """Read, decode and select, once; Lightning calls this again before it fits.

        Raises DataError where a split is left without a clip, too many clips are left out, or splits share any.
        """
        if self.clips:
            return
        corpus = self.load_corpus()
        all_rows = self.listed()
        unread = [reject for reject in corpus.rejects if reject.split in self.splits]
        self.rejects = list(unread)
        check_rate(len(all_rows) + len(unread), unread, self.rules.max_reject_rate)
        rows = self.decode()
        kept: dict[Split, list[Clip]] = {}
        for split in self.splits:
            clips = [clip for clip in rows if clip.split == split]
            kept[split], rejects = select(clips, self.stores[split].decoded, self.processor, self.rules)
            self.rejects += rejects
        # The rows of all a corpus that could not be read say nothing of the few clips that a limit keeps.
        limited = len(rows) < len(all_rows)
        counted = self.rejects[len(unread) :] if limited else self.rejects
        check_rate(len(rows) if limited else len(rows) + len(unread), counted, self.rules.max_reject_rate)
        decoded = {split: self.stores[split].decoded for split in self.splits}
        check_split_leakage({s: [(c, decoded[s][c.name]) for c in kept[s]] for s in self.splits}, self.rules)
        for split in self.splits:
            if not kept[split]:
                counts = ", ".join(f"{s} {sum(clip.split == s for clip in all_rows)}" for s in self.splits)
                raise DataError(
                    f"{corpus.description}: no clip of the {split} split can be used (clips listed: {counts}); "
                    "see data.limit, the corpus's own names of its splits, and rejects.jsonl in the run's folder"
                )
        self.clips = kept

    def listed(self) -> list[Clip]:
        """The corpus's rows of the splits that are read, before any limit."""
        return [clip for clip in self.load_corpus().clips if clip.split in self.splits]

    def decode(self) -> list[Clip]:
        """Decode the rows within the limit into the store, where that is not done yet, and return them."""
        rows = take_subset(self.listed(), self.limit, self.limit["sample"], self.seed)
        for split in self.splits:
            with progress_bar() as progress:
                clips = [clip for clip in rows if clip.split == split]
                self.stores[split] = build_audio_cache(clips, cache_folder() / "store", progress)
        return rows

    def dataset(self, split: Split) -> SpeechDataset:
        return self._dataset(split, self.clips[split])

    def _dataset(self, split: Split, clips: Sequence[Clip]) -> SpeechDataset:
        return SpeechDataset(clips, self.stores[split], self._processor(), self.states.get(split))

    def _processor(self) -> Processor:
        assert self.processor is not None, "a front end is needed to make examples"
        return self.processor

    @cached_property
    def train_tokens(self) -> list[int]:
        """Supervised tokens of each training clip."""
        return self.dataset("train").label_tokens()

    def max_tokens_per_s(self) -> float:
        """Twice what the densest training transcript has a second, of a clip that is granted one second more."""
        rates = zip(self.train_tokens, self.dataset("train").durations_s(), strict=True)
        return 2 * max(tokens / (seconds + 1) for tokens, seconds in rates)

    def window_frames(self) -> set[int]:
        """The windows, in log-Mel frames, that training meets."""
        return {*self.dataset("train").windows(), self._processor().frames}

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's batches from the Trainer's step on, to its last."""
        assert self.trainer is not None, "the Trainer says how many steps there are, and who computes them"
        dataset = self.dataset("train")
        sampler = StepSampler(
            dataset.durations_s(),
            dataset.windows(),
            self.train_tokens,
            self.global_batch_size,
            self.trainer.max_steps,
            self.seed,
            self.group_by_length,
            whole_share=self.full_window_share,
            processes=self.trainer.world_size,
            rank=self.trainer.global_rank,
            first_step=self.trainer.global_step,
        )
        return self._loader(dataset, batch_sampler=sampler, persistent_workers=self.num_workers > 0)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._share("validation", self.dataset("validation"))

    def score_dataloader(self, split: Split, clips: int | None = None) -> DataLoader[Batch]:
        """This process's share of `scored`."""
        return self._share(split, self._dataset(split, self.scored(split, clips)))

    def scored(self, split: Split, clips: int | None = None) -> list[Clip]:
        """The clips of a split, or a seeded sample of so many."""
        every = self.clips[split]
        if clips is None or clips >= len(every):
            return every
        return [every[i] for i in seeded_sample(len(every), clips, self.seed)]

    def _share(self, split: Split, dataset: SpeechDataset) -> DataLoader[Batch]:
        """This process's share of the clips to be scored."""
        if len(dataset) < self.processes:
            raise DataError(
                f"{len(dataset)} clips of the {split} split are to be scored by {self.processes} processes; "
                "take fewer devices, or more clips (data.limit, score.train_clips)"
            )
        sizes = (dataset.durations_s(), dataset.windows(), self._processor().frames, self.eval_batch_size)
        return self._loader(dataset, batch_sampler=ScoringBatches(*sizes, self.processes, self.rank))

    def _loader(self, dataset: SpeechDataset, **how: Any) -> DataLoader[Batch]:
        # What a loader yields is what its collate function makes, which its type does not know.
        return DataLoader(
            cast(Any, dataset),
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=partial(exit_with_parent, os.getpid()),
            pin_memory=torch.cuda.is_available(),
            **how,
        )

    def build_encoder_caches(self, trainer: pl.Trainer, model: WhisperForConditionalGeneration) -> None:
        """Let a frozen encoder hear every clip now, in each window that training will ask for, and never again.

        Raises ConfigError where the encoder is to be trained, or says something else each time.
        """
        encoder_cache.check_cacheable(model)
        own = self._processor()
        known: dict[Split, dict[Window, EncoderCache]] = {}
        for split in self.splits:
            log.info("the frozen encoder hears %s", split)
            whole_too = [windows.FULL] if split == "train" and self.full_window_share else []
            for window in {own.window, *whole_too}:
                dataset = SpeechDataset(self.clips[split], self.stores[split], replace(own, window=window))
                frames = dict(zip((clip.name for clip in dataset.clips), dataset.windows(), strict=True))
                digests = [dataset.store.decoded[name].digest for name in frames]
                heard = encoder_cache.build_encoder_cache(
                    trainer, model, self._share(split, dataset), frames, digests, cache_folder() / "encoder"
                )
                known.setdefault(split, {})[window] = heard
        self.states = known

    def summary(self) -> dict[str, Any]:
        """What stands under `data` in the results."""
        window_s = self.processor.window_s if self.processor else float("inf")
        splits: dict[str, Any] = {}
        for split in self.splits:
            seconds = [self.stores[split].decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips[split]]
            over = sum(s > window_s for s in seconds)
            facts = {"clips": len(seconds), "seconds": round(sum(seconds), 2), "clips_over_window": over}
            splits[split] = {**facts, "store": self.stores[split].path.name, "digest": self.digest(split)}
        reasons = Counter(reject.reason for reject in self.rejects)
        corpus = self.load_corpus()
        return {
            "corpus": corpus.description,
            "release": corpus.release,
            "language": self.language,
            "splits": splits,
            "rejects": dict(reasons),
        }

    def digest(self, split: Split) -> str:
        """What the split was in this run, whatever the order: equal where names, audio and transcripts are."""
        decoded = self.stores[split].decoded
        rows = sorted(f"{clip.name}\t{decoded[clip.name].digest}\t{clip.text}\n" for clip in self.clips[split])
        return sha256("".join(rows).encode()).hexdigest()[:16]

    def reject_rows(self) -> list[dict[str, str]]:
        """Rows of rejects.jsonl."""
        return [asdict(reject) for reject in self.rejects]


class CommonVoice(SpeechDataModule):
    """`data=common_voice`: a release as downloaded (.tar.gz), unpacked, or its language folder."""

    def __init__(self, release: str, train_splits: Sequence[str], **loading: Any) -> None:
        super().__init__(**loading)
        self.release = release
        self.train_splits = train_splits

    def read(self) -> Corpus:
        return common_voice.read(self.release, self.language, self.train_splits, cache_folder())


class Demo(SpeechDataModule):
    """`data=demo`: the small synthetic corpus that ships in the package."""

    def read(self) -> Corpus:
        corpus = common_voice.read(str(DEMO), self.language, ["train"], cache_folder())
        return replace(corpus, description="kikitori's demo corpus")


class Manifest(SpeechDataModule):
    """`data=manifest`: your own recordings, listed in a .csv, .tsv or .jsonl."""

    def __init__(
        self,
        manifest: str | Mapping[str, str],
        path_column: str,
        text_column: str,
        split_column: str,
        speaker_column: str | None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.manifest = manifest
        self.columns = (path_column, text_column, split_column, speaker_column)

    def read(self) -> Corpus:
        return manifest.read(self.manifest, *self.columns)


class Hub(SpeechDataModule):
    """`data=hub`: an audio dataset on the Hugging Face Hub, or a folder in its layout."""

    def __init__(
        self,
        name: str,
        config: str | None,
        revision: str | None,
        splits: Mapping[str, str],
        audio_column: str,
        text_column: str,
        speaker_column: str | None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.where = (name, config, revision, splits)
        self.columns = (audio_column, text_column, speaker_column)

    def read(self) -> Corpus:
        from kikitori.corpora import hub  # here, for datasets takes most of a second to import

        return hub.read(*self.where, *self.columns)
