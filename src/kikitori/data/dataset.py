"""Clips of a split as the examples of a loader."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from kikitori.audio.waveform import SAMPLE_RATE, to_float
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import AudioCache
from kikitori.data.encoder_cache import EncoderCache
from kikitori.data.sampler import SampledClip
from kikitori.model.processor import Processor
from kikitori.model.window import FULL, Window


class SpeechDataset(Dataset[dict[str, Any]]):
    """Clips of one split as the examples that `collate` stacks; the log-Mel is computed when a clip is asked for.

    states: what a frozen encoder says of them in a window, where that is known, instead of the log-Mel.
    Asked for by its place, or for training by a `Draw`, which gives its weight and window, too.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        store: AudioCache,
        processor: Processor,
        states: Mapping[Window, EncoderCache] | None = None,
    ) -> None:
        self.clips = clips
        self.store = store
        self.processor = processor
        self.states = states or {}

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, asked: int | SampledClip) -> dict[str, Any]:
        place, weight, whole = asked if isinstance(asked, SampledClip) else (asked, None, False)
        clip = self.clips[place]
        window = FULL if whole else self.processor.window
        heard: dict[str, Any]
        if window in self.states:
            heard = {"encoder_states": self.states[window][clip.name]}
        else:
            heard = {"input_features": self.processor.log_mel(to_float(self.store.pcm(clip.name)), whole)}
        return {
            **heard,
            "tokens": self.processor.encode(clip.text),
            "clip": clip.name,
            "text": clip.text,
            "seconds": self.store.decoded[clip.name].samples / SAMPLE_RATE,
            "weight": weight,
        }

    def durations_s(self) -> list[float]:
        return [self.store.decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips]

    def windows(self) -> list[int]:
        """The log-Mel frames in which each clip is heard."""
        return [self.processor.window_frames(self.store.decoded[clip.name].samples) for clip in self.clips]

    def label_tokens(self) -> list[int]:
        """Supervised tokens of each clip: all but the start token."""
        return [count - 1 for count in self.processor.count_tokens([clip.text for clip in self.clips])]
