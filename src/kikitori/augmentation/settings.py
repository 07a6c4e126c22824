"""The settings of augmentation, and what is wrong with some."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from kikitori.runtime.errors import raise_problems
from kikitori.runtime.files import expanded

# Speeds are drawn in steps of this part of 1: the kernel of a resampler for any factor would take gigabytes.
SPEED_STEPS = 100
# kbit/s of an mp3 at 16 kHz that libsndfile writes.
MP3_KBPS = (16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
Kind = Literal["white", "pink", "babble"]
# The smallest and largest values of each range.
RANGES: dict[str, tuple[float, float]] = {
    "speed": (0.5, 2.0),
    "gain_db": (-60, 60),
    "snr_db": (-60, 100),
    "mp3_kbps": (MP3_KBPS[0], MP3_KBPS[-1]),
}
FOLDERS = ("noise_folder", "room_folder")
NOT_CACHEABLE = "cannot be used with augmentation, which changes a clip in each step; choose augment=none"


@dataclass(frozen=True)
class Augmentation:
    """Changes of the training clips, in the order in which a clip gets them, each with a probability of its own.

    *_prob: probabilities (0 to 1). speed: factors; of 0.01 or a multiple. noise_kinds, noise_folder: one of the kinds
    is drawn, of which the recordings of the folder are one; babble is 3 to 7 other training clips. snr_db: energy of
    the clip over that of the noise. room_folder: impulse responses of rooms. telephone: 300 to 3,400 Hz through 8 kHz;
    mu_law: 8 bits, at 8 kHz if the clip is sent through the telephone as well. mp3_kbps: kbit/s.
    Each range has a lower and an upper value, between which values are drawn.

    Raises ConfigError for values that are no probabilities or ranges, and settings without effect.
    """

    speed_prob: float = 0.0
    speed: tuple[float, float] = (0.9, 1.1)
    room_prob: float = 0.0
    room_folder: str | None = None
    noise_prob: float = 0.0
    noise_kinds: Sequence[Kind] = ("white", "pink", "babble")
    noise_folder: str | None = None
    snr_db: tuple[float, float] = (10, 30)
    gain_prob: float = 0.0
    gain_db: tuple[float, float] = (-6, 6)
    telephone_prob: float = 0.0
    mu_law_prob: float = 0.0
    mp3_prob: float = 0.0
    mp3_kbps: tuple[float, float] = (16, 64)

    def __post_init__(self) -> None:
        raise_problems([f"augment.{key}: {fault}" for key, fault in setting_faults(asdict(self))])

    @property
    def is_on(self) -> bool:
        """Whether any clip is changed."""
        return any(getattr(self, key) for key in PROBABILITIES)

    @property
    def folders(self) -> dict[str, Path]:
        """The folders of recordings, by the name of their setting."""
        return {key: expanded(folder) for key in FOLDERS if (folder := getattr(self, key)) is not None}

    def speeds(self) -> list[float]:
        """The factors of speed that may be drawn."""
        low, high = (round(SPEED_STEPS * factor) for factor in self.speed)
        return [steps / SPEED_STEPS for steps in range(low, high + 1)] if self.speed_prob else []

    def bit_rates(self) -> list[int]:
        """The bit rates of mp3 that may be drawn, in kbit/s."""
        low, high = self.mp3_kbps
        return [rate for rate in MP3_KBPS if low <= rate <= high]


PROBABILITIES = [key for key in Augmentation.__dataclass_fields__ if key.endswith("_prob")]


def setting_faults(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (key, fault) for the plain values of the settings; those that are missing have their defaults."""
    given = {key: values.get(key, field.default) for key, field in Augmentation.__dataclass_fields__.items()}
    for key in PROBABILITIES:
        if not _is_probability(given[key]):
            yield key, f"must be a probability between 0 and 1, got {given[key]!r}"
    for key in RANGES:
        if fault := _range_fault(key, given[key]):
            yield key, fault
    kinds = given["noise_kinds"]
    if not isinstance(kinds, list | tuple) or any(kind not in get_args(Kind) for kind in kinds):
        yield "noise_kinds", f"must be a list of some of {', '.join(get_args(Kind))}, got {kinds!r}"
    elif given["noise_prob"] and not kinds and given["noise_folder"] is None:
        yield "noise_kinds", "is empty, and there is no augment.noise_folder; name a kind, or set augment.noise_prob=0"
    yield from _folder_faults(given)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _range_fault(key: str, value: Any) -> str | None:
    """What is wrong with a range of numbers."""
    low, high = RANGES[key]
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))):
        default: Any = Augmentation.__dataclass_fields__[key].default
        return f"must be two numbers, a lower and an upper one, such as {list(default)}, got {value!r}"
    if value[0] > value[1]:
        return f"must have the lower number first: [{value[1]},{value[0]}], got {list(value)}"
    if not low <= value[0] <= value[1] <= high:
        return f"must be within {low:g} and {high:g}, got {list(value)}"
    if key == "mp3_kbps" and not any(value[0] <= rate <= value[1] for rate in MP3_KBPS):
        return f"holds none of the bit rates that there are: {', '.join(map(str, MP3_KBPS))}; got {list(value)}"
    return None


def _folder_faults(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Reports a folder that is none, one that is never used, and rooms without a folder."""
    for key in FOLDERS:
        folder, prob = given[key], key.replace("_folder", "_prob")
        if isinstance(folder, str):
            # Without a name it would be the working folder.
            if not folder or not expanded(folder).is_dir():
                yield key, f"{folder or repr(folder)} is not a folder; give one with recordings, or null"
            elif given[prob] == 0:
                yield key, f"has no effect while augment.{prob} is 0; set it, as in augment.{prob}=0.3"
    if given["room_folder"] is None and _is_probability(given["room_prob"]) and given["room_prob"]:
        yield "room_prob", "needs a folder of impulse responses: augment.room_folder=...; or set it to 0"
