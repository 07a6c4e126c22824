"""Reading recordings window by window, by the timestamps that a model writes; the model is replaced by a script."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.inference import timestamps
from kikitori.inference.greedy import Row, greedy
from kikitori.inference.segments import Piece
from kikitori.inference.timestamps import Segment, TimestampRule, read_by_timestamps, segments_of, timestamp_rule
from kikitori.inference.transcribe import joined, transcribe, transcribe_pieces
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper, encode
from kikitori.runtime.errors import ModelError

# Of the rule in the tests: text 0 to 9, the end, a control token, no timestamps; then 0.00 to 0.20.
END, NO_TIMESTAMPS, FIRST, VOCABULARY = 10, 12, 13, 24
RULE = TimestampRule(FIRST, NO_TIMESTAMPS, END, 5)


@pytest.fixture
def whisper() -> Whisper:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 448}
    return build_whisper(**sizes, window_s=30, timestamps=True)


def allowed(tokens: Sequence[int]) -> set[int]:
    """The tokens that may follow; all text is more probable than all timestamps."""
    logits = torch.zeros(1, VOCABULARY)
    logits[:, FIRST:] = -9
    RULE([list(tokens)], logits)
    return set(logits[0].isfinite().nonzero()[:, 0].tolist())


TEXT, LATER = set(range(END)), lambda stamp: set(range(FIRST + stamp, VOCABULARY))
FOLLOWS: list[tuple[list[int], set[int]]] = [
    # A timestamp of the first five, or nothing at all.
    ([], {END} | set(range(FIRST, FIRST + 6))),
    # After a start: text, or the end, after a sentence that the window cuts off.
    ([FIRST], TEXT | {END, END + 1}),
    ([FIRST, 3, FIRST + 4, FIRST + 4], TEXT | {END, END + 1}),
    # After text: more of it, or a later timestamp.
    ([FIRST + 2, 3], TEXT | {END, END + 1} | LATER(3)),
    # After an end: the next start, from there on, or the end of the text.
    ([FIRST, 3, FIRST + 4], {END, END + 1} | LATER(4)),
]


@pytest.mark.parametrize(("tokens", "following"), FOLLOWS)
def test_timestamps_come_in_ascending_pairs(tokens: list[int], following: set[int]) -> None:
    assert allowed(tokens) == following


def test_a_timestamp_follows_where_all_together_are_more_probable_than_any_text() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[:, 3] = torch.tensor([3.0, 1.0])
    # Ten timestamps of e^0 each: more than e^1, less than e^3.
    RULE([[FIRST, 3], [FIRST, 3]], logits)
    assert logits.argmax(dim=1).tolist() == [3, FIRST + 1]
    assert logits[1, :FIRST].isinf().all()


def test_random_weights_write_ascending_pairs_and_the_same_text_as_the_rules_of_transformers(whisper: Whisper) -> None:
    from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

    model, processor = whisper.model.eval(), whisper.processor
    config = copy.deepcopy(model.generation_config)
    states = encode(model, torch.randn(2, 80, 3000))
    prefix = processor.prefix[:-1]
    rows = greedy(model, states, prefix, 40, rule=timestamp_rule(processor))
    stock = WhisperTimeStampLogitsProcessor(config, begin_index=len(prefix))
    suppressed = [0, *config.begin_suppress_tokens]

    def stock_rule(rows: list[list[int]], logits: Tensor) -> None:
        logits.copy_(stock(torch.tensor([[*prefix, *tokens] for tokens in rows]), logits))

    assert suppressed
    expected = greedy(model, states, prefix, 40, rule=stock_rule)
    assert [row.tokens for row in rows] == [row.tokens for row in expected]
    first = processor.timestamp_begin
    assert first is not None
    for row in rows:
        stamps = [token for token in row.tokens if token >= first]
        assert len(stamps) >= 2
        assert all(a <= b for a, b in pairwise(stamps))


def test_without_a_rule_nothing_differs(whisper: Whisper) -> None:
    """The place of the start token and of the no-speech token are those of a prefix without a prompt."""
    model, prefix = whisper.model.eval(), whisper.processor.prefix
    states = encode(model, torch.randn(2, 80, 200))
    plain = greedy(model, states, prefix, 8)
    assert plain == greedy(model, states, prefix, 8, rule=lambda rows, logits: None)
    assert all(0 < row.no_speech < 1 for row in plain)
    prompted = greedy(model, states, [whisper.processor.previous_id, 5, *prefix], 8)
    assert [row.no_speech for row in prompted] != [row.no_speech for row in plain]


@pytest.mark.parametrize(
    ("tokens", "segments", "cut_off"),
    [
        ([], [], None),
        ([100, 1, 2, 150], [Segment(0, 50, [1, 2], 1)], None),
        ([110, 1, 150, 150, 2, 160], [Segment(10, 50, [1], 1), Segment(50, 60, [2], 4)], None),
        ([100, 1, 150, 170], [Segment(0, 50, [1], 1)], 70),
        ([100, 1, 150, 170, 2, 3], [Segment(0, 50, [1], 1)], 70),
        ([170], [], 70),
        ([100, 120, 1, 150], [Segment(20, 50, [1], 2)], None),
        ([1, 2, 3], [], None),
    ],
)
def test_sentences_are_what_stands_between_two_timestamps(
    tokens: list[int], segments: list[Segment], cut_off: int | None
) -> None:
    assert segments_of(tokens, 100) == (segments, cut_off)


class Script:
    """Stands in for the model: what it writes in each window, as pairs of text and times, and what it was given."""

    def __init__(self, whisper: Whisper, *windows: str) -> None:
        self.whisper, self.windows = whisper, list(windows)
        self.starts: list[float] = []
        self.prompts: list[str] = []

    def __call__(self, reader: Any, place: slice, previous: Sequence[int]) -> Row:
        self.starts.append(round(place.start / SAMPLE_RATE, 2))
        self.prompts.append(self.whisper.processor.decode([list(previous)])[0])
        written = self.windows[len(self.starts) - 1]
        ids = self.whisper.processor.tokenizer(written.removesuffix("…"), add_special_tokens=False)["input_ids"]
        return Row(
            0.9 if written.startswith("~") else 0.1,
            ids,
            not written.endswith("…"),
            1.0,
            -3.0 * len(ids) * written.startswith("~"),
        )


@pytest.fixture
def read(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Piece], Script]]:
    def run(seconds: float, *windows: str, previous_text: bool = False) -> tuple[list[Piece], Script]:
        script = Script(whisper, *windows)
        monkeypatch.setattr(timestamps._WindowReader, "_generate", lambda *arguments: script(*arguments))
        samples = torch.randn(round(seconds * SAMPLE_RATE)) * 0.1

        def by_pauses(place: slice) -> list[Piece]:
            start, end, middle = (
                place.start / SAMPLE_RATE,
                place.stop / SAMPLE_RATE,
                (place.start + place.stop) / 2 / SAMPLE_RATE,
            )
            return [Piece(start, middle, "前", ""), Piece(middle, end, "後", "")]

        pieces = read_by_timestamps(whisper, samples, by_pauses, previous_text)
        assert len(script.starts) == len(windows)
        return pieces, script

    return run


# As much as people say in a window.
LONG = (
    "今日はとても良い天気ですから散歩に行きましょうと母が言いましたが、"
    "父は家で本を読みたいと答えたので妹だけが出かけました。"
)


def test_the_next_window_begins_at_the_last_complete_timestamp(read: Any) -> None:
    first = f"<|0.00|>{LONG}<|14.00|><|15.00|>{LONG}<|26.50|><|27.00|>"
    pieces, script = read(50, first, f"<|0.50|>{LONG}<|20.00|>")
    assert script.starts == [0, 26.5]
    assert [(p.start_s, p.end_s) for p in pieces] == [(0, 14), (15, 26.5), (27, 46.5)]
    assert {p.text for p in pieces} == {LONG}
    assert script.prompts == ["", ""]


def test_previous_text_is_the_prompt_of_the_next_window_if_wanted(read: Any) -> None:
    windows = (f"<|0.00|>{LONG}<|26.00|><|27.00|>", f"<|0.50|>{LONG}犬<|20.00|>")
    assert read(46.5, *windows, previous_text=True)[1].prompts == ["", LONG]
    assert read(46.5, *windows)[1].prompts == ["", ""]


def test_the_end_of_the_recording_ends_it(read: Any) -> None:
    # The text ended, so what is after its last timestamp is silence.
    pieces, _ = read(20, f"<|0.00|>{LONG}<|18.00|>")
    assert [(p.start_s, p.end_s) for p in pieces] == [(0, 18)]
    # Times beyond the recording are those of its end.
    assert read(20, f"<|0.00|>{LONG}<|24.00|>")[0][0].end_s == 20


def test_a_sentence_that_begins_in_the_last_window_is_read_in_another(read: Any) -> None:
    pieces, script = read(25, f"<|0.00|>{LONG}<|12.00|><|13.00|>", f"<|1.00|>{LONG}<|11.00|>")
    assert script.starts == [0, 12]
    assert [(p.start_s, p.end_s) for p in pieces] == [(0, 12), (13, 23)]


def test_a_window_with_the_beginning_of_a_sentence_alone_is_empty(read: Any) -> None:
    pieces, script = read(50, "<|29.00|>", f"<|0.00|>{LONG}<|20.00|>")
    assert script.starts == [0, 29]
    assert [(p.start_s, p.end_s) for p in pieces] == [(29, 49)]


def test_an_empty_window_is_passed_over(read: Any) -> None:
    pieces, script = read(40, "", "")
    assert script.starts == [0, 30]
    assert pieces == []


def test_silence_is_not_read_at_all(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timestamps._WindowReader, "_generate", lambda *arguments: pytest.fail("was read"))
    assert read_by_timestamps(whisper, torch.zeros(70 * SAMPLE_RATE), lambda place: [], False) == []


def test_a_window_without_speech_is_named(read: Any) -> None:
    pieces, _ = read(40, "~<|0.00|>ん<|3.00|>", f"<|0.00|>{LONG}<|9.00|>")
    assert pieces[0] == Piece(0, 30, "", "no speech", (), 0.9, pytest.approx(-18 / 7))
    assert (pieces[1].start_s, pieces[1].text) == (30, LONG)


@pytest.mark.parametrize(
    "written",
    [
        *("<|0.00|>" + "ん" * 60 + "<|20.00|>", "<|0.00|>" + LONG + "…", "<|0.00|>犬<|0.02|>"),
        # A text without its end, and the beginning of a sentence that fills the window, in steps of 0.02 s.
        *("<|0.50|>" + LONG, "<|0.02|>"),
    ],
)
def test_a_window_that_repeats_itself_or_has_no_sentence_is_read_by_its_pauses(read: Any, written: str) -> None:
    pieces, script = read(40, written, f"<|0.00|>{LONG}<|22.00|>")
    # But not its last piece, which the window may have cut off.
    assert script.starts == [0, 15]
    assert [p.text for p in pieces] == ["前", LONG]


def test_a_text_that_was_cut_off_after_complete_sentences_is_taken_up_there(read: Any) -> None:
    pieces, script = read(40, f"<|0.00|>{LONG}<|12.00|><|12.00|>また…", f"<|0.00|>{LONG}<|27.00|>")
    assert script.starts == [0, 12]
    assert [p.doubt for p in pieces] == ["", ""]


def test_progress_covers_the_recording(whisper: Whisper, monkeypatch: pytest.MonkeyPatch) -> None:
    script, seconds = Script(whisper, f"<|0.00|>{LONG}<|14.00|>", f"<|0.00|>{LONG}<|20.00|>"), []
    monkeypatch.setattr(timestamps._WindowReader, "_generate", lambda *arguments: script(*arguments))
    read_by_timestamps(whisper, torch.randn(36 * SAMPLE_RATE), lambda place: [], advance=seconds.append)
    assert sum(seconds) == pytest.approx(36)


def test_random_weights_read_a_recording_to_its_end(whisper: Whisper) -> None:
    """Whatever a model writes; the text is that of the pieces, whose times ascend."""
    torch.manual_seed(1)
    samples = torch.randn(65 * SAMPLE_RATE) * 0.1
    whisper.configure_generation(max_new_tokens=20, num_beams=1)
    for previous_text in (False, True):
        pieces = transcribe_pieces(whisper, samples, segments="timestamps", previous_text=previous_text)
        assert all(a.start_s <= a.end_s for a in pieces)
        assert all(a.start_s <= b.start_s for a, b in pairwise(pieces))
        assert pieces[-1].end_s > 30
    assert transcribe(whisper, samples[: 3 * SAMPLE_RATE], segments="timestamps") == joined(
        whisper, transcribe_pieces(whisper, samples[: 3 * SAMPLE_RATE], segments="timestamps")
    )


def test_unknown_segments_and_a_model_without_timestamps_are_refused(micro: Whisper) -> None:
    with pytest.raises(ValueError, match="must be auto, pauses or timestamps"):
        transcribe_pieces(micro, torch.zeros(100), segments="words")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"has no timestamps.*--segments pauses"):
        transcribe_pieces(micro, torch.zeros(100), segments="timestamps")


@pytest.mark.slow
def test_whisper_base_finds_the_joints_of_real_clips(whisper_base: Whisper, speech: Path) -> None:
    """Its own times are whole seconds, up to which clips and the silence after them end."""
    clips = [decode(clip) for clip in sorted((speech / "clips").glob("*.mp3"))[:9]]
    parts = [part for clip in clips for part in (clip, torch.zeros(8_000))]
    ends = torch.tensor([len(clip) + 8_000 for clip in clips]).cumsum(0) / SAMPLE_RATE
    pieces = transcribe_pieces(whisper_base, torch.cat(parts), segments="timestamps")
    found = [min(abs(float(end) - piece.end_s) for piece in pieces) for end in ends]
    assert sum(distance < 1.0 for distance in found) >= 7
    assert all(a.end_s <= b.start_s + 0.01 for a, b in pairwise(pieces))
