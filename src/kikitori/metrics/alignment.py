"""Where two transcripts differ, character by character: pieces to colour, and the commonest errors of many clips."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jiwer

from kikitori.metrics.normalizer import normalise

CHARACTERS = jiwer.ReduceToListOfListOfChars()


class Span(NamedTuple):
    """A run of characters with one fate: equal, substitute, delete (not heard) or insert (heard, not said)."""

    kind: str
    reference: str
    hypothesis: str


def spans(reference: str, hypothesis: str) -> list[Span]:
    """The two texts in pieces, in order; the pieces' references make the reference again, as do the hypotheses."""
    aligned = jiwer.process_characters(
        [reference], [hypothesis], reference_transform=CHARACTERS, hypothesis_transform=CHARACTERS
    )
    return [
        Span(c.type, reference[c.ref_start_idx : c.ref_end_idx], hypothesis[c.hyp_start_idx : c.hyp_end_idx])
        for c in aligned.alignments[0]
    ]


def error_types(references: Sequence[str], hypotheses: Sequence[str], language: str) -> dict[str, Any]:
    """The errors of many clips on the text that is scored, one a character, so that counts add up to CER's edits.

    Returns `rows`: (kind, reference, hypothesis, count), commonest first; `totals`: edits of each kind; `characters`:
    the references' length.
    """
    errors: Counter[Span] = Counter()
    characters = 0
    for pair in zip(references, hypotheses, strict=True):
        reference, hypothesis = (normalise(text, language) for text in pair)
        characters += len(reference)
        for span in spans(reference, hypothesis):
            errors.update(_single(span))
    totals = {kind: sum(n for e, n in errors.items() if e.kind == kind) for kind in ("substitute", "delete", "insert")}
    # Of equal counts in the order of characters, so that a table does not change from run to run.
    rows = sorted(((*error, count) for error, count in errors.items()), key=lambda row: (-row[3], row[:3]))
    return {"rows": rows, "totals": totals, "characters": characters}


def _single(span: Span) -> list[Span]:
    """A piece's edits, one character each; none of an equal piece."""
    if span.kind == "substitute":
        return [Span("substitute", a, b) for a, b in zip(span.reference, span.hypothesis, strict=True)]
    if span.kind == "delete":
        return [Span("delete", a, "") for a in span.reference]
    return [Span("insert", "", b) for b in span.hypothesis] if span.kind == "insert" else []
