import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.data.sampler import ScoringBatches, StepSampler, epoch_batches

CLIPS = st.lists(st.tuples(st.floats(0.1, 30), st.sampled_from([200, 300, 3000])), max_size=300)


@given(clips=CLIPS, batch_size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 9), by=st.booleans())
def test_every_clip_is_drawn_once_an_epoch_and_only_the_last_batch_is_short(clips, batch_size, seed, epoch, by) -> None:
    lengths, windows = [length for length, _ in clips], [window for _, window in clips]
    batches = epoch_batches(lengths, windows, batch_size, seed, epoch, by)
    assert sorted(i for batch in batches for i in batch) == list(range(len(clips)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == -(-len(clips) // batch_size)


@given(clips=CLIPS, batch_size=st.integers(1, 20), by=st.booleans())
def test_batches_hold_one_window_as_far_as_they_can_be_filled(clips, batch_size, by) -> None:
    windows = [window for _, window in clips]
    batches = epoch_batches([length for length, _ in clips], windows, batch_size, 0, 0, by)
    pure = sum(len({windows[i] for i in batch}) == 1 for batch in batches)
    assert pure >= sum(windows.count(window) // batch_size for window in set(windows))


@given(clips=CLIPS, batch_size=st.integers(1, 20))
def test_each_clip_is_scored_once_in_batches_of_one_window_and_equal_memory(clips, batch_size) -> None:
    lengths, windows = [length for length, _ in clips], [window for _, window in clips]
    batches = list(ScoringBatches(lengths, windows, 3000, batch_size))
    assert sorted(i for batch in batches for i in batch) == list(range(len(clips)))
    assert all(len({windows[i] for i in batch}) == 1 for batch in batches)
    assert all(len(batch) * windows[batch[0]] <= 3000 * batch_size for batch in batches)
    assert [windows[batch[0]] for batch in batches] == sorted((windows[batch[0]] for batch in batches), reverse=True)
    assert len(batches) <= sum(-(-windows.count(w) * w // (3000 * batch_size)) for w in set(windows))


def test_epochs_and_seeds_differ() -> None:
    lengths = [float(i) for i in range(100)]
    orders = [epoch_batches(lengths, [300] * 100, 8, seed, epoch, True) for seed in (0, 1) for epoch in (0, 1)]
    assert len({str(order) for order in orders}) == 4


def test_grouped_batches_hold_clips_of_similar_length() -> None:
    lengths = [float(i % 97) for i in range(800)]

    def spread(grouped: bool) -> float:
        batches = [[lengths[i] for i in batch] for batch in epoch_batches(lengths, [300] * 800, 16, 0, 0, grouped)]
        return sum(max(batch) - min(batch) for batch in batches) / len(batches)

    assert spread(True) < spread(False) / 5


def test_a_small_corpus_has_different_batches_in_each_epoch() -> None:
    sets = [
        {frozenset(batch) for batch in epoch_batches([float(i) for i in range(36)], [300] * 36, 8, 0, epoch, True)}
        for epoch in range(3)
    ]
    assert not sets[0] & sets[1] & sets[2]


def drawn(clips: int, global_batch_size: int, steps: int, processes: int, first: int = 0, share: float = 0.0):
    """The clips of all processes, per step."""
    lengths = [float(i % 7) for i in range(clips)]
    windows = [(200, 300, 400)[i % 3] for i in range(clips)]
    tokens = [i % 5 + 1 for i in range(clips)]
    data = (lengths, windows, tokens, global_batch_size, steps, 3, True, share, processes)
    samplers = [StepSampler(*data, rank=rank, global_step=lambda: first) for rank in range(processes)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {steps - first}
    assert {len(sampler) for sampler in samplers} == {steps}
    return list(zip(*batches, strict=True)), tokens


SLOTS = {"clips": st.integers(1, 60), "global_batch_size": st.integers(1, 20), "processes": st.integers(1, 4)}


@given(**SLOTS, steps=st.integers(1, 8), share=st.sampled_from([0.0, 0.3, 1.0]))
def test_a_step_uses_the_same_clips_for_any_number_of_processes(
    clips, global_batch_size, processes, steps, share
) -> None:
    alone, _ = drawn(clips, global_batch_size, steps, 1, share=share)
    together, tokens = drawn(clips, global_batch_size, steps, processes, share=share)
    for (one,), many in zip(alone, together, strict=True):
        real = [(draw.clip_index, draw.full_window) for batch in many for draw in batch if draw.weight]
        assert sorted(real) == sorted((draw.clip_index, draw.full_window) for draw in one)
        assert len({len(batch) for batch in many}) == 1
        assert {draw.step_clips for batch in many for draw in batch} == {len(one)}
        # Averaged over the processes, every token counts the same, and all of them one.
        weights = {draw.weight for batch in many for draw in batch if draw.weight}
        assert len(weights) == 1
        total = sum(tokens[draw.clip_index] * draw.weight for batch in many for draw in batch)
        assert total / processes == pytest.approx(1)


@given(**SLOTS, steps=st.integers(1, 8), first=st.integers(0, 8))
def test_a_resumed_run_uses_the_clips_of_an_uninterrupted_one(
    clips, global_batch_size, processes, steps, first
) -> None:
    first = min(first, steps)
    full, _ = drawn(clips, global_batch_size, steps, processes, share=0.4)
    assert drawn(clips, global_batch_size, steps, processes, first, share=0.4)[0] == full[first:]


@pytest.mark.parametrize(("share", "steps"), [(0.0, 0), (0.25, 25), (0.5, 50), (1.0, 100)])
def test_the_share_of_steps_in_the_full_window_is_kept_and_spread(share: float, steps: int) -> None:
    full = [batch[0].full_window for (batch,) in drawn(20, 4, 100, 1, share=share)[0]]
    assert sum(full) == steps
    assert sum(full[:20]) == round(20 * share)


def test_each_epoch_holds_every_clip_once_and_only_its_last_step_is_short() -> None:
    steps, _ = drawn(21, 8, 6, 1)
    for epoch in (steps[:3], steps[3:]):
        indices = [[draw.clip_index for draw in step[0]] for step in epoch]
        assert [len(step) for step in indices] == [8, 8, 5]
        assert sorted(index for step in indices for index in step) == list(range(21))
    assert steps[:3] != steps[3:]
