"""Samplers: the clips of each training step, a pure function of (seed, step), and the batches of clips to score.

Every optimizer step uses one global batch, however many processes share it. Each clip has a weight such that the
average of the processes' losses is the mean over all tokens of the global batch, so the gradient does not depend on
the number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler

from kikitori.joining.plan import Example

# Clips are sorted by length within this many batches, or a quarter of the epoch: the clips of a batch are of similar
# length, while the order of the batches stays random.
MEGABATCH = 50


class SampledClip(NamedTuple):
    """A clip of a training batch, by its index.

    weight: factor of its summed token losses; 0 for a clip that only fills up a batch. full_window: whether it is
    padded to the model's full window instead of its own. step_clips: clips of the step, over all processes. step: the
    number of steps before it, on which its augmentation depends; without one it has none. example: what is read in
    place of the clip alone, if clips are joined.
    """

    clip_index: int
    weight: float
    full_window: bool = False
    step_clips: int | None = None
    step: int | None = None
    example: Example | None = None


def epoch_batches(
    lengths: Sequence[float],
    windows: Sequence[int],
    batch_size: int,
    seed: int,
    epoch: int,
    group_by_length: bool,
) -> list[list[int]]:
    """Distributes the indices of all clips over batches; only the last batch may be short.

    Batches hold clips of one window. The remaining clips of each window form further batches, of neighbouring windows.
    lengths, windows: of each clip. With `group_by_length` the clips of a batch are of similar length.
    """
    rng = np.random.default_rng((seed, epoch))
    order, by_length, by_window = rng.permutation(len(lengths)), np.asarray(lengths), np.asarray(windows)
    full: list[NDArray[np.int64]] = []
    rest: list[int] = []
    for window in np.unique(by_window):
        clips = order[by_window[order] == window]
        remainder, clips = np.split(clips, [len(clips) % batch_size])
        rest += remainder.tolist()
        if group_by_length:
            span = batch_size * min(MEGABATCH, max(1, len(clips) // (4 * batch_size)))
            megabatches = np.split(clips, range(span, len(clips), span))
            clips = np.concatenate([m[np.argsort(-by_length[m], kind="stable")] for m in megabatches])
        full += np.split(clips, range(batch_size, len(clips), batch_size)) if len(clips) else []
    # The short batch is drawn from all windows, so that no clip is in a short batch more often than others.
    last = sorted(rng.permutation(len(rest))[: len(lengths) % batch_size])
    mixed = np.delete(np.asarray(rest, dtype=np.int64), last)
    full += np.split(mixed, range(batch_size, len(mixed), batch_size)) if len(mixed) else []
    short = [[rest[i] for i in last]] if last else []
    return [full[i].tolist() for i in rng.permutation(len(full))] + short


class StepSampler(DistributedSampler[list[SampledClip]]):
    """The batches of one process in training, one per optimizer step: a DataLoader's `sampler`, with batch_size=None.

    lengths: seconds of each clip. windows: log-Mel frames that each clip is padded to. tokens: supervised tokens of
    each. steps: of the whole training, in one iteration; None for iterations of `steps_per_epoch`, by default those
    that read each clip once, and fewer for a Trainer with limit_train_batches. full_window_share: share of the steps
    whose clips are padded to the full window. global_step: returns the number of steps done, from which an iteration
    continues. plan: returns the example that begins with a clip in a step, with which its tokens count in place of
    `tokens`; None if each example is one clip. A global batch that the processes cannot share evenly, such as an
    epoch's last, is filled up with clips of weight 0, so that all processes have the same number of clips.

    As a DistributedSampler, it keeps Lightning from sharing the clips among the processes a second time.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        windows: Sequence[int],
        tokens: Sequence[int],
        global_batch_size: int,
        steps: int | None,
        seed: int,
        group_by_length: bool,
        full_window_share: float = 0.0,
        world_size: int = 1,
        rank: int = 0,
        global_step: Callable[[], int] = lambda: 0,
        steps_per_epoch: int | None = None,
        plan: Callable[[int, int], Example] | None = None,
    ) -> None:
        super().__init__(cast(Any, lengths), world_size, rank, shuffle=False)
        self.lengths = lengths
        self.windows = windows
        self.tokens = tokens
        self.global_batch_size = global_batch_size
        self.steps = steps
        self.seed = seed
        self.group_by_length = group_by_length
        self.full_window_share = full_window_share
        self.world_size = world_size
        self.rank = rank
        self.global_step = global_step
        self.batches_per_pass = -(-len(lengths) // global_batch_size)
        self.steps_per_epoch = steps_per_epoch or self.batches_per_pass
        self.plan = plan

    def __len__(self) -> int:
        """Batches of the whole training or of an epoch, including those done: Lightning continues its count.

        Of an epoch that reads each clip once: Lightning applies limit_train_batches, which may be a fraction, to this.
        """
        return self.batches_per_pass if self.steps is None else self.steps

    def __iter__(self) -> Iterator[list[SampledClip]]:
        first = self.global_step()
        last = (first // self.steps_per_epoch + 1) * self.steps_per_epoch if self.steps is None else self.steps
        batches: list[list[int]] = []
        for step in range(first, last):
            epoch, index = divmod(step, self.batches_per_pass)
            if index == 0 or not batches:
                shape = (self.lengths, self.windows, self.global_batch_size)
                batches = epoch_batches(*shape, self.seed, epoch, self.group_by_length)
            clips = batches[index]
            # Spread evenly over the steps: with a share of 0.25, every fourth.
            full_window = int((step + 1) * self.full_window_share) > int(step * self.full_window_share)
            examples = [self.plan(step, i) if self.plan else None for i in clips]
            tokens = (e.num_tokens if e else self.tokens[i] for i, e in zip(clips, examples, strict=True))
            # DDP averages over the processes.
            weight = self.world_size / sum(tokens)
            rest = (full_window, sum(len(e.sentences) if e else 1 for e in examples), step)
            share = zip(clips[self.rank :: self.world_size], examples[self.rank :: self.world_size], strict=True)
            own = [SampledClip(i, weight, *rest, example) for i, example in share]
            size = -(-len(clips) // self.world_size)
            yield own + [SampledClip(clips[0], 0.0, *rest)] * (size - len(own))


class ScoringBatches(DistributedSampler[list[int]]):
    """A process's share of the clips to score, in batches of one window; a `sampler`, as StepSampler is.

    The longest clips come first; each process takes every `world_size`-th, so that together they read each clip once.
    windows: log-Mel frames that each clip is padded to, at most `full_window`. batch_size: clips of the full window;
    batches of shorter windows hold proportionally more clips, which take the same memory.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        windows: Sequence[int],
        full_window: int,
        batch_size: int,
        world_size: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(cast(Any, lengths), world_size, rank, shuffle=False)
        longest_first = sorted(range(len(lengths)), key=lambda i: (-windows[i], -lengths[i]))
        self.batches: list[list[int]] = []
        for window, clips in groupby(longest_first[rank::world_size], lambda i: windows[i]):
            alike, n = list(clips), batch_size * full_window // window
            self.batches += [alike[i : i + n] for i in range(0, len(alike), n)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
