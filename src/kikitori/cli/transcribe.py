"""`kikitori transcribe`: transcribes audio files and folders.

Modules that take seconds to import are imported where they are used, so that --help and a wrong path are answered fast.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kikitori.runtime.errors import (
    ConfigError,
    KikitoriError,
    Stopped,
    describe_error,
    is_out_of_memory,
    one_line,
    remedy_of,
)
from kikitori.runtime.text import printable_line

if TYPE_CHECKING:
    from kikitori.inference.segments import Piece
    from kikitori.transcripts.formats import Transcript

# Doubtful pieces of a file that are named on stderr.
NAMED = 5
# Here, since those of `transcripts.formats` take seconds to import.
FORMATS = ("txt", "srt", "vtt", "json", "tsv", "jsonl")


def parse() -> argparse.Namespace:
    """The options of the command line, checked together."""
    parser = argparse.ArgumentParser(
        prog="kikitori transcribe", description="Transcribe audio files and folders, to stdout or to a folder."
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
        help="code or name, such as ja, or auto: that of each recording (default: that of the fine-tuned model, the "
        "first of several, else ja)",
    )
    parser.add_argument(
        "--task", help="transcribe or translate (default: that of the fine-tuned model, else transcribe)"
    )
    parser.add_argument(
        "--format",
        type=formats,
        default=("txt",),
        help="txt: the text, after the file's name and a tab if there are several files; jsonl: file, seconds, text "
        "and its pieces, with their times, tokens and what speaks against their text; srt, vtt, json, tsv: subtitles "
        "and the files of openai-whisper. Several, as in srt,json, need --output (default: txt)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="writes a file for each recording and format, and leaves out what is there from an earlier call with the "
        "same model and options",
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
        "--pauses",
        choices=("energy", "silero"),
        default="energy",
        help="energy: pauses are the quietest moments; silero: where silero-vad finds no speech, of which nothing is "
        "read (default: energy)",
    )
    parser.add_argument(
        "--previous-text",
        action="store_true",
        help="with --segments timestamps: reads each window with the text before it (default: without)",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least_one,
        default=4,
        metavar="N",
        help="pieces of up to 15 s that are read at a time, and fewer longer ones; fewer take less memory, more are "
        "faster on a GPU (default: 4)",
    )
    if wrong := [word for word in sys.argv[1:] if word.startswith(("model=", "language=", "format="))]:
        parser.error(f"{wrong[0]}: options are given as --{wrong[0].replace('=', ' ', 1)}")
    arguments = parser.parse_args()
    if arguments.previous_text and arguments.segments != "timestamps":
        parser.error("--previous-text: pieces between pauses are read without it; add --segments timestamps")
    return arguments


def formats(text: str) -> tuple[str, ...]:
    """The formats of a comma list, each once."""
    found = tuple(dict.fromkeys(text.split(",")))
    if unknown := [name for name in found if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"invalid choice: {unknown[0]!r} (choose from {', '.join(FORMATS)})")
    return found


def at_least_one(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not 0 < int(text) < 10**6:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def main() -> None:
    """Prints or writes the transcript of each file. What may be wrong or cannot be read is reported on stderr."""
    arguments = parse()
    resumes = "; the same command resumes" if arguments.output else ""
    try:
        transcribe(arguments)
    except Stopped as error:
        raise Stopped(error.number, resumes) from error
    except BrokenPipeError:
        raise
    except Exception as error:
        if not isinstance(error, KikitoriError | OSError | MemoryError) and not remedy_of(error):
            raise
        sys.exit(message_of(error, arguments.batch_size, resumes))


def message_of(error: Exception, batch_size: int, resumes: str) -> str:
    """What an error says to a person, in terms of the options. resumes: is added where the machine is the cause."""
    if is_out_of_memory(error) or isinstance(error, MemoryError):
        return f"--batch-size {batch_size}: {one_line(error)}; pass a smaller one, or a smaller model{resumes}"
    if not isinstance(error, KikitoriError):
        return f"{remedy_of(error) or describe_error(error)}{resumes}"
    message = describe_error(error)
    for option in ("name", "language", "task", "base"):
        message = message.replace(f"model.{option}", "--model" if option == "name" else f"--{option}")
    return message.replace("--model=", "--model ").replace("--base=", "--base ").replace("--output=", "--output ")


def transcribe(arguments: argparse.Namespace) -> None:
    """Transcribes all files, and exits with 1 if some could not be read."""
    from kikitori.transcripts.sources import find_sources

    sources = find_sources(arguments.paths, report)
    check_stdout(arguments, len(sources))
    from kikitori.transcripts.session import Wanted, transcribe_all

    options = {name: value for name, value in vars(arguments).items() if name not in ("paths", "format")}
    failed = before = 0
    for done in transcribe_all(sources, Wanted(**options, formats=arguments.format), report):
        failed += bool(done.error)
        before += done.was_read
        if done.transcript is None:
            report(f"{done.path}: {done.error}")
            continue
        if not arguments.output:
            show(done.transcript, arguments.format[0], with_name=len(sources) > 1)
        if doubtful := [piece for piece in done.transcript.pieces if piece.doubt and not done.was_read]:
            report(f"{done.path}: {describe(doubtful)}")
    if arguments.output:
        earlier = f", {before} of them from an earlier call" if before else ""
        report(f"{arguments.output}: {len(sources) - failed} of {len(sources)} transcripts{earlier}")
    if failed:
        sys.exit(f"{failed} of {len(sources)} files could not be read")


def check_stdout(arguments: argparse.Namespace, files: int) -> None:
    """Raises ConfigError for formats that cannot be told apart on stdout."""
    if arguments.output:
        return
    several = ",".join(arguments.format)
    if len(arguments.format) > 1:
        raise ConfigError(f"--format {several}: several formats need a folder; add --output FOLDER")
    if files > 1 and several not in ("txt", "jsonl"):
        raise ConfigError(f"--format {several} of {files} files needs a folder; add --output FOLDER")


def show(transcript: "Transcript", name: str, with_name: bool) -> None:
    """Prints a transcript; as txt in one line."""
    from kikitori.transcripts.formats import FORMATS, one_line

    if name == "txt":
        text = one_line(transcript.text)
        print(f"{printable_line(transcript.file)}\t{text}" if with_name else text, flush=True)
    else:
        print(FORMATS[name](transcript), end="", flush=True)


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
