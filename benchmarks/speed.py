"""Compares kikitori with the alternatives on the same clips, seeds, batch size and number of steps, taking turns.

    python benchmarks/speed.py                                          # random weights, joined clips of the demo
    python benchmarks/speed.py --model openai/whisper-base --release cv-corpus-27.0-2026-09-09/ja --batch 16 --steps 8

Each contender has two processes per round: one prepares, one trains and evaluates. Every other round has the reverse
order. The terminal shows a table; the output folder gets it as speed.md, and the figures of all rounds as speed.json.
"""

import argparse
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import stand_ins
import tables
import torch
from task import CONTENDERS, WARMUP_STEPS, Task, run

from kikitori.runs.record import git_state
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.files import write_json

# Random weights never end a transcript, so it is cut at the length of a Common Voice transcript.
TOKENS_OF_RANDOM_WEIGHTS = 24
TOKENS = 225


def main() -> None:
    options = parse()
    quiet_libraries()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="kikitori-bench-") as scratch:
        first = first_task(options, Path(scratch))
        results = {"settings": vars(options), "machine": machine(), "rounds": []}
        for number in range(options.rounds):
            for name in options.only if number % 2 == 0 else options.only[::-1]:
                print(f"round {number + 1} of {options.rounds}: {name}", flush=True)
                folder = Path(scratch) / f"{number}-{name}"
                task = Task(**{**asdict(first), "contender": name, "folder": str(folder), "seed": number})
                measured = run(task)
                if options.model is None:
                    measured["evaluate"]["cer"] = None
                results["rounds"].append({"round": number, "contender": name, **measured})
                # After each contender, so that an interrupted benchmark keeps its measurements.
                results["summary"] = tables.summarise(results["rounds"])
                write_json(output / "speed.json", results)
    table, footnotes = tables.rows(results["summary"]), notes(options, results["machine"])
    (output / "speed.md").write_text(tables.markdown(table, footnotes), encoding="utf-8")
    tables.show(table, footnotes)
    print(f"wrote {output}/speed.md and {output}/speed.json")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or Hub name; default: random weights with the shape of whisper-base")
    parser.add_argument("--release", help="a Common Voice language folder; default: joined clips of the demo")
    parser.add_argument("--batch", type=int, default=16, help="clips per step and per evaluation batch")
    parser.add_argument("--steps", type=int, default=4, help=f"timed steps, after a warm-up of {WARMUP_STEPS}")
    parser.add_argument("--eval-clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--precision", choices=("32", "bf16-mixed", "16-mixed"), help="default: that of kikitori on this machine"
    )
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--output", default="outputs/bench", help="folder of speed.md and speed.json")
    options = parser.parse_args()
    options.precision = options.precision or ("16-mixed" if torch.cuda.is_available() else "32")
    return options


def first_task(options: argparse.Namespace, scratch: Path) -> Task:
    """Returns the settings that all contenders share; creates stand-ins if no model or release is given."""
    clips = options.steps * options.batch
    release = options.release or stand_ins.common_voice(scratch / "release", clips, options.eval_clips)
    return Task(
        contender="",
        phase="prepare",
        model=str(options.model or stand_ins.whisper_base(scratch)),
        release=str(Path(release).resolve()),
        folder="",
        train_clips=clips,
        eval_clips=options.eval_clips,
        batch=options.batch,
        steps=options.steps,
        precision=options.precision,
        seed=0,
        max_new_tokens=TOKENS if options.model else TOKENS_OF_RANDOM_WEIGHTS,
    )


def machine() -> dict[str, Any]:
    """Returns the facts that the figures depend on."""
    packages = ("torch", "transformers", "accelerate", "datasets", "pytorch-lightning")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
        "git": git_state(),
    }


def processor() -> str:
    """Returns the name of the CPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def notes(options: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    """Returns the footnotes of the table."""
    lines = [
        f"{found['device']}, {found['threads']} threads, load {found['load_before']:.1f} before; "
        f"precision {options.precision}, batch {options.batch}, {options.steps} steps, {options.eval_clips} clips "
        f"evaluated; mean [min, max] of {options.rounds} rounds, ratios within a round.",
        "recipe: the tutorial with recomputation. fair: the same trainer without it, with workers and arrays. "
        "full, bucketed: kikitori with that data.window; of bucketed every tenth step is in 30 s (full_window_share).",
        "Whole run: both processes from start to end, with imports, preparation, first step and evaluation, no saving.",
        "Growth of a step: its peak less the memory between two steps. Kept for the backward pass: counted per tensor.",
        "FLOPs are computed for the window of each clip (benchmarks/flops.py), without recomputation.",
    ]
    if options.model is None:
        lines.append(
            "Random weights: no CER, because the transcripts are meaningless; they are cut at "
            f"{TOKENS_OF_RANDOM_WEIGHTS} tokens, because such a model never ends one."
        )
    if options.release is None:
        lines.append(
            "The clips are joined demo clips with the durations of Common Voice (see benchmarks/stand_ins.py)."
        )
    return lines


if __name__ == "__main__":
    main()
