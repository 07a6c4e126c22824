"""Character and word error rates of a corpus, on normalised and raw text, with bootstrap intervals over clips.

`cer_reading`, of Japanese only, is the CER of readings: kana or kanji, and 三百円 or 300円, are no errors there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import jiwer
import numpy as np
from numpy.typing import NDArray

from kikitori.metrics.bootstrap import interval, resampled
from kikitori.metrics.languages import language_code, of_each
from kikitori.metrics.normalizer import normalise, reading, split_words

# CER and WER on normalised text, then on the text as it is, and CER of the readings.
RATES = ("cer", "wer", "cer_raw", "wer_raw", "cer_reading")


@dataclass(frozen=True)
class ClipScore:
    """Edits and reference length of one clip, in characters (cer) and words (wer), on normalised and raw text.

    Those of readings are None for languages other than Japanese. language: Whisper's code, of clips of several
    languages; rates are then summarised for each of them, too.
    """

    cer_edits: int
    cer_length: int
    wer_edits: int
    wer_length: int
    cer_raw_edits: int
    cer_raw_length: int
    wer_raw_edits: int
    wer_raw_length: int
    cer_reading_edits: int | None = None
    cer_reading_length: int | None = None
    language: str | None = None


def score(references: Sequence[str], hypotheses: Sequence[str], language: str = "ja") -> dict[str, Any]:
    """Computes the error rates of hypotheses against references, as fractions: 0.25 is 25 %.

    language: a code or name, such as ja, zh-CN or Japanese; text is normalised and split into words accordingly.
    Returns cer and wer on normalised text, each with its 95 % bootstrap interval over clips (cer_ci95, wer_ci95),
    cer_raw and wer_raw on the text as given, for Japanese cer_reading (`normalizer.reading`), and the number of clips.
    Raises ValueError unless both are lists of the same length, and for a language that is none.
    """
    if isinstance(references, str) or isinstance(hypotheses, str):
        raise ValueError("references and hypotheses must be lists of texts, not single texts")
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references, but {len(hypotheses)} hypotheses; give one for each")
    return summarise(score_clips(references, hypotheses, language))


def score_clips(references: Sequence[str], hypotheses: Sequence[str], language: str | Sequence[str]) -> list[ClipScore]:
    """Counts the edits of each clip. WER of Japanese uses Sudachi's words; at spaces, a sentence would be one word.

    language: by whose rules the texts are scored; of all clips, or of each.
    """
    languages = of_each(language, len(references))
    found: dict[int, ClipScore] = {}
    for code in dict.fromkeys(languages):
        clips = [i for i, own in enumerate(languages) if own == code]
        own_references, own_hypotheses = ([texts[i] for i in clips] for texts in (references, hypotheses))
        found |= zip(clips, _score_language(own_references, own_hypotheses, code), strict=True)
    return [found[i] for i in range(len(references))]


def _score_language(references: Sequence[str], hypotheses: Sequence[str], language: str) -> list[ClipScore]:
    columns: dict[str, list[int]] = {}
    for suffix, prepare in (("", partial(normalise, language=language)), ("_raw", str)):
        pairs = [[prepare(text) for text in texts] for texts in (references, hypotheses)]
        columns[f"cer{suffix}_edits"], columns[f"cer{suffix}_length"] = _edits(jiwer.process_characters, *pairs)
        segmented = [[" ".join(split_words(text, language)) for text in texts] for texts in pairs]
        columns[f"wer{suffix}_edits"], columns[f"wer{suffix}_length"] = _edits(jiwer.process_words, *segmented)
    if language_code(language) == "ja":
        readings = [list(map(reading, texts)) for texts in (references, hypotheses)]
        columns["cer_reading_edits"], columns["cer_reading_length"] = _edits(jiwer.process_characters, *readings)
    return [ClipScore(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


def summarise(scores: Sequence[ClipScore]) -> dict[str, Any]:
    """Returns the corpus rates as fractions, the 95 % intervals of CER and WER, and the number of clips.

    Of clips of several languages also the same of each, as `languages`.
    """
    has_readings = bool(scores) and all(score.cer_reading_edits is not None for score in scores)
    counts = {rate: edits_and_lengths(scores, rate) for rate in RATES if rate != "cer_reading" or has_readings}
    summary: dict[str, Any] = {rate: corpus_rate(c) for rate, c in counts.items()}
    for rate in ("cer", "wer"):
        summary[f"{rate}_ci95"] = interval(resampled(counts[rate]))
    return {**summary, "clips": len(scores), **_of_languages(summarise, scores)}


def change(before: Sequence[ClipScore], after: Sequence[ClipScore]) -> dict[str, Any]:
    """Returns `after` minus `before` on the same clips, with the paired 95 % interval: both use the same resamples."""
    result: dict[str, Any] = {}
    for rate in ("cer", "wer"):
        old, new = edits_and_lengths(before, rate), edits_and_lengths(after, rate)
        result[rate] = corpus_rate(new) - corpus_rate(old)
        result[f"{rate}_ci95"] = interval(resampled(new) - resampled(old))
    return result | _of_languages(change, before, after)


def _of_languages(rates: Callable[..., dict[str, Any]], *scores: Sequence[ClipScore]) -> dict[str, Any]:
    """Rates of the clips of each language, as `languages`; nothing if the scores have none."""
    languages = sorted({score.language for score in scores[-1] if score.language})
    if not languages:
        return {}
    alike = {
        code: [[replace(s, language=None) for s in of if s.language == code] for of in scores] for code in languages
    }
    return {"languages": {code: rates(*of) for code, of in alike.items()}}


def edits_and_lengths(scores: Sequence[ClipScore], rate: str) -> NDArray[np.int64]:
    """Returns edits and reference length of each clip for one of RATES, (clips, 2)."""
    pairs = [(getattr(s, f"{rate}_edits"), getattr(s, f"{rate}_length")) for s in scores]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def corpus_rate(counts: NDArray[np.int64]) -> float:
    """Returns the sum of all edits over the sum of all reference lengths, as a fraction; 0 if there is no reference."""
    edits, length = counts.sum(axis=0)
    return float(edits / length) if length else 0.0


def prediction(clip: str, reference: str, hypothesis: str, score: ClipScore) -> dict[str, Any]:
    """Returns a row of predictions/*.jsonl."""
    counts = {key: count for key, count in asdict(score).items() if count is not None}
    return {"clip": clip, "reference": reference, "hypothesis": hypothesis, **counts}


def clip_score(row: Mapping[str, Any]) -> ClipScore:
    """Returns the score in a row of predictions/*.jsonl."""
    return ClipScore(**{key: v for key, v in row.items() if key.endswith(("_edits", "_length")) or key == "language"})


def row_language(row: Mapping[str, Any], language: str, several: bool) -> str:
    """Returns the language by whose rules a row of predictions/*.jsonl is scored.

    several: whether that is the one it names, and not `language` for all rows.
    """
    return str((row.get("language") if several else None) or language)


def rescored(
    rows: Sequence[Mapping[str, Any]], language: str, several: bool = False
) -> tuple[list[ClipScore], list[dict[str, Any]]]:
    """Scores the transcripts in rows of predictions/*.jsonl by today's rules; returns the scores and the new rows.

    language, several: see `row_language`.
    """
    clips, references, hypotheses = ([row[key] for row in rows] for key in ("clip", "reference", "hypothesis"))
    counts = score_clips(references, hypotheses, [row_language(row, language, several) for row in rows])
    scores = [replace(score, language=row.get("language")) for score, row in zip(counts, rows, strict=True)]
    counted = map(prediction, clips, references, hypotheses, scores)
    return scores, [{**row, **new} for row, new in zip(rows, counted, strict=True)]


def _edits(process: Any, references: list[str], hypotheses: list[str]) -> tuple[list[int], list[int]]:
    """Returns the edits and the reference length of each pair. process: jiwer's function for characters or words."""
    if not references:
        return [], []
    output = process(references, hypotheses)
    edits = [
        sum(
            max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            for chunk in alignment
            if chunk.type != "equal"
        )
        for alignment in output.alignments
    ]
    return edits, [len(reference) for reference in output.references]
