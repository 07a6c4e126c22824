"""Chooses how a long recording is read: by the model's timestamps where they can be relied on, else by its pauses."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from kikitori.inference.generate import Engine
from kikitori.model.whisper import Whisper

# What the guard must have found, see `Whisper.timestamps`: texts, and percent of texts and joints. Above MOST_CER the
# text is not that of the recordings, and its timestamps, which may be near anything, show nothing.
LEAST_TEXTS, LEAST_STAMPED, LEAST_NEAR, MOST_CER = 3, 90.0, 50.0, 50.0


class Reading(NamedTuple):
    """How long recordings are read, pauses or timestamps, and why, in words."""

    segments: Literal["pauses", "timestamps"]
    reason: str


def choose_reading(whisper: Whisper | Engine) -> Reading:
    """Timestamps if the guard confirmed that the model kept them, otherwise pauses."""
    facts = whisper.timestamps
    if whisper.processor.timestamp_begin is None:
        return Reading("pauses", "the model has no timestamps")
    if facts is None:
        return Reading("pauses", "its timestamps were not checked, as kikitori guard does")
    fault = _fault(facts)
    found = (
        f"the guard found timestamps in {facts['texts'] * facts['stamped'] / 100:.0f} of {facts['texts']} texts, "
        f"and near {facts['near_joints']:.0f} % of the joints of their clips"
    )
    return Reading("pauses", f"{found}: {fault}") if fault else Reading("timestamps", found)


def _fault(facts: Mapping[str, float]) -> str:
    """Why the timestamps cannot be relied on; empty if they can."""
    if facts["texts"] < LEAST_TEXTS:
        return f"fewer than {LEAST_TEXTS} texts show nothing"
    if facts["stamped"] < LEAST_STAMPED:
        return f"too few texts, below {LEAST_STAMPED:.0f} %"
    if facts["near_joints"] < LEAST_NEAR:
        return f"too few joints, below {LEAST_NEAR:.0f} %"
    if facts["cer"] > MOST_CER:
        return f"a CER of {facts['cer']:.0f} % by timestamps shows nothing, above {MOST_CER:.0f} %"
    if facts["most_near_joints_change"] < 0:
        return "clearly fewer joints than the base"
    if facts["least_cer_change"] > 0:
        return "the CER of long recordings is clearly higher by timestamps than by pauses"
    return ""
