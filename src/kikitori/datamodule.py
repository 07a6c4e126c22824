"""The LightningDataModule: owns splits and loaders. One subclass a kind of corpus."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from kikitori import common_voice, hub, manifest
from kikitori.audio import SAMPLE_RATE
from kikitori.clips import SPLITS, Clip, Corpus, Reject, Split
from kikitori.collate import Batch, collate
from kikitori.dataset import SpeechDataset
from kikitori.errors import DataError
from kikitori.front_end import FrontEnd
from kikitori.paths import DEMO, cache_folder
from kikitori.progress import progress_bar
from kikitori.sampler import EpochSampler
from kikitori.selection import Rules, check_apart, check_rate, limit, seeded_sample, select
from kikitori.store import Store, build


class SpeechDataModule(pl.LightningDataModule):
    """Reads a corpus, decodes it once, leaves out what cannot be used, and serves batches.

    limit: clips to keep of each split (None: all), the first or a seeded sample. batch_size, eval_batch_size: clips.
    front_end: None where only the audio is to be prepared. Other arguments: see `kikitori.selection.Rules`.
    """

    def __init__(
        self,
        language: str,
        batch_size: int,
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
        self.batch_size = batch_size
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
        all_rows = [clip for clip in corpus.clips if clip.split in self.splits]
        unread = [reject for reject in corpus.rejects if reject.split in self.splits]
        self.rejects = list(unread)
        check_rate(len(all_rows) + len(unread), unread, self.rules.max_reject_rate)
        rows = limit(all_rows, self.limit, self.limit["sample"], self.seed)
        kept: dict[Split, list[Clip]] = {}
        for split in self.splits:
            clips = [clip for clip in rows if clip.split == split]
            with progress_bar() as progress:
                self.stores[split] = build(clips, cache_folder() / "store", progress)
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

    def dataset(self, split: Split) -> SpeechDataset:
        assert self.front_end is not None, "a front end is needed to make examples"
        return SpeechDataset(self.clips[split], self.stores[split], self.front_end)

    def train_dataloader(self) -> DataLoader[Batch]:
        dataset = self.dataset("train")
        sampler = EpochSampler(dataset.durations_s(), self.batch_size, self.seed, self.group_by_length)
        return self._loader(dataset, self.batch_size, sampler)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.dataset("validation"), self.eval_batch_size)

    def score_dataloader(self, split: Split, clips: int | None = None) -> DataLoader[Batch]:
        """A split in its own order, or a seeded sample of it, for scoring."""
        dataset = self.dataset(split)
        if clips is not None and clips < len(dataset):
            chosen = [dataset.clips[i] for i in seeded_sample(len(dataset), clips, self.seed)]
            dataset = SpeechDataset(chosen, dataset.store, dataset.front_end)
        return self._loader(dataset, self.eval_batch_size)

    def _loader(
        self, dataset: SpeechDataset, batch_size: int, sampler: EpochSampler | None = None
    ) -> DataLoader[Batch]:
        # What a loader yields is what its collate function makes, which its type does not know.
        return DataLoader(
            cast(Any, dataset),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0 and sampler is not None,
        )

    def summary(self) -> dict[str, Any]:
        """What stands under `data` in the results."""
        window_s = self.front_end.window_s if self.front_end else float("inf")
        splits = {}
        for split in self.splits:
            seconds = [self.stores[split].decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips[split]]
            over = sum(s > window_s for s in seconds)
            splits[split] = {"clips": len(seconds), "seconds": round(sum(seconds), 2), "clips_over_window": over}
        reasons = Counter(reject.reason for reject in self.rejects)
        corpus = self.read_once()
        return {
            "corpus": corpus.description,
            "release": corpus.release,
            "language": self.language,
            "splits": splits,
            "rejects": dict(reasons),
        }

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
        return hub.read(*self.where, *self.columns)
