"""What a model gets wrong: runs of characters that it substitutes, leaves out or puts in."""

from collections import Counter
from collections.abc import Sequence

import jiwer

from kikitori.text import normalise

KINDS = {"substitute": "substitution", "delete": "deletion", "insert": "insertion"}


def error_types(references: Sequence[str], hypotheses: Sequence[str], language: str) -> list[tuple[str, str, str, int]]:
    """(kind, reference, hypothesis, count) of each kind of error in normalised text, the commonest first."""
    if not references:
        return []
    pairs = [[normalise(text, language) for text in texts] for texts in (references, hypotheses)]
    output = jiwer.process_characters(*pairs)
    found = Counter(
        (
            KINDS[chunk.type],
            "".join(reference[chunk.ref_start_idx : chunk.ref_end_idx]),
            "".join(hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]),
        )
        for alignment, reference, hypothesis in zip(
            output.alignments, output.references, output.hypotheses, strict=True
        )
        for chunk in alignment
        if chunk.type != "equal"
    )
    return [(*error, count) for error, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))]
