"""What examples hold: properties of all plans, and what is drawn how often."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.joining.plan import NON_SPEECH, Noise, Planner, check_joinable
from kikitori.joining.settings import Joining
from kikitori.joining.sound import example_samples, noise_samples
from kikitori.model.loading import build_whisper
from kikitori.model.processor import Processor
from kikitori.runtime.errors import ConfigError

SIZES = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_label_tokens": 448}
PROCESSOR = build_whisper(**SIZES, window_s=30, timestamps=True).processor
ALL = Joining(share=0.5, same_speaker=0.5, timestamps=0.5, previous_text=0.5, non_speech=0.1)
WINDOW = 30 * SAMPLE_RATE


def planner(
    seconds: list[float], joining: Joining = ALL, tokens: int = 10, speakers: int = 3, processor: Processor = PROCESSOR
) -> Planner:
    samples = [round(s * SAMPLE_RATE) for s in seconds]
    counts = [tokens] * len(seconds)
    return Planner(joining, processor, 0, samples, counts, counts, [f"{i % speakers}" for i in range(len(seconds))])


@given(
    seconds=st.lists(st.floats(0.3, 30), min_size=1, max_size=20),
    tokens=st.integers(1, 200),
    step=st.integers(0, 99),
    shares=st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 5),
    pause=st.tuples(st.floats(0, 2), st.floats(0, 3)).map(sorted),
)
def test_a_window_is_never_overfull_and_its_clips_do_not_overlap(seconds, tokens, step, shares, pause) -> None:
    names = ("share", "same_speaker", "timestamps", "previous_text", "non_speech")
    plan = planner(seconds, Joining(silence_s=pause, **dict(zip(names, shares, strict=True))), tokens)
    for clip in range(len(seconds)):
        example = plan(step, clip)
        assert example == plan(step, clip)
        assert 0 < example.samples(WINDOW) <= WINDOW
        assert bool(example.noise) is not bool(example.sentences)
        if example.noise:
            continue
        assert example.sentences[0].clip == clip
        every = [*example.sentences, *([example.crossing] if example.crossing else [])]
        assert all(placed.end - placed.start == plan.samples[placed.clip] for placed in example.sentences)
        assert all(before.end <= after.start for before, after in itertools.pairwise(every))
        assert every[-1].end <= WINDOW
        assert len({placed.clip for placed in every} | set(example.previous)) == len(every) + len(example.previous)
        assert example.joined or len(every) == 1
        # A clip whose text is left out is never in a window without timestamps.
        assert example.stamped or not example.crossing
        assert example.num_tokens < 448


def test_what_is_drawn_depends_on_seed_step_and_clip_alone() -> None:
    plan = planner([4.0] * 12)
    first = [plan(step, clip) for step in range(4) for clip in range(12)]
    np.random.seed(1)
    assert [plan(step, clip) for step in range(4) for clip in range(12)] == first
    assert first != [replace(plan, seed=1)(step, clip) for step in range(4) for clip in range(12)]
    assert len(set(first)) > 40


def test_one_share_does_not_change_what_the_others_draw() -> None:
    """So that runs with and without it are compared on the same windows."""
    both = [planner([4.0] * 12, replace(ALL, previous_text=p)) for p in (0.0, 1.0)]
    for step in range(20):
        without, with_text = (plan(step, 3) for plan in both)
        assert without == with_text._replace(previous=())


def test_shares_and_probabilities_are_kept() -> None:
    plan = planner([4.0] * 60, speakers=6)
    examples = [plan(step, clip) for step in range(40) for clip in range(60)]
    speech = [example for example in examples if not example.noise]
    assert 1 - len(speech) / len(examples) == pytest.approx(0.1, abs=0.02)
    assert sum(e.joined for e in speech) / len(speech) == pytest.approx(0.5, abs=0.04)
    assert sum(e.stamped for e in examples) / len(examples) == pytest.approx(0.5, abs=0.04)
    assert sum(bool(e.previous) for e in speech) / len(speech) == pytest.approx(0.5, abs=0.04)
    pairs = [(a.clip, b.clip) for e in speech for a, b in zip(e.sentences, e.sentences[1:], strict=False)]
    # Of the others, a sixth are of the same speaker by chance.
    assert np.mean([plan.speakers[a] == plan.speakers[b] for a, b in pairs]) == pytest.approx(0.5 + 0.5 / 6, abs=0.05)
    assert {e.noise.kind for e in examples if e.noise} == set(NON_SPEECH)
    # Every clip begins as many, and follows in about as many.
    following = Counter(b for _, b in pairs)
    assert len(following) == 60
    assert max(following.values()) < 2 * min(following.values())


def test_full_windows_are_full() -> None:
    plan = planner([4.0] * 60, Joining(share=1, timestamps=1, silence_s=(0.5, 0.5), previous_text=0))
    example = plan(0, 0)
    assert [(p.start / SAMPLE_RATE, p.end / SAMPLE_RATE) for p in example.sentences] == [
        *((0.5, 4.5), (5.0, 9.0), (9.5, 13.5), (14.0, 18.0), (18.5, 22.5), (23.0, 27.0))
    ]
    assert example.crossing is not None
    assert example.crossing[1:] == (27.5 * SAMPLE_RATE, WINDOW)
    without = planner([4.0] * 60, Joining(share=1, timestamps=0, silence_s=(0.5, 0.5)))(0, 0)
    assert len(without.sentences) == 6
    assert without.crossing is None


def test_a_clip_of_a_whole_window_is_read_as_a_whole() -> None:
    plan = planner([30.0, 4.0, 4.0], Joining(share=1, timestamps=1, silence_s=(1.0, 1.0)))
    example = plan(0, 0)
    assert example.sentences == ((0, 0, WINDOW),)
    assert example.crossing is None


def test_a_text_that_does_not_fit_is_left_out_with_its_clip() -> None:
    # Prefix and end take 4, two texts with timestamps 2 * 202: a third would make 610.
    plan = planner([4.0] * 60, Joining(share=1, timestamps=1), tokens=200)
    for step in range(20):
        example = plan(step, 0)
        assert len(example.sentences) == 2
        assert example.crossing is None
        assert example.num_tokens == 4 + 2 * 202 - 1
    alone = planner([4.0] * 2, Joining(share=1, timestamps=1, previous_text=0), tokens=443)(0, 0)
    # As long as the limit without timestamps.
    assert (alone.stamped, len(alone.sentences), alone.num_tokens) == (False, 1, 447)


class Unlisted(Sequence[int]):
    """Clips of which a list would take too long."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, place: Any) -> Any:
        return place % 60

    def __iter__(self) -> Iterator[int]:
        pytest.fail("all clips of a speaker are listed for a draw")


def test_a_draw_takes_as_long_for_a_speaker_of_many_clips_as_for_one_of_few() -> None:
    plan = planner([4.0] * 60, Joining(share=1, same_speaker=1), speakers=1)
    plan.__dict__["_by_speaker"] = {"0": Unlisted()}
    assert len(plan(0, 0).sentences) > 3


def test_clips_of_unknown_speakers_are_joined_as_of_different_ones() -> None:
    plan = replace(planner([4.0] * 12, Joining(share=1, same_speaker=1)), speakers=[None] * 12)
    assert len({plan(step, 0).sentences[1].clip for step in range(40)}) > 8


@pytest.mark.parametrize("kind", NON_SPEECH)
def test_noise_has_its_level_and_the_same_samples_again(kind: Any) -> None:
    samples = noise_samples(Noise(kind, SAMPLE_RATE, -30.0, 5))
    assert samples.shape == (SAMPLE_RATE,)
    assert samples.equal(noise_samples(Noise(kind, SAMPLE_RATE, -30.0, 5)))
    level = float(samples.square().mean().sqrt())
    assert level == pytest.approx(0 if kind == "silence" else 10**-1.5, rel=1e-3)
    if kind != "silence":
        power = np.abs(np.fft.rfft(samples.numpy())) ** 2
        octaves = power[500:1000].sum() / power[4000:8000].sum()
        # White: an eighth of the frequencies, an eighth of the power. Pink: every octave has the same.
        assert octaves == pytest.approx(1 / 8 if kind == "white noise" else 1, rel=0.2)


def test_samples_are_where_the_plan_has_them() -> None:
    plan = planner([4.0] * 60, Joining(share=1, timestamps=1, silence_s=(0.5, 0.5)))
    example = plan(0, 7)
    samples = example_samples(example, lambda clip: np.full(4 * SAMPLE_RATE, 100 * (clip + 1), np.int16), WINDOW)
    assert len(samples) == WINDOW
    assert example.crossing is not None
    for clip, start, end in (*example.sentences, example.crossing):
        assert samples[start - 1] == 0
        assert (samples[start:end] * 32768).eq(100 * (clip + 1)).all()
    assert samples[: example.sentences[0].start].eq(0).all()


def test_clips_too_long_for_a_joint_are_refused_with_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"no two training clips fit .* of 30 s .*28.0 and 29.0 s.*start_column"):
        check_joinable(planner([29.0, 30.0, 28.0]))
    with pytest.raises(ConfigError, match="there is only one training clip; pass joining=none"):
        check_joinable(planner([2.0]))
    check_joinable(planner([29.0, 30.0], Joining(share=0, non_speech=0.5)))
    check_joinable(planner([14.0, 15.8, 30.0]))


def test_silence_that_leaves_no_room_for_a_second_clip_is_refused() -> None:
    """Otherwise each window would hold one clip."""
    for silence_s in ([0.2, 0.5], [13, 20], [40, 50], [1001, 1002]):
        joining = Joining(share=1, silence_s=silence_s)
        with pytest.raises(ConfigError, match=r"joining.silence_s=\[.*no two .* of 30 s .*14.0 and 15.8 s\); lower it"):
            check_joinable(planner([14.0, 15.8, 30.0], joining))
    check_joinable(planner([4.0, 5.0], Joining(share=1, silence_s=[10, 20])))
    check_joinable(planner([14.0, 16.0], Joining(share=0, non_speech=0.5, silence_s=[40, 50])))


def test_a_tokenizer_without_timestamps_is_refused_with_what_to_do() -> None:
    without = build_whisper(**SIZES, window_s=30).processor
    with pytest.raises(ConfigError, match=r"joining.timestamps=0.5: .*has no timestamps .*model.timestamps=true"):
        check_joinable(planner([4.0, 4.0], processor=without))
    check_joinable(planner([4.0, 4.0], Joining(share=1, timestamps=0), processor=without))


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {name: value}
            for name in ("share", "same_speaker", "timestamps", "non_speech")
            for value in (-0.1, 1.1, True)
        ),
        *({"silence_s": value} for value in (1, [], [1], [1, 0.5], [-1, 1], [0, float("inf")], ["a", "b"])),
        *({"noise_dbfs": value} for value in ([-20, -60], [-120, -20], [-60, 0])),
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"joining\.{next(iter(wrong))}="):
        Joining(**wrong)
