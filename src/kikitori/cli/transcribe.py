"""`kikitori transcribe`: transcribes audio files and folders.

Modules that take seconds to import are imported where they are used, so that --help and a wrong path are answered fast.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import set_cell_size

from kikitori.audio.formats import CONVERT, SUFFIXES, find_recordings
from kikitori.runtime.errors import DataError, KikitoriError, ModelError, describe_error
from kikitori.runtime.text import printable_line

if TYPE_CHECKING:
    from kikitori.inference.segments import Piece
    from kikitori.inference.transcribe import Segments

# Doubtful pieces of a file that are named on stderr.
NAMED = 5
# Seconds between two lines of progress where stderr is no terminal.
LINE_EVERY_S = 60.0


def parse() -> argparse.Namespace:
    """The options of the command line, checked together."""
    parser = argparse.ArgumentParser(
        prog="kikitori transcribe", description="Transcribe audio files and folders, to stdout."
    )
    parser.add_argument("paths", nargs="+", type=Path, help="audio files, or folders that are searched for them")
    parser.add_argument(
        "--model",
        required=True,
        help="folder of a run, a model or an adapter, name on the Hugging Face Hub, hub:owner/name@revision, or "
        "wandb:entity/project/artifact:alias",
    )
    parser.add_argument("--base", help="where MODEL is an adapter's folder: its base (default: the one that it names)")
    parser.add_argument(
        "--language",
        help="code or name, such as ja (default: that of the fine-tuned model, the first of several, else ja)",
    )
    parser.add_argument(
        "--task", help="transcribe or translate (default: that of the fine-tuned model, else transcribe)"
    )
    parser.add_argument(
        "--format",
        choices=("txt", "jsonl"),
        default="txt",
        help="txt: the text, after the file's name and a tab if there are several files; jsonl: file, seconds, text "
        "and its pieces, with their times and what speaks against their text (default: txt)",
    )
    parser.add_argument(
        "--segments",
        choices=("auto", "pauses", "timestamps"),
        default="auto",
        help="pauses: cuts a recording at its pauses; timestamps: reads window after window, and divides the text by "
        "the model's own timestamps; auto: timestamps for a recording longer than the model's window if the guard "
        "confirmed that the model kept them, otherwise pauses (default: auto)",
    )
    parser.add_argument(
        "--previous-text",
        action="store_true",
        help="with --segments timestamps: reads each window with the text before it (default: without)",
    )
    if wrong := [word for word in sys.argv[1:] if word.startswith(("model=", "language=", "format="))]:
        parser.error(f"{wrong[0]}: options are given as --{wrong[0].replace('=', ' ', 1)}")
    arguments = parser.parse_args()
    if arguments.previous_text and arguments.segments != "timestamps":
        parser.error("--previous-text: pieces between pauses are read without it; add --segments timestamps")
    return arguments


def main() -> None:
    """Prints one line of text or JSON per file. What may be wrong or cannot be read is reported on stderr."""
    arguments = parse()
    from kikitori.runtime.console import as_json

    try:
        files = find_audio(arguments.paths)
        failed = 0
        for path, seconds, text, pieces, error in transcribe_files(
            files,
            arguments.model,
            arguments.language,
            arguments.task,
            arguments.segments,
            arguments.previous_text,
            arguments.base,
        ):
            failed += bool(error)
            doubtful = [piece for piece in pieces if piece.doubt]
            if error:
                report(f"{path}: {error}")
            elif arguments.format == "jsonl":
                row = {"file": str(path), "seconds": seconds, "text": text, "pieces": list(map(asdict, pieces))}
                print(as_json(row), flush=True)
            else:
                text = printable_line(" ".join(text.split()))
                print(f"{printable_line(str(path))}\t{text}" if len(files) > 1 else text, flush=True)
            if doubtful:
                report(f"{path}: {describe(doubtful)}")
    except KikitoriError as error:
        # The model, its language and its task are options here, not keys.
        message = describe_error(error)
        for option in ("name", "language", "task", "base"):
            message = message.replace(f"model.{option}", "--model" if option == "name" else f"--{option}")
        sys.exit(message.replace("--model=", "--model ").replace("--base=", "--base "))
    if failed:
        sys.exit(f"{failed} of {len(files)} files could not be read")


def find_audio(paths: Iterable[Path]) -> list[Path]:
    """The given files, and the audio files in the given folders; names files that cannot be decoded on stderr.

    Raises DataError if a path does not exist, or a folder has none.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            if not path.is_file():
                raise DataError(f"{path} is a pipe or device; write the recording to a file first")
            files.append(path)
            continue
        readable, unreadable = find_recordings(path)
        if not readable:
            passed = f"; it holds {by_suffix(unreadable)}" if unreadable else ""
            raise DataError(f"{path} holds no file that can be read ({', '.join(SUFFIXES)}){passed}")
        if unreadable:
            report(f"{path}: passed over {by_suffix(unreadable)}")
        files += readable
    return files


def by_suffix(files: Sequence[Path]) -> str:
    """Counts and names files that cannot be decoded, with the remedy."""
    counts = ", ".join(f"{count} {suffix}" for suffix, count in Counter(p.suffix.lower() for p in files).most_common())
    return f"{counts} (such as {files[0].name}), which cannot be decoded; {CONVERT}"


def report(line: str) -> None:
    """Prints a line on stderr, which may hold the name of a file."""
    print(printable_line(line), file=sys.stderr)


def describe(doubtful: "Sequence[Piece]") -> str:
    """Names doubtful pieces in one line: check 12.3 to 18.0 s (repeats itself), ...; no speech in 2 pieces (6 s)."""
    empty = [piece for piece in doubtful if piece.doubt == "no speech"]
    wrong = [piece for piece in doubtful if piece.doubt != "no speech"]
    named = [f"{piece.start_s:.1f} to {piece.end_s:.1f} s ({piece.doubt})" for piece in wrong[:NAMED]]
    more = f" and {len(wrong) - NAMED} more pieces (--format jsonl has all)" if len(wrong) > NAMED else ""
    parts = [f"check {', '.join(named)}{more}"] if wrong else []
    if empty:
        seconds = sum(piece.end_s - piece.start_s for piece in empty)
        parts.append(f"no speech in {len(empty)} piece{'s' * (len(empty) > 1)} ({seconds:.0f} s)")
    return "; ".join(parts)


def transcribe_files(
    files: list[Path],
    model: str,
    language: str | None,
    task: str | None,
    segments: "Segments" = "auto",
    previous_text: bool = False,
    base: str | None = None,
) -> "Iterator[tuple[Path, float, str, list[Piece], str]]":
    """Yields file, seconds, text, pieces and error of each file. Raises ModelError if the model cannot be loaded."""
    import torch
    import transformers

    from kikitori.audio.decoder_pool import Decoders
    from kikitori.audio.formats import AudioError
    from kikitori.audio.waveform import SAMPLE_RATE
    from kikitori.inference.reading import choose_reading
    from kikitori.inference.timestamps import timestamp_rule
    from kikitori.inference.transcribe import is_long, joined, read_recording, transcribe_pieces
    from kikitori.model.loading import load_whisper

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if model.endswith(".ckpt"):
        raise ModelError(
            f"--model {model} is a checkpoint; give the folder of its run. It holds the model of the best checkpoint "
            "once the run has completed; kikitori evaluate checkpoint=FILE scores any checkpoint"
        )
    whisper = load_whisper(model, language, task, base=base)
    if whisper.languages and language is None:
        own = whisper.processor.language
        report(f"{model} was trained on {', '.join(whisper.languages)}: read as {own} (--language chooses another)")
    if segments == "timestamps":
        timestamp_rule(whisper)  # before the first file is decoded
        if whisper.trained_on and not whisper.trained_on.get("timestamps"):
            report(f"{model} was trained without timestamps, so its times may be wrong; see --segments pauses")
    whisper.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    is_told = segments != "auto"
    with Decoders(1) as decoders:
        for number, path in enumerate(files, 1):
            try:
                samples = read_recording(decoders, path)
            except AudioError as error:
                yield path, 0.0, "", [], str(error.args[0])
                continue
            seconds = len(samples) / SAMPLE_RATE
            if not is_told and is_long(whisper, samples):
                is_told, reading = True, choose_reading(whisper)
                report(f"recordings longer than the model's window are read by {reading.segments}: {reading.reason}")
            progress = Progress(f"{number} of {len(files)}: {path.name}", seconds)
            pieces = transcribe_pieces(
                whisper, samples, advance=progress.advance, segments=segments, previous_text=previous_text
            )
            progress.close()
            yield path, round(seconds, 2), joined(whisper, pieces), pieces, ""


class Progress:
    """Progress through one file on stderr: a line that is overwritten in a terminal, elsewhere a line a minute."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self.seconds, self.done = printable_line(name), seconds, 0.0
        self.shown = time.monotonic()

    def advance(self, seconds: float) -> None:
        """Adds seconds of audio that were read."""
        self.done += seconds
        line = f"{self.name}: {100 * self.done / self.seconds:.0f} % of {self.seconds:.0f} s"
        if sys.stderr.isatty():
            # A line that is folded could not be overwritten.
            print(
                "\r\033[K" + set_cell_size(line, os.get_terminal_size(2).columns - 1),
                end="",
                file=sys.stderr,
                flush=True,
            )
        elif time.monotonic() - self.shown >= LINE_EVERY_S:
            print(line, file=sys.stderr, flush=True)
            self.shown = time.monotonic()

    def close(self) -> None:
        """Removes the line from a terminal."""
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
