"""How sure a model is of each token and of each word of its text."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import exp

from kikitori.metrics.normalizer import split_words
from kikitori.model.processor import BYTE_OF, Processor


@dataclass(frozen=True)
class Token:
    """Whole characters of a text, and the probability that the model gave them.

    Tokens that end inside a character are joined; the probability is then the product of theirs: of the character.
    """

    text: str
    probability: float


def tokens_of(processor: Processor, ids: Sequence[int], logprobs: Sequence[float]) -> tuple[Token, ...]:
    """Returns the tokens of a text, without control tokens; joined, their texts are what `Processor.decode` returns.

    logprobs: the log probability of each id; without any, as of a beam search, there are no tokens.
    """
    if not logprobs:
        return ()
    decoder = getincrementaldecoder("utf-8")("replace")
    control, found = processor.control_ids, list[Token]()
    text, logprob = "", 0.0
    for number, own in zip(ids, logprobs, strict=True):
        if number in control:
            continue
        text, logprob = text + decoder.decode(_bytes(processor, number)), logprob + own
        if not decoder.getstate()[0]:  # the bytes so far are whole characters
            found.append(Token(text, exp(logprob)))
            text, logprob = "", 0.0
    found.append(Token(text + decoder.decode(b"", final=True), exp(logprob)))
    return stripped(found)


def _bytes(processor: Processor, number: int) -> bytes:
    symbol: str = processor.tokenizer.convert_ids_to_tokens(number)
    found = [BYTE_OF.get(character) for character in symbol]
    return symbol.encode() if None in found else bytes(byte for byte in found if byte is not None)


def stripped(tokens: Sequence[Token]) -> tuple[Token, ...]:
    """Returns the tokens of a text without white space at its ends, as `str.strip`."""
    text = "".join(token.text for token in tokens)
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    return cut_out(cut_out(tokens, slice(end, len(text))), slice(0, start))


def cut_out(tokens: Sequence[Token], part: slice) -> tuple[Token, ...]:
    """Returns the tokens of a text without a part of its characters."""
    ends = [0, *accumulate(len(token.text) for token in tokens)]
    texts = [
        token.text[: max(0, part.start - start)] + token.text[max(0, part.stop - start) :]
        for token, start in zip(tokens, ends, strict=False)
    ]
    return tuple(replace(token, text=text) for token, text in zip(tokens, texts, strict=True) if text)


def words_of(tokens: Sequence[Token], language: str) -> list[Token]:
    """Returns the words of a text, each with the lowest probability of a token that has a part of it.

    A word is as doubtful as its most doubtful part: a mean would hide one wrong character of a long word. Words are
    those of `split_words`; white space belongs to the word after it, so that joined they are the text.
    """
    text, at, ends = "".join(token.text for token in tokens), 0, [0]
    for word in split_words(text, language):
        at = text.index(word, at) + len(word)
        ends.append(at)
    probability = [token.probability for token in tokens for _ in token.text]
    return [Token(text[start:end], min(probability[start:end])) for start, end in pairwise(ends)]
