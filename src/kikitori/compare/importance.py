"""How much each swept key matters to validation CER: by variance in a grid, by the search's own model in a search."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kikitori.compare.leaderboard import Leaderboard

FEWEST_RUNS = 8
FEWEST_TRIALS = 20


@dataclass(frozen=True)
class Importances:
    """A share for each key, largest first; chance: what a key without any effect would get on average.

    how: what the shares are, or why there are none.
    """

    keys: list[str]
    shares: list[float]
    chance: list[float]
    how: str


def importances(table: Leaderboard) -> Importances:
    """Of the search that the runs belong to where there is one, else of the grid that they make."""
    journals = {path for run in table.runs if (path := run.folder.parent / "study.journal").is_file()}
    if len(journals) == 1:
        return of_search(journals.pop())
    runs = [(row.choices, cer) for row in table.rows for cer in row.each["validation"]]
    return of_grid(table.keys, runs)


def of_grid(keys: Sequence[str], runs: Sequence[tuple[dict[str, Any], float]]) -> Importances:
    """Eta squared: the share of the CER's variance over runs that lies between the means of a key's values.

    A key with k values gets (k - 1) / (n - 1) of n runs by chance alone, all of it where every value stands alone.
    """
    # A key whose values stand alone, as in a random search, explains everything and so nothing.
    repeated = [k for k in keys if len({repr(choices[k]) for choices, _ in runs}) <= len(runs) / 2]
    if len(runs) < FEWEST_RUNS or not repeated:
        return Importances([], [], [], f"Too few runs ({len(runs)}) of each value to tell what matters from chance.")
    cers = np.array([cer for _, cer in runs])
    total = float(((cers - cers.mean()) ** 2).sum())
    if total == 0:
        return Importances([], [], [], "All runs have the same validation CER, so no key explains anything.")
    found = []
    for key in repeated:
        values = [repr(choices[key]) for choices, _ in runs]
        means = {value: fmean(c for c, v in zip(cers, values, strict=True) if v == value) for value in set(values)}
        between = sum((means[value] - cers.mean()) ** 2 for value in values)
        found.append((float(between) / total, key, (len(means) - 1) / (len(runs) - 1)))
    found.sort(reverse=True)
    shares, ordered, chance = (list(column) for column in zip(*found, strict=True))
    how = (
        f"Share of the variance of validation CER over {len(runs)} runs that lies between a key's values (eta squared)."
    )
    return Importances(ordered, shares, chance, how)


def of_search(journal: Path) -> Importances:
    """PED-ANOVA of an Optuna study: what sets its best tenth of trials apart."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
        trials = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        if trials < FEWEST_TRIALS:
            return Importances([], [], [], f"Too few completed trials ({trials}) to tell what matters from chance.")
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except Exception as error:  # a journal cut off by a kill raises what it pleases; the page goes on without
        return Importances([], [], [], f"The search's study.journal cannot be read: {error!r}")
    how = f"What sets the best tenth of {trials} trials of the search apart from the rest (PED-ANOVA, shares of 1)."
    return Importances(list(shares), list(shares.values()), [], how)
