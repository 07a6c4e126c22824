"""kikitori transcribe: read audio files and folders to text.

What takes seconds to import is imported where it is used: --help and a wrong path should not wait for it.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import KikitoriError

AUDIO_SUFFIXES = {".mp3", ".wav", ".flac", ".ogg", ".opus", ".oga"}


def main() -> None:
    """One line of text a file on standard output, or JSON lines; a file that cannot be read is told and passed over."""
    parser = argparse.ArgumentParser(prog="kikitori transcribe", description=str(__doc__).splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="audio files, or folders to look through")
    parser.add_argument(
        "--model", required=True, help="a run folder, a model folder, or a name on the Hugging Face Hub"
    )
    parser.add_argument("--language", help="a language code (default: the model's own, else ja)")
    parser.add_argument("--format", choices=("txt", "jsonl"), default="txt", help="default: txt")
    arguments = parser.parse_args()
    try:
        files = find_audio(arguments.paths)
        failed = 0
        for path, seconds, text, error in read_files(files, arguments.model, arguments.language):
            failed += bool(error)
            if error:
                print(f"{path}: {error}", file=sys.stderr)
            elif arguments.format == "jsonl":
                print(json.dumps({"file": str(path), "seconds": seconds, "text": text}, ensure_ascii=False), flush=True)
            else:
                print(f"{path}\t{text}" if len(files) > 1 else text, flush=True)
    except KikitoriError as error:
        sys.exit(str(error))
    if failed:
        sys.exit(f"{failed} of {len(files)} files could not be read")


def find_audio(paths: Iterable[Path]) -> list[Path]:
    """The named files, and the audio files below the named folders. Raises KikitoriError where there is none."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise KikitoriError(f"{path} does not exist")
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES) if path.is_dir() else [path]
        if not found:
            raise KikitoriError(f"{path} holds no audio file ({', '.join(sorted(AUDIO_SUFFIXES))})")
        files += found
    return files


def saved_language(model: str) -> str | None:
    """The language that a fine-tuned model was saved with; a stock one has none."""
    from transformers import GenerationConfig

    try:
        return getattr(GenerationConfig.from_pretrained(model), "language", None)
    except OSError:
        return None


def read_files(files: list[Path], model: str, language: str | None) -> Iterator[tuple[Path, float, str, str]]:
    """(file, seconds, text, error) of each file, one after the other."""
    import torch
    import transformers

    from kikitori.audio.decoder_pool import Decoders
    from kikitori.audio.decoder_process import AudioError
    from kikitori.audio.waveform import SAMPLE_RATE, waveform
    from kikitori.inference.transcribe import transcribe
    from kikitori.model.loading import load_whisper

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = Path(model).expanduser() / "model"
    name = str(folder) if folder.is_dir() else model
    whisper = load_whisper(name, language or saved_language(name) or "ja", "transcribe")
    whisper.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    with Decoders(1) as decoders, progress_bar() as progress:
        task = progress.add_task("reading", total=len(files), visible=len(files) > 1)
        for path in files:
            try:
                heard = waveform(*decoders(path))
                yield path, round(len(heard) / SAMPLE_RATE, 2), transcribe(whisper, heard), ""
            except AudioError as error:
                yield path, 0.0, "", str(error.args[0])
            progress.advance(task)
