"""How far a clip is padded: to Whisper's full 30 s, or to the next shorter length that holds it.

Whisper pads every clip to 30 s, and most of that is silence. For a clip of 5 s, a window cut to its length costs a
sixth of the computation, but a pretrained model is not trained for it. experiments/004-window has the effect on the
error rate.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kikitori.model.features import FRAMES_PER_SECOND, HOP_LENGTH
from kikitori.model.limits import WINDOW, checked
from kikitori.runtime.errors import ModelError


@dataclass(frozen=True)
class Window:
    """The lengths that a model's clips are padded to, as in its training.

    edges_s: the lengths in seconds, ascending. Without any, and for longer clips, the full window is used.
    margin_s: the minimum silence after a clip, in seconds.
    """

    edges_s: tuple[float, ...] = ()
    margin_s: float = 0.0

    def frames(self, samples: int, full_frames: int) -> int:
        """Returns the log-Mel frames that a clip of `samples` at 16 kHz is padded to; `full_frames` is the maximum.

        The result depends on the clip alone, so that a transcript never depends on the other clips of a batch.
        """
        edges = [round(edge * FRAMES_PER_SECOND) for edge in self.edges_s]
        needed = samples / HOP_LENGTH + self.margin_s * FRAMES_PER_SECOND
        index = bisect_left(edges, needed)
        # The encoder's convolution halves the frames, so their number must be even.
        return min(edges[index] // 2 * 2, full_frames) if index < len(edges) else full_frames

    def all_frames(self, full_frames: int) -> set[int]:
        """Returns the log-Mel frames that `frames` may return."""
        return {min(round(edge * FRAMES_PER_SECOND) // 2 * 2, full_frames) for edge in self.edges_s} | {full_frames}

    def longest_s(self, full_s: float) -> float:
        """Returns the most seconds of audio to transcribe at once; longer recordings are split into pieces."""
        return max(self.edges_s[-1] - self.margin_s, self.edges_s[-1] / 2) if self.edges_s else full_s

    def as_plain(self) -> dict[str, Any]:
        """Returns plain values, which are saved with a model and read by `window_from_plain`."""
        return {**asdict(self), "edges_s": list(self.edges_s)}


# Every clip is padded to the model's full window, like in a stock Whisper.
FULL = Window()


def make_window(policy: str, edges_s: Sequence[float], margin_s: float) -> Window:
    """Makes the window of `data.window`: full or bucketed."""
    return FULL if policy == "full" else Window(tuple(edges_s), margin_s)


def window_from_plain(saved: Mapping[str, Any] | None) -> Window:
    """Reads the window that was saved with a model. A stock model has none and always uses the full window.

    Raises ModelError if it is no window.
    """
    if not saved:
        return FULL
    window = Window(**checked(saved, WINDOW, "the window of the model has "))
    if list(window.edges_s) != sorted(window.edges_s):
        raise ModelError(f"the window of the model has edges_s={list(window.edges_s)}, which do not ascend")
    return replace(window, edges_s=tuple(window.edges_s))


def describe_window(window: Window) -> str:
    """Describes a window in words, for tables and model cards."""
    if not window.edges_s:
        return "the full window"
    edges = ", ".join(f"{edge:g}" for edge in window.edges_s)
    return f"the first of {edges} s that holds the clip and {window.margin_s:g} s of silence, else the full window"
