"""Random number generators: saves and restores their states, and draws seeded samples."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """Returns the states of all generators that training uses, in types that a checkpoint may hold."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    numpy: Any = np.random.get_state(legacy=False)
    numpy["state"]["key"] = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {"torch": torch.get_rng_state(), "cuda": cuda, "numpy": numpy, "python": random.getstate()}


def set_random_state(state: dict[str, Any]) -> None:
    """Restores the states that `random_state` returned, those of CUDA only for the same number of GPUs."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    key = state["numpy"]["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**state["numpy"]["state"], "key": key}})
    random.setstate(state["python"])


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Restores the states of all generators after the block, so that it draws no random numbers of the run's."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def separate_random_state(rank: int) -> None:
    """Gives each process of a run random numbers of its own, such as those of dropout; process 0 keeps its state."""
    if rank:
        seed = int(np.random.SeedSequence([int(torch.randint(2**62, ())), rank]).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


def seeded_sample(length: int, count: int, seed: int) -> list[int]:
    """Returns `count` different indices below `length` in ascending order, the same for the same seed."""
    return sorted(np.random.default_rng(seed).permutation(length)[:count].tolist())
