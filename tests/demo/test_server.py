"""The server of the demo page, as a program without a browser meets it."""

import csv
import errno
import io
import json
import struct
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from demo_page import Visitor, serving
from recordings import encoded, tone

from kikitori.audio.waveform import decode, to_float, to_int16
from kikitori.corpora.manifest import Columns
from kikitori.corpora.manifest import read as read_manifest
from kikitori.corpora.types import Clip
from kikitori.data.audio_cache import build_audio_cache
from kikitori.demo.access import KEY
from kikitori.demo.examples import Example
from kikitori.demo.models import ShownModel
from kikitori.demo.saving import save_recording
from kikitori.inference.transcribe import transcribe
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.console import progress_bar

WAV = encoded(tone(0.8))

# A form that ends within its first part.
TEXT_PART = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\nhello'


@pytest.fixture(scope="module")
def models() -> list[ShownModel]:
    """Two models with random weights and windows of 1 and 2 s."""
    return [ShownModel("base", "base", True, small(1)), ShownModel("tuned", "outputs/tuned", False, small(2))]


def small(window_s: int) -> Whisper:
    whisper = build_whisper(
        d_model=32, encoder_layers=1, decoder_layers=1, window_s=window_s, max_label_tokens=64, init_std=0.02
    )
    whisper.configure_generation(max_new_tokens=12, num_beams=1)
    return whisper


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "a.wav").write_bytes(WAV)
    with progress_bar() as progress:
        cache = build_audio_cache([Clip("a.wav", "validation", "あ", "1", folder / "a.wav")], folder, progress)
    return Example("a.wav", "ピザ", [0.5, 0.25], cache)


@pytest.fixture(scope="module")
def visitor(models: list[ShownModel], example: Example, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    with serving(models, tmp_path_factory.mktemp("saved") / "recordings", [example]) as visitor:
        yield visitor


def test_all_models_read_a_recording(visitor: Visitor, models: list[ShownModel]) -> None:
    sound, *rest = visitor.read(WAV)
    assert sound["seconds"] == 0.8
    assert (sound["spectrogram"]["mels"], sound["spectrogram"]["columns"]) == (80, 80)
    rows = [event["row"] for event in rest if "row" in event]
    end = rest[-1]["end"]
    for i, result in enumerate(end):
        own = [part for row in rows for part in row["models"][i]["parts"]]
        assert "".join(text for text, kind, _ in own if kind != "missing") == result["text"]
        assert all(confidence is None or 0 <= confidence <= 1 for _, _, confidence in own)
        assert "cer" not in result
    assert [[piece[2] for piece in of["pieces"]] for of in rows[0]["models"]] == [[1.0], [2.0]]
    # The same texts as without the page.
    samples = to_float(to_int16(decode(WAV)))
    assert [result["text"] for result in end] == [transcribe(model.whisper, samples) for model in models]


def test_an_example_is_scored_against_what_is_said(visitor: Visitor) -> None:
    state = json.loads(visitor.request("GET", "/api/state").text)
    assert state["examples"] == [{"reference": "ピザ", "cer": [0.5, 0.25]}]
    assert all("cer" in result for result in visitor.read(b"", "/api/read?example=0")[-1]["end"])
    connection = visitor.open("GET", "/api/examples/0")
    samples, rate = soundfile.read(io.BytesIO(connection.getresponse().read()), dtype="int16")
    assert (rate, len(samples)) == (16_000, 12_800)
    for path in ("/api/examples/1", "/api/examples/999", "/api/examples/../state", "/api/examples/-1"):
        assert visitor.request("GET", path).status == 404
    for number in ("1", "-1", "x", "%C2%B2", ""):
        assert visitor.request("POST", f"/api/read?example={number}").status == 404


@pytest.mark.parametrize("path", ["/api/state", "/api/read", "/api/save", "/api/examples/0"])
@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"Host": "attacker.example"}, "This server is http://127.0.0.1:"),
        ({"Host": "127.0.0.1:1"}, "This server is http://127.0.0.1:"),
        ({"Origin": "http://attacker.example"}, "Another site's page"),
        ({"Origin": "null"}, "Another site's page"),
        ({"Sec-Fetch-Site": "cross-site"}, "Another site's page"),
        ({"Sec-Fetch-Site": "same-site"}, "Another site's page"),
        ({KEY: "x"}, "The key is missing"),
        ({KEY: ""}, "The key is missing"),
        ({KEY: "é"}, "The key is missing"),
    ],
)
def test_what_is_not_the_page_is_refused(visitor: Visitor, path: str, headers: dict[str, str], words: str) -> None:
    method = "POST" if path in ("/api/read", "/api/save") else "GET"
    response = visitor.request(method, path, WAV if method == "POST" else None, **headers)
    assert response.status == 403
    assert json.loads(response.text)["error"].startswith(words)
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_another_site_may_not_ask_for_permission(visitor: Visitor) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": KEY}
    response = visitor.request("OPTIONS", "/api/read", Origin="http://attacker.example", **asked)
    assert response.status == 403
    assert visitor.request("OPTIONS", "/api/read").status == 405
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_the_page_itself_has_no_secret_and_may_load_nothing_else(visitor: Visitor) -> None:
    for path in ("/", "/page.js", "/page.css", "/results.js", "/microphone.js", "/microphone-worklet.js"):
        response = visitor.request("GET", path, **{KEY: ""})
        assert response.status == 200
        assert visitor.access.key not in response.text
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "://" not in response.text.replace("http://127.0.0.1", "")
    assert visitor.request("GET", "/", Host="attacker.example").status == 403
    assert visitor.request("GET", "/../server.py").status == 404


def cut_mp3() -> bytes:
    whole = encoded(tone(2.0), "mp3")
    return whole[: len(whole) // 2]


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", WAV)
    return file.getvalue()


@pytest.mark.parametrize(
    ("recording", "words"),
    [
        (b"", "the file has no bytes"),
        (b"<html><script>alert(1)</script>", "is HTML or XML"),
        (zipped(), "is in no format that can be decoded"),
        (cut_mp3(), "the file is cut short"),
        (encoded(np.zeros(1)), "holds 0.0001 s of audio"),
        (
            b"RIFF" + struct.pack("<I", 2**30) + WAV[8:40] + struct.pack("<I", 2**30 - 36) + WAV[44:],
            "the file is cut short",
        ),
        (b"\x1a\x45\xdf\xa3webm", "is WebM or Matroska, which cannot be decoded; convert it: ffmpeg"),
    ],
    ids=["empty", "html", "zip", "cut", "one sample", "1 GB header", "webm"],
)
def test_a_file_that_is_no_recording_is_answered_with_a_sentence(
    visitor: Visitor, recording: bytes, words: str
) -> None:
    (event,) = visitor.read(recording)
    assert event["error"].startswith(f"The recording cannot be read: {words}")
    assert event["error"].endswith(".")


def test_a_file_that_is_too_large_is_not_received(visitor: Visitor) -> None:
    response = visitor.open("POST", "/api/read", iter([b"x"]), **{"Content-Length": str(3 * 2**30)}).getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"] == "The file has 3.0 GB, over 2 GB: split it."


def test_two_visitors_get_their_own_texts(visitor: Visitor) -> None:
    recordings = [encoded(tone(3.0, hertz)) for hertz in (200, 900)]
    alone = [visitor.read(recording)[-1]["end"] for recording in recordings]
    found: dict[int, list[dict]] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: visitor.read(recordings[i])})) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[of["text"] for of in found[i][-1]["end"]] for i in range(2)] == [[of["text"] for of in a] for a in alone]
    assert [event.get("others") for i in range(2) for event in found[i][:1]].count(1) == 1


def test_a_visitor_who_leaves_frees_the_place_and_leaves_no_file(
    visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    connection = visitor.open("POST", "/api/read", encoded(tone(300.0, rate=8000), rate=8000))
    response = connection.getresponse()
    response.readline()
    assert visitor.server.open == len(list(tmp_path.iterdir())) == 1
    connection.close()
    response.close()
    until(lambda: not visitor.server.open)
    assert visitor.read(WAV)[-1]["end"]
    until(lambda: not list(tmp_path.iterdir()))


def until(condition: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < 10
        time.sleep(0.01)


def test_no_more_recordings_than_fit_are_taken(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kikitori.demo.server.MAX_OPEN", 0)
    response = visitor.request("POST", "/api/read", WAV)
    assert response.status == 503
    assert "try again" in response.text


def test_a_saved_recording_is_a_row_of_a_manifest(models: list[ShownModel], tmp_path: Path) -> None:
    with serving(models, tmp_path / "recordings") as visitor:
        other = encoded(tone(0.5, 500))
        assert visitor.save(WAV, " ピザ,\n「水」") == (200, {"rows": 1})
        assert visitor.save(other, "=1+2") == (200, {"rows": 2})
        assert visitor.save(WAV, "ピザ") == (200, {"rows": 2})  # corrected once more
    corpus = read_manifest(str(tmp_path / "recordings" / "metadata.csv"), Columns(), ["train"])
    assert not corpus.rejects
    assert [clip.text for clip in corpus.clips] == ["=1+2", "ピザ"]
    samples, rate = soundfile.read(str(corpus.clips[1].source), dtype="int16")
    assert rate == 16_000
    assert (samples == soundfile.read(io.BytesIO(WAV), dtype="int16")[0]).all()


@pytest.mark.parametrize(
    ("recording", "text", "words"),
    [
        (WAV, " \n", "The text is empty"),
        (WAV, "ピザ<|en|>", "The text holds <|en|>"),
        (WAV, "ピ\x00ザ", "The text holds control characters"),
        (WAV, "ピザ" * 40, "The text is too long for one clip"),
        (WAV, "ピ" * 10_000, "The text is too long for one clip"),
        (encoded(tone(0.1)), "ピザ", "A clip to train on has 0.3 to 1 s, and this one 0.10 s"),
        (encoded(tone(1.5)), "ピザ", "A clip to train on has 0.3 to 1 s, and this one 1.50 s"),
        (encoded(np.zeros(8000)), "ピザ", "The recording is silent"),
        (b"<html>", "ピザ", "The recording cannot be read: is HTML"),
    ],
)
def test_what_cannot_be_trained_on_is_not_saved(visitor: Visitor, recording: bytes, text: str, words: str) -> None:
    status, answer = visitor.save(recording, text)
    assert status in (413, 422)
    assert answer["error"].startswith(words)
    assert not visitor.server.save_folder.exists()


def test_marks_of_direction_that_nobody_sees_are_left_out(models: list[ShownModel], tmp_path: Path) -> None:
    with serving(models, tmp_path) as visitor:
        assert visitor.save(WAV, "\u200fשלום\u202c،\u200e") == (200, {"rows": 1})
    assert (tmp_path / "metadata.csv").read_text(encoding="utf-8").endswith(",שלום،\n")


def test_a_text_that_never_arrives_is_given_up(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kikitori.demo.server.IDLE_S", 0.1)
    start = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\na'
    form = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "1000"}
    response = visitor.open("POST", "/api/save", iter([start]), **form).getresponse()
    assert response.status == 408


def test_a_damaged_form_is_answered_and_not_logged(visitor: Visitor, caplog: pytest.LogCaptureFixture) -> None:
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    response = visitor.request("POST", "/api/save", b"--x\r\nnonsense\r\n\r\na\r\n--x--\r\n", **form)
    assert response.status == 400
    assert "The request is damaged" in response.text
    assert not caplog.records


def test_a_full_disk_is_a_sentence_without_a_traceback(
    visitor: Visitor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kikitori.demo.server.save_recording", full)
    assert visitor.save(WAV, "ピザ") == (500, {"error": "The disk: No space left on device; free space."})
    assert not caplog.records


def test_a_recording_whose_row_cannot_be_written_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kikitori.demo.saving.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save_recording(tmp_path, np.ones(16000, np.int16), "あ")
    assert not list(tmp_path.glob("*.flac"))


@pytest.mark.parametrize("content", ["a.flac,あ\n", "path,text,speaker\n"])
def test_a_list_without_a_header_is_left_alone(models: list[ShownModel], tmp_path: Path, content: str) -> None:
    (tmp_path / "metadata.csv").write_text(content, encoding="utf-8")
    with serving(models, tmp_path) as visitor:
        status, answer = visitor.save(WAV, "ピザ")
    assert status == 422
    assert f"has the columns {content.strip()}, not path and text alone" in answer["error"]
    assert (tmp_path / "metadata.csv").read_text(encoding="utf-8") == content


def test_a_list_that_is_a_link_is_left_alone(models: list[ShownModel], tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").symlink_to(tmp_path / "elsewhere.csv")
    with serving(models, tmp_path) as visitor:
        assert "is a link, or no file; choose another folder" in visitor.save(WAV, "ピザ")[1]["error"]
    assert (tmp_path / "metadata.csv").is_symlink()


@pytest.mark.parametrize("place", ["/api/read", "/api/save"])
def test_a_body_that_is_not_compressed_as_it_says_is_answered(visitor: Visitor, place: str) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x", "Content-Encoding": "gzip"}
    response = visitor.request("POST", place, b"--x\r\nno gzip", **kind)
    assert response.status == 400
    assert "The request is damaged" in response.text


def test_a_form_without_its_parts_is_refused(visitor: Visitor) -> None:
    assert visitor.request("POST", "/api/save", b"").status == 415
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert visitor.request("POST", "/api/save", b"--x--\r\n", **form).status == 400


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"--x--\r\n", "multipart/form-data"),
        (b"hello", "multipart/form-data; boundary=x"),
        (TEXT_PART, "multipart/form-data; boundary=x"),
    ],
)
def test_a_form_that_ends_anywhere_is_answered(
    visitor: Visitor, caplog: pytest.LogCaptureFixture, body: bytes, kind: str
) -> None:
    response = visitor.request("POST", "/api/save", body, **{"Content-Type": kind})
    assert response.status == 400
    assert "form" in response.text
    assert not caplog.records


def test_rows_of_another_list_are_left_alone(models: list[ShownModel], tmp_path: Path) -> None:
    table = tmp_path / "metadata.csv"
    table.write_text("path,text,speaker\na.wav,あ,1\n")
    with serving(models, tmp_path) as visitor:
        status, answer = visitor.save(WAV, "ピザ")
    assert status == 422
    assert "has the columns path, text, speaker" in answer["error"]
    assert list(csv.reader(table.open())) == [["path", "text", "speaker"], ["a.wav", "あ", "1"]]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".flac"] == []
