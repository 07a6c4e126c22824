"""Clips of a split as the examples of a loader."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from kikitori.audio import SAMPLE_RATE, to_float
from kikitori.clips import Clip
from kikitori.front_end import FrontEnd
from kikitori.store import Store


class SpeechDataset(Dataset[dict[str, Any]]):
    """Clips of one split as the examples that `collate` stacks; the log-Mel is computed when a clip is asked for."""

    def __init__(self, clips: Sequence[Clip], store: Store, front_end: FrontEnd) -> None:
        self.clips = clips
        self.store = store
        self.front_end = front_end

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = self.clips[index]
        return {
            "input_features": self.front_end.log_mel(to_float(self.store.pcm(clip.name))),
            "tokens": self.front_end.encode(clip.text),
            "clip": clip.name,
            "text": clip.text,
        }

    def durations_s(self) -> list[float]:
        return [self.store.decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips]
