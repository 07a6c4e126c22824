import dataclasses
import multiprocessing
import os
import pickle
import random
import re
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import media
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recordings import encoded, tone, write_clip

from kikitori.audio.waveform import decode, to_int16
from kikitori.corpora.audio_files import AudioFiles
from kikitori.corpora.types import Clip, Reject
from kikitori.data import audio_cache
from kikitori.data.audio_cache import ROWS_PER_BATCH, AudioCache, build_audio_cache, key
from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import DataError

processes = multiprocessing.get_context("fork")


def clip(folder: Path, path: str) -> Clip:
    row = AudioFiles(folder).clip(path, "train", "文", None)
    assert not isinstance(row, Reject)
    return row


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_cache_file_of_another_user_is_not_opened(tmp_path: Path) -> None:
    """Its checksums prove nothing: whoever writes the samples writes them, too."""
    clips = good_clips(tmp_path)
    with progress_bar() as progress:
        path = build_audio_cache(clips, tmp_path / "store", progress).path
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        os.chown(path, 12345, -1)
        with pytest.raises(DataError, match=r"belongs to another user, who decides what it holds; set KIKITORI_CACHE"):
            build_audio_cache(clips, tmp_path / "store", progress)


def good_clips(folder: Path, number: int = 3) -> list[Clip]:
    for i in range(number):
        write_clip(folder / f"{i}.wav", hertz=300 + 10 * i, seconds=0.1 + i / 1000)
    return [clip(folder, f"{i}.wav") for i in range(number)]


def slow_clips(log: Path, number: int, seconds: float) -> list[Clip]:
    """Clips that take `seconds` to read; each read is noted in `log`."""
    sound = encoded(tone(0.1))

    def source(i: int) -> bytes:
        time.sleep(seconds)
        with log.open("a") as file:
            file.write(f"{i}\n")
        return sound

    return [Clip(f"{i:03d}", "train", "文", str(i), partial(source, i)) for i in range(number)]


def built(clips: list[Clip], folder: Path) -> AudioCache:
    with progress_bar() as progress:
        return build_audio_cache(clips, folder, progress, workers=2)


def names(folder: Path, suffix: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"*{suffix}"))


def test_stored_samples_equal_decoding_again(tmp_path: Path) -> None:
    clips = good_clips(tmp_path, ROWS_PER_BATCH + 3)
    cache = built(clips, tmp_path / "cache")
    assert list(cache.decoded) == sorted(c.name for c in clips)
    for one in clips:
        pcm = to_int16(decode(tmp_path / one.name))
        assert np.array_equal(cache.pcm(one.name), pcm)
        facts = cache.decoded[one.name]
        assert (facts.samples, facts.error) == (len(pcm), "")
        assert facts.peak == pytest.approx(np.abs(pcm).max() / 32_768)
    assert len({facts.digest for facts in cache.decoded.values()}) == len(clips)


def test_long_recordings_are_written_in_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = good_clips(tmp_path, 9)
    at_once = built(clips, tmp_path / "cache")
    monkeypatch.setattr(audio_cache, "BYTES_PER_BATCH", 3 * 3200)
    cache = built(clips, tmp_path / "other")
    assert (len(at_once._batches), len(cache._batches)) == (1, 3)
    assert cache.decoded == at_once.decoded
    assert all(np.array_equal(cache.pcm(clip.name), at_once.pcm(clip.name)) for clip in clips)


def test_a_cache_is_built_once_and_reopened(tmp_path: Path) -> None:
    clips = slow_clips(tmp_path / "log", 5, 0)
    first = built(clips, tmp_path / "cache")
    written = first.path.stat()
    first.path.with_suffix(".lock").unlink()
    first.path.with_suffix(".lock").mkdir()  # opening locks and writes nothing
    second = built(clips[::-1], tmp_path / "cache")
    assert (second.path, second.path.stat()) == (first.path, written)
    assert second.decoded == first.decoded == pickle.loads(pickle.dumps(first)).decoded
    assert len((tmp_path / "log").read_text().splitlines()) == 5


@given(st.permutations(range(5)))
def test_the_key_depends_on_the_audio_only(order: list[int]) -> None:
    clips = [Clip(f"{i}.mp3", "train", "文", f"{i} 7", Path(f"{i}.mp3")) for i in range(5)]
    changed = [dataclasses.replace(clips[i], text=f"別 {i}", split="test", speaker="x") for i in order]
    assert key(changed) == key(clips)
    other = [*clips[:4], dataclasses.replace(clips[4], identity="4 8")]
    assert len({key(clips), key(other), key(clips[:4])}) == 3


def test_bad_clips_are_stored_as_errors_between_good_neighbours(tmp_path: Path) -> None:
    good_clips(tmp_path)
    (tmp_path / "text.mp3").write_text("no audio")
    (tmp_path / "zero.mp3").write_bytes(b"")
    (tmp_path / "cut.wav").write_bytes(encoded(tone())[:-5000])
    (tmp_path / "empty.wav").write_bytes(encoded(tone()[:0]))
    (tmp_path / "folder.mp3").mkdir()
    os.mkfifo(tmp_path / "pipe.mp3")
    paths = ["0.wav", "text.mp3", "1.wav", "zero.mp3", "cut.wav", "empty.wav", "folder.mp3", "pipe.mp3", "gone.mp3"]
    paths += ["x" * 300 + ".mp3", "0.wav/below.mp3", "2.wav"]
    cache = built([clip(tmp_path, path) for path in paths], tmp_path / "cache")
    errors = {name: facts.error for name, facts in cache.decoded.items()}
    assert [name for name, error in errors.items() if not error] == ["0.wav", "1.wav", "2.wav", "empty.wav"]
    assert {name for name, error in errors.items() if error == "missing"} == {
        *("folder.mp3", "pipe.mp3", "gone.mp3", "0.wav/below.mp3")
    }
    assert "is in no format that can be decoded" in errors["text.mp3"]
    assert errors["cut.wav"] == "the file is cut short: 0.34 s of 0.50 s can be decoded"
    assert not any(str(tmp_path) in error for error in errors.values())
    assert [len(cache.pcm(name)) for name in ("0.wav", "empty.wav", "text.mp3")] == [1600, 0, 0]


def test_recordings_that_cannot_be_read_are_errors_without_their_paths() -> None:
    def denied() -> bytes:
        raise PermissionError(13, "Permission denied", "/home/somebody/0.mp3")

    def gone() -> bytes:
        raise FileNotFoundError(2, "No such file or directory", "/home/somebody/1.mp3")

    clips = [Clip(f"{i}", "train", "文", "", source) for i, source in enumerate([denied, gone])]
    folder = Path(os.environ["KIKITORI_CACHE"]) / "unreadable"
    assert [facts.error for facts in built(clips, folder).decoded.values()] == ["Permission denied", "missing"]


def test_a_build_that_fails_midway_leaves_nothing(tmp_path: Path) -> None:
    clips = slow_clips(tmp_path / "log", 2 * ROWS_PER_BATCH, 0)

    def interrupted() -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        built([*clips[:-1], dataclasses.replace(clips[-1], source=interrupted)], tmp_path / "cache")
    assert names(tmp_path / "cache", ".arrow") == names(tmp_path / "cache", ".partial") == []


def test_a_killed_build_is_never_mistaken_for_a_complete_one(tmp_path: Path) -> None:
    clips = slow_clips(tmp_path / "log", 2 * ROWS_PER_BATCH, 0.01)
    process = processes.Process(target=built, args=(clips, tmp_path / "cache"))
    process.start()
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) <= ROWS_PER_BATCH:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert names(tmp_path / "cache", ".arrow") == []
    assert len(names(tmp_path / "cache", ".partial")) == 1
    assert len(built(slow_clips(tmp_path / "log", 2 * ROWS_PER_BATCH, 0), tmp_path / "cache").decoded) == len(clips)
    assert names(tmp_path / "cache", ".partial") == []


def test_two_processes_that_build_at_the_same_time_decode_once(tmp_path: Path) -> None:
    clips = slow_clips(tmp_path / "log", 6, 0.05)
    barrier = processes.Barrier(2)

    def job() -> None:
        barrier.wait()
        assert len(built(clips, tmp_path / "cache").decoded) == 6

    jobs = [processes.Process(target=job) for _ in range(2)]
    for process in jobs:
        process.start()
    for process in jobs:
        process.join()
    assert [process.exitcode for process in jobs] == [0, 0]
    assert len(names(tmp_path / "cache", ".arrow")) == 1
    assert len((tmp_path / "log").read_text().splitlines()) == 6


def test_an_unwritable_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Not a directory.*file/cache.*KIKITORI_CACHE"):
        built(good_clips(tmp_path), tmp_path / "file" / "cache")


@pytest.mark.parametrize("kept", [0, 20, -20])
def test_a_damaged_cache_is_named_with_the_remedy(tmp_path: Path, kept: int) -> None:
    clips = good_clips(tmp_path)
    path = built(clips, tmp_path / "cache").path
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{path}.*damaged.*delete it"):
        built(clips, tmp_path / "cache")


def test_a_flipped_byte_in_a_cache_is_reported_with_the_remedy_or_changes_nothing(tmp_path: Path) -> None:
    clips = [*good_clips(tmp_path, 5), clip(tmp_path, "gone.wav")]
    cache = built(clips, tmp_path / "cache")
    written = cache.path.read_bytes()
    expected = {c.name: (cache.decoded[c.name], cache.pcm(c.name).tobytes()) for c in clips}
    chance = random.Random(0)
    messages: list[str] = []
    for place in [*range(len(written) - 3_000, len(written), 7), *(chance.randrange(len(written)) for _ in range(300))]:
        flipped = bytearray(written)
        flipped[place] ^= 1 << chance.randrange(8)
        cache.path.unlink()  # the file that is mapped stays unchanged
        cache.path.write_bytes(flipped)
        try:
            again = built(clips, tmp_path / "cache")
            found = {c.name: (again.decoded[c.name], again.pcm(c.name).tobytes()) for c in clips}
        except DataError as error:
            messages.append(str(error))
        else:
            assert found == expected, place
    assert len(messages) > 400
    assert all(re.search(rf"{cache.path}.*damaged: .*; delete it", message, re.DOTALL) for message in messages)


def test_damaged_samples_are_reported_when_they_are_read(tmp_path: Path) -> None:
    clips = good_clips(tmp_path)
    path = built(clips, tmp_path / "cache").path
    data = bytearray(path.read_bytes())
    place = data.index(to_int16(decode(tmp_path / "1.wav")).tobytes())
    data[place + 99] ^= 16
    path.write_bytes(data)
    cache = built(clips, tmp_path / "cache")
    assert len(cache.pcm("0.wav")) == 1600
    with pytest.raises(DataError, match=rf"{path}.*damaged: the samples of 1.wav differ.*delete it"):
        cache.pcm("1.wav")


def test_an_offset_outside_the_file_is_reported_and_not_followed(tmp_path: Path) -> None:
    clips = good_clips(tmp_path)
    cache = built(clips, tmp_path / "cache")
    ends = np.cumsum([0, *(2 * cache.decoded[c.name].samples for c in clips)])
    data = bytearray(cache.path.read_bytes())
    data[data.index(ends.tobytes()) + 13] = 0x7F  # of the second, the sixth byte of eight
    cache.path.unlink()
    cache.path.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged: .*delete it"):
        built(clips, tmp_path / "cache").pcm("0.wav")


def test_a_cache_file_with_other_clips_is_reported(tmp_path: Path) -> None:
    clips = good_clips(tmp_path)
    few, complete = built(clips[:2], tmp_path / "cache").path, built(clips, tmp_path / "cache").path
    complete.write_bytes(few.read_bytes())
    with pytest.raises(DataError, match=rf"{complete}.*damaged: it holds other clips than those written; delete it"):
        built(clips, tmp_path / "cache")


@pytest.mark.parametrize("scenario", media.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_few_faults_affect_only_their_own_clips(
    scenario: Callable[[int, int, Path], media.Outcome], tmp_path: Path
) -> None:
    outcome = scenario(media.SCENARIOS[scenario][1], 0, tmp_path)
    assert outcome["good"] == outcome["runs"] > 0, outcome["notes"]


@pytest.mark.long
@pytest.mark.parametrize("scenario", media.SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_many_faults_affect_only_their_own_clips(
    scenario: Callable[[int, int, Path], media.Outcome], tmp_path: Path
) -> None:
    outcome = scenario(media.SCENARIOS[scenario][0], 1, tmp_path)
    assert outcome["good"] == outcome["runs"] > 0, outcome["notes"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_recording_is_decoded_again_after_its_permissions_change(tmp_path: Path) -> None:
    write_clip(tmp_path / "0.wav").chmod(0)
    denied = clip(tmp_path, "0.wav")
    assert built([denied], tmp_path / "cache").decoded["0.wav"].error == "Permission denied"
    (tmp_path / "0.wav").chmod(0o600)
    assert built([clip(tmp_path, "0.wav")], tmp_path / "cache").decoded["0.wav"].error == ""
