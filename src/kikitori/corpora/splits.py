"""Holds clips out of training where a corpus has no validation or test split, and checks which splits it has."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from unicodedata import normalize

from kikitori.corpora.types import SPLITS, Clip, Corpus, Split
from kikitori.runtime.errors import DataError

log = logging.getLogger(__name__)


def hold_out(corpus: Corpus, share: float) -> Corpus:
    """Moves a share of the training clips to the test split, and as many to validation, where the corpus has none.

    All clips of a speaker (if unknown: of a recording) move together, by a hash of the name. So those that are held
    out stay so when rows are added, and no file has to be written. The clips of each language are divided separately.
    Raises DataError if the corpus has both splits, or too few speakers or recordings.
    """
    parts: dict[str | None, list[Clip]] = {} if corpus.clips else {None: []}
    for clip in corpus.clips:
        parts.setdefault(clip.language, []).append(clip)
    if not any(map(_missing, parts.values())):
        raise DataError(f"data.held_out={share}: the corpus has a validation and a test split; leave it out")
    divided = chain.from_iterable(_hold_out(clips, language, share) for language, clips in parts.items())
    return replace(corpus, clips=list(divided))


def _missing(clips: Sequence[Clip]) -> list[Split]:
    """The splits for scoring of which there is no clip."""
    scored: tuple[Split, Split] = ("test", "validation")
    return [split for split in scored if not any(clip.split == split for clip in clips)]


def _hold_out(clips: Sequence[Clip], language: str | None, share: float) -> list[Clip]:
    missing, train = _missing(clips), [clip for clip in clips if clip.split == "train"]
    places = {group: _place(group) for group in {_group(clip) for clip in train}}
    which = f" of the language {language}" if language else ""
    if missing and len(places) <= len(missing):
        hint = (
            "; without data.speaker_column the clips of one speaker are divided"
            if any(clip.speaker for clip in train)
            else ""
        )
        raise DataError(
            f"data.held_out={share}: {len(places)} speakers or recordings{which} are too few for training, "
            f"{' and '.join(missing)}, which need {len(missing) + 1}{hint}"
        )
    left = sorted(places, key=lambda group: (places[group], group))
    moved: dict[str, Split] = {}
    for number, split in enumerate(missing, 1):
        # At least one, and one is left for each other split, which matters if there are few.
        chosen = [group for group in left if places[group] < number * share] or left[:1]
        chosen = chosen[: len(left) - (len(missing) + 1 - number)]
        moved |= dict.fromkeys(chosen, split)
        left = left[len(chosen) :]
    for split in missing:
        count = sum(moved.get(_group(clip)) == split for clip in train)
        facts = (split, count, len(train), which, 100 * count / len(train))
        log.info("held out for %s: %d of %d clips%s (%.0f %%)", *facts)
    return [replace(c, split=moved.get(_group(c), "train")) if c.split == "train" else c for c in clips]


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
