from pathlib import Path

import pytest

from kikitori.audio.formats import SUFFIXES, UNREADABLE_SUFFIXES, find_recordings, tag_length, without_tags


def names(folder: Path) -> tuple[list[str], list[str]]:
    readable, unreadable = find_recordings(folder)
    return [str(path.relative_to(folder)) for path in readable], [str(path.relative_to(folder)) for path in unreadable]


def test_recordings_are_found_by_suffix_and_those_that_need_conversion_apart(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.mp3", "call.aiff", "memo.m4a", "film.webm", "notes.txt", "Thumbs.db", "day 1/録音.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == (["a.mp3", "b.WAV", "call.aiff", "day 1/録音.flac"], ["film.webm", "memo.m4a"])
    assert not set(SUFFIXES) & set(UNREADABLE_SUFFIXES)


def test_what_macos_and_others_hide_is_no_recording(tmp_path: Path) -> None:
    for name in ("a.mp3", "._a.mp3", "__MACOSX/a.mp3", "__MACOSX/talk/._a.mp3", ".Trash/b.mp3", ".c.m4a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == (["a.mp3"], [])


def test_linked_folders_are_searched_once(tmp_path: Path) -> None:
    disk, talks = tmp_path / "disk", tmp_path / "talks"
    disk.mkdir()
    talks.mkdir()
    (disk / "a.mp3").touch()
    (disk / "back").symlink_to(talks)
    (talks / "day 1").symlink_to(disk)
    (talks / "day 2").symlink_to(disk)
    (talks / "b.mp3").symlink_to(disk / "a.mp3")
    (talks / "gone.mp3").symlink_to(disk / "gone.mp3")
    assert names(talks) == (["b.mp3", "day 1/a.mp3", "gone.mp3"], [])


def test_a_linked_folder_given_by_name_is_searched(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.mp3").touch()
    (tmp_path / "link").symlink_to("disk")
    assert names(tmp_path / "link") == (["a.mp3"], [])


@pytest.mark.parametrize(
    "start", [b"ID3", b"ID3\x04\x00\x00\x00\x00\x00", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"", b"\0"]
)
def test_the_beginning_of_a_tag_alone_has_an_end(start: bytes) -> None:
    assert tag_length(start, 0) >= 0
    assert len(without_tags(start)) <= len(start)
    assert len(without_tags(20 * start)) <= 20 * len(start)
