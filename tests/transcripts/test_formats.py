"""The files that are written, character by character."""

import json

import pytest

from kikitori.inference.confidence import Token
from kikitori.inference.segments import Piece
from kikitori.transcripts.formats import FORMATS, Transcript

PIECES = [
    Piece(0, 2.5, "犬と猫。", "", (Token("犬", 0.98765), Token("と猫。", 0.5)), 0.01, -0.25),
    Piece(2.5, 4, "", "no speech", (), 0.9, -1.5),
    Piece(3601.5, 3604.25, "a & b\n\n<i> -->\tc\x1b[2J", "cut off"),
]
TRANSCRIPT = Transcript("talks/a.mp3", 3605.0, PIECES, "ja", "ja")

GOLDEN = {
    "txt": "犬と猫。\na & b <i> --> c\\x1b[2J\n",
    "srt": """\
1
00:00:00,000 --> 00:00:02,500
犬と猫。

2
01:00:01,500 --> 01:00:04,250
a & b <i> -> c\\x1b[2J
""",
    "vtt": """\
WEBVTT

00:00:00.000 --> 00:00:02.500
犬と猫。

01:00:01.500 --> 01:00:04.250
a &amp; b &lt;i&gt; --&gt; c\\x1b[2J
""",
    "tsv": "start\tend\ttext\n0\t2500\t犬と猫。\n3601500\t3604250\ta & b <i> --> c\\x1b[2J\n",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_text_formats_are_exactly_these(name: str) -> None:
    assert FORMATS[name](TRANSCRIPT) == GOLDEN[name]


def test_json_has_the_keys_of_openai_whisper_and_what_speaks_against_the_text() -> None:
    found = json.loads(FORMATS["json"](TRANSCRIPT))
    assert (found["language"], found["text"], found["seconds"]) == ("ja", "犬と猫。" + PIECES[2].text, 3605.0)
    assert found["segments"][0] == {
        "id": 0,
        "start": 0,
        "end": 2.5,
        "text": "犬と猫。",
        "tokens": [{"text": "犬", "probability": 0.9877}, {"text": "と猫。", "probability": 0.5}],
        "avg_logprob": -0.25,
        "no_speech_prob": 0.01,
        "doubt": "",
    }
    assert [segment["doubt"] for segment in found["segments"]] == ["", "no speech", "cut off"]
    assert found["segments"][2]["no_speech_prob"] is None
    assert "language_probability" not in found


def test_jsonl_is_one_line_and_may_tell_how_sure_the_language_was() -> None:
    line = FORMATS["jsonl"](Transcript("a.wav", 1.0, PIECES[:1], "de", "en", 0.87654))
    assert line.count("\n") == 1
    found = json.loads(line)
    assert (found["language"], found["language_probability"]) == ("de", 0.8765)
    assert found["pieces"][0]["tokens"] == [["犬", 0.9877], ["と猫。", 0.5]]
    assert list(found["pieces"][0])[:4] == ["start_s", "end_s", "text", "doubt"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_recording_without_speech_has_a_valid_empty_file(name: str) -> None:
    found = FORMATS[name](Transcript("a.wav", 9.0, [Piece(0, 9, "", "no speech")], "ja", "ja"))
    empty = {"txt": "", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n"}
    assert found == empty.get(name, found)
    if name.startswith("json"):
        assert json.loads(found)["text"] == ""
