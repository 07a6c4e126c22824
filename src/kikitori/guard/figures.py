"""The guard's figures: what a model's readings show, and whether a tuned model is better or worse than its base.

Every figure is a sum over the recordings of a set divided by another, so that two models are compared on the same
resamples of the recordings, as error rates are.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kikitori.guard.measures import (
    BETTER,
    CER,
    DETECTED,
    ENDED,
    INVENTED,
    LOOPS,
    MEASURES,
    NEAR,
    NEAR_S,
    UNCLEAR,
    WORSE,
)
from kikitori.guard.recordings import (
    CLIPS,
    JOINED,
    NO_SPEECH,
    NOISY,
    OWN,
    REVERSED,
    SOUNDS,
    STAMPS,
    STOCK,
    TELEPHONE,
)
from kikitori.inference.checks import without_repetition
from kikitori.metrics.bootstrap import interval, resampled
from kikitori.metrics.error_rates import score_clips
from kikitori.metrics.normalizer import normalise
from kikitori.metrics.sign_flip import sign_flip_p

# Figures with a larger p-value have no verdict.
LEVEL = 0.05

# Numerator and denominator of each recording, by set, reading and measure.
Counts = dict[tuple[str, str, str], NDArray[np.int64]]
# What is counted of several sets together, by the kind of set and the measure.
POOLED = {(JOINED, CER): JOINED, **{(name, INVENTED): SOUNDS for name in NO_SPEECH}}


def count(rows: Sequence[Mapping[str, Any]]) -> Counts:
    """The counts of all figures of a model's rows, see `reader.Reader`; those of a set by the recordings' names.

    The characters of all sounds without speech, and the CER of the joined recordings that hold different clips, are
    figures of their own, because the single sets have few recordings. Those of the same clips agree by themselves.
    """
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
    for row in sorted(rows, key=lambda row: (*place(row["set"]), row["reading"], row["recording"])):
        for measure, pair in _counts(row):
            names = [row["set"]]
            if (kind := POOLED.get((_kind(row["set"]), measure))) and not row.get("repeats"):
                names.append(kind)
            for name in names:
                found.setdefault((name, row["reading"], measure), []).append(pair)
    in_order = sorted(found, key=lambda key: (*shown_place(key[0]), key[1]))
    return {key: np.array(found[key], dtype=np.int64) for key in in_order}


def place(name: str) -> tuple[int, str]:
    """A sort key of sets: the corpus first, what is joined, what is no speech, and the user's own."""
    known = (CLIPS, TELEPHONE, NOISY, JOINED, STAMPS, SOUNDS, *NO_SPEECH, REVERSED)
    kind = _kind(name)
    return known.index(kind) if kind in known else len(known), name


def shown_place(name: str) -> tuple[int, int, str]:
    """The same for tables and plots, with joined recordings by their seconds: 60 s before 120 s."""
    kind, _ = place(name)
    return kind, len(name) if _kind(name) == JOINED else 0, name


def _kind(name: str) -> str:
    return JOINED if name.startswith(JOINED) else name


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
    """Each figure of both models, with the paired interval and the p-value of the change, and a verdict.

    A figure is better or worse if the whole interval of its change is on that side of zero, and its p-value is at most
    LEVEL: bootstrap intervals alone are too narrow for few recordings.
    """
    rows = []
    for key in (key for key in base if key in tuned and len(base[key]) == len(tuned[key])):
        name, reading, measure = key
        scale, lower = MEASURES[measure].scale, MEASURES[measure].lower_is_better
        change = [scale * v for v in interval(resampled(tuned[key]) - resampled(base[key]))]
        verdict, p = UNCLEAR, sign_flip_p(base[key], tuned[key])
        if p <= LEVEL and (change[0] > 0 or change[1] < 0):
            verdict = BETTER if (change[1] < 0) == lower else WORSE
        values = {"base": _quotient(base[key]) * scale, "tuned": _quotient(tuned[key]) * scale}
        of_both = {"change": values["tuned"] - values["base"], "change_ci95": change, "p": p, "verdict": verdict}
        facts = {"set": name, "reading": reading, "measure": measure, "recordings": len(base[key])}
        rows.append({**facts, **values, **of_both})
    return rows


def certainly_worse(figures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The figures that are worse although many were compared.

    With a probability of 95 % none of them is due to chance (Holm 1979), counting those that can have a verdict.
    """
    tested = sorted((row for row in figures if 2 / 2 ** row["recordings"] <= LEVEL), key=lambda row: row["p"])
    rejected = takewhile(lambda pair: pair[1]["p"] <= LEVEL / (len(tested) - pair[0]), enumerate(tested))
    return [row for _, row in rejected if row["verdict"] == WORSE]


def timestamp_facts(base: Counts, tuned: Counts) -> dict[str, float] | None:
    """What `Whisper.timestamps` holds of the tuned model; None where its timestamps were not read."""
    ended, near = ((STAMPS, STOCK, measure) for measure in (ENDED, NEAR))
    joined = dict.fromkeys(name for name, _, _ in tuned if _kind(name) == JOINED != name)
    if not {ended, near} <= tuned.keys() & base.keys() or not joined:
        return None
    by_pauses, by_stamps = (np.concatenate([tuned[name, way, CER] for name in joined]) for way in (OWN, STOCK))
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
