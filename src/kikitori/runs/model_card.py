"""The model card: README.md of a trained model's folder."""

from collections.abc import Mapping
from typing import Any

from kikitori.runs.results import FULL_WINDOW
from kikitori.runs.summary import full_window_rates, percent, rate_cell


def model_card(results: Mapping[str, Any]) -> str:
    """Writes the card from a run's results: scores, the windows it was trained in, and scores in a stock pipeline."""
    model, data, scores = results["model"], results["data"], results["scores"]
    rows = [("", "split", "clips", "CER %", "WER %"), ("---", "---", "---:", "---:", "---:")]
    stages = {"before": "before training", "after": "after training", FULL_WINDOW: "after, in the full window"}
    for stage, words in stages.items():
        for split, rates in scores.get(stage, {}).items():
            rows.append((words, split, str(rates["clips"]), rate_cell(rates, "cer"), rate_cell(rates, "wer")))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    return f"""---
language: "{data["language"]}"
library_name: transformers
pipeline_tag: automatic-speech-recognition
---

# {model["name"]}, fine-tuned on {data["corpus"]}

{table}

Rates are all edits divided by all lengths, on normalised text, with 95 % bootstrap intervals over clips.

**Windows.** Trained and scored with each clip padded to {model["window"]}.{_full_window_share(results)}
{_stock_pipeline(results)}
"""


def _full_window_share(results: Mapping[str, Any]) -> str:
    share = results["config"]["data"]["full_window_share"]
    return f" {percent(share)} % of the training steps used the full window." if share else ""


def _stock_pipeline(results: Mapping[str, Any]) -> str:
    rates = full_window_rates(results)
    pipeline = f"transformers' pipeline pads every clip to the full window of {results['model']['window_s']:g} s"
    if not rates:
        return f"{pipeline}, as the training did."
    return (
        f"{pipeline}; there this model scores {rates}.\n"
        "If that is worse, transcribe with `kikitori transcribe`, which reads the windows from config.json."
    )
