"""The LightningDataModule: owns splits and loaders. One subclass a kind of corpus."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from kikitori import common_voice, manifest
from kikitori.audio import SAMPLE_RATE
from kikitori.clips import SPLITS, Clip, Corpus, Reject, Split
from kikitori.collate import Batch, collate
from kikitori.dataset import SpeechDataset
from kikitori.errors import DataError
from kikitori.front_end import FrontEnd
from kikitori.paths import DEMO, cache_folder
from kikitori.progress import progress_bar
from kikitori.sampler import StepSampler
from kikitori.selection import Rules, check_apart, check_rate, limit, seeded_sample, select
from kikitori.store import Store, build


class SpeechDataModule(pl.LightningDataModule):
    """Reads a corpus, decodes it once, leaves out what cannot be used, and serves batches.

    limit: clips to keep of each split (None: all), the first or a seeded sample. global_batch: clips of an optimizer
    step, over all processes and accumulated batches. eval_batch_size: clips that one process reads at a time.
    front_end: None where only the audio is to be prepared. Other arguments: see `kikitori.selection.Rules`.
    """

    def __init__(
        self,
        language: str,
        global_batch: int,
        eval_batch_size: int,
        num_workers: int,
        group_by_length: bool,
        limit: Mapping[str, Any],
        min_duration_s: float,
        max_duration_s: float | None,
        silence_dbfs: float,
        max_reject_rate: float,
        allow_shared_speakers: bool,
        allow_shared_clips: bool,
        front_end: FrontEnd | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.language = language
        self.global_batch = global_batch
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.group_by_length = group_by_length
        self.limit = limit
        self.rules = Rules(
            min_duration_s=min_duration_s,
            max_duration_s=max_duration_s,
            silence_dbfs=silence_dbfs,
            max_reject_rate=max_reject_rate,
            allow_shared_speakers=allow_shared_speakers,
            allow_shared_clips=allow_shared_clips,
        )
        self.front_end = front_end
        self.seed = seed
        # Which splits are read; whoever only scores the test split needs no other.
        self.splits: Sequence[Split] = SPLITS
        # Which share of the clips this process reads, where several score together.
        self.processes, self.rank = 1, 0
        self.corpus: Corpus | None = None
        self.clips: dict[Split, list[Clip]] = {}
        self.rejects: list[Reject] = []
        self.stores: dict[Split, Store] = {}

    def read(self) -> Corpus:
        """The rows of the corpus: what a subclass adds."""
        raise NotImplementedError

    def read_once(self) -> Corpus:
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
        corpus = self.read_once()
        all_rows = self.listed()
        unread = [reject for reject in corpus.rejects if reject.split in self.splits]
        self.rejects = list(unread)
        check_rate(len(all_rows) + len(unread), unread, self.rules.max_reject_rate)
        rows = self.decode()
        kept: dict[Split, list[Clip]] = {}
        for split in self.splits:
            clips = [clip for clip in rows if clip.split == split]
            kept[split], rejects = select(clips, self.stores[split].decoded, self.front_end, self.rules)
            self.rejects += rejects
        # The rows of all a corpus that could not be read say nothing of the few clips that a limit keeps.
        limited = len(rows) < len(all_rows)
        counted = self.rejects[len(unread) :] if limited else self.rejects
        check_rate(len(rows) if limited else len(rows) + len(unread), counted, self.rules.max_reject_rate)
        decoded = {split: self.stores[split].decoded for split in self.splits}
        check_apart({s: [(c, decoded[s][c.name]) for c in kept[s]] for s in self.splits}, self.rules)
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
        return [clip for clip in self.read_once().clips if clip.split in self.splits]

    def decode(self) -> list[Clip]:
        """Decode the rows within the limit into the store, where that is not done yet, and return them."""
        rows = limit(self.listed(), self.limit, self.limit["sample"], self.seed)
        for split in self.splits:
            with progress_bar() as progress:
                clips = [clip for clip in rows if clip.split == split]
                self.stores[split] = build(clips, cache_folder() / "store", progress)
        return rows

    def dataset(self, split: Split) -> SpeechDataset:
        assert self.front_end is not None, "a front end is needed to make examples"
        return SpeechDataset(self.clips[split], self.stores[split], self.front_end)

    def train_dataloader(self) -> DataLoader[Batch]:
        """This process's batches from the Trainer's step on, to its last."""
        assert self.trainer is not None, "the Trainer says how many steps there are, and who computes them"
        dataset = self.dataset("train")
        sampler = StepSampler(
            dataset.durations_s(),
            dataset.label_tokens(),
            self.global_batch,
            self.trainer.max_steps,
            self.seed,
            self.group_by_length,
            accumulated=self.trainer.accumulate_grad_batches,
            processes=self.trainer.world_size,
            rank=self.trainer.global_rank,
            first_step=self.trainer.global_step,
        )
        return self._loader(dataset, batch_sampler=sampler, persistent_workers=self.num_workers > 0)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._share("validation", self.dataset("validation"))

    def score_dataloader(self, split: Split, clips: int | None = None) -> DataLoader[Batch]:
        """This process's share of a split in its own order, or of a seeded sample of it, for scoring."""
        dataset = self.dataset(split)
        if clips is not None and clips < len(dataset):
            chosen = [dataset.clips[i] for i in seeded_sample(len(dataset), clips, self.seed)]
            dataset = SpeechDataset(chosen, dataset.store, dataset.front_end)
        return self._share(split, dataset)

    def _share(self, split: Split, dataset: SpeechDataset) -> DataLoader[Batch]:
        """Every `processes`-th clip: no clip is read twice and none is lost, whatever their number."""
        if len(dataset) < self.processes:
            raise DataError(
                f"{len(dataset)} clips of the {split} split are to be scored by {self.processes} processes; "
                "take fewer devices, or more clips (data.limit, score.train_clips)"
            )
        mine = SpeechDataset(dataset.clips[self.rank :: self.processes], dataset.store, dataset.front_end)
        return self._loader(mine, batch_size=self.eval_batch_size)

    def _loader(self, dataset: SpeechDataset, **how: Any) -> DataLoader[Batch]:
        # What a loader yields is what its collate function makes, which its type does not know.
        return DataLoader(
            cast(Any, dataset),
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            **how,
        )

    def summary(self) -> dict[str, Any]:
        """What stands under `data` in the results."""
        window_s = self.front_end.window_s if self.front_end else float("inf")
        splits: dict[str, Any] = {}
        for split in self.splits:
            seconds = [self.stores[split].decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips[split]]
            over = sum(s > window_s for s in seconds)
            facts = {"clips": len(seconds), "seconds": round(sum(seconds), 2), "clips_over_window": over}
            splits[split] = {**facts, "store": self.stores[split].path.name, "digest": self.digest(split)}
        reasons = Counter(reject.reason for reject in self.rejects)
        corpus = self.read_once()
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
        from kikitori import hub  # here, for datasets takes most of a second to import

        return hub.read(*self.where, *self.columns)
