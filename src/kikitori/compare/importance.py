"""How much each swept key explains of validation CER: eta squared in a grid, PED-ANOVA in an Optuna search."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from kikitori.compare.leaderboard import Leaderboard
from kikitori.runs.results import STUDY
from kikitori.runtime.files import open_regular

MIN_RUNS = 8
MIN_TRIALS = 20
# A study of 900 trials with 20 validations each. In a file that somebody made for it, Optuna's time to read it is that
# of its square: a minute for this.
MAX_STUDY = 2**22


@dataclass(frozen=True)
class Importances:
    """A share per key, largest first.

    chance: the share that a key without any effect would get on average. how: how the shares were computed, or why
    there are none.
    """

    keys: list[str]
    shares: list[float]
    chance: list[float]
    how: str


def importances(table: Leaderboard) -> Importances:
    """Importances from the study of the search that the runs belong to, or else from the runs as a grid."""
    journals = {path for run in table.runs if (path := run.folder.parent / STUDY).is_file()}
    if len(journals) == 1:
        return study_importances(journals.pop())
    runs = [(row.choices, cer) for row in table.rows for cer in row.each["validation"]]
    return grid_importances(table.keys, runs)


def grid_importances(keys: Sequence[str], runs: Sequence[tuple[dict[str, Any], float]]) -> Importances:
    """Eta squared: the share of the variance of CER over runs that lies between the means of a key's values.

    By chance alone a key with k values gets (k - 1) / (n - 1) with n runs: everything, if each value occurs once.
    """
    # An evaluation next to trainings has keys that they have not, and the other way round.
    keys = [key for key in keys if sum(key in choices for choices, _ in runs) > len(runs) / 2]
    runs = [(choices, cer) for choices, cer in runs if all(key in choices for key in keys)]
    # Keys whose values occur once, as in a random search, would explain everything.
    repeated = [key for key in keys if len({repr(choices[key]) for choices, _ in runs}) <= len(runs) / 2]
    if len(runs) < MIN_RUNS or not repeated:
        reason = "to separate the effect of a key from chance" if repeated else "per value of any key"
        return Importances([], [], [], f"Too few runs ({len(runs)}) {reason}.")
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


def study_importances(journal: Path) -> Importances:
    """PED-ANOVA of an Optuna study: which keys separate its best tenth of trials from the others."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        open_regular(journal, MAX_STUDY).close()
        study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
        trials = len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))
        if trials < MIN_TRIALS:
            return Importances(
                [], [], [], f"Too few completed trials ({trials}) to separate the effect of a key from chance."
            )
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except Exception as error:  # Optuna raises many kinds for a truncated journal; the page is written without
        return Importances([], [], [], f"{STUDY} of the search cannot be read: {error!r}")
    how = f"How much each key separates the best tenth of {trials} trials from the others (PED-ANOVA, shares of 1)."
    return Importances(list(shares), list(shares.values()), [], how)
