"""Prepares text for scoring: a small normaliser, words, and Japanese readings. Only this module imports sudachipy.

Error rates of Japanese depend on all three, so every result names the normaliser and the version of the dictionary.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

from sudachipy import Dictionary, Morpheme, SplitMode, Tokenizer

from kikitori.metrics.languages import language_code

# Change the name with the rules: rates under different names must not be compared.
NORMALISER = "nfkc-casefold-nopunct-2"

# Languages that are written without spaces between words.
UNSPACED = {"ja", "zh", "yue", "th", "lo", "my", "km", "bo"}

# Characters without a glyph that are letters or marks by category: joiners, fillers and variation selectors, as in
# 葛󠄀 and ❤️. Source: Unicode's Default_Ignorable_Code_Point.
INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# What is typed for the long vowel mark: one hyphen, minus or dash after a katakana or between two hiragana, and wave
# dashes after a kana. No vowel is long after ン or ッ, and two dashes are punctuation.
_DASH, _WAVE = "-‐‒–—―−─", "~〜∼"
LONG_VOWEL = re.compile(
    rf"(?<=[ァ-ヂツ-ヲヴ-ヺー])[{_DASH}](?![{_DASH}])|(?<=[ぁ-ゖ])[{_DASH}](?=[ぁ-ゖ])|(?<=[ぁ-ゖァ-ヺー])[{_WAVE}]+"
)


def normalise(text: str, language: str = "ja") -> str:
    """Normalises a transcript for an error rate: NFKC, case folding, no punctuation or symbols, uniform white space.

    NFKC composes half-width and decomposed kana, so が written as two code points is no error. The long vowel mark ー
    and the repetition mark 々 are letters and stay; a dash or wave dash typed for ー (`LONG_VOWEL`) becomes ー.
    Invisible characters are removed. White space is removed in languages without spaces; in others, each run of it
    becomes one space.
    """
    text = INVISIBLE.sub("", unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()))
    kept = []
    # The last NFKC composes characters that became neighbours when a mark was removed: NFKC splits ゛ in か゛ into a
    # space and a combining voicing mark, and gives が once the space is gone.
    for character in LONG_VOWEL.sub(lambda found: "ー" * len(found[0]), text):
        category = unicodedata.category(character)
        if category not in ("Cf", "Me"):  # invisible, such as a joiner inside a word; enclosing, such as a keycap
            kept.append(" " if category[0] in "PSZC" else character)
    return unicodedata.normalize("NFKC", word_separator(language).join("".join(kept).split()))


def word_separator(language: str) -> str:
    """Returns the text between two words: a space, or nothing in languages without spaces."""
    return "" if language_code(language) in UNSPACED else " "


def split_words(text: str, language: str = "ja") -> list[str]:
    """Splits a text into words: Japanese by Sudachi in mode C (国家公務員 stays whole), others at white space.

    In other languages without spaces, each character (code point) counts as a word.
    """
    code = language_code(language)
    if code != "ja":
        return list("".join(text.split())) if code in UNSPACED else text.split()
    return [surface for m in _sudachi().tokenize(text) if (surface := m.surface().strip())]


def reading(text: str) -> str:
    """Returns the kana of a Japanese text, in which spellings of the same words agree: わたし and 私, 三百円 and 300円.

    Words are read as Sudachi's normalised form of them is; prefixes and inflected forms as they stand, since a lemma
    would hide what was said; numerals become digits. Homophones agree as well (橋 and 箸), so this is for a lenient
    rate only. A number in kana (さんびゃく) does not equal its digits.
    """
    # With the full stop that normalisation removed: without it, 三本 is a family name.
    return "".join(map(_read, list(_sudachi().tokenize(f"{normalise(text)}。"))[:-1]))


def _read(morpheme: Morpheme) -> str:
    kind, detail, *_ = morpheme.part_of_speech()
    if detail != "数詞" and (kind == "接頭辞" or morpheme.surface() != morpheme.dictionary_form()):
        return morpheme.reading_form() or morpheme.surface()
    digits, kana = _readings(morpheme.normalized_form())
    return digits if detail == "数詞" else kana


@lru_cache(maxsize=100_000)
def _readings(form: str) -> tuple[str, str]:
    """The normalised form of a normalised form (6 for 六, which is that of ろく), and its reading."""
    morphemes = _sudachi().tokenize(form)
    return "".join(m.normalized_form() for m in morphemes), "".join(m.reading_form() or m.surface() for m in morphemes)


def segmenter(language: str = "ja") -> str:
    """Names the method of `split_words`, with versions, for results."""
    code = language_code(language)
    if code != "ja":
        return "characters" if code in UNSPACED else "white space"
    return f"sudachipy {version('sudachipy')} mode C, sudachidict-core {version('sudachidict-core')}"


def text_rules(language: str, languages: Sequence[str] = ()) -> dict[str, Any]:
    """The language by whose rules text is scored, the normaliser and the segmenter: `scoring` in results.

    languages: of texts of several languages, each of which is scored by the rules of its own.
    """
    rules = {"language": language_code(language), "normaliser": NORMALISER, "segmenter": segmenter(language)}
    if len(set(languages)) < 2:
        return rules
    words = "; ".join(f"{code}: {segmenter(code)}" for code in sorted({*languages}))
    return {**rules, "segmenter": words, "languages": sorted({*languages})}


@cache
def _sudachi() -> Tokenizer:
    """Created on first use in each process, because neither dictionary nor tokenizer can be pickled."""
    return Dictionary(dict="core").create(mode=SplitMode.C)
