from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.corpora.splits import hold_out, present_splits
from kikitori.corpora.types import Clip, Corpus, Reject, Split
from kikitori.runtime.errors import DataError


def clip(name: str, split: Split = "train", speaker: str | None = None) -> Clip:
    return Clip(name, split, "文", "", lambda: b"", speaker)


def corpus(*clips: Clip, rejects: tuple[Reject, ...] = (), **absent: str) -> Corpus:
    return Corpus("a corpus", clips, rejects, absent=absent)  # type: ignore[arg-type]


def by_split(held: Corpus) -> dict[str, set[str]]:
    return {split: {c.name for c in held.clips if c.split == split} for split in ("train", "validation", "test")}


MANY = corpus(*(clip(f"{i:04d}.wav") for i in range(2000)))


def test_a_share_of_the_clips_is_held_out_for_each_absent_split() -> None:
    sizes = {split: len(names) for split, names in by_split(hold_out(MANY, 0.1)).items()}
    assert sum(sizes.values()) == 2000
    assert sizes["validation"] == pytest.approx(200, abs=45)  # more than three standard deviations
    assert sizes["test"] == pytest.approx(200, abs=45)
    assert [c.name for c in hold_out(MANY, 0.1).clips] == [c.name for c in MANY.clips]


def test_a_split_that_the_corpus_has_stays_as_it_is() -> None:
    clips = [*MANY.clips, *(clip(f"t{i}.wav", "test") for i in range(5))]
    held = by_split(hold_out(corpus(*clips), 0.1))
    assert held["test"] == {f"t{i}.wav" for i in range(5)}
    assert len(held["validation"]) == pytest.approx(200, abs=45)


def test_a_corpus_with_all_splits_has_nothing_to_hold_out() -> None:
    with pytest.raises(DataError, match=r"data\.held_out=0\.1: the corpus has a validation and a test split; leave it"):
        hold_out(corpus(clip("a"), clip("b", "validation"), clip("c", "test")), 0.1)


@given(
    speakers=st.lists(st.integers(0, 40), min_size=60, max_size=120),
    more=st.lists(st.integers(0, 40), max_size=60),
    share=st.sampled_from([0.1, 0.2, 0.3]),
)
def test_held_out_speakers_stay_apart_and_stay_held_out_when_rows_are_added(
    speakers: list[int], more: list[int], share: float
) -> None:
    # Of 41 speakers some are held out by their hash alone, at any of these shares.
    everybody = [clip(f"s{n}.wav", speaker=f"speaker {n}") for n in range(41)]
    first = [clip(f"a{i}.wav", speaker=f"speaker {n}") for i, n in enumerate(speakers)] + everybody
    added = [clip(f"b{i}.wav", speaker=f"speaker {n}") for i, n in enumerate(more)]
    before, after = hold_out(corpus(*first), share), hold_out(corpus(*added, *first), share)
    place: dict[str | None, str] = {}
    for c in after.clips:
        assert place.setdefault(c.speaker, c.split) == c.split
    assert {c.name: c.split for c in before.clips}.items() <= {c.name: c.split for c in after.clips}.items()


@given(names=st.sets(st.text(min_size=1), min_size=3, max_size=12), share=st.floats(0.001, 0.499))
def test_few_speakers_still_make_three_splits(names: set[str], share: float) -> None:
    clips = [clip(f"{i}-{name}.wav", speaker=name) for name in sorted(names) for i in range(2)]
    assert all(by_split(hold_out(corpus(*clips), share)).values())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_two_speakers_are_too_few(count: int) -> None:
    clips = [clip(f"{s}-{i}.wav", speaker=f"{s}") for s in range(count) for i in range(5)]
    with pytest.raises(DataError, match=rf"data\.held_out=0\.1: {count} speakers or recordings are too few for"):
        hold_out(corpus(*clips), 0.1)


def test_parts_of_one_recording_are_held_out_together() -> None:
    clips = [replace(clip(f"{r}.wav#t={i},{i + 1}"), part=(i, i + 1)) for r in range(30) for i in range(4)]
    for names in by_split(hold_out(corpus(*clips), 0.2)).values():
        recordings = {name.partition("#")[0] for name in names}
        assert len(names) == 4 * len(recordings)


def test_the_splits_that_the_corpus_has_are_used_unless_some_are_needed() -> None:
    some = corpus(clip("a", "test"), rejects=(Reject("b", "validation", "malformed row"),), train="no train.tsv")
    assert present_splits(some, None) == ["validation", "test"]
    assert present_splits(some, ["test"]) == ["test"]
    with pytest.raises(DataError) as error:
        present_splits(some, ["train", "test"])
    assert "a corpus has no train split (clips listed: validation 0, test 1): no train.tsv" in str(error.value)
    assert "'splits=[validation,test]'" in str(error.value)
    assert "held_out" not in str(error.value)


def test_an_absent_validation_split_is_named_with_the_remedies() -> None:
    with pytest.raises(DataError) as error:
        present_splits(corpus(clip("a"), validation="all.csv has no column split"), ["train", "validation", "test"])
    message = str(error.value)
    assert "a corpus has no validation split (clips listed: train 1): all.csv has no column split" in message
    assert "data.held_out=0.1 takes it from the training clips" in message
    assert "'splits=[train]'" in message


def test_an_empty_corpus_is_named() -> None:
    with pytest.raises(DataError, match="a corpus has no train split: it lists no clip of it"):
        present_splits(corpus(), None)
