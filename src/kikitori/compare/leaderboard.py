"""Ranks runs: one row per configuration with its seeds, intervals over clips, and a paired comparison with the best.

Runs that were scored on different clips are in different tables.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kikitori.metrics.bootstrap import interval, resampled
from kikitori.runs.reader import Run, find_runs, varying_keys

SPLITS = ("validation", "test")
BEST, ALIKE, WORSE = "best", "indistinguishable from the best", "worse"
UNPAIRED, UNRANKED = "not compared clip by clip", "not ranked"


@dataclass(frozen=True)
class Estimate:
    """A fraction with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """The clips' names, and edits and reference length of each clip, (clips, 2), both summed over the seeds.

    Integer sums, so that rows with equal errors differ by exactly 0 and not by a rounding error.
    """

    clips: list[str]
    edits: NDArray[np.int64]


@dataclass
class Row:
    """One configuration, whose runs differ only in the seed.

    choices: the values of the keys that vary, without those that do not apply. each: the CER of every run by split,
    where it was scored. estimate: their mean, with an interval over clips but not over seeds. difference: validation
    CER minus that of the best row, on the same resamples of clips. seeds_overlap: whether the lowest seed of this row
    is at or below the highest of the best row, so that more seeds may change the order. counts: the data of the
    intervals. languages: mean validation CER of each of several languages; None where a row lacks it.
    """

    runs: list[Run]
    choices: dict[str, Any]
    each: dict[str, list[float]]
    estimate: dict[str, Estimate] = field(default_factory=dict)
    difference: Estimate | None = None
    verdict: str = UNRANKED
    seeds_overlap: bool = False
    counts: dict[str, "Counts"] = field(default_factory=dict, repr=False)
    languages: dict[str, float | None] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """A short name: the values that vary, or the first run's name where none does."""
        chosen = [f"{key.rpartition('.')[2]}={format_value(value)}" for key, value in self.choices.items()]
        return ", ".join(chosen) if 0 < len(chosen) <= 5 else self.runs[0].name

    @property
    def is_base(self) -> bool:
        """Whether this is a pretrained model before training."""
        return self.runs[0].is_base

    @property
    def seeds(self) -> list[Any]:
        return [run.results.get("config", {}).get("seed") for run in self.runs if not run.is_base]

    @property
    def num_seeds(self) -> int:
        """How many different seeds the runs have: the same one twice is no repetition."""
        return len(set(map(str, self.seeds)))

    def cost(self, key: str) -> float | None:
        """The mean over the runs of a cost in results.json."""
        return mean(run.results.get("cost", {}).get(key) for run in self.runs)

    @property
    def hours(self) -> float | None:
        """Mean device hours of a run."""
        return mean(device_hours(run) for run in self.runs)

    @property
    def parameters(self) -> int | None:
        return self.runs[0].results.get("model", {}).get("parameters")

    @property
    def wer(self) -> float | None:
        return mean(run.score("validation", "wer") for run in self.runs)


@dataclass
class Leaderboard:
    """Runs that may be compared, scored on the same clips in the same way; best first."""

    name: str
    scoring: str
    rows: list[Row]
    keys: list[str]

    @property
    def runs(self) -> list[Run]:
        """The trained and evaluated runs, without the models that they began with."""
        return [run for row in self.rows for run in row.runs if not run.is_base]

    @property
    def hours_name(self) -> str:
        """GPU hours, CPU hours, or device hours where both were used."""
        on_cpu = {str(run.results.get("cost", {}).get("device", "")).startswith("cpu") for run in self.runs}
        return "device hours" if len(on_cpu) > 1 else "CPU hours" if on_cpu == {True} else "GPU hours"


def leaderboards_of(runs: Sequence[Run]) -> list[Leaderboard]:
    """One table per set of clips and way of scoring, the largest first."""
    groups: dict[tuple[str | None, ...], list[Run]] = {}
    # Runs that scored both splits form the groups; a run that scored only one joins the group with the same clips.
    keyed = sorted(((data_key(run), run) for run in runs), key=lambda pair: pair[0].count(None))
    for key, run in keyed:
        fitting = next((k for k in groups if all(a == b or a is None for a, b in zip(key, k, strict=True))), key)
        groups.setdefault(fitting, []).append(run)
    ordered = sorted(groups.values(), key=len, reverse=True)
    return [Leaderboard(_describe(group), _scoring(group[0]), rank(group), varying_keys(group)) for group in ordered]


def build_leaderboards(places: Sequence[str]) -> tuple[list[Leaderboard], list[Run]]:
    """The tables of the completed runs in the given folders, sweeps and globs, and the runs that are not completed."""
    runs = find_runs(places)
    completed = [run for run in runs if run.status == "completed"]
    return leaderboards_of(completed), [run for run in runs if run.status != "completed"]


def rank(runs: Sequence[Run]) -> list[Row]:
    """Rows by mean validation CER, lowest first, each compared with the best; rows without such a score come last."""
    keys = varying_keys(runs)
    groups: dict[str, list[Run]] = {}
    for run in [*runs, *base_models(runs)]:
        groups.setdefault(run.identity, []).append(run)
    rows = [_row(group, keys) for group in groups.values()]
    languages = sorted({code for run in runs for code in run.language_scores("validation")})
    for row in rows:
        of_runs = [run.language_scores("validation") for run in row.runs] if languages else []
        row.languages = {code: mean(of.get(code) for of in of_runs) for code in languages}
    rows.sort(key=lambda row: row.estimate["validation"].value if "validation" in row.estimate else np.inf)
    if rows and "validation" in rows[0].estimate:
        rows[0].verdict = BEST
        for row in rows[1:]:
            _pair(row, rows[0])
    return rows


def base_models(runs: Sequence[Run]) -> list[Run]:
    """The pretrained models that the runs began with, each once although every run scored it."""
    bases = [base for run in runs if (base := run.base())]
    return list({(base.identity, repr(base.results["scores"]["before"])): base for base in bases}.values())


def _row(runs: list[Run], keys: Sequence[str]) -> Row:
    each = {split: [c for run in runs if (c := run.score(split)) is not None] for split in SPLITS}
    row = Row(runs, {key: runs[0].choices[key] for key in keys if key in runs[0].choices}, each)
    for split in SPLITS:
        if not each[split]:
            continue
        counts = _counts(runs, split)
        if counts:
            row.counts[split] = counts
            low, high = interval(resampled(counts.edits))
        else:  # without predictions: the intervals in results.json
            stated = [run.results["scores"][run.stage][split].get("cer_ci95", [np.nan] * 2) for run in runs]
            low, high = (float(bound) for bound in np.mean(stated, axis=0))
        row.estimate[split] = Estimate(fmean(each[split]), low, high)
    return row


def _pair(row: Row, best: Row) -> None:
    """Compare a row with the best on the same resamples of the same clips."""
    if "validation" not in row.estimate:
        return
    own, other = row.counts.get("validation"), best.counts.get("validation")
    if not own or not other or own.clips != other.clips:
        row.verdict = UNPAIRED
        return
    low, high = interval(resampled(own.edits) - resampled(other.edits))
    row.difference = Estimate(row.estimate["validation"].value - best.estimate["validation"].value, low, high)
    row.verdict = ALIKE if low <= 0 <= high else WORSE
    row.seeds_overlap = min(row.each["validation"]) <= max(best.each["validation"])


def _counts(runs: Sequence[Run], split: str) -> Counts | None:
    """Edits per clip; None where predictions are missing, truncated, or not of the same clips."""
    tables = [run.predictions(split) for run in runs]
    clips = [row["clip"] for row in tables[0]]
    if not clips or any([row["clip"] for row in table] != clips for table in tables):
        return None
    edits = np.array([[(row["cer_edits"], row["cer_length"]) for row in table] for table in tables], dtype=np.int64)
    return Counts(clips, edits.sum(axis=0))


def data_key(run: Run) -> tuple[str | None, ...]:
    """Digests of the scored clips and the way of scoring; None for a split that was not scored."""
    return (*(_digest(run, split) for split in SPLITS), _scoring(run))


def _digest(run: Run, split: str) -> str | None:
    """The digest in results.json, or one of the clips' names and references where there is none."""
    if run.score(split) is None:
        return None
    stated = run.results.get("data", {}).get("splits", {}).get(split, {}).get("digest")
    if stated:
        return str(stated)
    texts = "".join(f"{row['clip']}\t{row['reference']}\n" for row in run.predictions(split))
    return sha256(texts.encode()).hexdigest()[:12]


def _scoring(run: Run) -> str:
    scoring = run.results.get("scoring", {})
    return ", ".join(str(scoring.get(key, f"unknown {key}")) for key in ("normaliser", "segmenter"))


def _describe(runs: Sequence[Run]) -> str:
    run = runs[0]
    corpus = run.results.get("data", {}).get("corpus", "unknown corpus")
    scores = run.results["scores"][run.stage]
    splits = [
        f"{split} {scores[split].get('clips', 'unknown')} clips ({str(_digest(run, split))[:8]})"
        for split in SPLITS
        if run.score(split) is not None
    ]
    return f"{corpus}: {', '.join(splits)}"


def device_hours(run: Run) -> float | None:
    """Hours of training and scoring, times the number of devices."""
    cost = run.results.get("cost", {})
    if "evaluate_s" not in cost:
        return None
    return (cost.get("fit_s", 0.0) + cost["evaluate_s"]) * cost.get("devices", 1) / 3600


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not None; None where there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point dominates (smaller in one, not larger in the other), by the first."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def format_value(value: Any) -> str:
    """A configured value as in YAML, with four significant digits: 1e-05, true; a dash for null."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "–"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)
