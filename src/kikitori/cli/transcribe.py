"""`kikitori transcribe`: transcribes audio files and folders.

Modules that take seconds to import are imported where they are used, so that --help and a wrong path are answered fast.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from kikitori.runtime.console import progress_bar
from kikitori.runtime.errors import KikitoriError, ModelError

AUDIO_SUFFIXES = {".mp3", ".wav", ".flac", ".ogg", ".opus", ".oga"}


def main() -> None:
    """Prints one line of text or JSON per file. A file that cannot be read is reported on stderr and skipped."""
    parser = argparse.ArgumentParser(prog="kikitori transcribe", description="Transcribe audio files and folders.")
    parser.add_argument("paths", nargs="+", type=Path, help="audio files, or folders that are searched for them")
    parser.add_argument("--model", required=True, help="run folder, model folder, or name on the Hugging Face Hub")
    parser.add_argument("--language", help="language code such as ja (default: that of the fine-tuned model, else ja)")
    parser.add_argument("--format", choices=("txt", "jsonl"), default="txt", help="default: txt")
    arguments = parser.parse_args()
    try:
        files = find_audio(arguments.paths)
        failed = 0
        for path, seconds, text, error in transcribe_files(files, arguments.model, arguments.language):
            failed += bool(error)
            if error:
                print(f"{path}: {error}", file=sys.stderr)
            elif arguments.format == "jsonl":
                print(json.dumps({"file": str(path), "seconds": seconds, "text": text}, ensure_ascii=False), flush=True)
            else:
                print(f"{path}\t{text}" if len(files) > 1 else text, flush=True)
    except KikitoriError as error:
        # The model is an option here, not a key.
        sys.exit(str(error).replace("model.name=", "--model "))
    if failed:
        sys.exit(f"{failed} of {len(files)} files could not be read")


def find_audio(paths: Iterable[Path]) -> list[Path]:
    """The given files, and the audio files in the given folders. Raises KikitoriError if a path or folder has none."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise KikitoriError(f"{path} does not exist")
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES) if path.is_dir() else [path]
        if not found:
            raise KikitoriError(f"{path} holds no audio file ({', '.join(sorted(AUDIO_SUFFIXES))})")
        files += found
    return files


def transcribe_files(files: list[Path], model: str, language: str | None) -> Iterator[tuple[Path, float, str, str]]:
    """Yields file, seconds, text and error of each file. Raises ModelError if the model cannot be loaded."""
    import torch
    import transformers

    from kikitori.audio.decoder_pool import Decoders
    from kikitori.audio.formats import AudioError
    from kikitori.audio.waveform import SAMPLE_RATE
    from kikitori.inference.transcribe import transcribe
    from kikitori.model.loading import load_whisper, model_folder

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    path = Path(model).expanduser()
    if path.is_file():
        raise ModelError(f"--model {model} is a file; give the folder of the run, or a folder with a model")
    whisper = load_whisper(str(model_folder(path, f"--model {model}")) if path.is_dir() else model, language)
    whisper.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    with Decoders(1) as decoders, progress_bar() as progress:
        task = progress.add_task("transcribing", total=len(files), visible=len(files) > 1)
        for path in files:
            try:
                samples = decoders(path)
                yield path, round(len(samples) / SAMPLE_RATE, 2), transcribe(whisper, samples), ""
            except AudioError as error:
                yield path, 0.0, "", str(error.args[0])
            progress.advance(task)
