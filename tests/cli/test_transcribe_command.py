"""Errors of `kikitori transcribe` name its own options."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import encoded, write_clip
from terminal import run_in_terminal

from kikitori.cli import transcribe
from kikitori.inference.generate import Generated
from kikitori.inference.transcribe import Piece
from kikitori.model.loading import build_whisper
from kikitori.model.whisper import Whisper
from kikitori.runtime.paths import DEMO

CLIP = sorted((DEMO / "clips").iterdir())[0]


def refusal(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr("sys.argv", ["kikitori", str(CLIP), *arguments])
    with pytest.raises(SystemExit) as caught:
        transcribe.main()
    return str(caught.value)


def test_a_folder_without_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results.json").write_text("{}")
    message = refusal(monkeypatch, "--model", str(tmp_path))
    assert message.startswith(f"ModelError: --model {tmp_path} holds no model: ")
    assert "language" not in message


def test_a_checkpoint_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.ckpt").touch()
    message = refusal(monkeypatch, "--model", str(tmp_path / "last.ckpt"))
    assert message.startswith(f"ModelError: --model {tmp_path}/last.ckpt is a checkpoint; give the folder of its run")


def test_an_option_written_as_a_key_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kikitori transcribe", "a.mp3", "model=runs/a"])
    with pytest.raises(SystemExit):
        transcribe.main()
    assert "model=runs/a: options are given as --model runs/a" in capsys.readouterr().err


def test_an_unsupported_language_is_named(micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    micro.save(tmp_path / "model")
    message = refusal(monkeypatch, "--model", str(tmp_path), "--language", "japnese")
    assert message.startswith("ModelError: --language: 'japnese' is no language; did you mean ja (japanese)")
    message = refusal(monkeypatch, "--model", str(tmp_path), "--language", "ga-IE")
    assert message.startswith("ModelError: --language=ga")


def test_a_model_that_cannot_be_loaded_is_named_by_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, "--model", "openai/whisper-tinyy")
    assert message.startswith("ModelError: --model openai/whisper-tinyy cannot be loaded: ")
    assert "model.name" not in message


def test_a_run_folder_and_a_model_folder_give_the_same_text(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    micro.save(tmp_path / "model")
    texts = []
    for folder in (tmp_path, tmp_path / "model"):
        monkeypatch.setattr("sys.argv", ["kikitori", str(CLIP), "--model", str(folder), "--format", "jsonl"])
        transcribe.main()
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert str(CLIP) in texts[0]


def output(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str, int]:
    """What the command prints to stdout and stderr, and the number of files it could not read."""
    monkeypatch.setattr("sys.argv", ["kikitori", *words])
    failed = 0
    try:
        transcribe.main()
    except SystemExit as error:
        failed = int(str(error).split()[0])
    return *capsys.readouterr(), failed


@pytest.fixture
def model(micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that reads every piece as the same sentence."""
    micro.save(tmp_path / "model")

    def generate(whisper: Whisper, states: Any, seconds: list[float], stop_loops: bool) -> list[Generated]:
        return [Generated("犬と\n猫", cut=False)] * len(seconds)

    monkeypatch.setattr("kikitori.inference.generate.generate", generate)
    return str(tmp_path / "model")


NAMES = [b"\x1b[31ma.wav", "録音 (1).wav".encode(), b"\x98^\x89\xb9.wav", b"tab\tline\n.wav", b"z.wav"]


def test_every_file_gives_one_line_whatever_its_name(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Shift-JIS name, as in an archive from Windows, is no UTF-8."""
    paths = [Path(os.fsdecode(os.fsencode(tmp_path / "talks") + b"/" + name)) for name in NAMES]
    for path in paths:
        write_clip(path)
    words = (str(tmp_path / "talks"), "--model", model, "--format", "jsonl")
    lines, _, failed = output(monkeypatch, capsys, *words)
    rows = [json.loads(line) for line in lines.splitlines()]
    assert [row["file"] for row in rows] == sorted(map(str, paths))
    assert {row["text"] for row in rows} == {"犬と\n猫"}
    text, doubts, failed_again = output(monkeypatch, capsys, *words[:3])
    assert [line.count("\t") for line in text.splitlines()] == [1] * len(NAMES)
    assert "\\udc98^\\udc89\\udcb9.wav\t犬と 猫" in text
    assert (text + doubts).translate({9: None, 10: None}).isprintable()
    assert failed == failed_again == 0


def test_what_cannot_be_read_is_named_and_the_rest_is_transcribed(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "talks"
    write_clip(folder / "b.wav")
    for name, samples in (("none.wav", []), ("one.wav", [0.3])):
        (folder / name).write_bytes(encoded(np.array(samples)))
    for name in ("memo.m4a", "film.MP4", "memo2.m4a", "notes.txt", "._b.wav"):
        (folder / name).write_bytes(b"\0" * 100)
    (folder / "broken.mp3").write_bytes(b"\xff\xfb")
    lines, errors, failed = output(monkeypatch, capsys, str(folder), "--model", model)
    assert lines == f"{folder}/b.wav\t犬と 猫\n"
    assert "passed over 2 .m4a, 1 .mp4 (such as film.MP4)" in errors
    assert "ffmpeg" in errors
    assert errors.count("there is nothing to transcribe") == 2
    assert f"{folder}/broken.mp3: " in errors
    assert "notes.txt" not in errors
    assert failed == 3


def test_a_pipe_is_named(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr("sys.argv", ["kikitori", str(tmp_path / "pipe"), "--model", model])
    with pytest.raises(SystemExit, match="is a pipe or device; write the recording to a file first"):
        transcribe.main()


def test_a_folder_of_files_that_cannot_be_decoded_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memo.m4a").touch()
    monkeypatch.setattr("sys.argv", ["kikitori", str(tmp_path), "--model", "m"])
    with pytest.raises(SystemExit, match=r"holds no file that can be read .*; it holds 1 \.m4a .* ffmpeg"):
        transcribe.main()


def test_doubts_are_in_the_lines_and_on_stderr(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "a.wav", seconds=4.2)

    def generate(whisper: Whisper, states: Any, seconds: list[float], stop_loops: bool) -> list[Generated]:
        return [Generated("ん" * 90, cut=True)] * len(seconds)

    monkeypatch.setattr("kikitori.inference.generate.generate", generate)
    words = (str(tmp_path / "a.wav"), "--model", model, "--format", "jsonl")
    line, errors, failed = output(monkeypatch, capsys, *words)
    row = json.loads(line)
    assert (row["text"], len(row["pieces"]), failed) == ("んんんんん", 5, 0)
    first = row["pieces"][0]
    assert (first["start_s"], first["text"], first["doubt"]) == (0, "ん", "repeats itself")
    assert f"{tmp_path}/a.wav: check 0.0 to {first['end_s']:.1f} s (repeats itself), " in errors


def test_doubts_are_described_in_one_line() -> None:
    looped = [Piece(i, i + 1.0, "ん", "repeats itself") for i in range(7)]
    assert transcribe.describe(looped[:1]) == "check 0.0 to 1.0 s (repeats itself)"
    assert transcribe.describe(looped).endswith(
        "4.0 to 5.0 s (repeats itself) and 2 more pieces (--format jsonl has all)"
    )
    empty = [Piece(9.0, 11.5, "", "no speech"), Piece(20.0, 24.0, "", "no speech")]
    assert transcribe.describe(empty[:1]) == "no speech in 1 piece (2 s)"
    assert transcribe.describe([empty[0], looped[0], empty[1]]) == (
        "check 0.0 to 1.0 s (repeats itself); no speech in 2 pieces (6 s)"
    )


def test_the_task_is_that_of_the_model_unless_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build_whisper(32, 1, 1, 2, window_s=1, language="de", task="translate", max_label_tokens=64).save(tmp_path)
    seen: list[tuple[str, str]] = []

    def generate(whisper: Whisper, states: Any, seconds: list[float], stop_loops: bool) -> list[Generated]:
        seen.append((whisper.processor.language, whisper.processor.task))
        return [Generated("dog", cut=False)] * len(seconds)

    monkeypatch.setattr("kikitori.inference.generate.generate", generate)
    clip = write_clip(tmp_path / "a.wav")
    for options in ([], ["--task", "transcribe"], ["--language", "Japanese", "--task", "translate"]):
        output(monkeypatch, capsys, str(clip), "--model", str(tmp_path), *options)
    assert seen == [("de", "translate"), ("de", "transcribe"), ("ja", "translate")]
    message = refusal(monkeypatch, "--model", str(tmp_path), "--task", "translation")
    assert message.startswith("ModelError: --task=translation: ")


@pytest.mark.slow
def test_a_narrow_terminal_changes_no_line(micro: Whisper, tmp_path: Path) -> None:
    micro.save(tmp_path / "model")
    clips = [str(write_clip(tmp_path / "a long name of a folder" / f"{number}.wav")) for number in range(2)]
    command = ["-m", "kikitori", "transcribe", *clips, "--model", str(tmp_path / "model"), "--format", "jsonl"]
    lines = run_in_terminal(command, columns=30)
    rows = [json.loads(line[line.index("{") :]) for line in lines if "{" in line]
    assert [row["file"] for row in rows] == clips


def test_segments_by_timestamps_have_the_models_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whisper = build_whisper(d_model=16, encoder_layers=1, decoder_layers=1, timestamps=True)
    whisper.set_trained_on({"longest_s": 3.0, "p95_s": 3.0, "density": 0.3})
    whisper.configure_generation(max_new_tokens=20, num_beams=1)
    whisper.save(tmp_path)
    words = ("--model", str(tmp_path), "--format", "jsonl", "--segments", "timestamps")
    monkeypatch.setattr("sys.argv", ["kikitori", str(CLIP), *words, "--previous-text"])
    transcribe.main()
    found = capsys.readouterr()
    pieces = json.loads(found.out)["pieces"]
    assert all(piece["start_s"] <= piece["end_s"] for piece in pieces)
    assert "was trained without timestamps, so its times may be wrong; see --segments pauses" in found.err
    whisper.set_trained_on({"longest_s": 3.0, "p95_s": 3.0, "density": 0.3, "timestamps": 0.5})
    whisper.save(tmp_path)
    transcribe.main()
    assert "without timestamps" not in capsys.readouterr().err


def test_how_long_recordings_are_read_is_told_once(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("a", 0.9), ("b", 1.5), ("c", 1.5)):
        write_clip(tmp_path / "talks" / f"{name}.wav", seconds=seconds)
    _, errors, _ = output(monkeypatch, capsys, str(tmp_path / "talks"), "--model", model)
    told = "recordings longer than the model's window are read by pauses: the model has no timestamps\n"
    assert errors.count(told) == 1
    short = str(tmp_path / "talks" / "a.wav")
    for words in ((short,), (str(tmp_path / "talks"), "--segments", "pauses")):
        assert told not in output(monkeypatch, capsys, *words, "--model", model)[1]


def test_timestamps_of_a_model_without_any_and_previous_text_of_pauses_are_refused(
    micro: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    micro.save(tmp_path)
    message = refusal(monkeypatch, "--model", str(tmp_path), "--segments", "timestamps")
    assert message.startswith(
        "ModelError: the model's tokenizer has no timestamps; read its recordings by their pauses"
    )
    refusal(monkeypatch, "--model", str(tmp_path), "--previous-text")
    assert "--previous-text: pieces between pauses are read without it; add --segments timestamps" in (
        capsys.readouterr().err
    )
    refusal(monkeypatch, "--model", str(tmp_path), "--segments", "words")
    assert "invalid choice: 'words'" in capsys.readouterr().err


def test_a_folder_gets_a_file_for_each_recording_and_format_and_what_is_there_is_left_out(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talks, out = tmp_path / "talks", tmp_path / "talks" / "texts"
    for name in ("a.wav", "a.flac", "sub/b.wav"):
        write_clip(talks / name)
    (talks / "broken.wav").write_bytes(b"RIFF")
    words = (str(talks), "--model", model, "--output", str(out), "--format", "srt,json")
    lines, errors, failed = output(monkeypatch, capsys, *words)
    assert (lines, failed) == ("", 1)
    assert f"{out}: 3 of 4 transcripts\n" in errors
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if ".kikitori" not in str(path))
    assert files == ["a.json", "a.srt", "a.wav.json", "a.wav.srt", "sub/b.json", "sub/b.srt"]
    assert (out / "a.srt").read_text() == "1\n00:00:00,000 --> 00:00:00,500\n犬と 猫\n"
    assert json.loads((out / "a.wav.json").read_text())["file"] == str(talks / "a.wav")
    monkeypatch.setattr("kikitori.inference.generate.generate", lambda *arguments, **more: pytest.fail("read again"))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.srt")}
    _, errors, failed = output(monkeypatch, capsys, *words[:-1], "srt,json,vtt")
    assert f"{out}: 3 of 4 transcripts, 3 of them from an earlier call\n" in errors
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.srt")} == before
    assert (out / "sub" / "b.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> ")


def test_another_option_reads_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, out = str(write_clip(tmp_path / "a.wav")), str(tmp_path / "out")
    for task in ("transcribe", "translate"):
        errors = output(monkeypatch, capsys, clip, "--model", model, "--output", out, "--task", task)[1]
        assert "earlier" not in errors


def test_formats_that_need_a_folder_are_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(monkeypatch, "--model", "m", "--format", "srt,vtt") == (
        "ConfigError: --format srt,vtt: several formats need a folder; add --output FOLDER"
    )
    assert refusal(monkeypatch, str(tmp_path.parent / "x"), "--model", "m").startswith("DataError: ")
    message = refusal(monkeypatch, str(write_clip(tmp_path / "b.wav")), "--model", "m", "--format", "srt")
    assert message == "ConfigError: --format srt of 2 files needs a folder; add --output FOLDER"
    refusal(monkeypatch, "--model", "m", "--format", "docx")
    assert "invalid choice: 'docx' (choose from txt, srt, vtt, json, tsv, jsonl)" in capsys.readouterr().err
    refusal(monkeypatch, "--model", "m", "--batch-size", "0")
    assert "'0' is no whole number above 0" in capsys.readouterr().err
    (tmp_path / "file").touch()
    message = refusal(monkeypatch, "--model", "m", "--output", str(tmp_path / "file"))
    assert message == f"DataError: --output {tmp_path}/file is a file; give a folder"


def test_subtitles_of_one_file_may_go_to_stdout(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(write_clip(tmp_path / "a.wav"))
    assert output(monkeypatch, capsys, clip, clip, "--model", model, "--format", "srt")[0].startswith("1\n00:00:00,000")


def test_the_formats_are_those_of_transcripts() -> None:
    from kikitori.transcripts.formats import FORMATS

    assert tuple(FORMATS) == transcribe.FORMATS


def test_a_language_is_detected_for_each_recording(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = str(write_clip(tmp_path / "a.wav"))
    words = (clip, "--model", model, "--format", "jsonl", "--language", "auto")
    row = json.loads(output(monkeypatch, capsys, *words)[0])
    assert 0 < row["language_probability"] < 1
    assert len(row["language"]) in (2, 3)


@pytest.mark.parametrize(
    ("error", "alone", "in_folder"),
    [
        (
            OSError(28, "No space left on device"),
            "the disk: No space left on device; free space",
            "the disk: No space left on device; free space; the same command resumes",
        ),
        (
            RuntimeError("CUDA failed with error out of memory"),
            "--batch-size 4: CUDA failed with error out of memory; pass a smaller one, or a smaller model",
            "--batch-size 4: CUDA failed with error out of memory; pass a smaller one, or a smaller model; the same "
            "command resumes",
        ),
        (
            MemoryError(),
            "--batch-size 4: MemoryError; pass a smaller one, or a smaller model",
            "--batch-size 4: MemoryError; pass a smaller one, or a smaller model; the same command resumes",
        ),
        (
            OSError(24, "Too many open files", "x"),
            "OSError: [Errno 24] Too many open files: 'x'",
            "OSError: [Errno 24] Too many open files: 'x'; the same command resumes",
        ),
    ],
)
def test_what_the_machine_lacks_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, alone: str, in_folder: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("kikitori.transcripts.session.load_engine", fail)
    assert refusal(monkeypatch, "--model", "m") == alone
    assert refusal(monkeypatch, "--model", "m", "--output", str(tmp_path / "out")) == in_folder
