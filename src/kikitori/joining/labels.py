"""The labels of an example: prompt, timestamps, texts. In training and in tests of it, and nowhere else.

    [<|startofprev|> previous] <|startoftranscript|> <|ja|> <|transcribe|> BODY <|endoftext|>

BODY is `<|notimestamps|>` and the texts, or `<|t0|> text <|t1|><|t2|> text <|t3|>` and so on: the start and end of each
sentence. A sentence that the end of the window cuts off leaves its start alone; a window with nothing else is empty.
The decoder reads the prompt, but there is no loss on it. Source: Radford et al. 2022, sec. 2.3.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from kikitori.model.processor import SAMPLES_PER_STAMP, Processor


class Labels(NamedTuple):
    """All token ids of an example, from the prompt to the end token, and how many of them the prompt has."""

    tokens: list[int]
    prompt: int


def stamp(samples: int) -> int:
    """The number of the timestamp of a position in a window: steps of 0.02 s, rounded half up."""
    return (samples + SAMPLES_PER_STAMP // 2) // SAMPLES_PER_STAMP


def label_ids(
    processor: Processor,
    texts: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]] | None = None,
    crossing: int | None = None,
    previous: Sequence[int] = (),
) -> Labels:
    """The labels of a window.

    texts: token ids of each sentence. spans: the samples where each begins and ends; None for labels without
    timestamps. crossing: where a sentence begins that the window's end cuts off. previous: token ids of the text
    before; of more than fit, the last are kept: half of the decoder's context, or what the sentences leave.
    """
    start, end = processor.prefix[0], processor.tokenizer.eos_token_id
    if spans is None:
        body = [processor.prefix[-1], *(token for text in texts for token in text)]
    else:
        first, body = timestamp_begin(processor), []
        for text, (begins, ends) in zip(texts, spans, strict=True):
            body += [first + stamp(begins), *text, first + stamp(ends)]
        if crossing is not None and texts:
            body.append(first + stamp(crossing))
    tokens = [start, *processor.prefix[1:-1], *body, end]
    room = min(processor.max_prompt_tokens, processor.max_label_tokens - len(tokens) - 1)
    prompt = [processor.previous_id, *previous[-room:]] if previous and room > 0 else []
    return Labels([*prompt, *tokens], len(prompt))


def timestamp_begin(processor: Processor) -> int:
    """The id of <|0.00|>, of a tokenizer that has it."""
    assert processor.timestamp_begin is not None
    return processor.timestamp_begin


def label_fault(processor: Processor, tokens: Sequence[int]) -> str | None:
    """What is wrong with the token ids of an example, as `label_ids` returns them; None for correct ones."""
    start, prompt = processor.prefix[0], 0
    if len(tokens) > processor.max_label_tokens:
        return f"{len(tokens)} labels, over {processor.max_label_tokens}"
    if tokens[0] == processor.previous_id and start in tokens:
        prompt = list(tokens).index(start)
        if fault := _control_fault(processor, tokens[1:prompt], "prompt"):
            return fault
        if prompt - 1 > processor.max_prompt_tokens:
            return f"{prompt - 1} tokens in the prompt, over {processor.max_prompt_tokens}"
    rest, common = list(tokens[prompt:]), processor.prefix[:-1]
    stamped = processor.timestamp_begin is not None and rest[: len(common)] == common
    if not stamped or rest[len(common) : len(common) + 1] == processor.prefix[-1:]:
        return processor.label_fault(rest)
    if rest[-1] != processor.tokenizer.eos_token_id:
        return f"the labels end with {rest[-1]}, must be the end token, {processor.tokenizer.eos_token_id}"
    return _stamp_fault(processor, rest[len(common) : -1])


def _stamp_fault(processor: Processor, body: Sequence[int]) -> str | None:
    """What is wrong with sentences between timestamps."""
    first = timestamp_begin(processor)
    last = first + processor.num_timestamps - 1
    places = [i for i, token in enumerate(body) if first <= token <= last]
    stamps = [body[i] for i in places]
    if fault := _control_fault(processor, [token for token in body if not first <= token <= last], "text"):
        return fault
    if body and (not places or places[0] != 0 or places[-1] != len(body) - 1):
        return "the labels have text outside of timestamps"
    if any(after < before for before, after in pairwise(stamps)):
        return "the timestamps of the labels do not ascend"
    # Start and text and end; then the next start follows at once.
    for number, (place, following) in enumerate(pairwise(places)):
        if (following == place + 1) is (number % 2 == 0):
            return "the timestamps of the labels are not pairs around a text"
    return None


def _control_fault(processor: Processor, tokens: Sequence[int], where: str) -> str | None:
    found = next((token for token in tokens if token in processor.control_ids), None)
    if found is None:
        return None
    return f"the labels hold the control token {processor.tokenizer.convert_ids_to_tokens(found)} in the {where}"
