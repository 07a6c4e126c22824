"""Both readings of a micro model, and the recordings that are read."""

from dataclasses import replace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from kikitori.corpora.types import Speech
from kikitori.guard.reader import Job, Jobs, Reader, detect_language, jobs
from kikitori.guard.recordings import CLIPS, OWN, STAMPS, STOCK, for_timestamps, of_corpus, without_speech
from kikitori.inference.generate import generate
from kikitori.model.whisper import Whisper, encode
from kikitori.model.window import Window


def speech(count: int, seconds: float = 0.6) -> list[Speech]:
    torch.manual_seed(0)
    return [Speech(f"clip {i}", 0.1 * torch.randn(int(seconds * 16_000)), f"文{i}", "ja") for i in range(count)]


def read(whisper: Whisper, every: list[Job]) -> list[dict[str, Any]]:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    predicted: Any = pl.Trainer(**quiet).predict(Reader(whisper), Jobs(every))
    return [row for rows in predicted for row in rows]


def test_each_recording_is_read_in_both_ways(micro: Whisper) -> None:
    micro.set_window(Window((0.7,), 0.0))
    recordings = [*without_speech(1.0, "ja"), *of_corpus(speech(3), 1.0, "")]
    rows = read(micro, jobs(recordings, micro.processor, 4))
    names = sorted((recording.set, recording.name) for recording in recordings)
    for reading in (OWN, STOCK):
        assert sorted((row["set"], row["recording"]) for row in rows if row["reading"] == reading) == names
    assert {row["set"] for row in rows if "detected" in row} == {CLIPS}
    assert {row["seconds"] for row in rows if row["set"].startswith("joined")} == {2.8, 5.0}


@pytest.mark.parametrize("clips", [7, 21, 22])
def test_a_joined_recording_repeats_if_an_earlier_one_holds_a_clip_of_it(clips: int) -> None:
    recordings = [recording for recording in of_corpus(speech(clips), 1.0, " ") if recording.set.startswith("joined")]
    used: set[str] = set()
    for recording in recordings:
        parts = recording.text.split()
        assert recording.repeats == (len({*parts} - used) < len(parts))
        used |= {*parts}
    assert [recording.repeats for recording in recordings].count(False) == {7: 2, 21: 5, 22: 6}[clips]


@pytest.mark.parametrize("edges", [(), (0.7,)])
def test_both_readings_at_once_are_those_of_each_alone(micro: Whisper, edges: tuple[float, ...]) -> None:
    """Short clips share the full window without edges; the limit cuts texts in own windows only."""
    micro.set_window(Window(edges, 0.0))
    micro.configure_generation(30, 1, max_tokens_per_s=8)
    recordings = [*without_speech(1.0, "ja"), *of_corpus([*speech(2), *speech(2, 0.9)], 1.0, "")]

    def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(rows, key=lambda row: (row["set"], row["recording"], row["reading"]))

    alone = [job for reading in (OWN, STOCK) for job in jobs(recordings, micro.processor, 4, [reading])]
    at_once = jobs(recordings, micro.processor, 4)
    expected = in_order(read(micro, alone))
    assert in_order(read(micro, at_once)) == expected
    assert sum(not job.recordings[0].is_long for job in at_once) < sum(not j.recordings[0].is_long for j in alone)
    texts = {reading: [row["hypothesis"] for row in expected if row["reading"] == reading] for reading in (OWN, STOCK)}
    assert texts[OWN] != texts[STOCK]


def test_a_clip_is_read_as_in_an_evaluation(micro: Whisper) -> None:
    (clip,) = speech(1)
    (recording, *_) = of_corpus([clip], 1.0, "")
    (row,) = read(micro, [Job(STOCK, [recording])])
    micro.model.eval()
    with torch.inference_mode():
        states = encode(micro.model, micro.processor.log_mel(clip.samples, full_window=True)[None])
        micro.max_tokens_per_s = float("inf")
        (expected,) = generate(micro, states, [0.6])
        assert detect_language(micro, states) == [row["detected"]]
    assert row["hypothesis"] == expected.text


def test_rows_name_the_language_that_is_spoken_and_that_of_the_text(micro: Whisper) -> None:
    micro.processor = replace(micro.processor, task="translate")
    (row,) = read(micro, [Job(STOCK, [next(of_corpus(speech(1), 1.0, " "))])])
    assert (row["language"], row["text_language"]) == ("ja", "en")


def test_the_detected_language_is_that_of_transformers(micro: Whisper) -> None:
    features = torch.stack([micro.processor.log_mel(clip.samples, full_window=True) for clip in speech(3)])
    micro.model.eval()
    with torch.inference_mode():
        states = encode(micro.model, features)
        ids = micro.model.detect_language(features)
        expected = [token.strip("<|>") for token in micro.processor.tokenizer.convert_ids_to_tokens(ids)]
        assert detect_language(micro, states) == expected


def test_batches_hold_one_window_and_long_recordings_are_alone(micro: Whisper) -> None:
    recordings = [*without_speech(1.0, "ja"), *of_corpus(speech(5), 1.0, "")]
    for job in jobs(recordings, micro.processor, 3):
        assert len(job.recordings) == 1 if job.recordings[0].is_long else len(job.recordings) <= 3
        assert len({recording.is_long for recording in job.recordings}) == 1


def test_each_language_is_read_in_its_own_and_what_is_joined_has_its_own_name(micro: Whisper) -> None:
    clips = speech(2)
    korean = [replace(clip, name=f"ko {clip.name}", language="ko") for clip in clips]
    recordings = [*of_corpus(clips, 1.0, "", ", ja"), *of_corpus(korean, 1.0, " ", ", ko")]
    assert len({(recording.set, recording.name) for recording in recordings}) == len(recordings)
    for job in jobs(recordings, micro.processor, 4):
        assert len({recording.language for recording in job.recordings}) == 1
    rows = read(micro, jobs(recordings, micro.processor, 4))
    joined = {(row["recording"], row["language"], " " in row["reference"]) for row in rows if "joined" in row["set"]}
    assert ("2 s, 1, ja", "ja", False) in joined
    assert ("2 s, 1, ko", "ko", True) in joined


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.4, 0.9])
def test_clips_with_timestamps_fill_the_window_and_no_more(seconds: float) -> None:
    made = list(for_timestamps(speech(6, seconds), 2.0, ""))
    assert all(recording.seconds <= 2.0 for recording in made)
    assert all(recording.set == STAMPS and len(recording.joints_s) > 0 for recording in made)
    # Three of 0.1, 0.2 s, two of 0.4 s; two of 0.9 s do not fit with their pause.
    assert [len(recording.joints_s) + 1 for recording in made] == {
        0.1: [3, 3],
        0.2: [2, 2, 2],
        0.4: [2, 2, 2],
        0.9: [],
    }[seconds]
