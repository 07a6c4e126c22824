"""No transcript becomes a control token, with any tokenizer, and every text comes back from its token ids."""

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers
from transformers import WhisperConfig, WhisperTokenizer

from kikitori.model.processor import Processor, byte_tokenizer, control_token_in, make_processor
from kikitori.runtime.errors import ModelError

CONFIG = WhisperConfig(max_target_positions=448)


def stock(tokenizer: WhisperTokenizer) -> WhisperTokenizer:
    return tokenizer


def with_timestamps(tokenizer: WhisperTokenizer) -> WhisperTokenizer:
    """As on the Hub, where timestamps are added tokens that are not special."""
    tokenizer.add_tokens([AddedToken(f"<|{i * 0.02:.2f}|>", special=False) for i in range(1501)])
    return tokenizer


def with_words(tokenizer: WhisperTokenizer) -> WhisperTokenizer:
    tokenizer.add_tokens(["新語", "ネトゲ"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["[笑]", "<pad>", "<|ainu|>", "♪"]})
    return tokenizer


def with_normalizer(tokenizer: WhisperTokenizer) -> WhisperTokenizer:
    """Its normal form of ＜｜ja｜＞ is <|ja|>."""
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|1.00|>", normalized=True)])
    return tokenizer


VARIANTS = {"stock": stock, "timestamps": with_timestamps, "words": with_words, "normalizer": with_normalizer}


@pytest.fixture(scope="module", params=["bytes", "whisper-base"])
def tokenizer(request: pytest.FixtureRequest) -> Callable[[], WhisperTokenizer]:
    if request.param == "bytes":
        return byte_tokenizer
    folder = os.environ.get("KIKITORI_TEST_WHISPER")
    if not folder:
        pytest.skip("KIKITORI_TEST_WHISPER is not set to a folder of pretrained whisper-base")
    return lambda: WhisperTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=VARIANTS)
def processor(request: pytest.FixtureRequest, tokenizer: Callable[[], WhisperTokenizer]) -> Processor:
    return make_processor(VARIANTS[request.param](tokenizer()), CONFIG, "ja", "transcribe", "a")


CONTROL = [
    *("<|endoftext|>", "<|startoftranscript|>", "<|0.00|>", "<|1.00|>", "<|29.98|>", "<|ja|>", "<|transcribe|>"),
    *("<|notimestamps|>", "<|nospeech|>", "<|nocaptions|>", "<|startofprev|>", "[笑]", "<pad>", "<|ainu|>", "♪"),
]
PIECES = st.sampled_from([*CONTROL, "<|", "|>", "<", "|", "endoftext", "ja", "0.00", " ", "新語", "音楽", "＜｜ja｜＞"])
TEXTS = st.text() | st.lists(PIECES | st.text(max_size=2), max_size=6).map("".join)


@given(text=TEXTS)
def test_no_text_becomes_a_control_token(processor: Processor, text: str) -> None:
    tokens = processor.encode(text)
    assert tokens[:4] == processor.prefix
    assert processor.control_ids.isdisjoint(tokens[4:-1])
    assert tokens[-1] == processor.tokenizer.eos_token_id
    assert len(tokens) > processor.max_label_tokens or processor.label_fault(tokens) is None
    assert processor.count_tokens([text, "犬"])[0] == len(tokens)


@given(text=TEXTS)
def test_every_text_comes_back(processor: Processor, text: str) -> None:
    if processor.tokenizer.backend_tokenizer.normalizer is None:
        assert processor.decode([processor.encode(text)]) == [text.strip()]


@pytest.mark.parametrize("token", CONTROL)
def test_control_tokens_are_ids_that_no_text_has(processor: Processor, token: str) -> None:
    number = processor.tokenizer.get_vocab().get(token)
    if number is not None:
        assert number in processor.control_ids
        assert control_token_in(f"あ{token}い", processor) == token
        # They are left out of transcripts, also of those that a model generated.
        assert processor.decode([[number, *processor.encode("犬"), number]]) == ["犬"]


def test_a_words_own_token_is_text() -> None:
    processor = make_processor(with_words(byte_tokenizer()), CONFIG, "ja", "transcribe", "a")
    (word,) = processor.encode("新語")[4:-1]
    assert processor.decode([[word]]) == ["新語"]
    assert word not in processor.control_ids
    # Also one that is added after the processor was made.
    processor.tokenizer.add_tokens(["あとから"])
    assert len(processor.encode("あとから")) == 6


def test_the_text_of_ids_beyond_the_tokenizer_is_empty() -> None:
    processor = make_processor(byte_tokenizer(), CONFIG, "ja", "transcribe", "a")
    assert processor.decode([[9_999, 10**6], []]) == ["", ""]


def test_ordinary_texts_are_encoded_as_by_the_stock_tokenizer(processor: Processor) -> None:
    for text in ("わたしは音楽がすきです。", " Hello, it's 3 o'clock .", "𠮷野家\n新語"):
        stock_ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.encode(text)[4:-1] == stock_ids


@pytest.mark.parametrize("text", ["<|0.00|> はい", "はい<|endoftext|>", "<|何か|>", "a<|en|><|translate|>b"])
def test_what_looks_like_a_control_token_is_found_without_a_tokenizer(text: str) -> None:
    found = control_token_in(text)
    assert found is not None
    assert found in text


@pytest.mark.parametrize("text", ["a < b | c > d", "<||>", "<|a b|>", "|> <|", "<a>", "＜｜ja｜＞", "[笑]", ""])
def test_other_texts_are_not(text: str) -> None:
    assert control_token_in(text) is None


def test_each_fault_of_labels_is_named(processor: Processor) -> None:
    start, *prefix = processor.prefix
    body, end = processor.encode("犬")[4:-1], processor.tokenizer.eos_token_id
    assert processor.label_fault([start, *prefix, *body, end]) is None
    assert processor.label_fault([start, *prefix, end]) is None
    for wrong, message in (
        ([start, start, *prefix, *body, end], "labels begin with"),
        ([*prefix, *body, end], "labels begin with"),
        ([], "labels begin with"),
        ([start, *prefix], "labels end with"),
        ([start, *prefix, *body], "labels end with"),
        ([start, *prefix, end, *body, end], "control token <|endoftext|> in the text"),
        ([start, *prefix, *body, end, end], "control token <|endoftext|> in the text"),
        ([start, *prefix, *body, prefix[0], end], "control token <|ja|> in the text"),
        ([start, *prefix, *body * 448, end], "labels, over 448"),
    ):
        assert message in (processor.label_fault(wrong) or "")


@pytest.mark.parametrize("given", ["ja", "JA", "ja-JP", "Japanese", "ja_JP"])
def test_a_language_may_be_given_in_any_form(given: str) -> None:
    processor = make_processor(byte_tokenizer(), CONFIG, given, "transcribe", "a")
    assert processor.language == processor.text_language == "ja"
    assert processor.tokenizer.convert_ids_to_tokens(processor.prefix[1]) == "<|ja|>"


def test_a_translation_is_english_text() -> None:
    processor = make_processor(byte_tokenizer(), CONFIG, "zh-TW", "translate", "a")
    assert (processor.language, processor.text_language) == ("zh", "en")
    assert processor.tokenizer.convert_ids_to_tokens(processor.prefix[:3]) == [
        "<|startoftranscript|>",
        "<|zh|>",
        "<|translate|>",
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "ga-IE",
            r"model\.language=ga-IE: whisper-a does not have this language.*set model\.language to a related one",
        ),
        ("japnese", r"model\.language: 'japnese' is no language; did you mean ja \(japanese\)"),
    ],
)
def test_a_language_that_the_model_lacks_is_named(given: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_processor(byte_tokenizer(), CONFIG, given, "transcribe", "whisper-a")


def test_the_processor_of_another_language_is_made_once() -> None:
    # It keeps what it computed of the vocabulary: 60 ms for the timestamps of each joined window.
    own = make_processor(byte_tokenizer(), CONFIG, "ja", "transcribe", "a model")
    assert own.of("ko") is own.of("ko")
    assert own.of("ko").prefix != own.prefix
    assert own.of(None) is own.of("ja") is own
