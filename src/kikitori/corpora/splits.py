"""Holds clips out of training where a corpus has no validation or test split, and checks which splits it has."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from unicodedata import normalize

from kikitori.corpora.types import SPLITS, Clip, Corpus, Split
from kikitori.runtime.errors import DataError

log = logging.getLogger(__name__)


def hold_out(corpus: Corpus, share: float) -> Corpus:
    """Moves a share of the training clips to the test split, and as many to validation, where the corpus has none.

    All clips of a speaker (if unknown: of a recording) move together, by a hash of the name. So those that are held
    out stay so when rows are added, and no file has to be written.
    Raises DataError if the corpus has both splits, or too few speakers or recordings.
    """
    scored: tuple[Split, Split] = ("test", "validation")
    missing = [split for split in scored if not any(clip.split == split for clip in corpus.clips)]
    if not missing:
        raise DataError(f"data.held_out={share}: the corpus has a validation and a test split; leave it out")
    train = [clip for clip in corpus.clips if clip.split == "train"]
    places = {group: _place(group) for group in {_group(clip) for clip in train}}
    if len(places) <= len(missing):
        raise DataError(
            f"data.held_out={share}: {len(places)} speakers or recordings are too few for training, "
            f"{' and '.join(missing)}; without data.speaker_column the clips of one speaker are divided"
        )
    left = sorted(places, key=lambda group: (places[group], group))
    moved: dict[str, Split] = {}
    for number, split in enumerate(missing, 1):
        # At least one, and one is left for each other split, which matters if there are few.
        chosen = [group for group in left if places[group] < number * share] or left[:1]
        chosen = chosen[: len(left) - (len(missing) + 1 - number)]
        moved |= dict.fromkeys(chosen, split)
        left = left[len(chosen) :]
    clips = [replace(c, split=moved.get(_group(c), "train")) if c.split == "train" else c for c in corpus.clips]
    for split in missing:
        count = sum(moved.get(_group(clip)) == split for clip in train)
        log.info("held out for %s: %d of %d clips (%.0f %%)", split, count, len(train), 100 * count / len(train))
    return replace(corpus, clips=clips)


def _group(clip: Clip) -> str:
    return clip.speaker or normalize("NFC", clip.recording)


def _place(group: str) -> float:
    """A hash of a name as a number from 0 to 1."""
    return int.from_bytes(sha256(group.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64


def present_splits(corpus: Corpus, needed: Sequence[Split] | None) -> list[Split]:
    """The needed splits; for None those that the corpus has. Raises DataError if one is absent."""
    clips = {split: sum(clip.split == split for clip in corpus.clips) for split in SPLITS}
    present = [s for s in SPLITS if clips[s] or any(reject.split == s for reject in corpus.rejects)]
    for split in needed or present or SPLITS:
        if split not in present:
            listed = f" (clips listed: {', '.join(f'{s} {clips[s]}' for s in present)})" if present else ""
            remedies = []
            if split != "train" and "train" not in corpus.absent:
                remedies.append("data.held_out=0.1 takes it from the training clips")
            if present:
                remedies.append(f"kikitori evaluate and prepare can do without it: 'splits=[{','.join(present)}]'")
            reason = corpus.absent.get(split, "it lists no clip of it")
            raise DataError("\n  ".join([f"{corpus.description} has no {split} split{listed}: {reason}", *remedies]))
    return list(needed) if needed is not None else present
