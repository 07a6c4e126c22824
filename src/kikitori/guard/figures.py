"""The guard's figures: what a model's readings show, and whether a tuned model is better or worse than its base.

Every figure is a sum over the recordings of a set divided by another, so that two models are compared on the same
resamples of the recordings, as error rates are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kikitori.guard.recordings import CLIPS, JOINED_WORD, NO_SPEECH, NOISY, OWN, REVERSED, STAMPS, STOCK, TELEPHONE
from kikitori.inference.checks import without_repetition
from kikitori.metrics.bootstrap import interval, resampled
from kikitori.metrics.error_rates import score_clips
from kikitori.metrics.normalizer import normalise

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
    LOOPS: Measure("% of texts repeat themselves"),
    CER: Measure("CER %"),
    ENDED: Measure("% with timestamps", lower_is_better=False),
    NEAR: Measure(f"% of joints within {NEAR_S:g} s", lower_is_better=False),
    DETECTED: Measure("% detected", lower_is_better=False),
}
BETTER, WORSE, UNCLEAR = "better", "worse", ""

# Numerator and denominator of each recording, by set, reading and measure.
Counts = dict[tuple[str, str, str], NDArray[np.int64]]


def count(rows: Sequence[Mapping[str, Any]]) -> Counts:
    """The counts of all figures of a model's rows, see `reader.Reader`; those of a set by the recordings' names."""
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for row in sorted(rows, key=lambda row: (*place(row["set"]), row["reading"], row["recording"])):
        for measure, pair in _counts(row):
            found.setdefault((row["set"], row["reading"], measure), []).append(pair)
    return {key: np.array(pairs, dtype=np.int64) for key, pairs in found.items()}


def place(name: str) -> tuple[int, str]:
    """A sort key of sets: the corpus first, what is joined, what is no speech, and the user's own."""
    known = (CLIPS, TELEPHONE, NOISY, JOINED_WORD, STAMPS, *NO_SPEECH, REVERSED)
    kind = JOINED_WORD if name.startswith(JOINED_WORD) else name
    return known.index(kind) if kind in known else len(known), name


def _counts(row: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, int]]]:
    # A translation is English, whatever was spoken.
    hypothesis, language = row["hypothesis"], row.get("text_language", row["language"])
    if row["set"] == STAMPS:
        stamps, joints = row["stamps"], row["joints"]
        yield ENDED, (int(is_stamped(stamps)), 1)
        yield NEAR, (sum(any(abs(stamp - joint) <= NEAR_S for stamp in stamps) for joint in joints), len(joints))
        return
    # Of characters: a row of dots repeats nothing that was said. Few clips that are joined repeat themselves.
    said, reference = (normalise(text, language) for text in (hypothesis, row["reference"]))
    repeats = without_repetition(said) != said and without_repetition(reference) == reference
    yield LOOPS, (int(repeats), 1)
    if not row["reference"]:
        yield INVENTED, (len(said), round(1000 * row["seconds"]))
        return
    (score,) = score_clips([row["reference"]], [hypothesis], language)
    yield CER, (score.cer_edits, score.cer_length)
    if "detected" in row:
        yield DETECTED, (int(row["detected"] == row["language"]), 1)


def is_stamped(stamps: Sequence[float]) -> bool:
    """Whether a text has its end, besides its start: timestamps that never go back."""
    return len(stamps) > 1 and stamps[-1] > stamps[0] and list(stamps) == sorted(stamps)


def figures(counts: Counts) -> list[dict[str, Any]]:
    """The value of each figure with its 95 % interval over the recordings."""
    return [
        {"set": name, "reading": reading, "measure": measure, "recordings": len(pairs), **_value(measure, pairs)}
        for (name, reading, measure), pairs in counts.items()
    ]


def _value(measure: str, pairs: NDArray[np.int64]) -> dict[str, Any]:
    scale = MEASURES[measure].scale
    return {"value": _quotient(pairs) * scale, "ci95": [scale * v for v in interval(resampled(pairs))]}


def compare(base: Counts, tuned: Counts) -> list[dict[str, Any]]:
    """Each figure of both models, with the paired interval of the change and a verdict.

    A figure is better or worse if the whole interval of its change is on that side of zero.
    """
    rows = []
    for key in (key for key in base if key in tuned and len(base[key]) == len(tuned[key])):
        name, reading, measure = key
        scale, lower = MEASURES[measure].scale, MEASURES[measure].lower_is_better
        change = [scale * v for v in interval(resampled(tuned[key]) - resampled(base[key]))]
        verdict = UNCLEAR
        if change[0] > 0 or change[1] < 0:
            verdict = BETTER if (change[1] < 0) == lower else WORSE
        values = {"base": _quotient(base[key]) * scale, "tuned": _quotient(tuned[key]) * scale}
        of_both = {"change": values["tuned"] - values["base"], "change_ci95": change, "verdict": verdict}
        facts = {"set": name, "reading": reading, "measure": measure, "recordings": len(base[key])}
        rows.append({**facts, **values, **of_both})
    return rows


def timestamp_facts(base: Counts, tuned: Counts) -> dict[str, float] | None:
    """What `Whisper.timestamps` holds of the tuned model; None where its timestamps were not read."""
    ended, near = ((STAMPS, STOCK, measure) for measure in (ENDED, NEAR))
    long = sorted({name for name, _, measure in tuned if name.startswith(JOINED_WORD) and measure == CER})
    if not {ended, near} <= tuned.keys() & base.keys() or not long:
        return None
    by_pauses, by_stamps = (np.concatenate([tuned[name, reading, CER] for name in long]) for reading in (OWN, STOCK))
    near_change = interval(resampled(tuned[near]) - resampled(base[near]))
    cer_change = interval(resampled(by_stamps) - resampled(by_pauses))
    values = {
        "stamped": _quotient(tuned[ended]),
        "near_joints": _quotient(tuned[near]),
        "cer": _quotient(by_stamps),
        "most_near_joints_change": near_change[1],
        "least_cer_change": cer_change[0],
    }
    return {"texts": len(tuned[ended]), **{name: round(100 * value, 2) for name, value in values.items()}}


def _quotient(pairs: NDArray[np.int64]) -> float:
    over, under = pairs.sum(axis=0)
    return float(over / under) if under else 0.0
