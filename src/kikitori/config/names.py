"""Names of earlier versions: refused on a command line with the new one, translated in the record of an old run."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path

# Values of `_target_`: modules, before configurations named what the package exports.
RENAMED_TARGETS = {
    "kikitori.datamodule.CommonVoice": "kikitori.CommonVoice",
    "kikitori.datamodule.Demo": "kikitori.Demo",
    "kikitori.datamodule.Hub": "kikitori.Hub",
    "kikitori.datamodule.Manifest": "kikitori.Manifest",
    "kikitori.optim.build": "kikitori.adamw",
    "kikitori.pruning.PruneByStudy": "kikitori.OptunaPruning",
    "kikitori.tracking.RunLogger": "kikitori.WandbRunLogger",
    "kikitori.trainer.ddp": "kikitori.ddp",
    "kikitori.whisper.build": "kikitori.build_whisper",
    "kikitori.whisper.load": "kikitori.load_whisper",
}
RENAMED_KEYS = {
    "accept": "resume_accept",
    "data.batch": "data.micro_batch_size",
    "data.cache_encoder": "data.cache_encoder_outputs",
    "data.global_batch": "data.global_batch_size",
    "sweep.resume": "resume_sweep",
}
# Keys of earlier versions that have no successor.
DROPPED_KEYS = re.compile(r".*\._partial_|callbacks\.checkpoint\.(filename|auto_insert_metric_name)")
# Settings of the Trainer, which all commands share, that only a training uses.
OF_TRAINING = tuple(f"trainer.{key}" for key in ("max_steps", "max_epochs", "gradient_clip_val", "log_every_n_steps"))
# What other tools call a key: transformers above all, former versions of Lightning, Hydra's own sweeper.
OF_OTHER_TOOLS = {
    "amp_backend": "trainer.precision",
    "auto_scale_batch_size": "data.micro_batch_size",
    "bf16": "trainer.precision",
    "ckpt_path": "resume",
    "epochs": "trainer.max_epochs",
    "eval_steps": "validation.every_steps",
    "fp16": "trainer.precision",
    "generation_max_length": "generation.max_new_tokens",
    "label_smoothing_factor": "loss.label_smoothing",
    "gpus": "trainer.devices",
    "gradient_accumulation_steps": "data.global_batch_size",
    "learning_rate": "optim.lr",
    "logging_steps": "trainer.log_every_n_steps",
    "lr_scheduler_type": "optim.schedule",
    "max_grad_norm": "trainer.gradient_clip_val",
    "model_name_or_path": "model.name",
    "n_jobs": "hydra.launcher.parallel",
    "num_processes": "trainer.devices",
    "num_train_epochs": "trainer.max_epochs",
    "output_dir": "hydra.run.dir",
    "per_device_eval_batch_size": "data.eval_batch_size",
    "per_device_train_batch_size": "data.global_batch_size",
    "resume_from_checkpoint": "resume",
    "save_steps": "validation.every_steps",
    "storage": "hydra.sweeper.study",
}
# The node whose keys are the keys that a sweep varies.
SWEPT = "hydra.sweeper.params"
# By group.
RENAMED_CHOICES = {
    "callbacks": {"best": "best_checkpoint"},
    "experiment": {"article": "tutorial_100_clips", "hf_blog": "hf_fine_tune_whisper"},
}


def outdated(overrides: Iterable[str], own: Sequence[Path] = ()) -> Iterator[str]:
    """Yields one message for each override that uses an old name. own: the user's configuration folders."""
    for word in overrides:
        key, _, value = word.lstrip("+~").partition("=")
        new_key, _, new_value = translate(word, own).lstrip("+~").partition("=")
        if new_key != key:
            yield f"{key} is now {new_key}"
        elif new_value != value:
            yield f"{key}={value} is now {key}={new_value}"


def translate(override: str, own: Sequence[Path] = ()) -> str:
    """An override with the names of this version. Its value may be a list or a sweep of several, or a mapping.

    own: the user's configuration folders; a choice that is a file there keeps its name.
    """
    text = re.sub(
        r"(_target_\s*[=:]\s*)([\w.]+)", lambda found: found[1] + RENAMED_TARGETS.get(found[2], found[2]), override
    )
    text = re.sub(r"(\$\{)([\w.]+)", lambda found: found[1] + RENAMED_KEYS.get(found[2], found[2]), text)
    key, equals, value = text.partition("=")
    return f"{_new_key(key)}{equals}{_translate_value(_swept_key(key), value, own)}"


def _translate_value(key: str, value: str, own: Sequence[Path] = ()) -> str:
    """The value of a key with the names of this version: of choices of a group, and of keys in a mapping."""
    parts = split(value)
    if len(parts) > 1:
        return ",".join(_translate_value(key, part, own) for part in parts)
    core = value.strip()
    if bracketed := re.fullmatch(r"(\w*\(|\[|['\"])(.*)([)\]'\"])", core, re.DOTALL):
        changed = bracketed[1] + _translate_value(key, bracketed[2], own) + bracketed[3]
    elif core[:1] == "{" and core[-1:] == "}":
        changed = "{" + ",".join(_translate_item(key, item, own) for item in split(core[1:-1])) + "}"
    else:
        changed = RENAMED_CHOICES.get(key, {}).get(core, core)
        if changed != core and any((folder / key / f"{core}.yaml").exists() for folder in own):
            changed = core
    return value.replace(core, changed, 1) if core else value


def _translate_item(parent: str, item: str, own: Sequence[Path]) -> str:
    """One `key: value` of the mapping that is the value of `parent`."""
    name, colon, value = item.partition(":")
    prefix = "" if parent == SWEPT else f"{parent}."
    key = prefix + name.strip().lstrip("+~")
    new = RENAMED_KEYS.get(key, key)
    if new.startswith(prefix):
        name = name.replace(key.removeprefix(prefix), new.removeprefix(prefix))
    return f"{name}{colon}{_translate_value(key, value, own)}"


def _new_key(key: str) -> str:
    name = _swept_key(key)
    return key.removesuffix(name) + RENAMED_KEYS.get(name, name)


def _swept_key(key: str) -> str:
    """The key itself, or the one that a key of `hydra.sweeper.params` varies."""
    return key.lstrip("+~").removeprefix(f"{SWEPT}.").lstrip("+~")


def split(text: str) -> list[str]:
    """The parts between the commas that are in no brackets or quotes."""
    parts, depth, quote = [""], 0, ""
    for before, character in zip(" " + text, text, strict=False):
        if quote:
            quote = "" if character == quote and before != "\\" else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the closest known name, if one is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
