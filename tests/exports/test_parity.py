"""Our own readings next to those of an engine: equal texts, ties and differences."""

from dataclasses import replace
from math import inf

import pytest
import torch

from kikitori.corpora.types import Speech
from kikitori.exports import parity
from kikitori.exports.parity import Own, beyond_ties, compare, least_gap, read_own
from kikitori.exports.read_back import Reading
from kikitori.model.whisper import Whisper
from kikitori.model.window import Window


@pytest.fixture
def clip() -> Speech:
    return Speech("a.wav", torch.rand(9_000, generator=torch.Generator().manual_seed(3)) * 0.2 - 0.1, "abcd", "ja")


@pytest.fixture
def whisper(micro: Whisper) -> Whisper:
    """A model that writes letters: all other bytes are suppressed."""
    micro.model.eval()
    letters = set(b"abcdefgh")
    spelled = parity.token_bytes(micro.processor.tokenizer)
    others = [i for i in range(micro.model.config.vocab_size) if i not in spelled or spelled[i][0] not in letters]
    end = micro.model.config.eos_token_id
    micro.model.generation_config.suppress_tokens = [i for i in others if i != end]
    return micro


def own_of(whisper: Whisper, clip: Speech, monkeypatch: pytest.MonkeyPatch) -> Own:
    monkeypatch.setattr(parity, "TEXT_TOKENS", 6)
    (own,) = read_own(whisper, [clip], lambda: None)
    assert len(own.text) == len(own.tokens) == 6
    return own


def test_the_least_gap_is_that_of_the_logits_where_the_texts_part(
    whisper: Whisper, clip: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_of(whisper, clip, monkeypatch)
    logits, spelled = parity._logits(whisper, clip, own.tokens), parity.token_bytes(whisper.processor.tokenizer)
    assert logits.argmax(dim=1).tolist() == list(own.tokens)
    for position in (0, 3):
        (best, second), (_, token) = logits[position].topk(2)
        other = own.text[:position] + spelled[int(token)].decode() + "zz"
        assert least_gap(whisper, clip, own, other) == pytest.approx(float(best - second), abs=1e-4)


def test_a_text_that_no_token_begins_is_no_tie(whisper: Whisper, clip: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_of(whisper, clip, monkeypatch)
    assert least_gap(whisper, clip, own, "zz") == inf
    figures = compare(whisper, [clip], [own], [Reading("zz", 1.0)], "float32")
    assert (figures["equal"], figures["ties"], beyond_ties(figures)) == (0, 0, ["a.wav"])
    assert figures["differing"] == [{"clip": "a.wav", "ours": own.text, "theirs": "zz", "tie": False}]


def test_a_near_tie_is_counted_and_named_and_no_fault(
    whisper: Whisper, clip: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_of(whisper, clip, monkeypatch)
    monkeypatch.setattr(parity, "least_gap", lambda *arguments: 0.005)
    theirs = [Reading("abce", 2.0)]
    figures = compare(whisper, [clip], [own], theirs, "float32")
    assert (figures["ties"], beyond_ties(figures)) == (1, [])
    expected = {"clip": "a.wav", "ours": own.text, "theirs": "abce", "gap": 0.005, "tie": True}
    assert figures["differing"] == [expected]
    assert (figures["cer"], figures["seconds_per_clip"]) == (0.25, 2.0)
    assert figures["cer_change"] == figures["cer"] - figures["cer_ours"]
    low, high = figures["cer_change_ci95"]
    assert low <= figures["cer_change"] <= high
    monkeypatch.setattr(parity, "least_gap", lambda *arguments: 0.05)
    assert beyond_ties(compare(whisper, [clip], [own], theirs, "float32")) == ["a.wav"]
    assert beyond_ties(compare(whisper, [clip], [own], theirs, "float16")) == []
    # Of int8 any text may differ.
    figures = compare(whisper, [clip], [own], theirs, "int8")
    assert (figures["equal"], figures["ties"], beyond_ties(figures)) == (0, 0, [])


def test_a_text_that_was_cut_may_be_cut_elsewhere(whisper: Whisper, clip: Speech) -> None:
    (a,), (b,) = (parity.token_bytes(whisper.processor.tokenizer).tokens[letter] for letter in (b"a", b"b"))
    own = Own("ab" * 8, [a, b] * 8, False, 1.0)
    for text, equal in (
        ("ab" * 5, 1),
        ("ab" * 9, 1),
        ("ab" * 6 + "\ufffd", 1),
        ("ab" * 5 + "c", 0),
        ("ab", 0),
        ("", 0),
    ):
        figures = compare(whisper, [clip], [own], [Reading(text, 1.0)], "int8")
        assert figures["equal"] == equal, text
    ended = replace(own, ended=True)
    assert compare(whisper, [clip], [ended], [Reading("ab" * 7, 1.0)], "int8")["equal"] == 0


def test_the_window_is_the_full_one_and_the_text_has_no_limit_of_ours(
    whisper: Whisper, clip: Speech, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own_of(whisper, clip, monkeypatch)
    whisper.set_window(Window((0.6,), 0.0))
    whisper.configure_generation(2, None, 0.1)
    assert parity._encoded(whisper, clip).shape[1] == 50
    assert own_of(whisper, clip, monkeypatch).text == before.text
