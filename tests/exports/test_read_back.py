"""The process in which an engine reads, whatever becomes of it."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kikitori.corpora.types import Speech
from kikitori.exports.formats import Format, find_format
from kikitori.exports.parity import read_own
from kikitori.exports.read_back import read_back
from kikitori.model.whisper import Whisper
from kikitori.runtime.errors import ExportFailed

FAKE = Format("fake", None, (), ("float32",), print, print)  # type: ignore[arg-type]
TEXT = json.dumps({"text": "五\x1b", "seconds": 0.5})


def engine(script: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a shell script the program that reads; it gets the arguments of Python."""
    path = place / "engine"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(path))


def test_the_texts_and_seconds_of_the_process_are_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noises: Sequence[Speech]
) -> None:
    script = f'ls "$6" > {tmp_path}/files; echo "$HF_HUB_OFFLINE $4 $7" > {tmp_path}/words'
    engine(f"{script}; echo '{TEXT}'; echo '{TEXT}'", tmp_path, monkeypatch)
    advanced: list[int] = []
    readings = read_back(FAKE, tmp_path, noises[:2], "transcribe", lambda: advanced.append(1))
    assert [(reading.text, reading.seconds) for reading in readings] == [("五\x1b", 0.5)] * 2
    assert advanced == [1, 1]
    assert (tmp_path / "files").read_text().split() == ["0.npy", "1.npy", "clips.json"]
    assert (tmp_path / "words").read_text() == "1 fake transcribe\n"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo 'a.cpp:7: GGML_ASSERT(x) failed' >&2; echo 'libggml.so(+0x1)' >&2; kill -ABRT $$",
            r"^to=fake: the engine was killed by SIGABRT after 0 of 2 clips: a.cpp:7: GGML_ASSERT\(x\) failed$",
        ),
        ("echo no such device >&2; exit 3", "^to=fake: the engine ended with 3 after 0 of 2 clips: no such device$"),
        (f"echo '{TEXT}'", "ended with 0 after 1 of 2 clips: it printed nothing"),
        ("kill -KILL $$", "was killed by SIGKILL after 0 of 2 clips"),
    ],
)
def test_a_process_that_ends_early_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noises: Sequence[Speech], script: str, message: str
) -> None:
    engine(script, tmp_path, monkeypatch)
    with pytest.raises(ExportFailed, match=message):
        read_back(FAKE, tmp_path, noises[:2], "transcribe", lambda: None)


def test_an_interrupted_reading_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noises: Sequence[Speech]
) -> None:
    engine(f"echo $$ > {tmp_path}/id; echo '{TEXT}'; exec sleep 30", tmp_path, monkeypatch)

    def interrupt() -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        read_back(FAKE, tmp_path, noises[:2], "transcribe", interrupt)
    assert time.monotonic() - start < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "id").read_text()), 0)


@pytest.mark.long
def test_a_real_engine_reads_in_the_process_and_names_what_is_wrong_with_a_file(
    model_folder: Path, exported: Whisper, noises: Sequence[Speech], tmp_path: Path
) -> None:
    of = find_format("transformers")
    of.write(model_folder, tmp_path, "float32")
    clips = [*noises, Speech("german", noises[0].samples, "abc", "de")]
    readings = read_back(of, tmp_path, clips, "transcribe", lambda: None)
    assert [reading.text for reading in readings] == [own.text for own in read_own(exported, clips, lambda: None)]
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ExportFailed, match=r"to=transformers: the engine ended with 1 after 0 of 3 clips: .*Error"):
        read_back(of, tmp_path, noises, "transcribe", lambda: None)
