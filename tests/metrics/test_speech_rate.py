"""No speech is faster than the limit of generated text, in any script and with any tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kikitori.metrics.speech_rate import LETTERS_PER_S, SYLLABLES_PER_S, fastest_s
from kikitori.model.loading import build_whisper

PROCESSOR = build_whisper(32, 1, 1, 2, window_s=1).processor

# A text and its syllables (or morae), by Whisper's code, with the mean rate of reading of Coupé et al. 2019, or of a
# related language where the code is not among their 17.
READ = {
    "ja": ("すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。", 58, 8.0),
    "zh": ("人人生而自由,在尊严和权利上一律平等", 16, 5.9),
    "ko": ("모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다", 28, 7.0),
    "en": ("All human beings are born free and equal in dignity and rights.", 17, 6.2),
    "de": ("Alle Menschen sind frei und gleich an Würde und Rechten geboren.", 18, 5.9),
    "es": ("Todos los seres humanos nacen libres e iguales en dignidad y derechos", 24, 7.7),
    "fi": ("Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan", 31, 7.2),
    "ru": ("Все люди рождаются свободными и равными в своем достоинстве и правах", 25, 6.5),
    "th": ("มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ", 22, 4.7),
    "vi": ("Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi", 19, 5.3),
    "hi": ("सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है", 34, 7.0),
    "ml": ("മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടും അന്തസ്സോടും സ്വാതന്ത്ര്യത്തോടുംകൂടി ജനിച്ചവരാണ്", 38, 7.5),
    "my": ("လူတိုင်းသည် တူညီလွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့်လည်းကောင်း", 20, 5.0),
}


@pytest.mark.parametrize("language", READ)
def test_text_that_is_read_takes_about_twice_the_shortest_time_or_more(language: str) -> None:
    text, syllables, rate = READ[language]
    assert 0.2 < fastest_s(text) / (syllables / rate) < 0.55


@pytest.mark.parametrize(
    ("text", "letters", "syllables"),
    [
        ("", 0, 0),
        ("かな漢字", 0, 4),
        ("ﾊﾟ a", 4, 0),
        ("é", 1, 0),
        ("한국", 0, 2),
        ("ไทย", 3, 0),
        ("𠮷🎉", 0, 2),
        ("。…", 1, 1),
    ],
)
def test_characters_count_by_their_script(text: str, letters: int, syllables: int) -> None:
    assert fastest_s(text) == pytest.approx(letters / LETTERS_PER_S + syllables / SYLLABLES_PER_S)


@given(text=st.text())
def test_tokens_take_the_time_of_their_text(text: str) -> None:
    tokens = PROCESSOR.encode(text)[len(PROCESSOR.prefix) : -1]
    assert sum(PROCESSOR.token_s[token] for token in tokens) == pytest.approx(fastest_s(text))


def test_control_tokens_take_no_time() -> None:
    assert not set(PROCESSOR.prefix) & set(PROCESSOR.token_s)
