"""Which clips a process trains on in each step, a pure function of (seed, step), and batches of clips to be scored.

A step of the optimizer sees one global batch, whoever computes it: its clips are dealt out to the processes, and each
is weighed so that the processes' losses average to the mean over all tokens of the global batch. So 1 process and 8
train the same recipe.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

# Clips are sorted by length within this many batches, or a quarter of the epoch, so that batches stay random while
# their clips are alike.
MEGABATCH = 50


class SampledClip(NamedTuple):
    """A clip of a batch, by its place.

    weight: what its tokens' summed losses count in the batch's; a filler's is 0. whole: heard in the whole window.
    """

    clip_index: int
    weight: float
    full_window: bool = False


def epoch_batches(
    lengths: Sequence[float],
    windows: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool,
) -> list[list[int]]:
    """Every place of the clips once, in batches of one window as far as they fill; only the last may be short.

    What is left of each window fills further batches, of neighbouring windows. With `group_by_length` the clips of a
    batch are of similar length.
    """
    rng = np.random.default_rng((seed, epoch))
    order, by_length, by_window = rng.permutation(len(lengths)), np.asarray(lengths), np.asarray(windows)
    full: list[NDArray[np.int64]] = []
    rest: list[int] = []
    for window in np.unique(by_window):
        clips = order[by_window[order] == window]
        left, clips = np.split(clips, [len(clips) % batch_size])
        rest += left.tolist()
        if group_by_length:
            span = batch_size * min(MEGABATCH, max(1, len(clips) // (4 * batch_size)))
            megabatches = np.split(clips, range(span, len(clips), span))
            clips = np.concatenate([m[np.argsort(-by_length[m], kind="stable")] for m in megabatches])
        full += np.split(clips, range(batch_size, len(clips), batch_size)) if len(clips) else []
    # The short batch is of any windows, so that no clip is more often among the few of a step than others.
    last = sorted(rng.permutation(len(rest))[: len(lengths) % batch_size])
    mixed = np.delete(np.asarray(rest, dtype=np.int64), last)
    full += np.split(mixed, range(batch_size, len(mixed), batch_size)) if len(mixed) else []
    short = [[rest[i] for i in last]] if last else []
    return [full[i].tolist() for i in rng.permutation(len(full))] + short


class StepSampler(Sampler[list[SampledClip]]):
    """The batches of one process for a whole training, one a step, epoch after epoch: a DataLoader's `batch_sampler`.

    lengths: seconds of each clip. windows: log-Mel frames that each is heard in. tokens: supervised tokens of each.
    steps: of the whole training. first_step: steps that are done already, where a run goes on. whole_share: of the
    steps, those that hear their clips in the whole window. A global batch that the processes cannot share evenly, as an
    epoch's last may be, is filled up with clips of weight 0, so that every process has equally many.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        windows: Sequence[int],
        tokens: Sequence[int],
        global_batch_size: int,
        steps: int,
        seed: int,
        group_by_length: bool,
        whole_share: float = 0.0,
        processes: int = 1,
        rank: int = 0,
        first_step: int = 0,
    ) -> None:
        self.lengths = lengths
        self.windows = windows
        self.tokens = tokens
        self.global_batch_size = global_batch_size
        self.steps = steps
        self.seed = seed
        self.group_by_length = group_by_length
        self.whole_share = whole_share
        self.processes = processes
        self.rank = rank
        self.first_step = first_step

    def __len__(self) -> int:
        """Batches of the whole training, those done included: Lightning counts on from there."""
        return self.steps

    def __iter__(self) -> Iterator[list[SampledClip]]:
        steps_an_epoch = -(-len(self.lengths) // self.global_batch_size)
        batches: list[list[int]] = []
        for step in range(self.first_step, self.steps):
            epoch, place = divmod(step, steps_an_epoch)
            if place == 0 or not batches:
                shape = (self.lengths, self.windows, self.global_batch_size)
                batches = epoch_batches(*shape, self.seed, epoch, self.group_by_length)
            clips = batches[place]
            # Spread evenly over the steps: at a share of 0.25 every fourth.
            whole = int((step + 1) * self.whole_share) > int(step * self.whole_share)
            # DDP averages over the processes.
            weight = self.processes / sum(self.tokens[i] for i in clips)
            mine = [SampledClip(i, weight, whole) for i in clips[self.rank :: self.processes]]
            size = -(-len(clips) // self.processes)
            yield mine + [SampledClip(clips[0], 0.0, whole)] * (size - len(mine))


class ScoringBatches(Sampler[list[int]]):
    """A process's share of the clips, every `processes`-th of the longest first, in batches of one window.

    Together the processes read every clip once. A DataLoader's `batch_sampler`.
    frames: log-Mel frames that each clip is heard in, of at most `whole`. batch_size: clips in the whole window; in a
    shorter one as many more as it is shorter, which take as much memory.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        frames: Sequence[int],
        whole: int,
        batch_size: int,
        processes: int = 1,
        rank: int = 0,
    ) -> None:
        longest_first = sorted(range(len(lengths)), key=lambda i: (-frames[i], -lengths[i]))
        self.batches: list[list[int]] = []
        for window, clips in groupby(longest_first[rank::processes], lambda i: frames[i]):
            alike, n = list(clips), batch_size * whole // window
            self.batches += [alike[i : i + n] for i in range(0, len(alike), n)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
