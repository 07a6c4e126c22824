"""The order in which training sees its clips: a pure function of (seed, epoch)."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Clips are sorted by length within this many batches, so that batches stay random while their clips are alike.
MEGABATCH = 50


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


class EpochSampler(Sampler[int]):
    """`epoch_order` for a DataLoader; Lightning calls `set_epoch` before each epoch."""

    def __init__(self, lengths: Sequence[float], batch_size: int, seed: int, group_by_length: bool) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.group_by_length = group_by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self.lengths, self.batch_size, self.seed, self.epoch, self.group_by_length))
