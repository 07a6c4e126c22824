"""Which clips a process trains on in each of its batches: a pure function of (seed, epoch).

A step of the optimizer sees one global batch, whoever computes it: its clips are dealt out to the slots of that step,
one a process and accumulated batch, and each clip is weighed so that the slots' losses average to the mean over all
tokens of the global batch. So 1 process, 8 processes, and 2 that accumulate 4 batches each train the same recipe.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

# Clips are sorted by length within this many batches, so that batches stay random while their clips are alike.
MEGABATCH = 50


class Draw(NamedTuple):
    """A clip of a batch, by its place. weight: what its tokens' summed losses count in the batch's; a filler's is 0."""

    place: int
    weight: float


def epoch_order(lengths: Sequence[float], batch_size: int, seed: int, epoch: int, group_by_length: bool) -> list[int]:
    """A permutation of range(len(lengths)) to be cut into batches of `batch_size`.

    With `group_by_length` the clips of a batch are of similar length, and only the last batch may be short of clips.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    if not group_by_length:
        return order.tolist()
    span = MEGABATCH * batch_size
    megabatches = [order[i : i + span] for i in range(0, len(order), span)]
    by_length = np.asarray(lengths)
    order = np.concatenate([m[np.argsort(-by_length[m], kind="stable")] for m in megabatches]) if len(order) else order
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    whole = len(order) // batch_size
    shuffled = [batches[i] for i in rng.permutation(whole)] + batches[whole:]
    return [int(i) for batch in shuffled for i in batch]


class StepSampler(Sampler[list[Draw]]):
    """The batches of one process for a whole training, epoch after epoch: a DataLoader's `batch_sampler`.

    lengths: seconds of each clip. tokens: supervised tokens of each clip. steps: of the whole training.
    first_step: steps that are done already, where a run goes on. A global batch that does not fill its slots, as an
    epoch's last may not, is filled up with clips of weight 0, so that every process has equally many batches.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        tokens: Sequence[int],
        global_batch: int,
        steps: int,
        seed: int,
        group_by_length: bool,
        accumulated: int = 1,
        processes: int = 1,
        rank: int = 0,
        first_step: int = 0,
    ) -> None:
        self.lengths = lengths
        self.tokens = tokens
        self.global_batch = global_batch
        self.steps = steps
        self.seed = seed
        self.group_by_length = group_by_length
        self.accumulated = accumulated
        self.processes = processes
        self.rank = rank
        self.first_step = first_step

    def __len__(self) -> int:
        """Batches of the whole training, those done included: Lightning counts on from there."""
        return self.steps * self.accumulated

    def __iter__(self) -> Iterator[list[Draw]]:
        steps_an_epoch = -(-len(self.lengths) // self.global_batch)
        slots = self.processes * self.accumulated
        order: list[int] = []
        for step in range(self.first_step, self.steps):
            epoch, place = divmod(step, steps_an_epoch)
            if place == 0 or not order:
                order = epoch_order(self.lengths, self.global_batch, self.seed, epoch, self.group_by_length)
            clips = order[place * self.global_batch : (place + 1) * self.global_batch]
            # The framework divides by the slots: Lightning by the accumulated batches, DDP by the processes.
            weight = slots / sum(self.tokens[i] for i in clips)
            size = -(-len(clips) // slots)
            for batch in range(self.accumulated):
                mine = [Draw(i, weight) for i in clips[batch * self.processes + self.rank :: slots]]
                yield mine + [Draw(clips[0], 0.0)] * (size - len(mine))
