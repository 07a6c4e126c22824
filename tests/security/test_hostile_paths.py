"""Hostile paths in a table: only files inside clips/ are read, none blocks, and each is counted."""

import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from recordings import common_voice_row, write_clip, write_common_voice, write_tsv

from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import decode
from kikitori.corpora import common_voice, manifest
from kikitori.corpora.manifest import Columns
from kikitori.corpora.types import Corpus
from kikitori.data.audio_cache import build_audio_cache
from kikitori.data.filters import FilterRules, select
from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import DataError
from kikitori.transcripts.sources import find_sources

OUTSIDE = "outside.wav"
# Each leads to a good recording outside clips/.
OUTSIDE_PATHS = {
    "absolute": "{root}/outside.wav",
    "climbing": "../../outside.wav",
    "backslashes": "..\\..\\outside.wav",
    "climbing behind a folder": "folder.mp3/../../../outside.wav",
    "link": "link.wav",
    "link to a folder": "root/outside.wav",
    "link to a link": "link2.wav",
}
ABSENT = {
    "home": "~/outside.wav",
    "variable": "$HOME/outside.wav",
    "file address": "file://{root}/outside.wav",
    "web address": "http://127.0.0.1:9/outside.wav",
    "drive": "C:\\outside.wav",
    "full-width dots": "．．/．．/outside.wav",
    "two-dot leader": "‥/‥/outside.wav",
    "percent": "%2e%2e/%2e%2e/outside.wav",
    "overlong name": "x" * 5000 + ".mp3",
    "overlong path": "x/" * 3000 + "a.mp3",
    "circle of links": "circle.mp3",
    "dangling link": "dangling.mp3",
}
MALFORMED = {"NUL": "clip_0.mp3\0.wav", "empty": ""}
NOT_REGULAR = {"pipe": "pipe.mp3", "folder": "folder.mp3", "clips itself": ".", "socket": "socket.mp3"}
DEVICES = {"endless device": "zero.mp3", "empty device": "null.mp3"}


@pytest.fixture(autouse=True)
def _no_reader_blocks() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise TimeoutError("a reader blocks")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release whose clips/ has one of each kind; the recording outside is a good one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / OUTSIDE)
    clips = write_common_voice(tmp_path / "ja", {"train": 2, "dev": 1, "test": 1}) / "clips"
    (clips / "link.wav").symlink_to(tmp_path / OUTSIDE)
    (clips / "link2.wav").symlink_to("link.wav")
    (clips / "root").symlink_to(tmp_path)
    (clips / "circle.mp3").symlink_to("circle.mp3")
    (clips / "dangling.mp3").symlink_to("nobody.mp3")
    os.mkfifo(clips / "pipe.mp3")
    (clips / "folder.mp3").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("ja/clips/socket.mp3")
    return clips


def reject_reason(clips: Path, path: str, read: Callable[[Path, str], Corpus]) -> str:
    """Return the reason why the row with this path is rejected; the rows before and after it are kept."""
    found = read(clips, path)
    with progress_bar() as progress:
        store = build_audio_cache(found.clips, clips.parents[1] / "store", progress, workers=1)
    train = [clip for clip in found.clips if clip.split == "train"]
    kept, rejects = select(train, store.decoded, None, FilterRules(0.0, None, -100, 1.0, True, True))
    assert [clip.name for clip in kept] == ["clip_0.mp3", "clip_1.mp3"]
    (reject,) = [*found.rejects, *rejects]
    assert "/" not in reject.detail or "clips/" in reject.detail
    return reject.reason


def read_with_path(clips: Path, path: str) -> Corpus:
    rows = [common_voice_row(0), common_voice_row(7, path=path), common_voice_row(1)]
    write_tsv(clips.parent / "train.tsv", rows)
    return common_voice.read(str(clips.parent), "ja", ["train"], clips.parents[1] / "cache")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        *((path, "outside the corpus") for path in OUTSIDE_PATHS.values()),
        *((path, "missing") for path in ABSENT.values()),
        *((path, "malformed row") for path in MALFORMED.values()),
        *((path, "missing") for path in NOT_REGULAR.values()),
    ],
    ids=[*OUTSIDE_PATHS, *ABSENT, *MALFORMED, *NOT_REGULAR],
)
def test_a_path_in_a_table_stays_inside_clips_and_is_counted(corpus: Path, path: str, reason: str) -> None:
    found = reject_reason(corpus, path.format(root=corpus.parents[1]), read_with_path)
    assert found == reason or (len(path) > 4000 and found == "undecodable")


@pytest.mark.parametrize("linked", ["clips", "ja"])
def test_a_folder_of_recordings_that_is_a_link_out_of_the_release_is_named(
    corpus: Path, tmp_path: Path, linked: str
) -> None:
    (tmp_path / "release").mkdir()
    if linked == "ja":
        (tmp_path / "release" / "ja").symlink_to(corpus.parent)
    else:
        corpus.parent.rename(tmp_path / "release" / "ja")
        (tmp_path / "release" / "ja" / "clips").rename(tmp_path / "elsewhere")
        (tmp_path / "release" / "ja" / "clips").symlink_to(tmp_path / "elsewhere")
    read = partial(common_voice.read, str(tmp_path / "release"), "ja", ["train"], tmp_path / "cache")
    with pytest.raises(DataError, match=r"clips is a link to .*; to read it, add data\.roots=\["):
        read()
    assert len(read(roots=[str(tmp_path)]).clips) == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can create devices")
@pytest.mark.parametrize("path", DEVICES.values(), ids=DEVICES)
def test_a_device_inside_clips_is_not_read(corpus: Path, path: str) -> None:
    try:
        os.mknod(corpus / path, stat.S_IFCHR | 0o666, os.makedev(1, 5 if "zero" in path else 3))
    except PermissionError:
        pytest.skip("devices cannot be created here")
    assert reject_reason(corpus, path, read_with_path) == "missing"


@pytest.mark.parametrize("path", [*OUTSIDE_PATHS.values(), *NOT_REGULAR.values()], ids=[*OUTSIDE_PATHS, *NOT_REGULAR])
def test_a_path_in_a_manifest_stays_below_its_folder(corpus: Path, path: str) -> None:
    table = corpus / "all.csv"
    table.write_text(f"path,text,split\n{path.format(root=corpus.parents[1])},文,train\n", encoding="utf-8")
    found = manifest.read(str(table), Columns())
    for clip in found.clips:
        with pytest.raises((AudioError, OSError)):
            decode(clip.source)  # type: ignore[arg-type]
    assert len(found.clips) + len(found.rejects) == 1


def test_transcribe_reads_only_regular_files(corpus: Path) -> None:
    found = [source.path for source in find_sources([corpus], lambda line: None)]
    for path in found:
        if path.name in NOT_REGULAR.values():
            with pytest.raises(AudioError, match="missing"):
                decode(path)
    assert "pipe.mp3" in {path.name for path in found}
