"""The card of a trained model's folder: how it hears, how well, and what to expect of it in a stock pipeline."""

from collections.abc import Mapping
from typing import Any

from kikitori.runs.results import FULL_WINDOW
from kikitori.runs.summary import full_window_rates, percent, rate_cell


def model_card(results: Mapping[str, Any]) -> str:
    """README.md of the model's folder, from the results of its run."""
    model, data, scores = results["model"], results["data"], results["scores"]
    rows = [("", "split", "clips", "CER %", "WER %"), ("---", "---", "---:", "---:", "---:")]
    stages = {"before": "before, as it came", "after": "after, as below", FULL_WINDOW: "after, in the whole window"}
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

Rates are all edits over all length on normalised text; in brackets 95 % bootstrap intervals over clips.

**How it hears.** Trained, and scored after, with each clip in {model["window"]}.{_share(results)}
{_in_a_stock_pipeline(results)}
"""


def _share(results: Mapping[str, Any]) -> str:
    share = results["config"]["data"]["full_window_share"]
    return f" Of the training steps, {percent(share)} % were in the whole window." if share else ""


def _in_a_stock_pipeline(results: Mapping[str, Any]) -> str:
    rates = full_window_rates(results)
    told = f"transformers' pipeline hears every clip in the whole window of {results['model']['window_s']:g} s"
    if not rates:
        return f"{told}, and so did the training."
    return (
        f"{told} instead, where this model reads: {rates}.\n"
        "Where that is worse, read it with `kikitori transcribe`, which knows its windows from config.json."
    )
