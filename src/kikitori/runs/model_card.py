"""The model card: README.md of a trained model's folder, with the metadata that the Hugging Face Hub reads."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

from kikitori.guard.table import guard_legend, guard_rows
from kikitori.references.names import HubModel, is_reference, parse_reference
from kikitori.runs.results import FULL_WINDOW
from kikitori.runs.summary import (
    full_window_rates,
    long_recordings_lines,
    percent,
    plain_text,
    rate_cell,
    with_languages,
)

TASK = "automatic-speech-recognition"
# What the card says where the model is; `kikitori push` replaces it by its name on the Hub.
PLACE = "path/to/this/folder"
HUB_NAME = re.compile(r"[\w-]+/[\w.-]+")


def model_card(results: Mapping[str, Any]) -> str:
    """Writes the card from a run's results: scores, windows, scores in a stock pipeline, settings and how to use it."""
    return front_matter(metadata(results)) + card_text(results)


def front_matter(values: Mapping[str, Any]) -> str:
    """Metadata as the head of a card."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=10_000)}---\n"


def metadata(results: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a card: language, base, corpus, and the scores as a model-index."""
    data = results["data"]
    languages = data.get("languages") or [data["language"]]
    base, datasets = base_model(results), _dataset_of_the_hub(results)
    scores = list(_scores(results))
    relation = {"base_model": base, "base_model_relation": "finetune"} if base else {}
    return {
        "language": languages if len(languages) > 1 else languages[0],
        "library_name": "transformers",
        "pipeline_tag": TASK,
        **relation,
        **({"datasets": [datasets]} if datasets else {}),
        "tags": ["whisper", "kikitori"],
        "metrics": ["cer", "wer"],
        **(
            {"model-index": eval_results_to_model_index(plain_text(results["model"]["name"]), scores)} if scores else {}
        ),
    }


def _scores(results: Mapping[str, Any]) -> Iterator[EvalResult]:
    """CER and WER of validation and test after training, in percent, in each window that they were measured in."""
    data, scoring = results["data"], results.get("scoring", {})
    name = corpus_name(data)
    rules = {key: scoring[key] for key in ("normaliser", "segmenter") if key in scoring}
    windows = {"after": results["model"]["window"], FULL_WINDOW: "the full window"}
    before = with_languages(results["scores"].get("before", {}))
    for stage, window in windows.items():
        for split, rates in with_languages(results["scores"].get(stage, {})).items():
            of, _, language = split.partition(" ")
            if of == "train":  # it says little of other speech
                continue
            for rate in ("cer", "wer"):
                # The base is scored in its own window alone.
                old = {"before_training": _percent(before[split][rate])} if stage == "after" and split in before else {}
                interval = [_percent(bound) for bound in rates[f"{rate}_ci95"]]
                yield EvalResult(
                    task_type=TASK,
                    dataset_type=_dataset_of_the_hub(results) or re.sub(r"\W+", "_", name).strip("_").lower(),
                    dataset_name=name,
                    dataset_config=language or results["model"].get("language") or data["language"],
                    dataset_split=of,
                    metric_type=rate,
                    metric_value=_percent(rates[rate]),
                    metric_name=f"{rate.upper()} %" + (", in the full window" if stage == FULL_WINDOW else ""),
                    metric_args={"interval_95": interval, "clips": rates["clips"], "window": window, **rules, **old},
                )


def _percent(fraction: float) -> float:
    return round(100 * fraction, 2)


def corpus_name(data: Mapping[str, Any]) -> str:
    """The corpus, in which a folder of this machine is named by its last part."""
    parts = data["corpus"].split(", ")
    return ", ".join(Path(part).name if part.startswith(("/", "~")) else part for part in parts)


def _dataset_of_the_hub(results: Mapping[str, Any]) -> str | None:
    """The dataset's name on the Hugging Face Hub, if it is there."""
    data = results["config"]["data"]
    name = data.get("name") if str(data.get("_target_")).endswith("Hub") else None
    return name if name and _is_of_the_hub(name, results) else None


def _is_of_the_hub(name: str, results: Mapping[str, Any]) -> bool:
    """Whether a name is owner/name on the Hub, and no folder where the run was started."""
    return HUB_NAME.fullmatch(name) is not None and not Path(results.get("cwd", ""), name).exists()


def card_text(results: Mapping[str, Any]) -> str:
    """The card without its metadata."""
    model, data, scores = results["model"], results["data"], results["scores"]
    rows = [("", "split", "clips", "CER %", "WER %"), ("---", "---", "---:", "---:", "---:")]
    stages = {"before": "before training", "after": "after training", FULL_WINDOW: "after, in the full window"}
    if results.get("averaged"):
        stages = {"before": "base", "after": "mixture", FULL_WINDOW: "mixture, in the full window"}
    for stage, words in stages.items():
        for split, rates in with_languages(scores.get(stage, {})).items():
            rows.append((words, split, str(rates["clips"]), rate_cell(rates, "cer"), rate_cell(rates, "wer")))
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    return f"""
# {plain_text(model["name"])}, fine-tuned on {plain_text(corpus_name(data))}

{table}

Rates are all edits divided by all lengths, on normalised text, with 95 % bootstrap intervals over clips.

**Windows.** {_trained(results)} with each clip padded to {model["window"]}.{_full_window_share(results)}
{_stock_pipeline(results)}
{_reading(results)}{_guard(results)}
**Training.** {_training(results)}{_joined(results)}

```python
import kikitori

whisper = kikitori.load_whisper("{PLACE}")
print(kikitori.transcribe(whisper, "talk.mp3"))
```
"""


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


def base_model(results: Mapping[str, Any]) -> str | None:
    """The pretrained model, if its name is one of the Hugging Face Hub: owner/model."""
    name = results["config"]["model"].get("name") or results["config"].get("against") or ""
    if is_reference(name):
        found = parse_reference(name)
        return found.name if isinstance(found, HubModel) else None
    return name if _is_of_the_hub(name, results) else None


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
