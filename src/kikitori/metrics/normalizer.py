"""Prepares text for scoring: a small normaliser and word segmentation. Only this module imports sudachipy.

Error rates of Japanese depend on both, so every result names the normaliser and the version of the dictionary.
"""

import unicodedata
from functools import cache
from importlib.metadata import version

from sudachipy import Dictionary, SplitMode, Tokenizer

# Change the name with the rules: rates under different names must not be compared.
NORMALISER = "nfkc-casefold-nopunct-1"

# Whisper's codes of languages that are written without spaces.
UNSPACED = {"ja", "zh", "yue", "th", "lo", "my", "km"}


def normalise(text: str, language: str = "ja") -> str:
    """Normalises a transcript for an error rate: NFKC, case folding, no punctuation or symbols, uniform white space.

    NFKC composes half-width and decomposed kana, so が written as two code points is no error. The long vowel mark ー
    and the repetition mark 々 are letters and stay. White space is removed in languages without spaces; in others, each
    run of it becomes one space.
    """
    kept = []
    # The last NFKC composes characters that became neighbours when a mark was removed: NFKC splits ゛ in か゛ into a
    # space and a combining voicing mark, and gives が once the space is gone.
    for character in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        category = unicodedata.category(character)
        if category != "Cf":  # invisible, such as a joiner inside a word
            kept.append(" " if category[0] in "PSZC" else character)
    return unicodedata.normalize("NFKC", word_separator(language).join("".join(kept).split()))


def word_separator(language: str) -> str:
    """Returns the text between two words: a space, or nothing in languages without spaces."""
    return "" if language in UNSPACED else " "


def split_words(text: str, language: str = "ja") -> list[str]:
    """Splits a text into words: Japanese by Sudachi in mode C (国家公務員 stays whole), others at white space.

    In other languages without spaces, each character counts as a word.
    """
    if language != "ja":
        return list("".join(text.split())) if language in UNSPACED else text.split()
    return [surface for m in _sudachi().tokenize(text) if (surface := m.surface().strip())]


def segmenter(language: str = "ja") -> str:
    """Names the method of `split_words`, with versions, for results."""
    if language != "ja":
        return "characters" if language in UNSPACED else "white space"
    return f"sudachipy {version('sudachipy')} mode C, sudachidict-core {version('sudachidict-core')}"


@cache
def _sudachi() -> Tokenizer:
    """Created on first use in each process, because neither dictionary nor tokenizer can be pickled."""
    return Dictionary(dict="core").create(mode=SplitMode.C)
