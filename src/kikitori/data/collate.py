"""Collates examples into a batch, and checks the contract between batch and model on a run's first batch."""

from itertools import groupby
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.joining.labels import label_fault
from kikitori.model.processor import Processor
from kikitori.runtime.errors import DataError

# The label that cross-entropy ignores.
IGNORE_INDEX = -100


class Batch(TypedDict):
    """Clips sorted by window.

    input_features: (clips, mels, frames) float32 for each window in the batch, usually one; or, if they are cached,
    encoder_states: (clips, positions, d_model). labels: (batch, tokens) int64. decoder_input_ids: what the decoder
    reads, (batch, tokens) int64; None if it follows from the labels, because no clip has a prompt. num_tokens: how many
    labels are supervised, by clip. clips: names. languages: Whisper's codes, None for the model's language. texts:
    references. seconds: durations, 0 of a clip that only fills up a training batch. weights: (batch,) float32, factors
    of the clips' summed token losses; None outside training, or for a sampler that gives none. step_clips: clips of the
    training step over all processes, if the sampler counts them. What the CPU reads is in lists: for a tensor, it would
    wait for the GPU.
    """

    input_features: list[Tensor]
    encoder_states: list[Tensor]
    labels: Tensor
    decoder_input_ids: Tensor | None
    num_tokens: list[int]
    clips: list[str]
    languages: list[str | None]
    texts: list[str]
    seconds: list[float]
    weights: Tensor | None
    step_clips: int | None


def collate(examples: list[dict[str, Any]]) -> Batch:
    """Stacks the log-Mels of each window and pads the labels of some examples.

    The start token is removed from the labels, because the model itself shifts the labels right and inserts it: with
    both, the decoder would be trained on two start tokens. Padding is masked by position, not by value: the end token
    has the same id as padding and must stay supervised. A prompt, and the start token after it, have no loss.
    """
    examples = sorted(examples, key=_window)
    weights = [e.get("weight") for e in examples]
    prompts = [e.get("prompt", 0) for e in examples]
    supervised = [e["tokens"][prompt + 1 :] for e, prompt in zip(examples, prompts, strict=True)]
    labels = [[IGNORE_INDEX] * prompt + tokens for prompt, tokens in zip(prompts, supervised, strict=True)]
    inputs = [e["tokens"][:-1] for e in examples] if any(prompts) else None
    return Batch(
        input_features=_stacked(examples, "input_features"),
        encoder_states=_stacked(examples, "encoder_states"),
        labels=_padded(labels, IGNORE_INDEX),
        # The end token pads, as in the model's own shift; nothing is computed from what follows the last label.
        decoder_input_ids=None if inputs is None else _padded(inputs, examples[0]["tokens"][-1]),
        num_tokens=[len(tokens) for tokens in supervised],
        clips=[e["clip"] for e in examples],
        languages=[e.get("language") for e in examples],
        texts=[e["text"] for e in examples],
        seconds=[0.0 if e.get("weight") == 0 else e["seconds"] for e in examples],
        weights=None if weights[0] is None else torch.tensor(weights),
        step_clips=examples[0].get("step_clips"),
    )


def _padded(rows: list[list[int]], value: int) -> Tensor:
    sequences = [torch.tensor(row, dtype=torch.int64) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def _window(example: dict[str, Any]) -> int:
    """The length of an example's window, in log-Mel frames or encoder positions."""
    return example["encoder_states"].shape[0] if "encoder_states" in example else example["input_features"].shape[1]


def _stacked(examples: list[dict[str, Any]], key: str) -> list[Tensor]:
    """One tensor per window, of examples sorted by window.

    torch's default_collate stacks straight into the shared memory of a loader worker. A copy made before that would be
    freed but kept by the allocator: half a GB per worker.
    """
    present = [e for e in examples if key in e]
    return [default_collate([e[key] for e in same]) for _, same in groupby(present, _window)]


def check_label_contract(batch: Batch, processor: Processor) -> None:
    """Raises DataError unless a batch fits the model: the contract between processor, labels and decoder.

    The decoder's input has one start token, after the prompt if there is one, followed by language and task; all labels
    from there to the end token are supervised, and none before; all padding is masked; the features fill their window.
    Checked before the first step; `SpeechDataset` checks the token ids of every clip of every batch.
    """
    features, labels = batch["input_features"], batch["labels"]
    start = processor.prefix[0]
    decoder_input_ids = batch["decoder_input_ids"]
    if decoder_input_ids is None:
        decoder_input_ids = shift_tokens_right(labels, processor.tokenizer.eos_token_id, start)
    wrong = []
    for part in features:
        _, mels, frames = part.shape
        windows = {processor.window_frames(round(s * SAMPLE_RATE)) for s in batch["seconds"]} | {processor.frames}
        if mels != processor.num_mel_bins or frames not in windows or not part.isfinite().all():
            wrong.append(f"features of shape {tuple(part.shape)} are not finite log-Mels of the window")
    rows = zip(batch["clips"], batch["languages"], labels.tolist(), decoder_input_ids.tolist(), strict=True)
    for clip, language, row, inputs in rows:
        supervised = [token for token in row if token != IGNORE_INDEX]
        if inputs.count(start) != 1:
            wrong.append(f"{clip}: {inputs.count(start)} start tokens in the decoder's input, must be 1")
            continue
        prompt = inputs.index(start)
        if fault := label_fault(processor.of(language), [*inputs[: prompt + 1], *supervised]):
            wrong.append(f"{clip}: {fault}")
        if row[prompt : prompt + len(supervised)] != supervised:
            wrong.append(f"{clip}: a masked label precedes a supervised one")
        elif inputs[prompt + 1 : prompt + len(supervised)] != supervised[:-1]:
            wrong.append(f"{clip}: the decoder's input is not the labels, one place later")
    if wrong:
        raise DataError("the first batch breaks the label contract:\n  " + "\n  ".join(wrong))
