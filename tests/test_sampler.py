import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.sampler import StepSampler, epoch_order

LENGTHS = st.lists(st.floats(0.1, 30), max_size=300)


@given(
    lengths=LENGTHS, batch_size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 9), by=st.booleans()
)
def test_every_clip_is_drawn_once_an_epoch(lengths, batch_size, seed, epoch, by) -> None:
    assert sorted(epoch_order(lengths, batch_size, seed, epoch, by)) == list(range(len(lengths)))


def test_epochs_and_seeds_differ() -> None:
    lengths = [float(i) for i in range(100)]
    orders = [epoch_order(lengths, 8, seed, epoch, True) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_grouped_batches_hold_clips_of_similar_length() -> None:
    lengths = [float(i % 97) for i in range(800)]

    def spread(grouped: bool) -> float:
        order = epoch_order(lengths, 16, 0, 0, grouped)
        batches = [[lengths[i] for i in order[b : b + 16]] for b in range(0, len(order), 16)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    assert spread(True) < spread(False) / 10


def test_only_the_last_grouped_batch_is_short() -> None:
    lengths = [float(i) for i in range(21)]
    order = epoch_order(lengths, 8, 0, 0, True)
    # The shortest clips are left for the last, short batch.
    assert sorted(order[16:]) == [0, 1, 2, 3, 4]


def drawn(clips: int, global_batch: int, steps: int, processes: int, accumulated: int, first: int = 0):
    """Of each step, the draws of all its slots."""
    lengths = [float(i % 7) for i in range(clips)]
    tokens = [i % 5 + 1 for i in range(clips)]
    slots = {"accumulated": accumulated, "processes": processes, "first_step": first}
    samplers = [
        StepSampler(lengths, tokens, global_batch, steps, 3, True, rank=rank, **slots) for rank in range(processes)
    ]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {(steps - first) * accumulated}
    assert {len(sampler) for sampler in samplers} == {steps * accumulated}
    return [[b[s * accumulated + a] for b in batches for a in range(accumulated)] for s in range(steps - first)], tokens


SLOTS = {"clips": st.integers(1, 60), "global_batch": st.integers(1, 20), "processes": st.integers(1, 4)}


@given(**SLOTS, accumulated=st.integers(1, 3), steps=st.integers(1, 8))
def test_a_step_sees_the_same_clips_whoever_computes_it(clips, global_batch, processes, accumulated, steps) -> None:
    alone, _ = drawn(clips, global_batch, steps, 1, 1)
    together, tokens = drawn(clips, global_batch, steps, processes, accumulated)
    for one, many in zip(alone, together, strict=True):
        real = [draw.place for batch in many for draw in batch if draw.weight]
        assert sorted(real) == sorted(draw.place for draw in one[0])
        assert len({len(batch) for batch in many}) == 1
        # Averaged over the slots, every token counts the same, and all of them one.
        weights = {draw.weight for batch in many for draw in batch if draw.weight}
        assert len(weights) == 1
        total = sum(tokens[draw.place] * draw.weight for batch in many for draw in batch)
        assert total / (processes * accumulated) == pytest.approx(1)


@given(**SLOTS, steps=st.integers(1, 8), first=st.integers(0, 8))
def test_a_run_that_goes_on_sees_what_it_would_have_seen(clips, global_batch, processes, steps, first) -> None:
    first = min(first, steps)
    whole, _ = drawn(clips, global_batch, steps, processes, 2)
    assert drawn(clips, global_batch, steps, processes, 2, first)[0] == whole[first:]


def test_each_epoch_holds_every_clip_once_and_only_its_last_step_is_short() -> None:
    steps, _ = drawn(21, 8, 6, 1, 1)
    for epoch in (steps[:3], steps[3:]):
        places = [[draw.place for draw in step[0]] for step in epoch]
        assert [len(p) for p in places] == [8, 8, 5]
        assert sorted(place for p in places for place in p) == list(range(21))
    assert steps[:3] != steps[3:]
