"""Run folders with made-up results, in the layout that training writes."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kikitori.metrics.error_rates import prediction, score_clips, summarise
from kikitori.metrics.normalizer import text_rules
from kikitori.runtime.files import write_json, write_lines

REFERENCES = ("カレーとサラダ", "ピザと紅茶", "うどんとビール", "寿司と水", "ラーメンと餃子", "天ぷらと味噌汁")
SCORING = text_rules("ja")


def with_errors(errors: int, references: Sequence[str] = REFERENCES) -> list[str]:
    """The references, with the first `errors` characters of every second one replaced."""
    return ["ぬ" * min(errors, len(text)) + text[errors:] if i % 2 == 0 else text for i, text in enumerate(references)]


def write_run(
    folder: Path,
    errors: int = 1,
    config: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    hypotheses: Sequence[str] | None = None,
    references: Sequence[str] = REFERENCES,
    digest: str | None = "a1b2c3",
    command: str = "train",
    **results: Any,
) -> Path:
    """A completed run with `errors` wrong characters in every second clip of validation and test."""
    stages = {"after": list(hypotheses or with_errors(errors, references)), "before": [""] * len(references)}
    if command == "evaluate":
        stages = {"evaluated": stages["after"]}
    scores: dict[str, Any] = {}
    for stage, outputs in stages.items():
        counted = score_clips(references, outputs, "ja")
        names = [f"clip_{i}.mp3" for i in range(len(references))]
        for split in ("validation", "test"):
            rows = map(prediction, names, references, outputs, counted)
            write_lines(folder / "predictions" / f"{split}_{stage}.jsonl", rows)
            scores.setdefault(stage, {})[split] = summarise(counted)
    facts = {"clips": len(references), "seconds": 9.0, **({"digest": digest} if digest else {})}
    written = {
        "status": "completed",
        "command": command,
        "overrides": list(overrides),
        "versions": {"kikitori": "0.1.0"},
        "git": {"commit": "0123456789abcdef", "dirty": False},
        "started": "2026-11-22T10:00:00",
        "config": {"seed": 0, "optim": {"lr": 0.001}, "data": {"language": "ja"}, "logger": {}} | dict(config or {}),
        "scores": scores,
        "cost": {"fit_s": 60.0, "evaluate_s": 12.0, "train_clips_per_s": 33.3, "devices": 1, "peak_memory_gb": 1.5},
        "data": {"corpus": "a corpus", "language": "ja", "splits": {"validation": facts, "test": facts}, "rejects": {}},
        "scoring": SCORING,
        "model": {"name": "micro", "parameters": 1_000_000, "window_s": 3.0},
        "history": [
            {"step": s, "train/loss": 3.0, "val/loss": 2.0, "val/cer": 9 / s, "val/wer": 1.0} for s in (10, 20)
        ],
    }
    written["cost"]["device"] = "cpu, 2 threads"
    write_json(folder / "results.json", written | results)
    return folder


def write_grid(sweep: Path, seeds: Sequence[int] = (0, 1)) -> Path:
    """A sweep over two keys and seeds. A larger model makes fewer errors; the learning rate has no effect."""
    number = 0
    for d_model in (32, 64):
        for lr in (0.001, 0.002):
            for seed in seeds:
                given = [f"model.d_model={d_model}", f"optim.lr={lr}", f"seed={seed}"]
                config = {"seed": seed, "optim": {"lr": lr}, "model": {"d_model": d_model}}
                name = f"{number}-model.d_model-{d_model}_optim.lr-{lr}_seed-{seed}"
                write_run(sweep / name, 3 - d_model // 32 + seed, config, given)
                number += 1
    return sweep


def write_sweep(sweep: Path, *trials: Mapping[str, Any]) -> None:
    """A sweep.json as the launcher writes it."""
    sweep.mkdir(parents=True, exist_ok=True)
    complete = [{"overrides": [], "swept": {}, **trial} for trial in trials]
    (sweep / "sweep.json").write_text(json.dumps({"command": [], "trials": complete}), encoding="utf-8")
