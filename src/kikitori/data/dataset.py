"""The clips of a split as a torch Dataset."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kikitori.audio.waveform import SAMPLE_RATE, to_float
from kikitori.augmentation.augmenter import Augmenter
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import AudioCache
from kikitori.data.sampler import SampledClip
from kikitori.joining.labels import Labels, label_fault, label_ids
from kikitori.joining.plan import Example
from kikitori.joining.sound import example_samples
from kikitori.model.features import HOP_LENGTH
from kikitori.model.processor import Processor
from kikitori.model.window import FULL, Window
from kikitori.runtime.errors import DataError


class StatesByClip(Protocol):
    """Encoder states by clip name, (positions, d_model) each; `encoder_cache.EncoderCache` is one."""

    def __getitem__(self, name: str, /) -> Tensor: ...


class SpeechDataset(Dataset[dict[str, Any]]):
    """The clips of one split as examples for `collate`; the log-Mel is computed when an example is read.

    An example is read by its index, or in training by a `SampledClip`, which adds its weight and window.
    encoder_caches: outputs of a frozen encoder by window; examples of these windows hold them instead of log-Mels.
    augmenter: what changes the clips of a training step.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        audio: AudioCache,
        processor: Processor,
        encoder_caches: Mapping[Window, StatesByClip] | None = None,
        augmenter: Augmenter | None = None,
    ) -> None:
        self.clips = clips
        self.audio = audio
        self.processor = processor
        self.encoder_caches = encoder_caches or {}
        self.augmenter = augmenter

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, key: int | SampledClip) -> dict[str, Any]:
        sampled = key if isinstance(key, SampledClip) else (key, None, False, None, None, None)
        index, weight, full_window, step_clips, step, example = sampled
        clip = self.clips[index]
        processor = self.processor.of(clip.language)
        facts = {"language": clip.language, "weight": weight, "step_clips": step_clips}
        if example:
            return {**self._example(example, processor, full_window, step), **facts}
        window = FULL if full_window else self.processor.window
        samples = self.audio.decoded[clip.name].samples
        inputs: dict[str, Any]
        if window in self.encoder_caches:
            inputs = {"encoder_states": self.encoder_caches[window][clip.name]}
        else:
            waveform = to_float(self.audio.pcm(clip.name))
            if self.augmenter and step is not None:
                waveform = self.augmenter(waveform, step, clip.name, index, self.processor.frames * HOP_LENGTH)
            samples = len(waveform)
            inputs = {"input_features": self.processor.log_mel(waveform, full_window)}
        tokens = processor.encode(clip.text)
        if fault := processor.label_fault(tokens):
            raise DataError(f"{clip.name}: {fault}")
        return {
            **inputs,
            "tokens": tokens,
            "clip": clip.name,
            "text": clip.text,
            "seconds": samples / SAMPLE_RATE,
            **facts,
        }

    def _example(self, example: Example, processor: Processor, full_window: bool, step: int | None) -> dict[str, Any]:
        """What a planned example adds to `__getitem__`: `prompt`, the number of tokens before the start token.

        processor: of the clips' language, which all of them share.
        """
        samples = example_samples(example, self._pcm, round(processor.window_s * SAMPLE_RATE))
        texts = [self.clips[placed.clip].text for placed in example.sentences]
        name = "+".join(self.clips[placed.clip].name for placed in example.sentences)
        if self.augmenter and step is not None and example.sentences:
            first = example.sentences[0].clip
            # Windows and labels with times keep their speed.
            changes_speed = not (example.joined or example.stamped)
            most = processor.frames * HOP_LENGTH if changes_speed else len(samples)
            samples = self.augmenter(samples, step, name, first, most, changes_speed)
        labels = self._labels(example, processor, texts)
        if fault := label_fault(processor, labels.tokens):
            raise DataError(f"{name}: {fault}")
        return {
            "input_features": processor.log_mel(samples, full_window or example.joined),
            "tokens": labels.tokens,
            "prompt": labels.prompt,
            "clip": example.noise.kind if example.noise else name,
            "text": processor.separator.join(texts),
            "seconds": len(samples) / SAMPLE_RATE,
        }

    def _labels(self, example: Example, processor: Processor, texts: Sequence[str]) -> Labels:
        separator = processor.separator
        before = separator.join(self.clips[clip].text for clip in example.previous)
        after = [text if i == 0 else separator + text for i, text in enumerate(texts)]
        previous, *sentences = processor.encode_texts([before, *after])
        spans = [(placed.start, placed.end) for placed in example.sentences] if example.stamped else None
        crossing = example.crossing.start if example.crossing else None
        return label_ids(processor, sentences, spans, crossing, previous)

    def _pcm(self, index: int) -> NDArray[np.int16]:
        return self.audio.pcm(self.clips[index].name)

    def durations_s(self) -> list[float]:
        """Seconds of each clip."""
        return [self.audio.decoded[clip.name].samples / SAMPLE_RATE for clip in self.clips]

    def windows(self) -> list[int]:
        """The log-Mel frames that each clip is padded to."""
        return [self.processor.window_frames(self.audio.decoded[clip.name].samples) for clip in self.clips]


class ExampleLists(Dataset[list[dict[str, Any]]]):
    """A dataset for samplers that yield batches: `lists[[3, 1]]` is the list of two examples."""

    def __init__(self, dataset: SpeechDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, keys: Sequence[int] | Sequence[SampledClip]) -> list[dict[str, Any]]:
        return [self.dataset[key] for key in keys]
