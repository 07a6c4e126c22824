"""Names that earlier versions used in configurations, and what they are called now.

A command line with an old name is refused with the new one. The record of an old run or sweep is translated when it is
read, so that it can be resumed and compared.
"""

import re
from collections.abc import Iterable, Iterator

# Values of `_target_`: modules, before configurations named what the package exports.
TARGETS = {
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
KEYS = {
    "accept": "resume_accept",
    "data.batch": "data.micro_batch_size",
    "data.cache_encoder": "data.cache_encoder_outputs",
    "data.global_batch": "data.global_batch_size",
    "sweep.resume": "resume_sweep",
}
# By group.
CHOICES = {
    "callbacks": {"best": "best_checkpoint"},
    "experiment": {"article": "tutorial_100_clips", "hf_blog": "hf_fine_tune_whisper"},
}


def outdated(words: Iterable[str]) -> Iterator[str]:
    """Yields one message for each override of a command line that uses an old name."""
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        new_key, _, new_value = translate(word).lstrip("+~").partition("=")
        if new_key != key:
            yield f"{key} is now {new_key}"
        elif new_value != value:
            yield f"{key}={value} is now {key}={new_value}"


def translate(override: str) -> str:
    """An override with the names of this version. Its value may be a list or a sweep of several, or a mapping."""
    text = re.sub(r"(_target_\s*[=:]\s*)([\w.]+)", lambda found: found[1] + TARGETS.get(found[2], found[2]), override)
    text = re.sub(r"(\$\{)([\w.]+)", lambda found: found[1] + KEYS.get(found[2], found[2]), text)
    key, equals, value = text.partition("=")
    name = key.lstrip("+~")
    if name in CHOICES:
        value = re.sub(r"[\w-]+", lambda word: CHOICES[name].get(word[0], word[0]), value)
    return f"{key.removesuffix(name)}{KEYS.get(name, name)}{equals}{value}"
