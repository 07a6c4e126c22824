"""The settings of `conf/joining`: how training clips are joined into whole windows, and what their labels hold."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kikitori.runtime.errors import ConfigError, check_fraction

# Levels in dB of full scale beyond which noise is inaudible in 16 bits, or would be clipped.
QUIETEST_DBFS, LOUDEST_DBFS = -100.0, -3.0


@dataclass(frozen=True)
class Joining:
    """How clips are joined into windows in training. By default none are, and training is as without it.

    Each training clip begins one example per epoch. share: of the examples, those that are joined: further clips follow
    until the model's window is full. same_speaker: probability that the next clip is of the same speaker, where the
    corpus lists speakers. silence_s: least and most seconds of silence before the first clip and between two.
    timestamps: probability of an example with timestamps; previous_text: of one with the text before it as a prompt,
    on which there is no loss. Both concern all examples, but none if share is 0.
    non_speech: share of the examples that are silence or noise, without text, in place of those that begin with a clip.
    noise_dbfs: lowest and highest level of the noise, in dB of full scale.
    Raises ConfigError for a value out of its range.
    """

    share: float = 0.0
    same_speaker: float = 0.5
    silence_s: Sequence[float] = (0.1, 1.0)
    timestamps: float = 0.5
    previous_text: float = 0.5
    non_speech: float = 0.0
    noise_dbfs: Sequence[float] = (-60.0, -20.0)

    def __post_init__(self) -> None:
        names = ("share", "same_speaker", "timestamps", "previous_text", "non_speech")
        check_fraction("joining", {name: getattr(self, name) for name in names})
        for name, fault in range_faults(vars(self)):
            value = getattr(self, name)
            raise ConfigError(f"joining.{name}={list(value) if isinstance(value, tuple) else value}: {fault}")

    @property
    def changes_training(self) -> bool:
        """Whether any example differs from a single clip."""
        return self.share > 0 or self.non_speech > 0


def range_faults(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The names of ranges among `values` that are impossible, with what they must be."""
    limits = {"silence_s": (0.0, float("inf")), "noise_dbfs": (QUIETEST_DBFS, LOUDEST_DBFS)}
    found = []
    for name, (lowest, highest) in limits.items():
        value = values.get(name, (lowest, lowest))
        is_range = isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))
        if not is_range or not lowest <= value[0] <= value[1] <= highest or value[1] == float("inf"):
            within = f"from {lowest:g} to {highest:g}" if highest < float("inf") else f"of at least {lowest:g}"
            found.append((name, f"must be two numbers {within}, the lower one first"))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
