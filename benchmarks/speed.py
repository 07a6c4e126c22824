"""kikitori against what one would run instead: the same clips, seeds, batch and number of steps, taking turns.

    python benchmarks/speed.py                                          # random weights, joined clips of the demo
    python benchmarks/speed.py --model openai/whisper-base --release cv-corpus-27.0-2026-09-09/ja --batch 16 --steps 8

Each contender of a round is a process of its own (two: one prepares, one trains and evaluates); every other round goes
backwards. The terminal shows a table; --output gets it as speed.md, and all figures of all rounds as speed.json.
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

from kikitori.runs.provenance import git_state
from kikitori.runtime.console import quiet_libraries
from kikitori.runtime.files import write_json

# Random weights never end a transcript by themselves: so many tokens as one of Common Voice's has.
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
                # After each, so that whoever interrupts a long run keeps what it measured.
                results["summary"] = tables.summarise(results["rounds"])
                write_json(output / "speed.json", results)
    table, told = tables.rows(results["summary"]), notes(options, results["machine"])
    (output / "speed.md").write_text(tables.markdown(table, told), encoding="utf-8")
    tables.show(table, told)
    print(f"in {output}: speed.md, speed.json")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or Hub name; else random weights of whisper-base's shape")
    parser.add_argument("--release", help="a Common Voice language folder; else the demo's clips, joined")
    parser.add_argument("--batch", type=int, default=16, help="clips of a step, and of an evaluation's batch")
    parser.add_argument("--steps", type=int, default=4, help=f"timed steps, after {WARMUP_STEPS} to warm up")
    parser.add_argument("--eval-clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("32", "bf16-mixed", "16-mixed"), help="else as kikitori takes it")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--output", default="outputs/bench", help="folder of speed.md and speed.json")
    options = parser.parse_args()
    options.precision = options.precision or ("16-mixed" if torch.cuda.is_available() else "32")
    return options


def first_task(options: argparse.Namespace, scratch: Path) -> Task:
    """What all contenders share; stand-ins are made where no model or no release is given."""
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
    """What the figures hang on."""
    packages = ("torch", "transformers", "accelerate", "datasets", "pytorch-lightning")
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
        "git": git_state(),
    }


def processor() -> str:
    """The CPU's name, as Linux knows it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def notes(options: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    """What must be known to read the table."""
    told = [
        f"{found['device']}, {found['threads']} threads, load {found['load_before']:.1f} before; "
        f"precision {options.precision}, batch {options.batch}, {options.steps} steps, {options.eval_clips} clips "
        f"evaluated; mean [least, greatest] of {options.rounds} rounds, ratios within a round.",
        "recipe: the tutorial with recomputation. fair: the same trainer without it, with workers and arrays. "
        "full, bucketed: kikitori with that data.window.",
        "A step's growth: from between two steps to the peak inside one. What is kept: counted tensor by tensor.",
        "FLOPs are the model's in the window that was heard, by arithmetic (benchmarks/flops.py); recomputation is not "
        "counted.",
    ]
    if options.model is None:
        told.append(
            "Random weights: no CER, for such a model reads noise; transcripts are cut at "
            f"{TOKENS_OF_RANDOM_WEIGHTS} tokens, because it never ends one."
        )
    if options.release is None:
        told.append("The clips are the demo's, joined to last as long as Common Voice's (see benchmarks/stand_ins.py).")
    return told


if __name__ == "__main__":
    main()
