"""How fast people can speak, measured on text.

The tokens of a second of speech depend on the language and the tokenizer: at the usual pace whisper-base needs 5 for
Japanese or English, 18 for Hindi and 37 for Burmese, and a byte-level tokenizer needs more. The characters depend on
the script alone. At the mean rates of Coupé et al. 2019 (Science Advances 5, 9: 4.3 to 9.1 syllables a second in 17
languages), a text takes two to four times the seconds that are counted here, in either kind of script.
"""

# Characters per second that nobody exceeds: of scripts whose characters are syllables or more (kana, Chinese
# characters, Hangul), and of alphabets.
SYLLABLES_PER_S = 15
LETTERS_PER_S = 50


def fastest_s(text: str) -> float:
    """Returns the seconds that it takes at least to say a text."""
    return sum(BYTE_S[byte] for byte in text.encode("utf-8", "replace"))


def _byte_s(byte: int) -> float:
    """Returns the seconds of a byte of UTF-8; they add up to those of its character. Tokens may hold parts of one."""
    following = 1 / LETTERS_PER_S / 3
    if 0x80 <= byte < 0xC0:
        return following
    # The first byte of a character: how many follow, and whether it may be a syllable.
    follow = (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0)
    is_syllable = 0xE3 <= byte <= 0xED or byte >= 0xF0
    return 1 / (SYLLABLES_PER_S if is_syllable else LETTERS_PER_S) - follow * following


# Seconds of each byte.
BYTE_S = tuple(map(_byte_s, range(256)))
