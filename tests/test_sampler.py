from hypothesis import given
from hypothesis import strategies as st

from kikitori.sampler import EpochSampler, epoch_order

LENGTHS = st.lists(st.floats(0.1, 30), max_size=300)


@given(
    lengths=LENGTHS, batch_size=st.integers(1, 20), seed=st.integers(0, 9), epoch=st.integers(0, 9), by=st.booleans()
)
def test_every_clip_is_drawn_once_an_epoch(lengths, batch_size, seed, epoch, by) -> None:
    assert sorted(epoch_order(lengths, batch_size, seed, epoch, by)) == list(range(len(lengths)))


@given(lengths=LENGTHS, epoch=st.integers(0, 5), by=st.booleans())
def test_the_order_is_a_function_of_seed_and_epoch_alone(lengths, epoch, by) -> None:
    sampler = EpochSampler(lengths, 8, 3, by)
    for earlier in range(epoch):  # what was drawn before leaves no trace
        sampler.set_epoch(earlier)
        list(sampler)
    sampler.set_epoch(epoch)
    assert list(sampler) == epoch_order(lengths, 8, 3, epoch, by)


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


def test_the_sampler_follows_set_epoch() -> None:
    sampler = EpochSampler([1.0, 2.0, 3.0, 4.0, 5.0], 2, 0, False)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert len(sampler) == 5
