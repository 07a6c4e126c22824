"""Transcribes a recording of hours: memory, coverage, and what a killed run gives once it is resumed.

    python benchmarks/long_recording.py MODEL CORPUS --hours 3

The clips of CORPUS, a Common Voice language folder, are joined again and again into one mp3. `kikitori transcribe`
reads it undisturbed, and once more while it is killed with SIGKILL and started again. Memory is the resident memory of
the command and of all that it starts, at its peak; that of the model is taken from a recording of ten seconds.
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import soundfile
from tables import markdown

from kikitori.audio.decoder_pool import Decoders
from kikitori.audio.waveform import SAMPLE_RATE

# Seconds between two looks at the memory.
EVERY_S = 0.25
# Seconds of the recording with which the memory of the model is measured.
SHORT_S = 10
CUE = re.compile(r"(\d+)\n(\S+) --> (\S+)\n(.+(?:\n.+)?)\n*")


def main() -> None:
    """Prints a table, and exits with 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as kikitori transcribe --model takes it")
    parser.add_argument("corpus", type=Path, help="a Common Voice language folder")
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--kills", type=int, default=2, help="how often the second transcription is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments at which it is")
    parser.add_argument("--folder", type=Path, default=Path("long-recording"))
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True)
    long, short = folder / "long.mp3", folder / "short.mp3"
    join_clips(arguments.corpus / "clips", short, SHORT_S)
    join_clips(arguments.corpus / "clips", long, arguments.hours * 3600)

    _, of_model = transcribe(arguments.model, short, folder / "short")
    seconds, peak = transcribe(arguments.model, long, folder / "undisturbed")
    # The second one may find a quieter machine: late moments could come after its end.
    draws = random.Random(arguments.seed)
    moments = sorted(draws.uniform(0.1, 0.5) * seconds for _ in range(arguments.kills))
    for start, end in itertools.pairwise([0.0, *moments]):
        transcribe(arguments.model, long, folder / "killed", kill_after_s=end - start)
    transcribe(arguments.model, long, folder / "killed")

    files = [
        (folder / name / f"long.{form}").read_bytes() for name in ("undisturbed", "killed") for form in ("srt", "json")
    ]
    cues, fault = check_subtitles(files[0].decode(), soundfile.info(long).duration)
    gap_s, overlap_s = coverage(json.loads(files[1])["segments"], soundfile.info(long).duration)
    rows = [
        ["recording", f"{arguments.hours:g} h"],
        ["transcribed in", f"{seconds / 60:.1f} min"],
        ["memory with the model and 10 s", f"{of_model:.0f} MB"],
        ["memory with the whole recording", f"{peak:.0f} MB"],
        ["above the model", f"{peak - of_model:.0f} MB"],
        ["cues", f"{cues}"],
        ["subtitles are valid", fault or "yes"],
        ["seconds in no piece", f"{gap_s:.2f}"],
        ["seconds in two pieces", f"{overlap_s:.2f}"],
        [f"killed {arguments.kills} times and resumed: equal files", "yes" if files[:2] == files[2:] else "no"],
    ]
    print(markdown([["", "found"], *rows], []))
    sys.exit(bool(fault or gap_s or overlap_s or files[:2] != files[2:] or peak - of_model > 300))


def join_clips(clips: Path, target: Path, seconds: float) -> None:
    """Writes an mp3 of the clips, one after the other and again from the first, as long as `seconds`."""
    with Decoders(1) as decoders, soundfile.SoundFile(target, "w", SAMPLE_RATE, 1) as file:
        samples = [decoders(path).numpy() for path in sorted(clips.iterdir())]
        written = 0
        for clip in itertools.cycle(samples):
            if written >= seconds * SAMPLE_RATE:
                break
            file.write(clip)
            written += len(clip)


def transcribe(model: str, recording: Path, output: Path, kill_after_s: float | None = None) -> tuple[float, float]:
    """Transcribes a recording to srt and json. Returns seconds, and the most MB of memory at a time."""
    command = ["transcribe", str(recording), "--model", model, "--format", "srt,json", "--output", str(output)]
    start, peak = time.monotonic(), 0.0
    process = subprocess.Popen([sys.executable, "-m", "kikitori", *command], start_new_session=True)
    while process.poll() is None:
        peak = max(peak, memory_mb(process.pid))
        if kill_after_s is not None and time.monotonic() - start > kill_after_s:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(EVERY_S)
    if process.returncode != (0 if kill_after_s is None else -signal.SIGKILL):
        sys.exit(f"kikitori transcribe ended with {process.returncode}")
    return time.monotonic() - start, peak


def memory_mb(group: int) -> float:
    """The resident memory of all processes of a process group, shared memory counted once for each process."""
    pages = 0
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group:
                pages += int((place / "statm").read_text().split()[1])
        except (OSError, ProcessLookupError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def check_subtitles(text: str, duration_s: float) -> tuple[int, str]:
    """Returns the number of cues of an srt, and what is wrong with it."""
    cues = CUE.findall(text)
    if "".join(CUE.sub("", text)).strip():
        return len(cues), "text outside of cues"
    if [int(number) for number, *_ in cues] != list(range(1, len(cues) + 1)):
        return len(cues), "numbers with gaps"
    times = [seconds_of(stamp) for _, start, end, _ in cues for stamp in (start, end)]
    if times != sorted(times) or times[-1] > duration_s + 0.1:
        return len(cues), "times that go back or beyond the end"
    return len(cues), ""


def seconds_of(stamp: str) -> float:
    """The seconds of 01:02:03,456."""
    hours, minutes, rest = stamp.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest.replace(",", "."))


def coverage(segments: Sequence[dict[str, float]], duration_s: float) -> tuple[float, float]:
    """Returns the seconds that no piece covers, and those that two cover. Times are rounded to 10 ms."""
    edges = [(0.0, 0.0), *((piece["start"], piece["end"]) for piece in segments), (duration_s, duration_s)]
    steps = [following[0] - before[1] for before, following in itertools.pairwise(edges)]
    return sum(step for step in steps if step > 0.03), -sum(step for step in steps if step < -0.011)


if __name__ == "__main__":
    main()
