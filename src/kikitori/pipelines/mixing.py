"""Averages of the weights of several models, and mixtures of two."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ModelError

Weights = dict[str, Tensor]


def weights_of(model: WhisperForConditionalGeneration) -> Weights:
    """A copy of a model's weights, on the CPU. Tied ones are listed once under each name."""
    return {name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()}


def mean(every: Iterable[Mapping[str, Tensor]]) -> Weights:
    """The mean of each weight, summed in double precision, of one model after the other.

    All must have the same names and shapes.
    """
    models = iter(every)
    first = next(models)
    count, types = 1, {name: value.dtype for name, value in first.items()}
    sums = {name: value.detach().to("cpu", torch.float64, copy=True) for name, value in first.items()}
    for weights in models:
        count += 1
        for name, total in sums.items():
            total += weights[name].cpu()
    return {name: (total / count).to(types[name]) for name, total in sums.items()}


def mix(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> Weights:
    """(1 - alpha) base + alpha tuned: exactly the base at 0 and the tuned model at 1."""
    return {
        name: torch.lerp(weight.double(), tuned[name].double(), alpha).to(weight.dtype) for name, weight in base.items()
    }


def check_alike(models: Mapping[str, Whisper]) -> None:
    """Raises ModelError unless all models, by the name that the user gave, have one shape, vocabulary and language."""
    (first, one), *others = models.items()
    for name, other in others:
        for fault in _differences(one, other):
            raise ModelError(f"{name} has {fault.format(first)}; average models that were fine-tuned from one base")


def check_languages(models: Mapping[str, Whisper]) -> None:
    """Raises ModelError unless all tuned models, by the name that the user gave, were trained on the same languages."""
    (first, one), *others = models.items()
    for name, other in others:
        if {*_trained_on(one)} != {*_trained_on(other)}:
            raise ModelError(
                f"{name} was trained on {', '.join(_trained_on(other))}, {first} on {', '.join(_trained_on(one))}; "
                "average models that were trained on the same languages"
            )


def _trained_on(whisper: Whisper) -> list[str]:
    return whisper.languages or [whisper.processor.language]


def _differences(one: Whisper, other: Whisper) -> Iterator[str]:
    """Yields what the other has; {} stands for the name of the first."""
    shapes, found = ({key: tuple(w.shape) for key, w in m.model.state_dict().items()} for m in (one, other))
    for key in shapes:
        if shapes[key] != found.get(key):
            yield f"a {key} of shape {found.get(key)}, {{}} one of {shapes[key]}"
    if one.processor.tokenizer.get_vocab() != other.processor.tokenizer.get_vocab():
        yield "another vocabulary than {}"
    languages = [f"{m.processor.language} ({m.processor.task})" for m in (one, other)]
    if languages[0] != languages[1]:
        yield f"the language {languages[1]}, {{}} {languages[0]}"
