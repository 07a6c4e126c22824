import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from fragile_decoders import FAULTS, fragile_decoders
from recordings import FORMATS, encoded, tone, write_clip

from kikitori.audio import decoder_process
from kikitori.audio import waveform as waveform_module
from kikitori.audio.decoder_pool import AudioWorkerError, Decoder, Decoders
from kikitori.audio.decoder_process import Block
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import decode, to_int16, waveform
from kikitori.runtime.paths import DEMO

GOOD = encoded(tone())


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    one = Decoder()
    yield one
    one.close()


def rejection(decoder: Decoder | Decoders, source: Path | bytes) -> str:
    with pytest.raises(AudioError) as error:
        decoder(source)
    return str(error.value.args[0])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


def test_samples_equal_those_that_soundfile_reads_in_one_block(decoder: Decoder, tmp_path: Path) -> None:
    stereo = np.stack([tone(9.0, rate=48_000), tone(9.0, 500, rate=48_000)], axis=1)
    # And speech, whose samples would change if the decoder sought; these mp3s have no Info, so they are one stream.
    speech = b"".join(path.read_bytes() for path in sorted((DEMO / "clips").iterdir())[:12])
    for data in (*(encoded(stereo, form, 48_000) for form in FORMATS), speech):
        (tmp_path / "clip").write_bytes(data)
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            expected = file.read(dtype="float32", always_2d=True).mean(axis=1)
        assert len(expected) > 3 * decoder_process.BLOCK_VALUES  # it needs several blocks
        for source in (data, tmp_path / "clip"):
            assert torch.equal(decoder(source), waveform([Block(expected, file.samplerate, 0, is_float=False)]))
            assert torch.equal(decoder(source), decode(source))


@pytest.mark.parametrize("form", ["mp3", "wav", "flac", "ogg", "opus"])
def test_joined_recordings_are_decoded_one_after_the_other(decoder: Decoder, form: str) -> None:
    clips = [encoded(tone(1.0, 300 + i, rate), form, rate) for i, rate in enumerate((16_000, 8_000, 48_000))]
    assert torch.equal(decoder(b"".join(clips)), torch.cat([decoder(clip) for clip in clips]))


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_recording_that_exceeds_the_shared_memory_is_handed_over_piece_by_piece(
    decoder: Decoder, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = np.tile(tone(10.0, rate=rate), 18)  # in two pieces at 44.1 and 48 kHz, resampled in two parts
    assert len(minutes) > decoder_process.MEMORY_SAMPLES or rate == 16_000
    data = encoded(minutes, "wav", rate)
    decoded = decoder(data)
    assert torch.equal(decoded, decode(data))
    monkeypatch.setattr(waveform_module, "RESAMPLED_AT_ONCE", 10**9)
    at_once = decode(data)
    assert len(decoded) == len(at_once) == -(-len(minutes) * 16_000 // rate)
    assert (to_int16(decoded) == to_int16(at_once)).mean() > 0.9999
    assert (decoded - at_once).abs().max() < 1e-6


@pytest.mark.parametrize("start", FAULTS)
def test_a_recording_that_crashes_its_decoder_is_rejected_and_the_next_is_decoded(start: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.mp3").write_bytes(start + GOOD)
    with fragile_decoders(tmp_path / "python"), Decoders(1) as decoders:
        for source in (tmp_path / "bad.mp3", start + GOOD):
            assert rejection(decoders, source) == FAULTS[start][1]
            assert len(decoders(GOOD)) == 8_000


def test_several_threads_share_the_decoders_and_a_crash_affects_one_recording(tmp_path: Path) -> None:
    rows = [(b"SEGV" if i % 5 == 2 else b"") + encoded(tone(0.1 + i / 1000)) for i in range(40)]

    def length(data: bytes) -> int | str:
        try:
            return len(decoders(data))
        except AudioError as error:
            return str(error.args[0])

    with fragile_decoders(tmp_path), Decoders(3) as decoders, ThreadPoolExecutor(6) as threads:
        lengths = list(threads.map(length, rows))
    assert lengths == [FAULTS[b"SEGV"][1] if i % 5 == 2 else 1600 + 16 * i for i in range(40)]


def test_a_decoder_killed_from_outside_costs_no_clip(decoder: Decoder) -> None:
    for _ in range(3):  # the first time while it starts
        os.kill(decoder._process.pid, signal.SIGKILL)
        assert len(decoder(GOOD)) == 8_000


def test_a_path_that_is_no_regular_file_is_missing_and_never_opened(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("circle")
    began = time.monotonic()
    for name in ("folder", "pipe", "link", "circle", "gone", "/dev/zero", "/dev/stdin"):
        assert rejection(decoder, tmp_path / name) == "missing"
    assert time.monotonic() - began < 5


def test_a_header_with_a_false_length_does_not_allocate_memory(decoder: Decoder, tmp_path: Path) -> None:
    flac = bytearray(encoded(tone(), "flac"))
    flac[21] |= 0x0F  # STREAMINFO: 36 bits with the number of samples
    flac[22:26] = b"\xff" * 4
    assert "cut short: 0.50 s of 4294967.30 s can be decoded" in rejection(decoder, bytes(flac))
    with (tmp_path / "hole.wav").open("wb") as file:
        file.truncate(2**40)
    assert "1024.0 GB, over 2 GB" in rejection(decoder, tmp_path / "hole.wav")


def test_a_file_that_decodes_to_far_more_than_its_size_is_rejected_and_fills_no_memory(decoder: Decoder) -> None:
    twenty_minutes = encoded(np.zeros(20 * 60 * 16_000, np.int16), "flac")
    assert len(twenty_minutes) < 100_000
    assert "has more than " in rejection(decoder, twenty_minutes)
    assert "bytes: it is silent, or made to fill the disk" in rejection(decoder, twenty_minutes * 2)
    assert os.fstat(decoder._memory).st_size <= 4 * decoder_process.MEMORY_SAMPLES
    assert len(decoder(encoded(np.zeros(30 * 16_000, np.int16), "flac"))) == 30 * 16_000  # silence, but short


def test_a_long_recording_has_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []
    monkeypatch.setattr("signal.alarm", lambda seconds: limits.append(seconds) or 0)
    (tmp_path / "long.wav").write_bytes(encoded(tone(100.0)))
    ours, theirs = Pipe()
    with (tmp_path / "memory").open("w+b") as memory:
        ours.send_bytes(os.fsencode(tmp_path / "long.wav"))
        decoder_process.serve_request(theirs, memory.fileno())
    assert max(limits) == decoder_process.MAX_SECONDS + 32


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_a_recording_that_is_too_long_is_rejected(rate: int) -> None:
    assert (decoder_process.MAX_DURATION_S, decoder_process.MAX_STREAM_S) == (3 * 3600, 24 * 3600)
    parts = [encoded(tone(0.9, 300 + i, rate), "wav", rate) for i in range(3)]
    assert sum(len(block.samples) for block in decoder_process.blocks(parts[0] + parts[1], 2)) == round(1.8 * rate)
    with pytest.raises(AudioError, match="is longer than 0 hours; split it"):
        list(decoder_process.blocks(b"".join(parts), 2))


def test_a_decoder_rejects_a_recording_that_is_too_long_before_it_decodes_it(tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes(encoded(tone(3.0)))
    with closing(Decoder(longest_s=2)) as short, closing(Decoder(longest_s=4)) as long:
        assert len(next(long.stream(tmp_path / "long.wav")).samples) == 3 * 16_000
        with pytest.raises(AudioError, match="is longer than 0 hours; split it"):
            next(short.stream(tmp_path / "long.wav"))


@pytest.mark.parametrize("call", ["b'SPIN'", "GOOD"])
def test_a_decoder_ends_with_the_process_that_started_it(call: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "good.wav")
    lines = ["from pathlib import Path", "from kikitori.audio.decoder_pool import Decoder", "decoder = Decoder()"]
    lines += [
        f"GOOD = Path({str(tmp_path / 'good.wav')!r})",
        "decoder(GOOD)",
        "print(decoder._process.pid, flush=True)",
    ]
    lines += [f"decoder({call})", "import time; time.sleep(60)"]
    with fragile_decoders(tmp_path / "python"):
        parent = subprocess.Popen([sys.executable, "-c", "\n".join(lines)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    time.sleep(0.1)
    assert alive(pid)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(pid)


def test_a_decoder_that_cannot_start_is_not_an_error_of_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "soundfile.py").write_text("raise ImportError('no libsndfile')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with (
        Decoders(1) as decoders,
        pytest.raises(AudioWorkerError, match="cannot be started: the decoder ended with 1") as error,
    ):
        decoders(GOOD)
    assert not isinstance(error.value, AudioError)


def test_a_decoder_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(tone(2.0), "mp3"))
    size = data.index(b"Info") + 12 if b"Info" in data else data.index(b"Xing") + 12
    data[size : size + 4] = (77).to_bytes(4, "big")
    decode(bytes(data))
    assert capfd.readouterr().err  # libsndfile does print in this process
    with Decoders(1) as decoders:
        decoders(bytes(data))
    assert capfd.readouterr() == ("", "")


def test_a_system_without_files_in_memory_uses_one_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_clip(tmp_path / "a.wav")
    with Decoders(1) as decoders:
        samples = decoders(tmp_path / "a.wav")
    monkeypatch.delattr(os, "memfd_create")
    with Decoders(1) as decoders:
        again = decoders(tmp_path / "a.wav")
    assert torch.equal(samples, again)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mp3", "float.wav", "opus", "flac"])
def test_a_stream_joins_to_the_recording_and_tells_its_seconds(decoder: Decoder, tmp_path: Path, form: str) -> None:
    (tmp_path / "clip").write_bytes(encoded(np.tile(4 * tone(5.0, rate=48_000), 19), form, 48_000))
    whole = decoder(tmp_path / "clip")
    parts = list(decoder.stream(tmp_path / "clip"))
    assert len(parts) > 1
    assert torch.equal(torch.cat([part.samples for part in parts]), whole)
    assert all(part.known_s == pytest.approx(95, abs=0.1) for part in parts)


def test_a_stream_that_is_not_taken_to_its_end_leaves_a_decoder_for_the_next(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(encoded(np.tile(tone(5.0, rate=48_000), 19), "flac", 48_000))
    stream = decoder.stream(tmp_path / "clip")
    next(stream)
    stream.close()
    assert torch.equal(decoder(GOOD), decode(GOOD))


def test_a_decoder_that_dies_within_a_stream_is_replaced(decoder: Decoder, tmp_path: Path) -> None:
    (tmp_path / "clip").write_bytes(encoded(np.tile(tone(5.0, rate=48_000), 19), "flac", 48_000))
    whole, parts = decoder(tmp_path / "clip"), []
    for part in decoder.stream(tmp_path / "clip"):
        parts.append(part.samples)
        if len(parts) == 1:
            decoder._process.kill()
    assert torch.equal(torch.cat(parts), whole)
    (tmp_path / "cut").write_bytes((tmp_path / "clip").read_bytes()[:-1000])
    with pytest.raises(AudioError, match="lost sync"):
        list(decoder.stream(tmp_path / "cut"))
