"""Languages by code or name: Whisper's own codes, those of corpora, and English names."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# Whisper's codes and names.
LANGUAGES = dict(
    re.findall(
        r"(\S+)=(\S+)",
        """
        en=english zh=chinese de=german es=spanish ru=russian ko=korean fr=french ja=japanese pt=portuguese
        tr=turkish pl=polish ca=catalan nl=dutch ar=arabic sv=swedish it=italian id=indonesian hi=hindi fi=finnish
        vi=vietnamese he=hebrew uk=ukrainian el=greek ms=malay cs=czech ro=romanian da=danish hu=hungarian ta=tamil
        no=norwegian th=thai ur=urdu hr=croatian bg=bulgarian lt=lithuanian la=latin mi=maori ml=malayalam cy=welsh
        sk=slovak te=telugu fa=persian lv=latvian bn=bengali sr=serbian az=azerbaijani sl=slovenian kn=kannada
        et=estonian mk=macedonian br=breton eu=basque is=icelandic hy=armenian ne=nepali mn=mongolian bs=bosnian
        kk=kazakh sq=albanian sw=swahili gl=galician mr=marathi pa=punjabi si=sinhala km=khmer sn=shona yo=yoruba
        so=somali af=afrikaans oc=occitan ka=georgian be=belarusian tg=tajik sd=sindhi gu=gujarati am=amharic
        yi=yiddish lo=lao uz=uzbek fo=faroese ht=haitian-creole ps=pashto tk=turkmen nn=nynorsk mt=maltese
        sa=sanskrit lb=luxembourgish my=myanmar bo=tibetan tl=tagalog mg=malagasy as=assamese tt=tatar haw=hawaiian
        ln=lingala ha=hausa ba=bashkir jw=javanese su=sundanese yue=cantonese
        """,
    )
)
# Other names and codes of these languages. The codes of Common Voice and FLEURS are among them.
ALIASES = dict(
    re.findall(
        r"(\S+)=(\S+)",
        """
        burmese=my valencian=ca flemish=nl haitian=ht letzeburgesch=lb pushto=ps panjabi=pa moldavian=ro moldovan=ro
        sinhalese=si castilian=es mandarin=zh farsi=fa filipino=tl bokmal=no bokmål=no
        nb=no nob=no nno=nn jv=jw fil=tl iw=he in=id mo=ro cmn=zh zh-yue=yue zho=zh jpn=ja jp=ja cn=zh kr=ko
        """,
    )
)
# Characters of a text that is no language, in a message.
MOST_SHOWN = 60
_CODES = {**{code: code for code in LANGUAGES}, **{name: code for code, name in LANGUAGES.items()}, **ALIASES}


def language_code(language: str) -> str:
    """Returns Whisper's code of a language: zh for zh-CN, zh_TW and Mandarin, no for nb-NO, ja for Japanese.

    A region or script is left out, so zh-HK is zh. The code of a language that Whisper lacks is returned without it.
    Raises ValueError for a text that is neither a code nor a known name.
    """
    name = re.sub(r"[\s_-]+", "-", language.strip().lower())
    primary = name.partition("-")[0]
    if known := _CODES.get(name) or _CODES.get(primary):
        return known
    if re.fullmatch("[a-z]{2,3}", primary):
        return primary
    remedy = closest(language) or "; give its code or English name, such as ja or japanese"
    raise ValueError(f"{language[:MOST_SHOWN]!r} is no language{remedy}")


def known_code(language: str) -> str:
    """Returns Whisper's code of a language. Raises ValueError for one that Whisper does not have."""
    code = language_code(language)
    if code not in LANGUAGES:
        raise ValueError(f"{language!r} is no language of Whisper's{closest(language)}")
    return code


def of_each(language: str | Sequence[str], count: int) -> Sequence[str]:
    """The language of each of `count` texts, given one for all of them or one for each."""
    return [language] * count if isinstance(language, str) else language


def closest(language: str, codes: Iterable[str] = LANGUAGES) -> str:
    """`; did you mean ja (japanese) or jw (javanese)?`, of the languages with these codes; empty if none is similar."""
    names = {name: code for code in codes for name in (code, LANGUAGES.get(code, code))}
    found = dict.fromkeys(names[name] for name in get_close_matches(language.lower(), names, n=3))
    words = " or ".join(f"{code} ({LANGUAGES.get(code, code)})" for code in found)
    return f"; did you mean {words}?" if words else ""
