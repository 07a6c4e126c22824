"""Aligns two transcripts character by character: spans to highlight, and the most frequent errors of many clips."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import jiwer

from kikitori.metrics.languages import of_each
from kikitori.metrics.normalizer import normalise, split_words

CHARACTERS = jiwer.ReduceToListOfListOfChars()


class Span(NamedTuple):
    """A run of characters of one kind: equal, substitute, delete (in the reference only), insert (hypothesis only)."""

    kind: str
    reference: str
    hypothesis: str


def spans(reference: str, hypothesis: str) -> list[Span]:
    """Aligns two texts. The joined references of the spans are the reference, and likewise for the hypothesis."""
    aligned = jiwer.process_characters(
        [reference], [hypothesis], reference_transform=CHARACTERS, hypothesis_transform=CHARACTERS
    )
    return [
        Span(c.type, reference[c.ref_start_idx : c.ref_end_idx], hypothesis[c.hyp_start_idx : c.hyp_end_idx])
        for c in aligned.alignments[0]
    ]


def error_types(references: Sequence[str], hypotheses: Sequence[str], language: str | Sequence[str]) -> dict[str, Any]:
    """Counts the errors of many clips by single characters of normalised text, so that they add up to CER's edits.

    language: of all texts, or of each clip's. Returns `rows`: (kind, reference, hypothesis, count), the most frequent
    first; `totals`: edits of each kind; `characters`: the total length of the references.
    """
    errors: Counter[Span] = Counter()
    characters = 0
    for *pair, code in zip(references, hypotheses, of_each(language, len(references)), strict=True):
        reference, hypothesis = (normalise(text, code) for text in pair)
        characters += len(reference)
        for span in spans(reference, hypothesis):
            errors.update(_single_edits(span))
    totals = {kind: sum(n for e, n in errors.items() if e.kind == kind) for kind in ("substitute", "delete", "insert")}
    # Equal counts are ordered by their characters, so that a table is the same in every run.
    rows = sorted(((*error, count) for error, count in errors.items()), key=lambda row: (-row[3], row[:3]))
    return {"rows": rows, "totals": totals, "characters": characters}


def word_errors(
    references: Sequence[str], hypotheses: Sequence[str], language: str | Sequence[str]
) -> list[tuple[str, str, int]]:
    """Counts the errors of many clips by words of normalised text; adjacent wrong words are one error.

    Returns (reference, hypothesis, count), the most frequent first.
    """
    languages = of_each(language, len(references))
    reference_words, hypothesis_words = (
        [split_words(normalise(text, code), code) for text, code in zip(texts, languages, strict=True)]
        for texts in (references, hypotheses)
    )
    errors: Counter[tuple[str, str]] = Counter()
    for reference, hypothesis in zip(reference_words, hypothesis_words, strict=True):
        aligned = jiwer.process_words([" ".join(reference)], [" ".join(hypothesis)]).alignments[0]
        for is_equal, group in groupby(aligned, key=lambda chunk: chunk.type == "equal"):
            chunks = list(group)
            if not is_equal:
                start, end = chunks[0], chunks[-1]
                words = (
                    reference[start.ref_start_idx : end.ref_end_idx],
                    hypothesis[start.hyp_start_idx : end.hyp_end_idx],
                )
                errors[" ".join(words[0]), " ".join(words[1])] += 1
    return sorted(((*words, count) for words, count in errors.items()), key=lambda row: (-row[2], row[:2]))


def _single_edits(span: Span) -> list[Span]:
    """Splits a span into edits of one character each; an equal span has none."""
    if span.kind == "substitute":
        return [Span("substitute", a, b) for a, b in zip(span.reference, span.hypothesis, strict=True)]
    if span.kind == "delete":
        return [Span("delete", a, "") for a in span.reference]
    return [Span("insert", "", b) for b in span.hypothesis] if span.kind == "insert" else []
