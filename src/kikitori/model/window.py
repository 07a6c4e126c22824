"""How much silence a clip is heard with: the whole window of a Whisper, or one that its own duration asks for.

A stock Whisper hears every clip in 30 s, most of it silence. A window cut to the clip costs a sixth of that for one of
5 s, but changes what the model is used to: experiments/004-window measured what it does to the error rate.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kikitori.model.features import FRAMES_PER_SECOND, HOP_LENGTH


@dataclass(frozen=True)
class Window:
    """A model's windows, as it was trained with them.

    edges_s: the lengths that windows come in, ascending; none, and every clip is heard in the model's whole window.
    margin_s: the silence, at least, that a window has after the clip.
    """

    edges_s: tuple[float, ...] = ()
    margin_s: float = 0.0

    def frames(self, samples: int, whole: int) -> int:
        """The log-Mel frames in which a clip of so many samples at 16 kHz is heard by a model whose window is `whole`.

        It hangs on nothing but the clip, so that a transcript never depends on the others of a batch.
        """
        edges = [round(edge * FRAMES_PER_SECOND) for edge in self.edges_s]
        needed = samples / HOP_LENGTH + self.margin_s * FRAMES_PER_SECOND
        place = bisect_left(edges, needed)
        # The encoder hears frames in pairs.
        return min(edges[place] // 2 * 2, whole) if place < len(edges) else whole

    def longest_s(self, whole_s: float) -> float:
        """Seconds of speech, at most, that are best heard at once: a recording beyond is read in pieces."""
        return max(self.edges_s[-1] - self.margin_s, self.edges_s[-1] / 2) if self.edges_s else whole_s

    def as_plain(self) -> dict[str, Any]:
        """What is saved with a model, for `from_plain`."""
        return {**asdict(self), "edges_s": list(self.edges_s)}


FULL = Window()


def make_window(policy: str, edges_s: Sequence[float], margin_s: float) -> Window:
    """The windows of `data.window`: full, or bucketed."""
    return FULL if policy == "full" else Window(tuple(edges_s), margin_s)


def window_from_plain(saved: Mapping[str, Any] | None) -> Window:
    """The windows that a model was saved with; a stock one knows the whole window only."""
    return Window(tuple(saved["edges_s"]), saved["margin_s"]) if saved else FULL


def describe_window(window: Window) -> str:
    """In words, for a table or a card."""
    if not window.edges_s:
        return "the whole window"
    edges = ", ".join(f"{edge:g}" for edge in window.edges_s)
    return f"the first of {edges} s that holds the clip and {window.margin_s:g} s of silence, else the whole window"
