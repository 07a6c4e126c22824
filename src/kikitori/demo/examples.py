"""Examples: validation clips of a run, first those on which its model and its base differ most.

Their audio comes from the cache of decoded clips and from nowhere else. Validation clips are never saved: a model that
was trained on them could not be judged by them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kikitori.data.audio_cache import AudioCache
from kikitori.runs.reader import Run, read_run
from kikitori.runs.results import folder_of_run
from kikitori.runtime.errors import DataError
from kikitori.runtime.paths import cache_folder

SPLIT = "validation"
MAX_EXAMPLES = 8


@dataclass(frozen=True)
class Example:
    """A validation clip. cer: of the base, if it was scored, and of the model, as the run recorded them."""

    clip: str
    reference: str
    cer: Sequence[float]
    cache: AudioCache

    @property
    def samples(self) -> NDArray[np.int16]:
        """(samples,) at 16 kHz."""
        return self.cache.pcm(self.clip)

    def as_plain(self) -> dict[str, Any]:
        """What the list on the page shows. It has no name, which may be a person's."""
        return {"reference": self.reference, "cer": list(self.cer)}


def find_examples(places: Sequence[str]) -> tuple[list[Example], str]:
    """Returns the examples of the first run that has some, or the reason why there are none."""
    reasons = []
    for place in places:
        folder = folder_of_run(Path(place))
        if folder is None:
            reasons.append(f"{place} is no run")
            continue
        try:
            return _examples(read_run(folder, folder.name, {})), ""
        except DataError as error:
            reasons.append(str(error))
    return [], "; ".join(reasons)


def _examples(run: Run) -> list[Example]:
    if run.status == "unreadable":
        raise DataError(f"{run.folder}: {run.reason}")
    after = run.predictions(SPLIT)
    if not after:
        raise DataError(f"{run.folder} holds no transcripts of its validation clips")
    store = run.results.get("data", {}).get("splits", {}).get(SPLIT, {}).get("store")
    path = cache_folder() / "store" / store if store else None
    if path is None or not path.is_file():
        raise DataError(
            f"the validation clips of {run.folder} are not in this machine's cache; kikitori prepare puts them there"
        )
    cache = AudioCache(path)
    before = {(row["clip"], row["reference"]): row for row in run.predictions(SPLIT, "before")}
    pairs = [(before.get((row["clip"], row["reference"])), row) for row in after if row["clip"] in cache.decoded]
    pairs.sort(key=lambda pair: (-_difference(*pair), pair[1]["clip"]))
    return [
        Example(row["clip"], row["reference"], [_cer(r) for r in (old, row) if r], cache)
        for old, row in pairs[:MAX_EXAMPLES]
    ]


def _difference(before: dict[str, Any] | None, after: dict[str, Any]) -> int:
    """Edits that training added or removed. Where the counts agree, clips whose texts differ still come first."""
    if before is None:
        return 0
    return 2 * abs(after["cer_edits"] - before["cer_edits"]) + (after["hypothesis"] != before["hypothesis"])


def _cer(row: dict[str, Any]) -> float:
    edits, length = int(row["cer_edits"]), int(row["cer_length"])
    return edits / max(1, length)
