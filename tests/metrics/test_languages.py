from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.whisper.tokenization_whisper import LANGUAGES as WHISPER_LANGUAGES
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from kikitori.metrics.languages import LANGUAGES, closest, known_code, language_code

# Codes of Common Voice and FLEURS, and what people write.
GIVEN = {
    "zh": "zh-CN zh-TW zh-HK cmn_hans_cn Chinese Mandarin",
    "yue": "yue yue_hant_hk Cantonese zh-yue",
    "ja": "ja ja_JP Japanese jp",
    "no": "nb-NO nb_no no Norwegian",
    "nn": "nn-NO",
    "sv": "sv-SE",
    "pa": "pa-IN",
    "hy": "hy-AM",
    "ne": "ne-NP",
    "he": "he_il iw",
    "pt": "pt-BR",
    "jw": "jw jv_id Javanese",
    "tl": "tl fil_ph",
    "ht": "ht Haitian_Creole haitian-creole",
    # Languages that Whisper lacks.
    "ga": "ga-IE",
    "rm": "rm-sursilv rm-vallader",
    "fy": "fy-NL",
    "nan": "nan-tw",
    "hyw": "hyw",
}


@pytest.mark.parametrize(("given", "code"), [(given, code) for code, words in GIVEN.items() for given in words.split()])
def test_the_code_of_a_language(given: str, code: str) -> None:
    assert language_code(given) == code
    for other in (given.upper(), f" {given} ", given.replace("-", "_"), given.replace("_", " ")):
        assert language_code(other) == code


def test_the_languages_are_those_of_whisper() -> None:
    assert {code: name.replace("-", " ") for code, name in LANGUAGES.items()} == WHISPER_LANGUAGES
    assert {name: language_code(name) for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


@given(st.sampled_from(sorted(LANGUAGES)), st.text("abcdefghijklmnopqrstuvwxyzABCDE0123456789", min_size=1, max_size=8))
def test_a_region_or_script_changes_nothing(code: str, region: str) -> None:
    if (code, region.lower()) != ("zh", "yue"):  # Cantonese
        assert language_code(f"{code}-{region}") == code


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("japnese", r"ja \(japanese\)"),
        ("englisch", r"en \(english\)"),
        ("", "is no language; give its code or English name, such as ja or japanese$"),
    ],
)
def test_a_text_that_is_no_language_is_refused_with_similar_ones(given: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"'{given}' is no language.*{near}|{near}"):
        language_code(given)


@pytest.mark.parametrize("read", [language_code, known_code])
def test_of_a_long_text_that_is_no_language_only_the_beginning_is_shown(read: Callable[[str], str]) -> None:
    with pytest.raises(ValueError, match=r"'j{60}' is no language") as error:
        read("j" * 5_000)
    assert len(str(error.value)) < 200


def test_the_closest_languages_are_among_those_of_the_model() -> None:
    assert closest("germn", ["de", "ja"]) == "; did you mean de (german)?"
    assert closest("germn", ["ja"]) == ""
