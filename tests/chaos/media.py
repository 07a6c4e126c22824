"""Damaged recordings, hostile tables and killed processes: `python tests/chaos/media.py --short` tries some of each.

Each scenario takes a number of tries, a seed and an empty folder, and returns the number that passed.
"""

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import TypedDict

import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from fragile_decoders import FAULTS, fragile_decoders
from recordings import FORMATS, common_voice_row, encoded, tone, write_clip, write_tsv

from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.corpora import common_voice
from kikitori.corpora.audio_files import AudioFiles
from kikitori.corpora.types import Clip, Reject
from kikitori.data.audio_cache import AudioCache, build_audio_cache
from kikitori.data.filters import FilterRules, select
from kikitori.model.loading import build_whisper as build_whisper
from kikitori.runtime.console import progress_bar
from kikitori.runtime.paths import DEMO

processes = get_context("fork")
RULES = FilterRules(
    min_duration_s=0.3,
    max_duration_s=None,
    silence_dbfs=-50,
    max_reject_rate=1.0,
    allow_shared_speakers=False,
    allow_shared_clips=False,
)
HEADER = b"client_id\tpath\tsentence\tlocale\n"


class Outcome(TypedDict):
    fault: str
    runs: int
    good: int
    notes: str


def built(clips: Sequence[Clip], folder: Path) -> AudioCache:
    with progress_bar() as progress:
        return build_audio_cache(clips, folder, progress, workers=2)


def clips_of(folder: Path) -> list[Clip]:
    rows = [AudioFiles(folder).clip(path.name, "train", "文", None) for path in sorted(folder.iterdir())]
    return [row for row in rows if isinstance(row, Clip)]


def demo_clips(count: int, seed: int) -> list[Path]:
    return random.Random(seed).sample(sorted((DEMO / "clips").iterdir()), count)


def copied(paths: Sequence[Path], folder: Path) -> list[Clip]:
    folder.mkdir(parents=True)
    for path in paths:
        (folder / path.name).write_bytes(path.read_bytes())
    return clips_of(folder)


def digests(folder: Path) -> dict[str, str]:
    """Return the digests of all files in a folder of audio caches, unfinished files included."""
    paths = [path for path in folder.glob("*") if path.suffix != ".lock"]
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


def builds_at_once(count: int, seed: int, folder: Path) -> Outcome:
    """Eight processes build the same audio cache at the same moment."""
    clips = copied(demo_clips(40, seed), folder / "clips")
    path = built(clips, folder / "reference").path
    expected = digests(path.parent)
    good = 0
    for number in range(count):
        store = folder / f"store-{number}"
        barrier = processes.Barrier(8)

        def job(store: Path = store, barrier=barrier) -> None:
            barrier.wait()
            os._exit(len(built(clips, store).decoded) != len(clips))

        jobs = [processes.Process(target=job) for _ in range(8)]
        for process in jobs:
            process.start()
        for process in jobs:
            process.join()
        good += all(process.exitcode == 0 for process in jobs) and digests(store) == expected
    return Outcome(
        fault="8 processes build the same audio cache at once", runs=count, good=good, notes="one cache, equal bytes"
    )


def builds_killed(count: int, seed: int, folder: Path) -> Outcome:
    """A process that builds an audio cache is killed at a random moment, and another builds the cache afterwards."""
    clips = copied(demo_clips(150, seed), folder / "clips")
    began = time.monotonic()
    path = built(clips, folder / "reference").path
    takes_s = time.monotonic() - began
    expected = digests(path.parent)
    moments = random.Random(seed)
    good = partial = whole = 0
    for number in range(count):
        store = folder / f"store-{number}"
        process = processes.Process(target=built, args=(clips, store))
        process.start()
        time.sleep(moments.uniform(0, 1.5 * takes_s))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = digests(store)
        named = {name: digest for name, digest in found.items() if name.endswith(".arrow")}
        partial += found != named
        whole += named == expected
        good += (
            named in ({}, expected) and len(built(clips, store).decoded) == len(clips) and digests(store) == expected
        )
    notes = f"killed within {1.5 * takes_s:.2f} s; {partial} left an unfinished file, {whole} had finished"
    return Outcome(fault="the process that builds an audio cache is killed", runs=count, good=good, notes=notes)


# A kind of damage: changes the bytes of a file at random.
Damage = Callable[[bytearray, random.Random], bytes]


def bits(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 3, 30, 300])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def cut(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def header(data: bytearray, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 4, 16])):
        data[chance.randrange(min(64, len(data)))] = chance.randrange(256)
    return bytes(data)


def wrong_length(data: bytearray, chance: random.Random) -> bytes:
    """Overwrites four of the first 60 bytes with an impossible length."""
    at = chance.randrange(4, 60)
    length = chance.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, chance.randrange(2**32)])
    data[at : at + 4] = length.to_bytes(4, chance.choice(["little", "big"]))
    return bytes(data)


def swapped(data: bytearray, chance: random.Random) -> bytes:
    size = chance.choice([4, 64, 500])
    one, two = (chance.randrange(len(data) - size) for _ in range(2))
    data[one : one + size], data[two : two + size] = data[two : two + size], data[one : one + size]
    return bytes(data)


def noise(data: bytearray, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.choice([8, 200, 4_000])
    data[at : at + size] = chance.randbytes(size)
    return bytes(data)


def zeros(data: bytearray, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data)), chance.choice([8, 200, 4_000])
    data[at : at + size] = bytes(len(data[at : at + size]))
    return bytes(data)


def doubled(data: bytearray, chance: random.Random) -> bytes:
    one, two = sorted(chance.randrange(len(data)) for _ in range(2))
    return bytes(data[:two] + data[one:])


def only_a_head(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.choice([4, 12, 40])]) + chance.randbytes(chance.randrange(3_000))


DAMAGE: list[Damage] = [bits, cut, header, wrong_length, swapped, noise, zeros, doubled, only_a_head]


def fuzzed(count: int, seed: int, folder: Path) -> None:
    """Write `count` damaged files, each format and kind of damage in turn."""
    chance = random.Random(seed)
    forms = sorted(FORMATS)
    for number in range(count):
        form = ["demo", *forms][number % (len(forms) + 1)]
        if form == "demo":
            data = demo_clips(1, chance.randrange(2**32))[0].read_bytes()
        else:
            rate = chance.choice([16_000, 48_000])
            data = encoded(tone(chance.uniform(0.3, 2), chance.randrange(100, 5_000), rate), form, rate)
        damage = DAMAGE[number // (len(forms) + 1) % len(DAMAGE)]
        (folder / f"fuzzed {number:04d} {form} {damage.__name__}").write_bytes(damage(bytearray(data), chance))


def fuzzed_media(count: int, seed: int, folder: Path) -> Outcome:
    """Damaged files among good ones: each is decoded or rejected with a reason, and the good ones are unaffected."""
    good = copied(demo_clips(40, seed), folder / "good")
    expected = built(good, folder / "reference")
    copied([clip.source for clip in good if isinstance(clip.source, Path)], folder / "clips")
    fuzzed(count, seed, folder / "clips")
    clips = clips_of(folder / "clips")
    store = built(clips, folder / "store")
    kept, rejects = select(clips, store.decoded, None, RULES)
    rejected = {reject.name: reject for reject in rejects}
    used = {clip.name for clip in kept}
    fine = 0
    for clip in clips:
        facts, samples = store.decoded[clip.name], store.pcm(clip.name)
        if clip.name in expected.decoded:
            unharmed = facts == expected.decoded[clip.name] and np.array_equal(samples, expected.pcm(clip.name))
            if not unharmed:
                raise AssertionError(f"{clip.name}, a good clip, was decoded differently among damaged ones")
            continue
        sane = not facts.error and facts.samples == len(samples) and 0 <= facts.peak <= 1
        fine += (clip.name in used and sane) or (clip.name in rejected and bool(rejected[clip.name].detail))
    reasons = Counter(reject.reason for reject in rejects)
    notes = f"{len(used) - len(good)} decoded; rejected: {', '.join(f'{n} {why}' for why, n in reasons.most_common())}"
    return Outcome(
        fault="damaged recordings", runs=count, good=fine, notes=f"{notes}; {len(good)} good ones unaffected"
    )


def frames(data: bytes) -> list[int]:
    """Return the offsets of the frames of a demo clip."""
    return [at for at in range(len(data) - 1) if data[at : at + 2] == data[:2]]


# A case: the expected reason for its rejection ("" if it is kept), the cells of its row, and its file or a function
# that creates it.
Case = tuple[str, dict[str, str], bytes | Callable[[Path], object] | None]


def cuts(count: int, seed: int) -> tuple[list[Case], float]:
    """Cut a demo clip in `count` places, every second one at the end of a frame; returns them and its duration in s.

    A cut at the end of a frame loses at least 0.15 s: a shorter loss cannot be distinguished from decoder padding.
    """
    chance = random.Random(seed)
    data = demo_clips(1, seed)[0].read_bytes()
    bounds = frames(data)
    seconds = len(bounds) * 576 / SAMPLE_RATE  # of MPEG 2
    anywhere = [at for at in range(1, len(data)) if at not in bounds]
    places = [chance.choice(bounds[1:-4] if number % 2 else anywhere) for number in range(count)]
    return [("cut short", {}, data[:place]) for place in places], seconds


def cases(seed: int) -> list[Case]:
    """Return one case of each kind of bad audio and text, and the values at each limit."""
    sounds = (tone(1.0, 3_000 + 10 * number) for number in range(999))

    def sound(form: str = "wav") -> bytes:
        return encoded(next(sounds), form)

    def of(samples: int) -> bytes:
        return encoded(tone(samples / SAMPLE_RATE, 2_000 + samples % 97))

    flac, rate = bytearray(sound("flac")), bytearray(sound())
    flac[21] |= 0x0F
    flac[22:26] = b"\xff" * 4
    rate[24:28] = (1).to_bytes(4, "little")
    broken = tone(1.0, 700)
    broken[100] = np.nan
    special = 5
    rows: list[Case] = [
        ("", {}, of(4_800)),
        ("too short", {}, of(4_799)),
        ("", {}, of(480_000)),
        ("too long", {}, of(480_001)),
        ("", {"sentence": "x" * (448 - special)}, sound()),
        ("too many tokens", {"sentence": "x" * (449 - special)}, sound()),
        ("empty transcript", {"sentence": "  "}, sound()),
        ("malformed row", {"locale": "ja\tsurplus"}, sound()),
        ("malformed row", {"path": "nul\0.mp3"}, None),
        ("malformed row", {"path": ""}, None),
        ("not UTF-8", {"sentence": "\udce9t\udce9"}, sound()),
        ("outside the corpus", {"path": "../train.tsv"}, None),
        ("outside the corpus", {}, lambda path: path.symlink_to("/dev/zero")),
        ("missing", {}, None),
        ("missing", {}, Path.mkdir),
        ("missing", {}, os.mkfifo),
        ("missing", {}, lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))),
        ("missing", {}, lambda path: path.symlink_to(path.name)),
        ("silent", {}, encoded(tone(1.0, 900, amplitude=0.001))),
        ("empty", {}, encoded(tone(0))),
        ("duplicate", {}, encoded(tone(1.0, 200))),
        ("undecodable", {}, b""),
        ("undecodable", {}, b"<html>log in</html>"),
        ("undecodable", {}, random.Random(seed).randbytes(5_000)),
        ("undecodable", {}, encoded(broken, "float.wav")),
        ("cut short", {}, bytes(flac)),
        ("undecodable", {}, bytes(rate)),
        ("undecodable", {}, lambda path: path.write_bytes(b"") or os.truncate(path, 2**40)),
        *(("undecodable", {}, start + sound()) for start in FAULTS),
        *(("cut short", {}, sound(form)[:-2_500]) for form in ("mp3", "ogg", "opus")),
        ("cut short", {}, sound()[:-9_999]),
        ("undecodable", {}, sound("flac")[:-99]),
    ]
    return rows


def bad_audio_and_text(count: int, seed: int, folder: Path) -> Outcome:
    """`count` truncated demo clips and one clip of each kind of bad audio and text, among good clips."""
    clips = folder / "ja" / "clips"
    clips.mkdir(parents=True)
    cut_rows, seconds = cuts(count, seed)
    bad_rows: list[Case] = [*cases(seed), *cut_rows]
    listed = ["clip\tduration[ms]"]
    lines: list[bytes] = []
    expected: dict[str, str] = {}
    bad = 0
    for number, (reason, cells, made) in enumerate(bad_rows):
        good = f"good {number:03d}.wav"
        write_clip(clips / good, hertz=200 + 10 * number, seconds=1.0)
        name = cells.get("path", f"case {number:03d}")
        if isinstance(made, bytes):
            (clips / name).write_bytes(made)
        elif made is not None:
            made(clips / name)
        if number >= len(bad_rows) - count:
            listed.append(f"{name}\t{1000 * seconds:.0f}")
        expected |= {good: "", name: reason}
        bad += 1
        for path, sentence, locale in (
            (good, "文", "ja"),
            (name, cells.get("sentence", "文"), cells.get("locale", "ja")),
        ):
            line = f"speaker {len(lines)}\t{path}\t{sentence}\t{locale}\n"
            lines.append(line.encode(errors="surrogateescape"))
    (folder / "ja" / "train.tsv").write_bytes(HEADER + b"".join(lines))
    (folder / "ja" / "clip_durations.tsv").write_text("\n".join(listed))
    for number, table in enumerate(("dev", "test")):
        row = common_voice_row(number, client_id=f"{table} speaker", path=f"{table}.wav")
        write_tsv(folder / "ja" / f"{table}.tsv", [row])
    with fragile_decoders(folder / "python"):
        found = outcomes(folder)
    wrong = {name: (reason, found.get(name)) for name, reason in expected.items() if found.get(name) != reason}
    reasons = Counter(reason for _, reason in found.items() if reason)
    notes = f"rejected: {', '.join(f'{n} {why}' for why, n in reasons.most_common())}"
    good_too = sum(name.startswith("good") for name in wrong)
    notes += f"; {len(bad_rows) - good_too} of {len(bad_rows)} good ones kept" + (f"; WRONG: {wrong}" if wrong else "")
    return Outcome(fault="bad audio and text", runs=bad, good=bad - len(wrong), notes=notes)


def outcomes(folder: Path) -> dict[str, str]:
    """Return the reason why each training row is rejected, or "" if it is kept."""
    corpus = common_voice.read(str(folder / "ja"), "ja", ["train"], folder / "cache")
    processor = build_whisper(
        16, 1, 1, 2, window_s=30, language="ja", task="transcribe", max_label_tokens=448
    ).processor
    rows = [clip for clip in corpus.clips if clip.split == "train"]
    kept, rejects = select(rows, built(rows, folder / "store").decoded, processor, RULES)
    unread: list[Reject] = [reject for reject in corpus.rejects if reject.split == "train"]
    # Names that are not UTF-8 are shown escaped and quoted.
    found = {reject.name.strip("'"): str(reject.reason) for reject in [*unread, *rejects]}
    return found | {clip.name: "" for clip in kept}


SCENARIOS: dict[Callable[[int, int, Path], Outcome], tuple[int, int]] = {
    builds_at_once: (50, 2),
    builds_killed: (100, 5),
    bad_audio_and_text: (20, 20),
    fuzzed_media: (500, 60),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few of each, as in the default tests")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[scenario.__name__ for scenario in SCENARIOS])
    arguments = parser.parse_args()
    failed = False
    for scenario, counts in SCENARIOS.items():
        if arguments.only in (None, scenario.__name__):
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                outcome = scenario(counts[arguments.short], arguments.seed, Path(folder))
            line = f"{outcome['fault']}: {outcome['good']} of {outcome['runs']} ({outcome['notes']})"
            print(f"{line}, {time.monotonic() - began:.0f} s", flush=True)
            failed |= outcome["good"] < outcome["runs"]
    sys.exit(failed)


if __name__ == "__main__":
    main()
