"""Recordings are read together and in sections, with the texts of each alone; what was read is not read again."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recordings import encoded, tone, write_clip
from torch import Tensor

from kikitori.audio.waveform import SAMPLE_RATE, decode
from kikitori.inference.generate import Generated, TorchEngine
from kikitori.inference.segments import Piece
from kikitori.inference.transcribe import transcribe_pieces
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.transcripts import reader, sections
from kikitori.transcripts.folder import OutputFolder
from kikitori.transcripts.progress import Progress
from kikitori.transcripts.reader import Options, Recording, read_recordings, sizes_of
from kikitori.transcripts.record import Record
from kikitori.transcripts.sources import Source


class Stop(Exception):  # noqa: N818
    pass


@pytest.fixture
def engine(micro: Whisper) -> TorchEngine:
    micro.configure_generation(max_new_tokens=12, num_beams=1)
    return TorchEngine(micro)


def sources(folder: Path, *seconds: float) -> list[Source]:
    found = []
    for number, s in enumerate(seconds):
        samples = tone(s, 200 + 40 * number) * (np.arange(round(s * SAMPLE_RATE)) % SAMPLE_RATE < 0.7 * SAMPLE_RATE)
        path = folder / f"{number}.wav"
        path.write_bytes(encoded(samples))
        found.append(Source(path, path.stem))
    return found


def close(pieces: list[Piece]) -> list[tuple[Any, ...]]:
    return [(piece.start_s, piece.end_s, piece.text, piece.doubt) for piece in pieces]


def alone(whisper: Whisper, source: Source, **options: Any) -> list[tuple[Any, ...]]:
    return close(transcribe_pieces(whisper, decode(source.path), **options))


@pytest.mark.parametrize("group_s", [1.0, 300.0])
def test_texts_of_recordings_read_together_are_those_of_each_alone_in_their_order(
    engine: TorchEngine, micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_s: float
) -> None:
    monkeypatch.setattr(reader, "GROUP_S", group_s)
    files = sources(tmp_path, 0.6, 2.5, 0.3, 1.4, 0.9)
    found = list(read_recordings(engine, files, Options(batch_size=3)))
    assert [recording.source for recording in found] == files
    assert [close(recording.record.pieces) for recording in found] == [alone(micro, source) for source in files]
    assert any(piece.text for recording in found for piece in recording.record.pieces)
    assert found[1].transcript(engine).seconds == 2.5


def test_a_failing_recording_costs_only_itself(engine: TorchEngine, micro: Whisper, tmp_path: Path) -> None:
    files = sources(tmp_path, 0.6, 0.7, 0.8)
    (tmp_path / "1.wav").write_bytes(b"RIFF" + b"\0" * 60)
    files[2:2] = [Source(tmp_path / "gone.wav", "gone"), Source(write_clip(tmp_path / "cut.flac", seconds=3.0), "cut")]
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:-500])
    found = list(read_recordings(engine, files, Options()))
    assert [bool(recording.error) for recording in found] == [False, True, True, True, False]
    assert found[2].error == "missing"
    assert close(found[4].record.pieces) == alone(micro, files[4])


@pytest.fixture
def long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    """A recording of several sections."""
    monkeypatch.setattr(reader, "SECTION_S", 8)
    monkeypatch.setattr(sections, "CUT_WITHIN_S", 2.0)
    monkeypatch.setattr(reader, "GROUP_S", 8.0)
    return sources(tmp_path, 30.0)[0]


def test_every_second_of_a_long_recording_is_read_once(engine: TorchEngine, micro: Whisper, long: Source) -> None:
    (found,) = read_recordings(engine, [long], Options())
    assert len(found.record.sections) >= 4
    times = [(piece.start_s, piece.end_s) for piece in found.record.pieces]
    assert [start for start, _ in times] == [0.0, *(end for _, end in times[:-1])]
    assert times[-1][1] == 30.0
    # In a section, the texts are those of its samples alone.
    samples, begin = decode(long.path), 0
    for section in found.record.sections:
        own = transcribe_pieces(micro, samples[begin : section.end])
        assert [piece.text for piece in own] == [piece.text for piece in section.pieces]
        begin = section.end


@pytest.mark.parametrize("language", ["own", "auto"])
def test_a_long_recording_is_resumed_in_its_middle_with_equal_results(
    engine: TorchEngine, long: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    options = Options(detect_language=language == "auto")
    (undisturbed,) = read_recordings(engine, [long], options)
    folder = OutputFolder(tmp_path / "out", ["txt"], "s")
    record = folder.record(long)
    add, heard = Record.add, list[int]()

    def stop_after_two(self: Record, section: Any) -> None:
        add(self, section)
        if len(self.sections) == 2:
            raise Stop

    monkeypatch.setattr(Record, "add", stop_after_two)
    with pytest.raises(Stop):
        list(read_recordings(engine, [long], options, lambda source: record))
    monkeypatch.setattr(Record, "add", lambda self, section: (heard.append(section.end), add(self, section)))
    (resumed,) = read_recordings(engine, [long], options, OutputFolder(tmp_path / "out", ["txt"], "s").record)
    assert heard == [section.end for section in undisturbed.record.sections[2:]]
    assert resumed.record.sections == undisturbed.record.sections


def test_a_long_recording_that_fails_at_its_end_is_resumed_there(
    engine: TorchEngine, long: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoded(tone(30.0), "flac")
    long.path.write_bytes(whole + whole[:-500])  # two recordings in one file, of which the second is damaged
    heard, add = list[int](), Record.add
    monkeypatch.setattr(Record, "add", lambda self, section: (heard.append(section.end), add(self, section)))
    for _ in range(2):
        record_of, progress = OutputFolder(tmp_path / "out", ["txt"], "s").record, Progress(sizes_of([long]))
        (found,) = read_recordings(engine, [long], Options(), record_of, progress)
        assert "100 %" in progress.line()
        assert "lost sync" in found.error
        assert [section.end for section in found.record.sections] == heard
    assert len(heard) >= 3


def test_a_recording_that_was_read_is_not_decoded_again(
    engine: TorchEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sources(tmp_path, 0.6, 0.7)
    folder = OutputFolder(tmp_path / "out", ["txt"], "s")
    for recording in read_recordings(engine, files[:1], Options(), folder.record):
        recording.record.finish()
    decoded: list[Path] = []
    stream = reader.Decoder.stream
    monkeypatch.setattr(reader.Decoder, "stream", lambda self, path: (decoded.append(path), stream(self, path))[1])
    found = list(read_recordings(engine, files, Options(), folder.record))
    assert decoded == [files[1].path]
    assert [recording.record.is_finished for recording in found] == [True, False]


class Detecting(TorchEngine):
    """Takes every recording for one of the languages in its order."""

    rows: list[dict[str, float]]
    read_as: list[str | None]

    def read(self, clips: Any, language: str | None) -> list[Generated]:
        self.read_as.append(language)
        return super().read(clips, language)

    def detect(self, clips: Any) -> list[dict[str, float]]:
        return [self.rows.pop(0) for _ in clips]


def test_each_recording_is_read_in_its_own_language(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    micro.set_languages(["ja", "de"])
    monkeypatch.setattr(
        Detecting,
        "rows",
        [{"ja": 0.2, "de": 0.6, "en": 0.2}, {"en": 0.8, "ja": 0.15, "de": 0.05}],
        raising=False,
    )
    monkeypatch.setattr(Detecting, "read_as", [], raising=False)
    files = sources(tmp_path, 0.6, 0.7, 0.8)
    (tmp_path / "1.wav").write_bytes(encoded(np.zeros(16_000)))
    first, silent, second = read_recordings(Detecting(micro), files, Options(detect_language=True))
    assert Detecting.read_as == ["de", "ja"]
    assert (first.language, first.language_probability) == ("de", pytest.approx(0.75))
    assert (second.language, second.language_probability) == ("ja", pytest.approx(0.75))
    assert (silent.language, silent.transcript(TorchEngine(micro)).language) == (None, "ja")
    assert close(first.record.pieces) == alone(micro, files[0], language="de")
    assert close(second.record.pieces) == alone(micro, files[2])


def test_the_detected_language_is_the_most_probable_of_the_models_tokens(micro: Whisper) -> None:
    engine, samples = TorchEngine(micro), torch.randn(2, SAMPLE_RATE)
    with engine.ready():
        rows = engine.detect(list(samples))
    features = torch.stack([micro.processor.log_mel(clip, full_window=True) for clip in samples])
    ids = micro.model.generation_config.lang_to_id
    stock = micro.model.detect_language(features)
    assert [ids[f"<|{max(row, key=row.get)}|>"] for row in rows] == stock.tolist()  # type: ignore[arg-type]
    assert all(sum(row.values()) == pytest.approx(1) for row in rows)


def test_long_recordings_are_read_by_timestamps_in_all_their_sections(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(reader, "SECTION_S", 8)
    monkeypatch.setattr(sections, "CUT_WITHIN_S", 2.0)
    whisper = build_whisper(d_model=16, encoder_layers=1, decoder_layers=1, timestamps=True)
    whisper.configure_generation(max_new_tokens=20, num_beams=1)
    facts = {"texts": 4, "stamped": 100.0, "near_joints": 80.0, "cer": 20.0}
    whisper.set_timestamps({**facts, "most_near_joints_change": 5.0, "least_cer_change": -2.0})
    notes: list[str] = []
    files = sources(tmp_path, 2.9, 12.0, 9.5)
    found = list(read_recordings(TorchEngine(whisper), files, Options(note=notes.append)))
    segments = [{section.segments for section in recording.record.sections} for recording in found]
    assert segments == [{"pauses"}, {"timestamps"}, {"timestamps"}]
    assert len(notes) == 1
    pieces = found[1].record.pieces
    assert all(a.start_s <= b.start_s for a, b in pairwise(pieces))


def test_what_is_no_speech_has_no_text(engine: TorchEngine, tmp_path: Path) -> None:
    def first_half(samples: Tensor) -> Tensor:
        return samples * (torch.arange(len(samples)) < len(samples) // 2)

    files = sources(tmp_path, 4.0)
    (found,) = read_recordings(engine, files, Options(only_speech=first_half))
    silent = [piece for piece in found.record.pieces if piece.start_s >= 2]
    assert silent
    assert not any(piece.text for piece in silent)
    assert found.record.pieces[0].text


def test_progress_counts_seconds_and_estimates_those_of_recordings_it_has_not_opened(
    engine: TorchEngine, tmp_path: Path
) -> None:
    files = sources(tmp_path, 1.0, 2.0, 3.0)
    progress = Progress(sizes_of(files))
    progress.opened(files[0].path, 1.0)
    assert progress.total_s() == pytest.approx(6, abs=0.1)
    list(read_recordings(engine, files, Options(), progress=progress))
    assert (progress.finished, progress.done_s, progress.total_s()) == (3, pytest.approx(6), pytest.approx(6))
    assert progress.line().startswith("3 of 3 files: 100 % of 6 s, 0 s left")


def test_a_transcript_is_in_the_language_of_its_recording(engine: TorchEngine, tmp_path: Path) -> None:
    (recording,) = read_recordings(engine, sources(tmp_path, 0.5), Options())
    assert isinstance(recording, Recording)
    transcript = recording.transcript(engine)
    assert (transcript.language, transcript.text_language, transcript.language_probability) == ("ja", "ja", None)
