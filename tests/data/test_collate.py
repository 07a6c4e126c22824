from typing import Any

import pytest
import torch
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from kikitori.data.collate import IGNORE_INDEX, Batch, check_label_contract, collate
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import DataError


def example(whisper: Whisper, text: str) -> dict[str, Any]:
    features = torch.randn(80, whisper.processor.frames)
    return {
        "input_features": features,
        "tokens": whisper.processor.encode(text),
        "clip": text,
        "text": text,
        "seconds": 1.0,
    }


@pytest.fixture
def batch(micro: Whisper) -> Batch:
    return collate([example(micro, "犬"), example(micro, "赤い犬")])


def test_the_decoder_sees_one_start_token_only(micro: Whisper, batch: Batch) -> None:
    processor = micro.processor
    inputs = shift_tokens_right(batch["labels"], processor.tokenizer.pad_token_id, processor.prefix[0])
    assert (inputs == processor.prefix[0]).sum(dim=1).tolist() == [1, 1]
    assert inputs[:, :4].tolist() == [processor.prefix] * 2


def test_the_end_token_is_supervised_and_the_padding_is_not(micro: Whisper, batch: Batch) -> None:
    end = micro.processor.tokenizer.eos_token_id
    # Three tokens of prefix after the start, three bytes a character, the end.
    assert batch["labels"].shape == (2, 3 + 9 + 1)
    assert batch["labels"][0, 6] == end
    assert (batch["labels"][0, 7:] == IGNORE_INDEX).all()
    assert batch["labels"][1, -1] == end


def test_labels_equal_the_tokenizers_own_without_the_start(micro: Whisper, batch: Batch) -> None:
    expected = micro.processor.tokenizer("赤い犬")["input_ids"]
    assert batch["labels"][1].tolist() == expected[1:]


def test_a_batchs_loss_equals_the_stock_models_on_the_stock_collators_labels(micro: Whisper, batch: Batch) -> None:
    """The stock labels: padded by the tokenizer, masked by its attention mask, without the start token."""
    model, tokenizer = micro.model.eval(), micro.processor.tokenizer
    padded = tokenizer.pad({"input_ids": tokenizer(["犬", "赤い犬"])["input_ids"]}, return_tensors="pt")
    labels = padded["input_ids"].masked_fill(padded["attention_mask"].ne(1), -100)[:, 1:]
    assert torch.equal(labels, batch["labels"])
    stock = model(input_features=batch["input_features"][0], labels=labels).loss
    logits = model(input_features=batch["input_features"][0], labels=batch["labels"]).logits
    real = batch["labels"] != IGNORE_INDEX
    ours = torch.nn.functional.cross_entropy(logits[real], batch["labels"][real])
    torch.testing.assert_close(ours, stock)


def test_a_correct_batch_passes_the_check(micro: Whisper, batch: Batch) -> None:
    check_label_contract(batch, micro.processor)


def test_the_check_finds_a_second_start_token(micro: Whisper, batch: Batch) -> None:
    start = torch.full((2, 1), micro.processor.prefix[0])
    batch["labels"] = torch.cat([start, batch["labels"]], dim=1)
    with pytest.raises(DataError, match="2 start tokens"):
        check_label_contract(batch, micro.processor)


def test_the_check_finds_a_masked_end_token(micro: Whisper, batch: Batch) -> None:
    batch["labels"][batch["labels"] == micro.processor.tokenizer.eos_token_id] = IGNORE_INDEX
    with pytest.raises(DataError, match="must be the end token"):
        check_label_contract(batch, micro.processor)


def test_the_check_finds_supervised_padding(micro: Whisper, batch: Batch) -> None:
    batch["labels"][batch["labels"] == IGNORE_INDEX] = micro.processor.tokenizer.pad_token_id
    with pytest.raises(DataError, match=r"control token <\|endoftext\|> in the text"):
        check_label_contract(batch, micro.processor)


def test_the_check_finds_another_language(micro: Whisper, batch: Batch) -> None:
    batch["labels"][:, 0] += 1
    with pytest.raises(DataError, match="labels begin with"):
        check_label_contract(batch, micro.processor)


def test_the_check_finds_features_of_another_window(micro: Whisper, batch: Batch) -> None:
    batch["input_features"] = [batch["input_features"][0][:, :, :-1]]
    with pytest.raises(DataError, match="not finite log-Mels"):
        check_label_contract(batch, micro.processor)
