"""Measures what augmentation costs the loader: clips per second of one core, for each choice and for each change alone.

    python benchmarks/augmentation.py --release cv-corpus-27.0-2026-09-09/ja

All clips of the release's train, dev and test tables are read as training clips, from the audio cache to log-Mels in
bucketed windows, in one process with one thread. Each round reads the same steps with each row's augmentation, so every
clip as often. Time is that of the CPU, which other processes do not lengthen much. The changes alone have probability
1; rooms and noise of a folder are made up: an impulse response of half a second, and ten seconds of noise.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import soundfile
import tables
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import kikitori
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora.types import Corpus
from kikitori.data.datamodule import CommonVoice
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.paths import CONF

CHOICES = ("none", "light", "heavy", "telephone")
ALONE = ("speed", "room", "white", "pink", "babble", "folder", "gain", "telephone", "mu_law", "mp3")


class AllClips(CommonVoice):
    """The clips of all tables of a release, as training clips."""

    def __init__(self, release: str, **settings: Any) -> None:
        super().__init__(release, ["train", "dev", "test"], load_splits=("train",), allow_shared_clips=True, **settings)

    def read(self) -> Corpus:
        self.splits = ["train", "validation", "test"]
        corpus = super().read()
        self.splits = ["train"]
        clips = {clip.name: replace(clip, split="train") for clip in corpus.clips}
        return replace(corpus, clips=list(clips.values()), absent={})


def main() -> None:
    options = parse()
    quiet_libraries()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        augmentations = {name: chosen(name) for name in CHOICES} | dict(alone(Path(folder)))
        loaders = {name: load(options, augment) for name, augment in augmentations.items()}
        seconds: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(options.rounds + 1):
            for name, data in loaders.items():
                taken = cpu_seconds(data)
                if number:  # the first round fills caches
                    seconds[name].append(taken)
    clips = len(loaders["none"].clips["train"])
    table = list(table_rows(seconds, clips * options.epochs))
    notes = [f"{clips} clips, {options.epochs} times in each of {options.rounds} rounds; mean [lowest, highest]"]
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "augmentation.md").write_text(tables.markdown(table, notes), encoding="utf-8")
    tables.show(table, notes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", required=True, help="a Common Voice language folder")
    parser.add_argument("--language", default="ja")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="readings of each clip in a round")
    parser.add_argument("--output", default="outputs/bench", help="folder of augmentation.md")
    return parser.parse_args()


def chosen(name: str) -> kikitori.Augmentation:
    """The augmentation of conf/augment."""
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        node: Any = OmegaConf.to_container(compose("train", ["data=demo", f"augment={name}"]).augment)
    return kikitori.Augmentation(**{key: value for key, value in node.items() if key != "_target_"})


def alone(folder: Path) -> Iterator[tuple[str, kikitori.Augmentation]]:
    """Each change with probability 1 and without the others."""
    rng, times = np.random.default_rng(0), np.arange(SAMPLE_RATE // 2)
    for name, samples in (
        ("room", 0.5 * rng.uniform(-1, 1, len(times)) * np.exp(-times / 1_500)),
        ("noise", 0.2 * rng.uniform(-1, 1, 10 * SAMPLE_RATE)),
    ):
        (folder / name).mkdir()
        soundfile.write(folder / name / "made_up.wav", samples, SAMPLE_RATE)
    for name in ALONE:
        if name in ("white", "pink", "babble"):
            settings: dict[str, Any] = {"noise_prob": 1.0, "noise_kinds": [name]}
        elif name == "folder":
            settings = {"noise_prob": 1.0, "noise_kinds": [], "noise_folder": str(folder / "noise")}
        else:
            settings = {f"{name}_prob": 1.0} | ({"room_folder": str(folder / "room")} if name == "room" else {})
        yield f"{'noise: ' if 'noise_prob' in settings else ''}{name}, every clip", kikitori.Augmentation(**settings)


def load(options: argparse.Namespace, augment: kikitori.Augmentation) -> AllClips:
    """The release for a model with Whisper's window, with the clips decoded."""
    whisper = kikitori.build_whisper(d_model=16, encoder_layers=1, decoder_layers=1, attention_heads=2, window_s=30)
    settings: dict[str, Any] = {"window": "bucketed", "num_workers": 0, "language": options.language}
    data = AllClips(options.release, processor=whisper.processor, augment=augment, **settings)
    data.setup()
    steps = options.epochs * data.steps_per_epoch
    counts = {"max_steps": steps, "max_epochs": -1, "check_val_every_n_epoch": None, "limit_train_batches": 1.0}
    data.trainer = SimpleNamespace(**counts, world_size=1, global_rank=0, global_step=0)  # type: ignore[assignment]
    return data


def cpu_seconds(data: AllClips) -> float:
    """CPU seconds to load all steps."""
    loader = data.train_dataloader()
    start = time.process_time()
    for _ in loader:
        pass
    return time.process_time() - start


def table_rows(seconds: dict[str, list[float]], clips: int) -> Iterator[list[str]]:
    """The heading, and a row for each augmentation."""
    yield ["augment", "clips/s", "ms per clip", "more than none, ms"]
    none = np.array(seconds["none"])
    for name, rounds in seconds.items():
        taken = np.array(rounds)
        more = spread(1e3 * (taken - none) / clips, 1) if name != "none" else tables.DASH
        yield [name, spread(clips / taken, 0), spread(1e3 * taken / clips, 1), more]


def spread(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return f"{np.mean(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


if __name__ == "__main__":
    main()
