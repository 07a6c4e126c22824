"""Tokens of whole characters with probabilities, and words made of them."""

from math import log
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.inference.checks import NO_SPEECH_FOUND, REPEATED, kept_tokens, without_repetition
from kikitori.inference.confidence import Token, tokens_of, words_of
from kikitori.inference.generate import Generated, generate
from kikitori.inference.transcribe import transcribe_pieces
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper, encode

PROCESSOR = build_whisper(16, 1, 1, 2, window_s=1).processor


def joined(tokens: tuple[Token, ...]) -> str:
    return "".join(token.text for token in tokens)


@given(st.lists(st.integers(0, 255), max_size=12))
def test_any_bytes_give_the_text_of_the_tokenizer(ids: list[int]) -> None:
    """The micro model has one token for each byte, and writes bytes that are no text."""
    assert joined(tokens_of(PROCESSOR, ids, [-0.1] * len(ids))) == PROCESSOR.decode([ids])[0]


def ids_of(text: str) -> list[int]:
    return PROCESSOR.encode_texts([text])[0]


def test_a_character_of_several_tokens_has_the_product_of_their_probabilities() -> None:
    ids = [*PROCESSOR.prefix, *ids_of(" あa")]
    logprobs = [log(p) for p in (*[0.1] * 4, 0.2, 0.5, 0.5, 0.8, 0.9)]
    first, second = tokens_of(PROCESSOR, ids, logprobs)
    assert (first.text, second.text) == ("あ", "a")
    assert (first.probability, second.probability) == pytest.approx((0.2, 0.9))


def test_without_probabilities_there_are_no_tokens() -> None:
    assert tokens_of(PROCESSOR, ids_of("あ"), []) == ()


@pytest.mark.parametrize(
    ("tokens", "language", "words"),
    [
        ([("国家", 0.9), ("公務員", 0.4), ("です", 0.8)], "ja", [("国家公務員", 0.4), ("です", 0.8)]),
        ([("It", 0.9), (" ra", 0.8), ("ins.", 0.3)], "en", [("It", 0.9), (" rains.", 0.3)]),
        # One token may have parts of two words.
        ([("a b", 0.5), ("c", 0.9)], "en", [("a", 0.5), (" bc", 0.5)]),
        ([], "ja", []),
    ],
)
def test_a_word_is_as_sure_as_its_least_sure_token(
    tokens: list[tuple[str, float]], language: str, words: list[tuple[str, float]]
) -> None:
    assert words_of([Token(*token) for token in tokens], language) == [Token(*word) for word in words]


@pytest.mark.parametrize(
    "text", ["ん" * 90, "おはよう。" + "です。" * 20 + "またね。", ("thank you. " * 20).strip(), "犬と猫"]
)
def test_tokens_join_to_the_text_without_its_repetition(text: str) -> None:
    tokens = [Token(text[i : i + 2], 0.5) for i in range(0, len(text), 2)]
    assert joined(kept_tokens(tokens, "text")) == without_repetition(text)
    assert kept_tokens(tokens, "") == ()


def test_the_pieces_of_a_recording_have_the_tokens_of_their_texts(micro: Whisper) -> None:
    torch.manual_seed(0)
    pieces = transcribe_pieces(micro, 0.1 * torch.randn(3 * SAMPLE_RATE))
    assert len(pieces) > 2
    assert all(joined(piece.tokens) == piece.text for piece in pieces)
    assert any(0 < token.probability < 1 for piece in pieces for token in piece.tokens)
    assert all(0 <= piece.no_speech <= 1 and piece.mean_logprob < 0 for piece in pieces)


def test_probabilities_are_those_of_the_model(micro: Whisper) -> None:
    micro.model.eval()
    states = encode(micro.model, torch.randn(1, 80, 100))
    (row,) = generate(micro, states, [1.0])
    prefix = micro.processor.prefix
    ids = torch.tensor([[*prefix, *row.tokens]])
    with torch.no_grad():
        logits = micro.model.proj_out(micro.model.model.decoder(ids, encoder_hidden_states=states).last_hidden_state)
    logits[:, len(prefix) - 1, micro.model.generation_config.begin_suppress_tokens] = -torch.inf
    expected = logits.log_softmax(dim=2)[0, len(prefix) - 1 : -1].gather(1, ids[0, len(prefix) :, None])[:, 0]
    assert row.logprobs == pytest.approx(expected.tolist(), abs=1e-5)
    micro.configure_generation(12, num_beams=2)
    assert generate(micro, states, [1.0])[0].logprobs == ()


@pytest.mark.parametrize(("no_speech", "text", "doubt"), [(0.1, "ん", REPEATED), (0.9, "", NO_SPEECH_FOUND)])
def test_a_piece_whose_text_was_changed_has_the_tokens_that_are_left(
    micro: Whisper, monkeypatch: pytest.MonkeyPatch, no_speech: float, text: str, doubt: str
) -> None:
    ids = ids_of("ん" * 60)
    row = Generated("ん" * 60, False, no_speech, -0.1, ids, [-0.1] * len(ids))
    monkeypatch.setattr("kikitori.inference.generate.generate", lambda whisper, states, s, stop_loops: [row] * len(s))
    (piece,) = transcribe_pieces(micro, 0.1 * torch.randn(SAMPLE_RATE))
    assert (piece.text, joined(piece.tokens), piece.doubt, piece.no_speech) == (text, text, doubt, no_speech)


@pytest.mark.slow
def test_the_words_of_real_speech_join_to_its_text(whisper_base: Whisper, speech: Path) -> None:
    for clip in sorted((speech / "clips").glob("*.mp3"))[:2]:
        (piece,) = transcribe_pieces(whisper_base, decode(clip))
        assert joined(piece.tokens) == piece.text
        words = words_of(piece.tokens, "ja")
        assert "".join(word.text for word in words) == piece.text
        assert all("\ufffd" not in token.text for token in piece.tokens)
