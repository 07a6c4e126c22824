"""Text for scoring: a small normaliser and the cut into words. The only importer of sudachipy.

Error rates of Japanese depend on both, so the normaliser's name and the dictionary's version stand in every result.
"""

import unicodedata
from functools import cache
from importlib.metadata import version

from sudachipy import Dictionary, SplitMode, Tokenizer

# Change the name with the rules: rates under different names must not be compared.
NORMALISER = "nfkc-casefold-nopunct-1"

# Languages written without spaces, by Whisper's codes.
UNSPACED = {"ja", "zh", "yue", "th", "lo", "my", "km"}


def normalise(text: str, language: str = "ja") -> str:
    """What an error rate should see of a transcript: NFKC, case folded, no punctuation or symbols, white space evened.

    NFKC joins half-width and decomposed kana, so が written as two code points is no error. The long vowel ー and the
    repetition 々 are letters and stay. In a language without spaces white space goes, elsewhere runs of it become one.
    """
    kept = []
    # The last NFKC joins what stood apart only because of a mark between: か゛ is か, space, voicing mark.
    for character in unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()):
        kind = unicodedata.category(character)
        if kind != "Cf":  # invisible, such as a joiner inside a word
            kept.append(" " if kind[0] in "PSZC" else character)
    return unicodedata.normalize("NFKC", word_separator(language).join("".join(kept).split()))


def word_separator(language: str) -> str:
    """What stands between two pieces of text."""
    return "" if language in UNSPACED else " "


def split_words(text: str, language: str = "ja") -> list[str]:
    """Cut a text into words: Japanese by Sudachi in mode C (国家公務員 stays whole), others at white space.

    Of other languages without spaces each character counts as a word.
    """
    if language != "ja":
        return list("".join(text.split())) if language in UNSPACED else text.split()
    return [surface for m in _sudachi().tokenize(text) if (surface := m.surface().strip())]


@cache
def _sudachi() -> Tokenizer:
    """Made on first use in each process: neither dictionary nor tokenizer can be pickled."""
    return Dictionary(dict="core").create(mode=SplitMode.C)


def segmenter(language: str = "ja") -> str:
    """The name of what `words` does, with versions, for results."""
    if language != "ja":
        return "characters" if language in UNSPACED else "white space"
    return f"sudachipy {version('sudachipy')} mode C, sudachidict-core {version('sudachidict-core')}"
