"""What the guard's figures measure."""

from dataclasses import dataclass

# Seconds by which a timestamp may miss the pause between two clips.
NEAR_S = 0.5


@dataclass(frozen=True)
class Measure:
    """What a figure says. unit: its words. scale: factor of the quotient. lower_is_better: else higher is."""

    unit: str
    scale: float = 100.0
    lower_is_better: bool = True


INVENTED, LOOPS, CER = "invented", "loops", "cer"
ENDED, NEAR, DETECTED = "stamped", "near joints", "detected"
MEASURES = {
    INVENTED: Measure("characters/min", 60_000.0),  # of milliseconds
    LOOPS: Measure("% of texts that repeat themselves"),
    CER: Measure("CER %"),
    ENDED: Measure("% with timestamps", lower_is_better=False),
    NEAR: Measure(f"% of joints within {NEAR_S:g} s of one", lower_is_better=False),
    DETECTED: Measure("% detected as the language", lower_is_better=False),
}
BETTER, WORSE, UNCLEAR = "better", "worse", ""


def words(measure: str) -> str:
    """A measure's words; of one that a later version has, its name."""
    return MEASURES[measure].unit if measure in MEASURES else measure
