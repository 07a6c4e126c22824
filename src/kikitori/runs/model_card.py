"""The model card: README.md of a trained model's folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kikitori.guard.table import guard_legend, guard_rows
from kikitori.runs.results import FULL_WINDOW
from kikitori.runs.summary import (
    full_window_rates,
    long_recordings_lines,
    percent,
    plain_text,
    rate_cell,
    with_languages,
)


def model_card(results: Mapping[str, Any]) -> str:
    """Writes the card from a run's results: scores, windows, scores in a stock pipeline, settings and how to use it."""
    model, data, scores = results["model"], results["data"], results["scores"]
    rows = [("", "split", "clips", "CER %", "WER %"), ("---", "---", "---:", "---:", "---:")]
    stages = {"before": "before training", "after": "after training", FULL_WINDOW: "after, in the full window"}
    if results.get("averaged"):
        stages = {"before": "base", "after": "mixture", FULL_WINDOW: "mixture, in the full window"}
    for stage, words in stages.items():
        for split, rates in with_languages(scores.get(stage, {})).items():
            rows.append((words, split, str(rates["clips"]), rate_cell(rates, "cer"), rate_cell(rates, "wer")))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    return f"""---
{_languages(data)}
library_name: transformers
pipeline_tag: automatic-speech-recognition
{_base_model(results)}---

# {plain_text(model["name"])}, fine-tuned on {plain_text(data["corpus"])}

{table}

Rates are all edits divided by all lengths, on normalised text, with 95 % bootstrap intervals over clips.

**Windows.** {_trained(results)} with each clip padded to {model["window"]}.{_full_window_share(results)}
{_stock_pipeline(results)}
{_reading(results)}{_guard(results)}
**Training.** {_training(results)}{_joined(results)}

```python
import kikitori

whisper = kikitori.load_whisper("path/to/this/folder")
print(kikitori.transcribe(whisper, "talk.mp3"))
```
"""


def _languages(data: Mapping[str, Any]) -> str:
    """The metadata of the language, or of several."""
    several = data.get("languages", [])
    return (
        f"language: {json.dumps(several)}" if len(several) > 1 else f'language: "{(several or [data["language"]])[0]}"'
    )


def _reading(results: Mapping[str, Any]) -> str:
    """How the language of a recording is chosen, for a model of several."""
    several = results["data"].get("languages", [])
    if len(several) < 2:
        return ""
    own = results["model"]["language"]
    return f"""
**Languages.** Trained on {", ".join(several)}, each clip with the token of its own language. transformers' pipeline
detects the language of a recording unless it is given one; `kikitori.load_whisper` takes `language=`, by default {own}.
"""


def _base_model(results: Mapping[str, Any]) -> str:
    """The metadata line of the pretrained model, if its name is one of the Hugging Face Hub: owner/model."""
    name = results["config"]["model"].get("name") or results["config"].get("against") or ""
    return (
        f"base_model: {json.dumps(name)}\n" if re.fullmatch(r"[\w-]+/[\w.-]+", name) and not Path(name).exists() else ""
    )


def _training(results: Mapping[str, Any]) -> str:
    """The settings that matter most, in one sentence, and the versions that it was made with."""
    config, versions = results["config"], results["versions"]
    tools = ", ".join(f"{name} {versions[name]}" for name in ("kikitori", "torch", "transformers") if name in versions)
    if averaged := results.get("averaged"):
        mixture = f"{averaged['alpha']:g} of it and {1 - averaged['alpha']:g} of their base"
        models = f"The mean of {averaged['runs']} fine-tuned models" if averaged["runs"] > 1 else "A fine-tuned model"
        return f"{models}, mixed: {mixture}. Made with {tools}."
    settings = {
        "steps": results.get("checkpoint", {}).get("steps"),
        "clips per step": config["data"].get("global_batch_size"),
        "optimizer": config["optim"].get("_target_", "").rpartition(".")[2] or None,
        "learning rate": config["optim"].get("lr"),
        "schedule": config["optim"].get("schedule"),
        "warm-up steps": config["optim"].get("warmup_steps"),
        "decay steps": config["optim"].get("decay_steps"),
        "label smoothing": config.get("loss", {}).get("label_smoothing"),
        "weights averaged with decay": config.get("ema", {}).get("decay"),
        "frozen": config["model"].get("freeze"),
        "augmentation": _augmentation(config.get("augment") or {}),
        "adapter": _adapter(config.get("adapter") or {}),
        "seed": config.get("seed"),
    }
    listed = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return f"{listed[:1].upper()}{listed[1:]}. Made with {tools}."


def _augmentation(settings: Mapping[str, Any]) -> str | None:
    """The changes of the training clips with their probabilities; None if there were none."""
    probs = {key.removesuffix("_prob"): value for key, value in settings.items() if key.endswith("_prob") and value}
    changes = [f"{name.replace('_', '-')} {percent(prob)} %" for name, prob in probs.items()]
    return f"of the clips ({', '.join(changes)})" if changes else None


def _joined(results: Mapping[str, Any]) -> str:
    """How clips were joined into windows, and with what in their labels; nothing if none were."""
    joining, facts = results["config"].get("joining") or {}, results.get("training", {}).get("joined")
    if not facts:
        return ""
    share, stamps, previous = (percent(joining.get(key, 0)) for key in ("share", "timestamps", "previous_text"))
    labels = f", {stamps} % of the examples had timestamps and {previous} % previous text" if joining["share"] else ""
    return (
        f" {share} % of the examples were clips joined into windows of {results['model']['window_s']:g} s"
        f" ({facts['clips_per_example']:g} clips per example on average){labels};"
        f" {percent(joining.get('non_speech', 0))} % were silence or noise without text."
    )


def _adapter(settings: Mapping[str, Any]) -> str | None:
    """The adapter that was trained and merged, in words."""
    if not settings:
        return None
    targets = plain_text(" ".join(map(str, settings.get("targets", []))))
    bits = f", trained on weights in {settings['base_bits']} bits" if settings.get("base_bits") else ""
    return (
        f"{settings.get('kind', 'adalora')} of rank {settings.get('rank')} (alpha {settings.get('alpha')}) on {targets}"
        f"{bits}"
    )


def _trained(results: Mapping[str, Any]) -> str:
    """What was done in the windows. A mixture may be saved with others than those of its training."""
    return "Scored" if results.get("averaged") else "Trained and scored"


def _full_window_share(results: Mapping[str, Any]) -> str:
    share = results["config"]["data"]["full_window_share"]
    trained_shorter = full_window_rates(results)
    return f" {percent(share)} % of the training steps used the full window." if share and trained_shorter else ""


def _guard(results: Mapping[str, Any]) -> str:
    """What the training cost elsewhere, as a table; empty for a run without a guard."""
    if not (rows := guard_rows(results.get("guard", []))):
        return ""
    header, *body = rows
    lines = [header, ["---"] * len(header), *([*map(plain_text, cells)] for cells in body)]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"""
**Guard.** The model next to its base on what its corpus does not show, with paired 95 % intervals over the recordings.

{table}

{guard_legend(results["guard"])}
{_long_recordings(results)}"""


def _long_recordings(results: Mapping[str, Any]) -> str:
    """How long recordings are read, as a paragraph; empty where the guard found nothing."""
    return "".join(f"\n{line}.\n" for line in long_recordings_lines(results))


def _stock_pipeline(results: Mapping[str, Any]) -> str:
    rates = full_window_rates(results)
    pipeline = f"transformers' pipeline pads every clip to the full window of {results['model']['window_s']:g} s"
    if not rates:
        return f"{pipeline}, as {'the scores did' if results.get('averaged') else 'the training did'}."
    return (
        f"{pipeline}; there this model scores {rates}.\n"
        "If that is worse, transcribe with `kikitori transcribe`, which reads the windows from config.json."
    )
