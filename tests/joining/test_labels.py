"""The labels of windows: a table written by hand, equality with transformers' tokenizer, and no loss on the prompt."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.data.collate import IGNORE_INDEX, check_label_contract, collate
from kikitori.joining.labels import Labels, label_fault, label_ids
from kikitori.model.loading import build_whisper
from kikitori.model.processor import Processor
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.errors import DataError
from kikitori.training.loss import clip_losses

# A prompt without its token; then a window's sentences with their start and end in seconds, None without timestamps;
# the start of the sentence that its end cuts off; the most tokens; the labels after the prompt.
START = "<|startoftranscript|><|ja|><|transcribe|>"
PLAIN = START + "<|notimestamps|>"
END = "<|endoftext|>"
Spans = list[tuple[float, float]] | None
GOLDEN: dict[str, tuple[str, list[str], Spans, float | None, int, str]] = {
    "one clip": ("", ["犬"], None, None, 448, PLAIN + "犬" + END),
    "one clip, stamped": ("", ["犬"], [(0, 2)], None, 448, START + "<|0.00|>犬<|2.00|>" + END),
    "two clips": ("", ["犬。", "猫。"], None, None, 448, PLAIN + "犬。猫。" + END),
    "two clips, stamped": (
        *("", ["犬。", "猫。"], [(0, 1.5), (2, 3)], None, 448),
        START + "<|0.00|>犬。<|1.50|><|2.00|>猫。<|3.00|>" + END,
    ),
    "no silence between": (
        *("", ["犬", "猫"], [(0, 1.5), (1.5, 3)], None, 448),
        START + "<|0.00|>犬<|1.50|><|1.50|>猫<|3.00|>" + END,
    ),
    "silence first": ("", ["犬"], [(4.2, 6.06)], None, 448, START + "<|4.20|>犬<|6.06|>" + END),
    "crossing end": (
        *("", ["犬", "猫"], [(0, 12), (12.5, 24.98)], 25.5, 448),
        START + "<|0.00|>犬<|12.00|><|12.50|>猫<|24.98|><|25.50|>" + END,
    ),
    "crossing end alone": ("", [], [], 0.0, 448, START + END),
    "exactly 30.00 s": ("", ["犬"], [(0, 30)], None, 448, START + "<|0.00|>犬<|30.00|>" + END),
    "the last starts at 29.98 s": (
        *("", ["犬"], [(0, 29.5)], 29.98, 448),
        START + "<|0.00|>犬<|29.50|><|29.98|>" + END,
    ),
    "times are rounded to 0.02 s": (
        *("", ["犬", "猫"], [(0, 1.009), (1.02, 2.0301)], None, 448),
        START + "<|0.00|>犬<|1.00|><|1.02|>猫<|2.04|>" + END,
    ),
    "half a step is rounded up": ("", ["犬"], [(0, 1.01)], None, 448, START + "<|0.00|>犬<|1.02|>" + END),
    "no speech": ("", [], None, None, 448, PLAIN + END),
    "no speech, stamped": ("", [], [], None, 448, START + END),
    "previous text": ("鳥。", ["犬"], None, None, 448, "<|startofprev|>鳥。" + PLAIN + "犬" + END),
    "previous text, stamped": (
        *("鳥。", ["犬"], [(0, 2)], None, 448),
        "<|startofprev|>鳥。" + START + "<|0.00|>犬<|2.00|>" + END,
    ),
    "previous text without speech": ("鳥。", [], [], None, 448, "<|startofprev|>鳥。" + START + END),
    "of long previous text the last 223 tokens": (
        *("a" * 200 + "b" * 200, ["c"], None, None, 448),
        "<|startofprev|>" + "a" * 23 + "b" * 200 + PLAIN + "c" + END,
    ),
    # 26 labels without a prompt leave room for its token and 5 of its text.
    "previous text beyond the limit is left out": (
        *("abcdefgh", ["c" * 21], None, None, 32),
        "<|startofprev|>defgh" + PLAIN + "c" * 21 + END,
    ),
    "no room for previous text": ("abc", ["c" * 26], None, None, 32, PLAIN + "c" * 26 + END),
    "exactly the limit": ("", ["c" * 25], [(0, 1)], None, 31, START + "<|0.00|>" + "c" * 25 + "<|1.00|>" + END),
    "text like a timestamp stays text": ("", ["<|1.00|>"], [(0, 2)], None, 448, START + "<|0.00|>\0<|2.00|>" + END),
}


@pytest.fixture(scope="module")
def processor() -> Processor:
    """Of bytes, and the timestamps of 30 s."""
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 448}
    return build_whisper(**sizes, window_s=30, timestamps=True).processor


def ids_of(processor: Processor, text: str) -> list[int]:
    """The ids of a written row: its control tokens, and the bytes between them. NUL: text that looks like a stamp."""
    ids: list[int] = []
    for part in filter(None, re.split(r"(<\|[^|]+\|>)", text)):
        is_control = part.startswith("<|")
        plain = part.replace("\0", "<|1.00|>")
        ids += processor.tokenizer.convert_tokens_to_ids([part]) if is_control else processor.encode_texts([plain])[0]
    return ids


def labels_of(
    processor: Processor, row: tuple[str, list[str], Spans, float | None, int, str]
) -> tuple[Labels, Processor]:
    previous, texts, spans, crossing, most, _ = row
    limited = replace(processor, max_label_tokens=most)
    samples = None if spans is None else [(round(a * SAMPLE_RATE), round(b * SAMPLE_RATE)) for a, b in spans]
    cut = None if crossing is None else round(crossing * SAMPLE_RATE)
    before, *sentences = limited.encode_texts([previous, *texts])
    return label_ids(limited, sentences, samples, cut, before), limited


@pytest.mark.parametrize("name", GOLDEN)
def test_labels_are_those_written_by_hand(processor: Processor, name: str) -> None:
    labels, limited = labels_of(processor, GOLDEN[name])
    expected = ids_of(processor, GOLDEN[name][-1])
    assert processor.tokenizer.convert_ids_to_tokens(labels.tokens) == processor.tokenizer.convert_ids_to_tokens(
        expected
    )
    assert labels.tokens == expected
    assert labels.prompt == expected.index(processor.prefix[0])
    assert label_fault(limited, labels.tokens) is None
    # Batched, the contract between labels and model holds.
    batch = collate([example(processor, labels)])
    check_label_contract(batch, limited)
    assert batch["num_tokens"] == [len(expected) - 1 - labels.prompt]


def example(processor: Processor, labels: Labels) -> dict:
    features = torch.zeros(processor.num_mel_bins, processor.frames)
    facts = {"clip": "a", "text": "", "seconds": 30.0}
    return {"input_features": features, "tokens": labels.tokens, "prompt": labels.prompt, **facts}


@pytest.mark.parametrize("name", [n for n, row in GOLDEN.items() if n != "text like a timestamp stays text"])
def test_labels_equal_those_of_transformers_tokenizer(processor: Processor, name: str) -> None:
    check_against_transformers(processor, name)


@pytest.mark.slow
def test_labels_of_whisper_base_equal_those_of_transformers_tokenizer(whisper_base: Whisper) -> None:
    for name, row in GOLDEN.items():
        # Its tokens are not bytes, so the rows about limits say something else.
        if row[4] == 448 and "223" not in name and "like a timestamp" not in name:
            check_against_transformers(whisper_base.processor, name)
    text = "<|0.00|>今日は雨です。<|2.42|><|3.00|>明日は晴れるでしょう。<|5.00|>"
    stock = whisper_base.processor.tokenizer(text)["input_ids"]
    texts = whisper_base.processor.encode_texts(["今日は雨です。", "明日は晴れるでしょう。"])
    ours = label_ids(whisper_base.processor, texts, [(0, 38_720), (48_000, 80_000)])
    # The tokenizer puts <|notimestamps|> into its prefix, whatever the text.
    assert [token for token in stock if token != whisper_base.processor.prefix[-1]] == ours.tokens
    assert ours.tokens[3] == whisper_base.processor.prefix[-1] + 1


def check_against_transformers(processor: Processor, name: str) -> None:
    """The tokenizer's ids of the written row, of which it reads control tokens as such."""
    tokenizer = processor.tokenizer
    assert (
        labels_of(processor, GOLDEN[name])[0].tokens
        == tokenizer(GOLDEN[name][-1], add_special_tokens=False)["input_ids"]
    )


def test_a_language_with_spaces_has_them_between_sentences(processor: Processor) -> None:
    assert replace(processor, language="de").separator == " "
    assert processor.separator == ""


def test_there_is_no_loss_on_the_prompt() -> None:
    """Neither in the sum nor in the gradient of the decoder's states; and it equals cross-entropy of the rest."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 64}
    whisper = build_whisper(**sizes, window_s=1, timestamps=True)
    processor, model = whisper.processor, whisper.model
    rows = [
        ("鳥。", ["犬"], [(0, 1)], None, 64, ""),
        ("", ["赤い犬"], None, None, 64, ""),
        ("猫", [], [], None, 64, ""),
    ]
    every = [labels_of(processor, row)[0] for row in rows]
    assert [labels.prompt for labels in every] == [7, 0, 4]
    batch = collate([example(processor, labels) for labels in every])
    states = encode(model, torch.randn(3, 80, 100))
    kept: list[torch.Tensor] = []
    hook = model.model.decoder.layer_norm.register_forward_hook(
        lambda *args: kept.append(args[-1]) or args[-1].retain_grad()
    )
    losses = clip_losses(model, states, batch["labels"], sum(batch["num_tokens"]), batch["decoder_input_ids"])
    losses.sum().backward()
    hook.remove()
    assert kept[0].grad is not None
    for row, labels in enumerate(every):
        size = len(labels.tokens) - 1
        assert batch["decoder_input_ids"][row, :size].tolist() == labels.tokens[:-1]
        assert batch["labels"][row, : labels.prompt].eq(IGNORE_INDEX).all()
        assert batch["labels"][row, labels.prompt : size].tolist() == labels.tokens[labels.prompt + 1 :]
        has_gradient = kept[0].grad[row].abs().sum(dim=1) > 0
        assert has_gradient.tolist() == [labels.prompt <= i < size for i in range(len(has_gradient))]
        # Alone, by the stock model.
        inputs, targets = torch.tensor([labels.tokens[:-1]]), torch.tensor(labels.tokens[labels.prompt + 1 :])
        logits = model(encoder_outputs=(states[row : row + 1],), decoder_input_ids=inputs).logits[0, labels.prompt :]
        torch.testing.assert_close(losses[row], cross_entropy(logits, targets, reduction="sum"))


FAULTS = {
    "<|0.00|>犬" + END: "text outside of timestamps",
    "犬<|1.00|>" + END: "text outside of timestamps",
    "<|2.00|>犬<|1.00|>" + END: "do not ascend",
    "<|0.00|>犬<|1.00|>猫<|2.00|>" + END: "not pairs around a text",
    "<|0.00|><|1.00|>" + END: "not pairs around a text",
    "<|0.00|>犬<|ja|><|1.00|>" + END: r"control token <\|ja\|> in the text",
    "<|0.00|>犬<|1.00|>": "must be the end token",
    "<|notimestamps|>犬<|1.00|>" + END: r"control token <\|1.00\|> in the text",
}


@pytest.mark.parametrize(("body", "fault"), FAULTS.items())
def test_labels_that_are_none_are_found(processor: Processor, body: str, fault: str) -> None:
    tokens = ids_of(processor, START + body)
    assert re.search(fault, label_fault(processor, tokens) or "")


def test_a_prompt_is_checked_too(processor: Processor) -> None:
    def fault(text: str) -> str:
        return label_fault(processor, ids_of(processor, text)) or ""

    assert "control token <|1.00|> in the prompt" in fault("<|startofprev|>鳥<|1.00|>" + PLAIN + "犬" + END)
    assert "224 tokens in the prompt, over 223" in fault("<|startofprev|>" + "a" * 224 + PLAIN + "犬" + END)
    assert "449 labels, over 448" in fault(PLAIN + "a" * 444 + END)


def test_the_contract_finds_a_supervised_prompt_and_shifted_inputs(processor: Processor) -> None:
    labels, _ = labels_of(processor, GOLDEN["previous text"])
    batch = collate([example(processor, labels)])
    batch["labels"][0, 0] = 5
    with pytest.raises(DataError, match=r"a masked label precedes a supervised one|labels begin with"):
        check_label_contract(batch, processor)
    batch = collate([example(processor, labels)])
    assert batch["decoder_input_ids"] is not None
    batch["decoder_input_ids"][0, -1] += 1
    with pytest.raises(DataError, match="not the labels, one place later"):
        check_label_contract(batch, processor)
