"""Measures data.full_window_share: trains with several shares and transcribes other speakers in both windows.

    python benchmarks/full_window_share.py --release cv-corpus-27.0-2026-09-09/ja --model openai/whisper-base

Cross-validation: all clips of the release's train, dev and test tables are dealt into folds by speaker, and models
trained on the other folds transcribe each fold, one model per share, seed and number of steps. Each transcribes in
windows as trained and in the full window, as stock tools do, without a limit of tokens per second. A row of the table
is a way to train; errors are summed over folds and seeds, intervals are bootstrapped over clips, and differences are
paired by clip. A loop is a transcript that compresses to less than 1 / 2.4 of its size. The output folder gets every
transcript as runs.jsonl, and the table as table.md.
"""

import argparse
import json
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from itertools import product
from math import inf
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import tables
from numpy.typing import NDArray
from windows import against, cell

import kikitori
from kikitori.corpora.types import Clip, Corpus
from kikitori.data.datamodule import CommonVoice
from kikitori.metrics.error_rates import score_clips
from kikitori.model.window import FULL, Window
from kikitori.runtime.console import quiet_libraries

# Whisper's own threshold, above which its decoder takes a text for a repetition.
COMPRESSION_RATIO = 2.4
WINDOWS = ("as trained", "full window")


class Way(NamedTuple):
    """How a model is trained. share: of the steps in the full window; None: all clips are padded to the full window."""

    steps: int
    share: float | None


class Fold(CommonVoice):
    """The clips of a release, of which one fold is the test split and the others are the training split."""

    def __init__(self, fold: int, folds: int, release: str, **settings: Any) -> None:
        super().__init__(release, ["train", "dev", "test"], load_splits=("train", "test"), **settings)
        self.fold, self.folds = fold, folds

    def read(self) -> Corpus:
        corpus = super().read()
        clips = {clip.name: clip for clip in corpus.clips}.values()
        fold_of = deal(Counter(clip.speaker or clip.name for clip in clips), self.folds)

        def placed(clip: Clip) -> Clip:
            return replace(clip, split="test" if fold_of[clip.speaker or clip.name] == self.fold else "train")

        return replace(corpus, clips=[placed(clip) for clip in clips], absent={})


def deal(clips_of: Counter[str], folds: int) -> dict[str, int]:
    """The fold of each speaker: the largest speaker first, each to the fold with the fewest clips so far."""
    sizes, fold_of = [0] * folds, {}
    for speaker, clips in sorted(clips_of.items(), key=lambda pair: (-pair[1], pair[0])):
        fold_of[speaker] = fold = sizes.index(min(sizes))
        sizes[fold] += clips
    return fold_of


def main() -> None:
    options = parse()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    shares = [None, *options.shares]
    # Seed by seed, so that an interrupted benchmark has all ways to train.
    jobs = [
        (Way(steps, share), fold, seed)
        for seed, steps, share, fold in product(options.seeds, options.steps, shares, range(options.folds))
    ]
    rows: list[dict[str, Any]] = []
    with (
        ProcessPoolExecutor(options.processes, get_context("spawn")) as pool,
        (output / "runs.jsonl").open("w", encoding="utf-8") as file,
    ):
        for done in as_completed([pool.submit(run, options, *job) for job in jobs]):
            rows.append(done.result())
            file.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
            file.flush()
            print(f"{len(rows)} of {len(jobs)}: {summary(rows[-1])}", flush=True)
    table = list(table_rows(rows))
    notes = [f"{options.processes} runs at a time, so seconds compare these rows only"] if options.processes > 1 else []
    (output / "table.md").write_text(tables.markdown(table, notes), encoding="utf-8")
    tables.show(table, notes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", required=True, help="a Common Voice language folder")
    parser.add_argument("--model", required=True, help="a folder or Hub name")
    parser.add_argument("--language", default="ja")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1, 0.25, 0.5])
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 80])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="clips per step and per evaluation batch")
    parser.add_argument("--lr", type=float, default=1e-5, help="after a tenth of the steps; then linear to 0")
    parser.add_argument("--max-new-tokens", type=int, default=225)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--processes", type=int, default=1, help="runs at a time")
    parser.add_argument("--output", default="outputs/full_window_share", help="folder of runs.jsonl and table.md")
    return parser.parse_args()


def run(options: argparse.Namespace, way: Way, fold: int, seed: int) -> dict[str, Any]:
    """Trains one model and transcribes its fold in both windows."""
    quiet_libraries()
    pl.seed_everything(seed, verbose=False)
    whisper = kikitori.load_whisper(options.model, options.language)
    whisper.configure_generation(options.max_new_tokens, num_beams=1, max_tokens_per_s=inf)
    windows: dict[str, Any] = {"window": "bucketed", "full_window_share": way.share}
    settings: dict[str, Any] = {"window": "full"} if way.share is None else windows
    settings |= {"global_batch_size": options.batch, "eval_batch_size": options.batch, "num_workers": 0}
    data = Fold(fold, options.folds, options.release, processor=whisper.processor, seed=seed, **settings)
    module = kikitori.WhisperModule(whisper, kikitori.adamw(options.lr, warmup_steps=way.steps // 10))
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    # All steps in one epoch, without validation.
    epoch: dict[str, Any] = {"max_steps": way.steps, "check_val_every_n_epoch": None, "limit_val_batches": 0}
    with TemporaryDirectory() as folder:
        where: dict[str, Any] = {"devices": 1, "precision": options.precision, "default_root_dir": folder}
        clock = Clock()
        trainer = pl.Trainer(callbacks=[clock], enable_model_summary=False, **where, **quiet, **epoch)
        trainer.fit(module, datamodule=data)
        own = data.model_processor().window
        clips = {name: transcripts(trainer, module, data, w) for name, w in zip(WINDOWS, (own, FULL), strict=True)}
    return {**way._asdict(), "fold": fold, "seed": seed, "seconds": clock.seconds, "clips": clips}


class Clock(pl.Callback):
    """Measures a training from its first step to the end of its last."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        float(trainer.callback_metrics["train/loss"])  # waits for the last step
        self.seconds += time.perf_counter()


def transcripts(trainer: pl.Trainer, module: pl.LightningModule, data: Fold, window: Window) -> list[dict[str, Any]]:
    """The text of each test clip in some window, its edits, and whether it loops."""
    batches: Any = trainer.predict(module, data.score_dataloader("test", window=window))
    clips, references, texts = zip(*(row[:3] for batch in batches for row in batch), strict=True)
    scores = score_clips(references, texts, data.model_processor().language)
    return [
        {
            "clip": clip,
            "text": text,
            "edits": score.cer_edits,
            "length": score.cer_length,
            "loops": compression_ratio(text) > COMPRESSION_RATIO,
        }
        for clip, text, score in zip(clips, texts, scores, strict=True)
    ]


def compression_ratio(text: str) -> float:
    """The size of a text over its size when compressed; repetitions compress well."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def summary(row: dict[str, Any]) -> str:
    rates = [
        f"{100 * sum(c['edits'] for c in clips) / sum(c['length'] for c in clips):.1f} %"
        for clips in row["clips"].values()
    ]
    return (
        f"steps {row['steps']}, share {row['share']}, fold {row['fold']}, seed {row['seed']}: CER {' and '.join(rates)}"
    )


def table_rows(rows: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
    """The heading, and a row for each way to train."""
    yield [
        "steps",
        "share of full",
        *(f"CER %, {name}" for name in WINDOWS),
        "in full, against 0",
        "loops",
        "loops in full",
        "seconds",
    ]
    ways: dict[Way, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        ways[Way(row["steps"], row["share"])].append(row)
    for way in sorted(ways, key=lambda way: (way.steps, -1 if way.share is None else way.share)):
        runs, zero = ways[way], ways.get(Way(way.steps, 0))
        own, full = (edits(runs, window) for window in WINDOWS)
        loops = [sum(clip["loops"] for run in runs for clip in run["clips"][window]) for window in WINDOWS]
        share = "all" if way.share is None else f"{way.share:g}"
        difference = against(full, edits(zero, "full window") if zero else None)
        seconds = f"{np.median([run['seconds'] for run in runs]):.1f}"
        read = sum(len(run["clips"]["full window"]) for run in runs)
        yield [str(way.steps), share, cell(own), cell(full), difference, *(f"{n} of {read}" for n in loops), seconds]


def edits(runs: Sequence[dict[str, Any]], window: str) -> NDArray[np.int64]:
    """(clips, 2): edits and length of each clip, summed over the seeds."""
    counts: dict[str, NDArray[np.int64]] = defaultdict(lambda: np.zeros(2, dtype=np.int64))
    for clip in (clip for run in runs for clip in run["clips"][window]):
        counts[clip["clip"]] += (clip["edits"], clip["length"])
    return np.array([counts[clip] for clip in sorted(counts)])


if __name__ == "__main__":
    main()
