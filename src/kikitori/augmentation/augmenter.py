"""Which changes a training clip gets: a pure function of the seed, the step and the clip.

So examples do not depend on the loader's workers, on the processes that share the clips or on interruptions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kikitori.audio.waveform import to_float
from kikitori.augmentation import operations
from kikitori.augmentation.settings import Augmentation
from kikitori.runtime.errors import ConfigError

# Voices of a babble.
VOICES = (3, 7)


class Recordings(Protocol):
    """Decoded recordings by index, each (samples,) int16 at 16 kHz, none of them empty."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.int16]: ...


def generator(seed: int, step: int, clip: str) -> np.random.Generator:
    """The random numbers of one clip in one step. clip: its name."""
    return np.random.default_rng((seed, step, int.from_bytes(sha256(clip.encode()).digest()[:16], "little")))


@dataclass(frozen=True)
class Augmenter:
    """Changes training clips as the settings say.

    voices: the training clips, of which others than the changed one are its babble. noises, rooms: the recordings of
    the settings' folders.
    """

    settings: Augmentation
    seed: int
    voices: Recordings
    noises: Recordings = ()
    rooms: Recordings = ()

    def __post_init__(self) -> None:
        """Raises ConfigError for a babble of other clips where there are none."""
        if self.settings.noise_prob and "babble" in self.settings.noise_kinds and len(self.voices) < 2:
            kinds = ",".join(kind for kind in self.settings.noise_kinds if kind != "babble")
            raise ConfigError(
                "augment.noise_kinds: babble is made of other training clips, and there is only one clip; pass "
                + (f"augment.noise_kinds=[{kinds}]" if kinds else "augment.noise_prob=0")
            )

    def __call__(
        self, waveform: Tensor, step: int, clip: str, index: int, max_samples: int, changes_speed: bool = True
    ) -> Tensor:
        """Changes a clip, (samples,) float32 in [-1, 1], to another of at most `max_samples` or as many as it had.

        clip, index: its name, and its place in `voices`. changes_speed: whether its length may change. The result is in
        [-1, 1]: a clip that is too loud after a change is scaled to a peak of 1, not clipped.
        """
        chosen, rng = self.settings, generator(self.seed, step, clip)
        # A generator for each change, so that its values are the same whatever other changes there are.
        speed, room, noise, gain, telephone, mu_law, mp3 = rng.spawn(7)
        with _one_thread():
            if changes_speed and speed.random() < chosen.speed_prob:
                waveform = operations.change_speed(waveform, speed.uniform(*chosen.speed), max_samples)
            if room.random() < chosen.room_prob:
                response = to_float(self.rooms[int(room.integers(len(self.rooms)))])
                waveform = operations.reverberate(waveform, response)
            if noise.random() < chosen.noise_prob:
                snr_db = noise.uniform(*chosen.snr_db)
                waveform = operations.add_noise(waveform, self._noise(noise, len(waveform), index), snr_db)
            if gain.random() < chosen.gain_prob:
                waveform = operations.change_gain(waveform, gain.uniform(*chosen.gain_db))
            is_coded = mu_law.random() < chosen.mu_law_prob
            if telephone.random() < chosen.telephone_prob:
                waveform = operations.telephone(waveform, is_coded)
            elif is_coded:
                waveform = operations.mu_law(waveform)
            if mp3.random() < chosen.mp3_prob:
                waveform = operations.mp3(waveform, int(mp3.choice(chosen.bit_rates())))
            return operations.fit_full_scale(waveform)

    def _noise(self, rng: np.random.Generator, samples: int, index: int) -> Tensor:
        """Noise of a kind that is drawn, (samples,); all of the folder's recordings together are one kind."""
        kinds = [*self.settings.noise_kinds, *(["folder"] if self.settings.noise_folder is not None else [])]
        kind = kinds[rng.integers(len(kinds))]
        if kind == "white":
            return operations.white_noise(samples, rng)
        if kind == "pink":
            return operations.pink_noise(samples, rng)
        if kind == "folder":
            return operations.stretch_of(self.noises[int(rng.integers(len(self.noises)))], samples, rng.random())
        return self._babble(rng, samples, index)

    def _babble(self, rng: np.random.Generator, samples: int, index: int) -> Tensor:
        """Some other clips at once, (samples,), all equally loud."""
        babble = torch.zeros(samples)
        for _ in range(rng.integers(*VOICES, endpoint=True)):
            other = int(rng.integers(len(self.voices) - 1))
            voice = operations.stretch_of(self.voices[other + (other >= index)], samples, rng.random())
            babble += voice / max(float(voice.norm()), operations.SILENT_PEAK)
        return babble / max(float(babble.abs().max()), operations.SILENT_PEAK)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes with one thread, as the loader's workers do: sums of several threads differ in the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
