"""The output folder: names, what is read again, and what survives a kill."""

import json
import os
from pathlib import Path

import pytest

from kikitori.inference.confidence import Token
from kikitori.inference.segments import Piece
from kikitori.runtime.errors import DataError
from kikitori.transcripts import folder as folder_module
from kikitori.transcripts.folder import RECORDS, WRITTEN, OutputFolder, locked
from kikitori.transcripts.formats import Transcript
from kikitori.transcripts.record import MOST_BYTES, Read
from kikitori.transcripts.sources import Source

PIECES = [Piece(0, 2.5, "犬", "", (Token("犬", 0.5),), 0.125, -0.25), Piece(2.5, 3, "", "no speech")]
FIRST = Read(40_000, False, "ja", 0.75, "pauses", PIECES[:1])
LAST = Read(48_000, True, "ja", 0.75, "pauses", PIECES[1:])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "a.wav").write_bytes(b"sound")
    return Source(tmp_path / "a.wav", "a")


def folder_of(tmp_path: Path, *formats: str, settings: str = "s") -> OutputFolder:
    return OutputFolder(tmp_path / "out", formats or ("txt",), settings)


def lines(tmp_path: Path) -> list[str]:
    return (tmp_path / "out" / RECORDS / "a.jsonl").read_text().splitlines()


def finish(tmp_path: Path, source: Source, *formats: str, settings: str = "s", text: str = "犬") -> None:
    """What a call does with a recording: reads what was not read, and writes the files."""
    folder = folder_of(tmp_path, *formats, settings=settings)
    folder.check_free([source])
    record = folder.record(source)
    if not record.is_finished:
        record.add(FIRST)
        record.add(LAST)
    folder.write(source, record, Transcript("a.wav", 3.0, [Piece(0, 2.5, text, "")], "ja", "ja"))
    if not record.is_finished:
        record.finish()


def test_what_was_read_is_found_again_until_its_recording_or_the_settings_change(
    tmp_path: Path, source: Source
) -> None:
    finish(tmp_path, source)
    again = folder_of(tmp_path).record(source)
    assert (again.is_finished, again.sections) == (True, [FIRST, LAST])
    assert again.pieces == PIECES
    assert folder_of(tmp_path, settings="t").record(source).sections == []
    finish(tmp_path, source)
    source.path.write_bytes(b"other")
    os.utime(source.path, ns=(1, 1))
    assert not folder_of(tmp_path).record(source).is_finished


def test_the_last_section_counts_only_once_the_files_are_written(tmp_path: Path, source: Source) -> None:
    record = folder_of(tmp_path).record(source)
    record.add(FIRST)
    record.add(LAST)
    again = folder_of(tmp_path).record(source)
    assert (again.is_finished, again.sections) == (False, [FIRST])
    again.add(LAST)
    again.finish()
    assert folder_of(tmp_path).record(source).sections == [FIRST, LAST]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-20],
        lambda text: text + '{"end": 4',
        lambda text: text.replace('"pauses"', "7"),
        lambda text: text + "[" * 10**5 + "\n",
        lambda text: text.replace('["\\u72ac", 0.5]', '["\\u72ac", 0.5, 1]'),
    ],
)
def test_damaged_lines_are_read_again(tmp_path: Path, source: Source, damage: object) -> None:
    record = folder_of(tmp_path).record(source)
    record.add(FIRST)
    record.add(FIRST)
    path = tmp_path / "out" / RECORDS / "a.jsonl"
    path.write_text(damage(path.read_text()))  # type: ignore[operator]
    again = folder_of(tmp_path).record(source)
    assert again.sections in ([], [FIRST], [FIRST, FIRST])
    again.add(FIRST)
    assert folder_of(tmp_path).record(source).sections == again.sections


def test_a_record_that_is_too_large_is_begun_anew(tmp_path: Path, source: Source) -> None:
    finish(tmp_path, source)
    os.truncate(tmp_path / "out" / RECORDS / "a.jsonl", MOST_BYTES + 1)
    record = folder_of(tmp_path).record(source)
    assert record.sections == []
    record.add(FIRST)
    assert folder_of(tmp_path).record(source).sections == [FIRST]


def test_files_that_no_earlier_call_wrote_are_not_replaced(tmp_path: Path, source: Source) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.srt").symlink_to("gone")
    finish(tmp_path, source)
    folder_of(tmp_path).check_free([source])
    with pytest.raises(DataError, match=r"a\.srt exists and is no earlier transcript; move it, or give another --out"):
        folder_of(tmp_path, "txt", "srt").check_free([source])
    (tmp_path / "out" / RECORDS / "a.jsonl").unlink()
    folder_of(tmp_path).check_free([source])
    (tmp_path / "out" / RECORDS / WRITTEN).unlink()
    with pytest.raises(DataError, match=r"a\.txt exists and is no earlier transcript"):
        folder_of(tmp_path).check_free([source])


def test_a_file_of_an_earlier_reading_is_replaced_whatever_was_read_since(tmp_path: Path, source: Source) -> None:
    finish(tmp_path, source, "txt", "tsv", settings="one", text="犬")
    finish(tmp_path, source, "txt", settings="two", text="猫")
    assert "犬" in (tmp_path / "out" / "a.tsv").read_text()
    finish(tmp_path, source, "tsv", settings="two", text="猫")
    assert "猫" in (tmp_path / "out" / "a.tsv").read_text()


def test_a_corrected_file_stays_until_its_recording_is_read_anew_which_is_an_error(
    tmp_path: Path, source: Source
) -> None:
    finish(tmp_path, source)
    corrected = tmp_path / "out" / "a.txt"
    corrected.write_text("いぬ")
    finish(tmp_path, source, "txt", "tsv")
    assert corrected.read_text() == "いぬ"
    with pytest.raises(DataError, match=r"a\.txt was changed since it was written; move it, or give another --output"):
        finish(tmp_path, source, settings="two")
    assert corrected.read_text() == "いぬ"


def test_a_correction_of_one_reading_does_not_pass_for_another(tmp_path: Path, source: Source) -> None:
    finish(tmp_path, source, settings="one", text="犬")
    finish(tmp_path, source, settings="two", text="猫")
    (tmp_path / "out" / "a.txt").write_text("ねこ")
    with pytest.raises(DataError, match=r"a\.txt was changed since it was written"):
        finish(tmp_path, source, settings="one", text="犬")


@pytest.mark.parametrize("what", ["link", "folder"])
def test_what_is_no_file_is_no_transcript(tmp_path: Path, source: Source, what: str) -> None:
    finish(tmp_path, source)
    path = tmp_path / "out" / "a.txt"
    path.unlink()
    path.mkdir() if what == "folder" else path.symlink_to(source.path)
    with pytest.raises(DataError, match=r"a\.txt was changed since it was written"):
        finish(tmp_path, source)


def test_a_name_is_kept_without_the_record_of_what_was_read(tmp_path: Path, source: Source) -> None:
    """Of a short recording there is none until its files are written."""
    finish(tmp_path, source)
    (tmp_path / "out" / RECORDS / "a.jsonl").unlink()
    other = Source(tmp_path / "a.flac", "a")
    assert [folder_of(tmp_path).name(one) for one in (other, source)] == ["a.flac", "a"]


def test_a_pipe_in_place_of_the_notes_is_an_error(tmp_path: Path, source: Source) -> None:
    (tmp_path / "out" / RECORDS).mkdir(parents=True)
    os.mkfifo(tmp_path / "out" / RECORDS / WRITTEN)
    with pytest.raises(OSError, match="No such device"):
        finish(tmp_path, source)


def test_a_file_that_a_killed_process_was_about_to_replace_is_replaced(
    tmp_path: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    finish(tmp_path, source, settings="one", text="犬")
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "write_text", kill)
        with pytest.raises(KeyboardInterrupt):
            finish(tmp_path, source, settings="two", text="猫")
    finish(tmp_path, source, settings="two", text="猫")
    assert (tmp_path / "out" / "a.txt").read_text() == "猫\n"


def test_recordings_of_one_name_have_files_of_their_own_for_good(tmp_path: Path) -> None:
    sources = []
    for place in ("x/a.mp3", "x/a.wav", "y/a.mp3", "z/A.mp3", "x/sub/a.mp3"):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        sources.append(Source(path, str(path.relative_to(tmp_path / place[0]).with_suffix(""))))
    folder = folder_of(tmp_path)
    names = [folder.name(source) for source in sources]
    assert names == ["a", "a.wav", "a.mp3", "A.mp3-2", "sub/a"]
    for source in sources:
        record = folder.record(source)
        record.add(LAST)
        record.finish()
    again = folder_of(tmp_path)
    assert [again.name(source) for source in reversed(sources)] == names[::-1]
    breaks = [Source(tmp_path / f"{stem}.wav", stem) for stem in ("b\n", "b\\n")]
    for source in breaks:
        record = again.record(source)
        record.add(LAST)
        record.finish()
    assert [folder_of(tmp_path).name(source) for source in breaks] == ["b\n", "b\\n"]
    long = Source(tmp_path / ("犬" * 80 + ".mp3"), "犬" * 80)
    assert folder.name(long) == "犬" * 66
    folder.write(long, folder.record(long), Transcript("", 1.0, [], "ja", "ja"))
    strange = Source(Path(os.fsdecode(bytes(tmp_path) + b"/\x98.wav")), os.fsdecode(b"\x98"))
    folder.write(strange, folder.record(strange), Transcript("", 1.0, [], "ja", "ja"))
    assert os.fsencode(tmp_path) + b"/out/\x98.txt" in {os.fsencode(p) for p in (tmp_path / "out").iterdir()}


def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(tmp_path: Path, source: Source) -> None:
    transcript = Transcript("a.wav", 3.0, [Piece(0, 1, "犬" * 10**6, "")], "ja", "ja")
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, limits[1]))
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(OSError, match="File too large"):
            folder_of(tmp_path).write(source, folder_of(tmp_path).record(source), transcript)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [RECORDS]


def test_a_folder_that_is_a_file_or_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"--output .*file is a file; give a folder"), locked(tmp_path / "file"):
        pass
    with locked(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / RECORDS).symlink_to(tmp_path / "out")
    with pytest.raises(DataError, match=r"\.kikitori in it is a link; delete the link"), locked(tmp_path / "in"):
        pass


def test_the_record_is_a_line_for_the_recording_and_one_for_each_section(tmp_path: Path, source: Source) -> None:
    finish(tmp_path, source)
    head, first, last = map(json.loads, lines(tmp_path))
    assert head["recording"] == source.path.as_uri()
    assert (first["end"], last["is_last"]) == (40_000, True)
