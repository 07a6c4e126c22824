"""Compares adapters with full training: speed, memory and disk, on the same clips, taking turns.

    python benchmarks/adapters.py                                       # random weights, joined clips of the demo
    python benchmarks/adapters.py --model openai/whisper-base --release cv-corpus-27.0-2026-09-09/ja --batch 16

Each way to train has a process of its own per round; every other round has the reverse order. What is compared is the
cost of a step, not what is learnt: all ways have the same learning rate. The terminal shows a table; the output folder
gets it as adapters.md, and the figures of all rounds as adapters.json.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import stand_ins
import tables
from speed import machine
from task import WARMUP_STEPS, Task, child

from kikitori.runtime.files import write_json

ALL = "adapter.targets=[q_proj,k_proj,v_proj,out_proj,fc1,fc2]"
WAYS: dict[str, tuple[str, ...]] = {
    "full": (),
    "frozen encoder": ("model.freeze=encoder",),
    "lora": ("adapter=lora",),
    "lora, all layers": ("adapter=lora", ALL),
    "dora": ("adapter=dora",),
    "adalora": ("adapter=adalora", "adapter.every_steps=1"),
    "lora, frozen encoder": ("adapter=lora", "model.freeze=encoder"),
    "lora, base in 8 bits": ("adapter=lora", "adapter.base_bits=8"),
    "lora, base in 4 bits": ("adapter=lora", "adapter.base_bits=4"),
    "lora, checkpointing": ("adapter=lora", "model.gradient_checkpointing=true"),
}
# (label, key, factor from the stored unit, decimals)
MEASURES = (
    ("trained clips/s", "clips_per_s", 1.0, 2),
    ("peak memory, GB", "peak_mb", 1e-3, 2),
    ("growth of a step, MB per clip", "growth_mb_per_clip", 1.0, 0),
    ("kept for the backward pass, MB per clip", "activation_mb_per_clip", 1.0, 0),
    ("trained weights, M", "trained_weights", 1e-6, 2),
    ("all weights, MB", "weights_mb", 1.0, 0),
    ("optimizer state, MB", "optimizer_mb", 1.0, 1),
    ("checkpoint, MB", "checkpoint_mb", 1.0, 0),
)


def main() -> None:
    options = parse()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    before = machine()
    with TemporaryDirectory(prefix="kikitori-bench-") as scratch:
        task = first_task(options, Path(scratch))
        child(task)
        for number in range(options.rounds):
            for name in options.only if number % 2 == 0 else options.only[::-1]:
                print(f"round {number + 1} of {options.rounds}: {name}", flush=True)
                measured = child(replace(task, phase="train", seed=number, overrides=WAYS[name]))["train"]
                found[name].append({key: measured[key] for _, key, _, _ in MEASURES})
                write_json(output / "adapters.json", {"settings": vars(options), "machine": before, "rounds": found})
    table = rows({name: measured for name, measured in found.items() if measured})
    notes = [f"{before['device']}, {before['threads']} threads, load {before['load_before']:.1f} before"]
    (output / "adapters.md").write_text(tables.markdown(table, notes), encoding="utf-8")
    tables.show(table, notes)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or Hub name; default: random weights with the shape of whisper-base")
    parser.add_argument("--release", help="a Common Voice language folder; default: joined clips of the demo")
    parser.add_argument("--batch", type=int, default=8, help="clips per step")
    parser.add_argument("--steps", type=int, default=3, help=f"timed steps, after a warm-up of {WARMUP_STEPS}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", choices=("32", "bf16-mixed", "16-mixed"), default="bf16-mixed")
    parser.add_argument("--window", choices=("bucketed", "full"), default="bucketed")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--output", default="outputs/bench", help="folder of adapters.md and adapters.json")
    return parser.parse_args()


def first_task(options: argparse.Namespace, scratch: Path) -> Task:
    """Returns the settings that all ways share; creates stand-ins if no model or release is given."""
    clips = options.steps * options.batch
    return Task(
        contender=options.window,
        phase="prepare",
        model=str(options.model or stand_ins.whisper_base(scratch)),
        release=str(Path(options.release or stand_ins.common_voice(scratch / "release", clips, 2)).resolve()),
        folder=str(scratch / "task"),
        train_clips=clips,
        eval_clips=2,
        batch=options.batch,
        steps=options.steps,
        precision=options.precision,
        seed=0,
        max_new_tokens=4,  # transcripts are not compared
    )


def rows(found: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Returns the header, then a row per way to train with the mean of its rounds; speed also in times of the first."""
    first = next(iter(found.values()))
    table = [["", *(label for label, *_ in MEASURES)]]
    for name, measured in found.items():
        cells = [cell([row[key] for row in measured], factor, digits) for _, key, factor, digits in MEASURES]
        ratios = [own["clips_per_s"] / peer["clips_per_s"] for own, peer in zip(measured, first, strict=False)]
        table.append([name, f"{cells[0]} ({mean(ratios):.2f})", *cells[1:]])
    return table


def cell(values: Sequence[float | None], factor: float, digits: int) -> str:
    known = [value * factor for value in values if value is not None]
    return f"{mean(known):,.{digits}f}" if known else tables.DASH


if __name__ == "__main__":
    main()
