import dataclasses
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora.types import BY_DIVISION, Clip, Decoded, Reason, Reject, Split
from kikitori.data.filters import (
    REMEDIES,
    FilterRules,
    check_rate,
    check_split_leakage,
    doubtful_texts,
    select,
    take_subset,
    with_true_durations,
)
from kikitori.model.loading import build_whisper
from kikitori.model.processor import Processor
from kikitori.runtime.errors import DataError

RULES = FilterRules(
    min_duration_s=0.3,
    max_duration_s=None,
    silence_dbfs=-50,
    max_reject_rate=0.05,
    allow_shared_speakers=False,
    allow_shared_clips=False,
)
Row = tuple[Clip, Decoded]


@pytest.fixture(scope="module")
def processor() -> Processor:
    """A window of 3 s, 448 tokens, one token per byte."""
    return build_whisper(16, 1, 1, 2, window_s=3, language="ja", task="transcribe", max_label_tokens=448).processor


def row(
    name: str,
    split: Split = "train",
    text: str = "文",
    speaker: str | None = None,
    duration_s: float | None = None,
    **facts: object,
) -> Row:
    decoded = Decoded(samples=SAMPLE_RATE, peak=0.5, digest=name, error="")
    return Clip(name, split, text, "", lambda: b"", speaker, duration_s), dataclasses.replace(decoded, **facts)  # type: ignore[arg-type]


def chosen(rows: list[Row], processor: Processor | None, rules: FilterRules = RULES) -> tuple[list[str], list[Reject]]:
    kept, rejects = select([clip for clip, _ in rows], {clip.name: facts for clip, facts in rows}, processor, rules)
    return [clip.name for clip in kept], rejects


@pytest.mark.parametrize(
    ("reason", "bad", "detail"),
    [
        ("missing", row("bad", error="missing"), "missing"),
        ("undecodable", row("bad", error="cannot be decoded"), "cannot be decoded"),
        ("cut short", row("bad", error="the file is cut short: 1 s of 2 s"), "the file is cut short: 1 s of 2 s"),
        ("cut short", row("bad", duration_s=1.11), "1.00 s of 1.11 s, by the times that the corpus lists"),
        ("empty", row("bad", samples=0, peak=0.0), "no samples"),
        ("silent", row("bad", peak=0.003), "its peak is -50.5 dB, under data.silence_dbfs=-50"),
        ("too short", row("bad", samples=4_799), "0.30 s, under data.min_duration_s=0.3"),
        ("too long", row("bad", samples=48_001), "3.00 s, over the model's window of 3 s (model.window_s)"),
        ("empty transcript", row("bad", text=""), ""),
        ("control token", row("bad", text="は<|0.00|>い"), "<|0.00|> is no text"),
        ("too many tokens", row("bad", text="x" * 500), "505 tokens, over the model's 448"),
        ("duplicate", row("bad", digest="first"), "same audio as first"),
    ],
)
def test_each_fault_is_reported_and_the_neighbours_are_kept(
    processor: Processor, reason: Reason, bad: Row, detail: str
) -> None:
    kept, rejects = chosen([row("first"), bad, row("last")], processor)
    assert kept == ["first", "last"]
    assert rejects == [Reject("bad", "train", reason, detail)]


def test_a_clip_at_a_limit_is_kept(processor: Processor) -> None:
    rows = [row("shortest", samples=4_800), row("longest", samples=48_000), row("quietest", peak=10 ** (-50 / 20))]
    rows += [row("as listed", duration_s=1.0), row("almost as listed", duration_s=1.1), row("longer", duration_s=0.5)]
    assert chosen(rows, processor) == ([clip.name for clip, _ in rows], [])
    rules = dataclasses.replace(RULES, max_duration_s=2.0)
    kept, rejects = chosen([row("a", samples=32_000), row("b", samples=32_001)], processor, rules)
    assert (kept, [r.reason for r in rejects]) == (["a"], ["too long"])
    assert rejects[0].detail == "2.00 s, over data.max_duration_s=2"


def test_448_tokens_are_kept_and_449_are_not(processor: Processor) -> None:
    special = len(processor.encode(""))
    assert special == 5
    rows = [row("448", text="x" * (448 - special)), row("449", text="x" * (449 - special))]
    kept, rejects = chosen(rows, processor)
    assert kept == ["448"]
    assert [(r.name, r.reason, r.detail) for r in rejects] == [
        ("449", "too many tokens", "449 tokens, over the model's 448")
    ]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_long_clips_are_scored_though_not_trained_on(processor: Processor, split: Split) -> None:
    rules = dataclasses.replace(RULES, max_duration_s=1.0)
    assert chosen([row("long", split, samples=10 * SAMPLE_RATE)], processor, rules) == (["long"], [])


def test_without_a_processor_window_and_tokens_are_not_checked() -> None:
    assert chosen([row("long", samples=10 * SAMPLE_RATE, text="x" * 999)], None) == (["long"], [])


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_control_tokens_are_found_in_every_split_and_without_a_model(processor: Processor, split: Split) -> None:
    rows = [row("a", split, "カレー<|endoftext|>を食べます"), row("b", split, "<|ja|>"), row("c", split, "a <| b |> c")]
    for with_model in (processor, None):
        kept, rejects = chosen(rows, with_model)
        assert kept == ["c"]
        assert {reject.reason for reject in rejects} == {"control token"}


def test_doubtful_texts_are_named_by_what_they_hold() -> None:
    texts = ["&quot;はい&quot;と<br>言った", "R&D < 3 > 2; A&B", "か\ufffd", "&#39;", "</b>", "x<y", "AT&T;", "普通"]
    found = doubtful_texts(row(f"{i}", text=text)[0] for i, text in enumerate(texts))
    assert found == {"HTML (such as &quot; or <br>)": ["0", "3", "4"], "U+FFFD in place of a character": ["2"]}


def test_of_duplicates_the_first_usable_one_is_kept(processor: Processor) -> None:
    texts = {"no text": "", "a": "文", "b": "別", "no text either": ""}
    kept, rejects = chosen([row(name, text=text, digest="same") for name, text in texts.items()], processor)
    assert kept == ["a"]
    assert [r.name for r in rejects if r.reason == "duplicate"] == ["b"]
    assert [r.name for r in rejects if r.reason == "empty transcript"] == ["no text", "no text either"]


def test_the_allowed_number_of_rejects_passes_and_one_more_stops_with_the_reasons() -> None:
    rejects = [Reject("a\udcff.mp3", "train", "silent"), *[Reject(f"{i}", "train", "missing") for i in range(5)]]
    check_rate(100, rejects[:5], 0.05)
    check_rate(0, [], 0.0)
    with pytest.raises(DataError) as error:
        check_rate(100, rejects, 0.05)
    message = str(error.value)
    assert "6 of 100 clips would be left out, more than data.max_reject_rate=0.05 allows:" in message
    assert "\n  5 missing, such as 0: correct the paths" in message
    assert "\n  1 silent, such as a\\udcff.mp3: remove these, or lower data.silence_dbfs" in message
    assert message.endswith("data.max_reject_rate=0.06")
    message.encode()
    with pytest.raises(DataError) as error:
        check_rate(6, rejects, 0.05)
    assert "data.max_reject_rate=1" not in str(error.value)


def test_every_fault_has_a_remedy() -> None:
    assert set(get_args(Reason)) == REMEDIES.keys() | BY_DIVISION


def test_clips_that_are_in_no_split_or_in_another_one_are_not_limited() -> None:
    divided = [Reject(f"{i}", "train", reason) for i in range(30) for reason in BY_DIVISION]
    check_rate(len(divided) + 20, [*divided, Reject("x", "train", "missing")], 0.05)
    with pytest.raises(DataError, match=r"1 of 19 clips would be left out"):
        check_rate(len(divided) + 19, [*divided, Reject("x", "train", "missing")], 0.05)


def test_a_training_clip_that_is_scored_is_a_duplicate(processor: Processor) -> None:
    clips = {clip.name: facts for clip, facts in [row("a"), row("b", digest="scored"), row("c", digest="scored")]}
    kept, rejects = select(
        [row(name)[0] for name in clips], clips, processor, RULES, {"scored": "x.wav in test", "other": "y.wav in test"}
    )
    assert [clip.name for clip in kept] == ["a"]
    assert [(r.name, r.reason, r.detail) for r in rejects] == [
        (name, "duplicate", "same audio as x.wav in test") for name in ("b", "c")
    ]


def test_a_clip_in_validation_and_test_is_refused_unless_allowed() -> None:
    splits: dict[Split, list[Row]] = {"validation": [row("a"), row("b")], "test": [row("c", "test", digest="b")]}
    with pytest.raises(
        DataError, match=r"1 clips are both in validation and in test, such as b\. Remove them"
    ) as error:
        check_split_leakage(splits, RULES)
    assert "allow" not in str(error.value)
    check_split_leakage(splits, dataclasses.replace(RULES, allow_shared_clips=True))
    check_split_leakage({"validation": splits["validation"], "test": [row("c", "test")]}, RULES)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_durations_that_are_listed_too_long_throughout_reject_no_clip_but_those_cut_short(
    processor: Processor, caplog: pytest.LogCaptureFixture, share: float
) -> None:
    rows = [row(f"{i}", samples=16_000 + 100 * i, duration_s=(1 + i / 160) / share) for i in range(9)]
    rows.append(row("short", samples=8_000, duration_s=1 / share))
    clips, decoded = [clip for clip, _ in rows], {clip.name: facts for clip, facts in rows}
    corrected = with_true_durations(clips, decoded)
    _, rejects = select(corrected, decoded, processor, RULES)
    assert [(r.name, r.reason) for r in rejects] == [("short", "cut short")]
    assert f"durations that are {1 / share:.2f} times those of the recordings" in caplog.text


@given(shares=st.lists(st.floats(0.3, 1.2), min_size=1, max_size=30))
def test_durations_that_are_listed_right_or_differ_from_clip_to_clip_stay(shares: list[float]) -> None:
    rows = [row(f"{i}", duration_s=1 / share) for i, share in enumerate(shares)]
    rows += [row(f"right {i}", duration_s=1.0) for i in range(len(shares) * 3)]
    clips = [clip for clip, _ in rows]
    assert with_true_durations(clips, {clip.name: facts for clip, facts in rows}) == clips


def test_a_speaker_in_two_splits_is_refused_unless_allowed() -> None:
    splits: dict[Split, list[Row]] = {
        "train": [row("a", speaker="x"), row("b", speaker="x"), row("c")],
        "validation": [row("d", "validation", speaker="x"), row("e", "validation")],
    }
    with pytest.raises(
        DataError, match=r"1 speakers are in two splits.*data.held_out.*data.allow_shared_speakers=true"
    ) as error:
        check_split_leakage(splits, RULES)
    assert "x" not in str(error.value).split("speakers")[0]
    check_split_leakage(splits, dataclasses.replace(RULES, allow_shared_speakers=True))
    check_split_leakage({"train": splits["train"], "test": [row("f", "test", speaker="y")]}, RULES)


CLIPS = st.lists(st.sampled_from(["train", "validation", "test"]), max_size=40).map(
    lambda splits: [row(f"{i}", split)[0] for i, split in enumerate(splits)]
)


@given(clips=CLIPS, n=st.integers(0, 50), sample=st.one_of(st.booleans(), st.integers(0, 2**32 - 1)))
def test_a_limit_keeps_n_clips_of_one_split_in_order_and_all_of_the_others(
    clips: list[Clip], n: int, sample: bool | int
) -> None:
    limit = {"train": n, "validation": None, "sample": sample}
    kept = take_subset(clips, limit)
    assert kept == take_subset(clips, limit)
    for split in ("train", "validation", "test"):
        rows, rest = [[c for c in some if c.split == split] for some in (clips, kept)]
        assert len(rest) == (min(n, len(rows)) if split == "train" else len(rows))
        assert [c for c in rows if c in rest] == rest
        assert sample is not False or rest == rows[: len(rest)]


def test_samples_of_two_numbers_differ_and_reach_the_end() -> None:
    clips = [row(f"{i}")[0] for i in range(100)]
    one, two = (take_subset(clips, {"train": 10, "sample": sample}) for sample in (True, 1))
    assert one != two
    assert any(c in one for c in clips[50:])
    assert one == take_subset(clips, {"train": 10, "sample": 0})
