"""Measures how kikitori's cost grows with the number of clips: preparation, host memory, disk, an epoch of batches.

    python benchmarks/scale.py                                       # 100, 1,000 and 10,000 clips of the demo corpus
    python benchmarks/scale.py --release cv-corpus-27.0-2026-09-09/ja --largest     # and 100,000, of a release's clips

The clips of a release are repeated under other names, each slightly softer at different places, so that every one is
decoded and none is a duplicate. No model is run. Each size has three processes: the first prepares the corpus, the
second opens the prepared corpus, the third iterates over an epoch. Memory is the increase from before the corpus is
read, without the memory-mapped pages of the audio cache, which the system reclaims when needed.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import stand_ins
import tables
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from transformers import WhisperConfig

from kikitori.corpora import common_voice
from kikitori.data.datamodule import SpeechDataModule
from kikitori.model.processor import make_processor
from kikitori.runs.record import git_state
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.files import write_json
from kikitori.runtime.paths import CONF, DEMO, cache_folder
from kikitori.steps.builders import build_data

SIZES = (100, 1_000, 10_000)
LARGEST = 100_000
SAMPLED_EVERY_S = 0.02
MEASURES = (
    ("preparing: s", "prepare", "seconds"),
    ("preparing: clips/s", "prepare", "clips_per_s"),
    ("preparing: peak MB", "prepare", "peak_mb"),
    ("audio cache: MB on disk", "prepare", "disk_mb"),
    ("prepared, to the first batch: s", "again", "seconds"),
    ("prepared, to the first batch: peak MB", "again", "peak_mb"),
    ("an epoch: clips/s", "epoch", "clips_per_s"),
    ("an epoch: peak MB", "epoch", "peak_mb"),
    ("an epoch: private MB of a worker", "epoch", "worker_mb"),
)


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] in PHASES:
        print(json.dumps(PHASES[sys.argv[1]](sys.argv[2], sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", default=str(DEMO), help="a Common Voice language folder; default: the demo corpus")
    parser.add_argument("--largest", action="store_true", help=f"also measure {LARGEST:,} clips")
    parser.add_argument("--output", default="outputs/bench", help="folder of scale.md and scale.json")
    options = parser.parse_args()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"release": Path(options.release).name, "git": git_state(), "sizes": []}
    for size in (*SIZES, LARGEST) if options.largest else SIZES:
        print(f"{size:,} clips", flush=True)
        with TemporaryDirectory(prefix="kikitori-scale-") as scratch:
            repeat(Path(options.release), Path(scratch, "ja"), size)
            results["sizes"].append({"clips": size, **{phase: child(phase, Path(scratch)) for phase in PHASES}})
        write_json(output / "scale.json", results)
    drawn = table(results["sizes"])
    notes = [f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} after; clips of {results['release']}, repeated."]
    (output / "scale.md").write_text(tables.markdown(drawn, notes), encoding="utf-8")
    tables.show(drawn, notes)


def repeat(release: Path, folder: Path, size: int) -> None:
    """Writes a language folder with `size` training clips, which repeat those of a release."""
    rows = common_voice.read(str(release), "ja", ["train"], folder, ["train"], allow_shared_speakers=True).clips
    (folder / "clips").mkdir(parents=True)
    lines = ["client_id\tpath\tsentence"]
    for i in range(size):
        source: Any = rows[i % len(rows)]
        name = f"clip_{i:07}.mp3"
        (folder / "clips" / name).write_bytes(variant(source.source.read_bytes(), i // len(rows)))
        lines.append(f"speaker {i % 1000}\t{name}\t{source.text}")
    (folder / "train.tsv").write_text("\n".join([*lines, ""]), encoding="utf-8")
    for split in ("dev", "test"):
        (folder / f"{split}.tsv").write_text(lines[0] + "\n", encoding="utf-8")


def variant(mp3: bytes, number: int) -> bytes:
    """Returns an mp3 that sounds slightly different for each number: some frames are 1.5 dB softer. 0 changes nothing.

    The frames of its last two thirds encode the bits of the number. Only the global_gain of a frame changes, some bits
    after its header (ISO 11172-3, 2.4.1.7, and 13818-3), so the file stays valid.
    """
    data, frames = bytearray(mp3), frames_of(mp3)
    for bit, at in enumerate(frames[len(frames) // 3 :]):
        mpeg1, checked, mono = mp3[at + 1] >> 3 & 1, not mp3[at + 1] & 1, mp3[at + 3] >> 6 == 3
        behind = {(1, True): 39, (1, False): 41, (0, True): 30, (0, False): 31}[mpeg1, mono]
        place, shift = divmod(8 * at + 32 + 16 * checked + behind, 8)
        word = int.from_bytes(data[place : place + 2])
        if number >> bit & 1 and word >> (8 - shift) & 0xFF:
            data[place : place + 2] = (word - (1 << (8 - shift))).to_bytes(2)
    return bytes(data)


def frames_of(mp3: bytes) -> list[int]:
    """Returns the offsets of an mp3's frames: headers equal to the last one, except for bit rate and padding."""
    last = max(mp3.rfind(bytes((0xFF, kind))) for kind in (0xF2, 0xF3, 0xFA, 0xFB))

    def header(at: int) -> tuple[int, int, int, int]:
        return mp3[at], mp3[at + 1], mp3[at + 2] & 0x0C, mp3[at + 3] & 0xF0

    return [at for at in range(last + 1) if mp3[at] == 0xFF and header(at) == header(last)]


def child(phase: str, scratch: Path) -> dict[str, Any]:
    """Runs one phase in a separate process; returns its measurements."""
    command = [sys.executable, __file__, phase, str(scratch / "ja"), str(scratch)]
    environment = {**os.environ, "KIKITORI_CACHE": str(scratch / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def prepare(release: str, _: str) -> dict[str, Any]:
    """Reads, decodes and filters all clips."""
    data = build(release)
    with Grown() as grown:
        data.setup()
    kept = len(data.clips["train"])
    disk_mb = sum(path.stat().st_size for path in (cache_folder() / "store").glob("*.arrow")) / 1e6
    measured = {"clips_per_s": kept / grown.seconds, "disk_mb": disk_mb, **grown.measured()}
    return {"clips": kept, "left_out": len(data.rejects), **measured}


def again(release: str, _: str) -> dict[str, Any]:
    """Does the same with an existing audio cache, as in every run but the first, up to the first batch."""
    data = build(release)
    with Grown() as grown:
        data.setup()
        next(iter(loader(data)))
    return grown.measured()


def epoch(release: str, _: str) -> dict[str, Any]:
    """Loads every batch of an epoch from the loader's workers."""
    data = build(release)
    with Grown() as grown:
        data.setup()
        batches = iter(loader(data))
        clips, worker_mb = len(next(batches)["clips"]), 0.0
        start = time.perf_counter()
        for done, batch in enumerate(batches):
            clips += len(batch["clips"])
            if done % 10 == 0:
                worker_mb = max(worker_mb, *(own_mb(worker.pid) for worker in batches._workers))
        clips_per_s = clips / (time.perf_counter() - start)
    return {"clips_per_s": clips_per_s, "worker_mb": worker_mb, **grown.measured()}


PHASES = {"prepare": prepare, "again": again, "epoch": epoch}


def build(release: str) -> SpeechDataModule:
    """Builds the data module of `kikitori train data.release=...` with the training split only, for 80 Mel bins."""
    quiet_libraries()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"data.release={release}", "data.allow_shared_speakers=true"])
    tokenizer, config = stand_ins.tokenizer(), WhisperConfig()
    processor = make_processor(tokenizer, config, cfg.model.language, cfg.model.task, "benchmark")
    # Other nodes name the folder of a run, which only the command line has.
    needed = {"data": OmegaConf.to_container(cfg.data, resolve=True), "seed": cfg.seed, "splits": ["train"]}
    return build_data(needed).with_processor(processor)


def loader(data: SpeechDataModule) -> Any:
    """Returns the training loader of one epoch."""
    return data.train_dataloader()


class Grown:
    """Measures the seconds of a block, and the peak increase of anonymous memory in it, in MB.

    The system's own peak includes the pages of the audio cache, so this samples every 20 ms.
    """

    def __enter__(self) -> "Grown":
        self.before_mb = self.most_mb = anonymous_mb()
        self.seconds = -time.perf_counter()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter()
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(SAMPLED_EVERY_S):
            self.most_mb = max(self.most_mb, anonymous_mb())

    def measured(self) -> dict[str, float]:
        held = anonymous_mb() - self.before_mb
        return {"seconds": self.seconds, "peak_mb": self.most_mb - self.before_mb, "held_mb": held}


def anonymous_mb() -> float:
    """Returns the process's anonymous memory: memory that is not backed by a file."""
    return _kib("/proc/self/status", "RssAnon") * 1024 / 1e6


def own_mb(pid: int) -> float:
    """Returns a process's private memory: its own pages, and a forked worker's copies of its parent's pages."""
    return _kib(f"/proc/{pid}/smaps_rollup", "Private_Dirty") * 1024 / 1e6


def _kib(file: str, field: str) -> int:
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise KeyError(field)


def table(sizes: list[dict[str, Any]]) -> list[list[str]]:
    """Returns the table, with one column per size."""
    drawn = [["clips", *(f"{size['clips']:,}" for size in sizes)]]
    for label, phase, key in MEASURES:
        drawn.append([label, *(f"{size[phase][key]:,.1f}" for size in sizes)])
    return drawn


if __name__ == "__main__":
    main()
