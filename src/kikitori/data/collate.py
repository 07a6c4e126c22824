"""From examples to a batch, and the check of the label contract that every run makes on its first batch."""

from itertools import groupby
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.model.processor import Processor
from kikitori.runtime.errors import DataError

# The target that cross-entropy leaves out.
IGNORE_INDEX = -100


class Batch(TypedDict):
    """Clips in the order of their windows.

    input_features: (clips, mels, frames) float32 of each window in the batch, most often one; or, where they are known
    already, encoder_states: (clips, positions, d_model). labels: (batch, tokens) int64. clips: ids. texts: references.
    seconds: of speech. weights: (batch,) float32, what a clip's summed token losses count in training; None where none
    is done.
    """

    input_features: list[Tensor]
    encoder_states: list[Tensor]
    labels: Tensor
    clips: list[str]
    texts: list[str]
    seconds: list[float]
    weights: Tensor | None


def collate(examples: list[dict[str, Any]]) -> Batch:
    """Stack the log-Mels of each window and pad the labels of some examples.

    The start token is cut off the labels, because the model's own shift puts it in front of the decoder's input: left
    in, the decoder would be trained on two. Padding is masked by position, not by value: the end token has the
    padding's id and must stay supervised.
    """
    examples = sorted(examples, key=_window)
    weights = [e.get("weight") for e in examples]
    sequences = [torch.tensor(e["tokens"][1:], dtype=torch.int64) for e in examples]
    return Batch(
        input_features=_stacked(examples, "input_features"),
        encoder_states=_stacked(examples, "encoder_states"),
        labels=torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=IGNORE_INDEX),
        clips=[e["clip"] for e in examples],
        texts=[e["text"] for e in examples],
        seconds=[e["seconds"] for e in examples],
        weights=None if weights[0] is None else torch.tensor(weights),
    )


def _window(example: dict[str, Any]) -> int:
    """What tells clips of one window from those of another."""
    return example["encoder_states"].shape[0] if "encoder_states" in example else example["input_features"].shape[1]


def _stacked(examples: list[dict[str, Any]], key: str) -> list[Tensor]:
    """A tensor of each window, of examples in the order of their windows.

    torch's own function stacks, in a loader's worker straight into the memory that it shares: a copy made before is
    freed, but kept by the allocator, half a GB a worker.
    """
    known = [e for e in examples if key in e]
    return [default_collate([e[key] for e in same]) for _, same in groupby(known, _window)]


def check_label_contract(batch: Batch, processor: Processor) -> None:
    """Raise DataError unless a batch keeps the contract between front end, labels and decoder.

    One start token in the decoder's input, the language and task prefix after it, an end token that is supervised, all
    padding masked, features that fill the window. Run before the first step, so that no run trains on a broken batch.
    """
    features, labels = batch["input_features"], batch["labels"]
    end, (start, *prefix) = processor.tokenizer.eos_token_id, processor.prefix
    decoder_input_ids = shift_tokens_right(labels, end, start)
    wrong = []
    for part in features:
        _, mels, frames = part.shape
        windows = {processor.window_frames(round(s * SAMPLE_RATE)) for s in batch["seconds"]} | {processor.frames}
        if mels != processor.num_mel_bins or frames not in windows or not part.isfinite().all():
            wrong.append(f"features of shape {tuple(part.shape)} are not finite log-Mels of the window")
    for clip, row, inputs in zip(batch["clips"], labels.tolist(), decoder_input_ids.tolist(), strict=True):
        supervised = [token for token in row if token != IGNORE_INDEX]
        if inputs.count(start) != 1:
            wrong.append(f"{clip}: {inputs.count(start)} start tokens in the decoder's input, must be 1")
        if supervised[: len(prefix)] != prefix:
            wrong.append(f"{clip}: labels begin with {supervised[: len(prefix)]}, must be {prefix}")
        if supervised[-1:] != [end] or end in supervised[:-1]:
            wrong.append(f"{clip}: the labels must hold one supervised end token, {end}, at their end")
        if row[: len(supervised)] != supervised:
            wrong.append(f"{clip}: a masked label stands before a supervised one")
    if wrong:
        raise DataError("the first batch breaks the label contract:\n  " + "\n  ".join(wrong))
