"""One transcription from its options to its transcripts."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from xxhash import xxh3_128

from kikitori.audio.waveform import DECODER
from kikitori.engines.loading import AUTO, load_engine
from kikitori.engines.silero import load_silero
from kikitori.inference.generate import Engine
from kikitori.inference.reading import choose_reading
from kikitori.inference.timestamps import timestamp_rule
from kikitori.inference.transcribe import Segments, piece_limit_s
from kikitori.runtime.console import quiet_transformers
from kikitori.transcripts.folder import OutputFolder, locked
from kikitori.transcripts.formats import Transcript
from kikitori.transcripts.progress import Progress
from kikitori.transcripts.reader import Options, Recording, read_recordings, sizes_of
from kikitori.transcripts.record import Record
from kikitori.transcripts.sources import Source

# Increase it whenever the same model reads the same recording differently.
READING = 1

Pauses = Literal["energy", "silero"]


@dataclass(frozen=True)
class Wanted:
    """What a person asks for.

    model, language, task, base: see `load_engine`. segments, previous_text: see `transcribe_pieces`. pauses: what finds
    them. formats: of the files in `output`, None to write no files. batch_size: see `transcribe_pieces`.
    """

    model: str
    language: str | None
    task: str | None
    base: str | None
    segments: Segments
    previous_text: bool
    pauses: Pauses
    formats: Sequence[str]
    output: Path | None
    batch_size: int


class Done(NamedTuple):
    """A recording with its transcript, or with the reason why there is none.

    was_read: whether it was read in an earlier call.
    """

    path: Path
    transcript: Transcript | None
    error: str = ""
    was_read: bool = False


def transcribe_all(sources: Sequence[Source], wanted: Wanted, note: Callable[[str], None]) -> Iterator[Done]:
    """Yields each recording in its order, after its files are written. note: called with what a person should know.

    Raises ModelError if the model cannot be loaded, DataError if the folder cannot be used, OSError of its disk.
    """
    quiet_transformers()
    with ExitStack() as stack:
        if wanted.output:
            stack.enter_context(locked(wanted.output))
        only_speech = load_silero() if wanted.pauses == "silero" else lambda samples: samples
        engine = load_engine(wanted.model, wanted.language, wanted.task, wanted.base)
        _announce(engine, wanted, note)
        progress = Progress(sizes_of(sources))
        stack.callback(progress.clear)

        def noted(line: str) -> None:
            progress.clear()
            note(line)

        detects = wanted.language == AUTO
        options = Options(wanted.segments, wanted.previous_text, detects, only_speech, noted, wanted.batch_size)
        folder = OutputFolder(wanted.output, wanted.formats, settings_of(engine, wanted)) if wanted.output else None
        if folder:
            folder.check_free(sources)
        record_of = folder.record if folder else lambda source: Record()
        for recording in read_recordings(engine, sources, options, record_of, progress):
            progress.clear()
            yield _finished(recording, engine, folder, note)


def _finished(recording: Recording, engine: Engine, folder: OutputFolder | None, note: Callable[[str], None]) -> Done:
    """Writes the files of a recording that was read, or those that are missing of one that was read before."""
    source, record = recording.source, recording.record
    if recording.error:
        return Done(source.path, None, recording.error)
    transcript, was_read = recording.transcript(engine), record.is_finished
    if folder:
        for path in folder.write(source, record, transcript):
            note(f"{path} was changed since it was written, and stays as it is")
        if not was_read:
            record.finish()
    return Done(source.path, transcript, was_read=was_read)


def _announce(engine: Engine, wanted: Wanted, note: Callable[[str], None]) -> None:
    """Notes what the model does not suggest, and refuses what it cannot do, before the first file is decoded."""
    if engine.languages and wanted.language is None:
        own = engine.processor.language
        languages = ", ".join(engine.languages)
        note(f"{wanted.model} was trained on {languages}: read as {own} (--language chooses another, or auto)")
    if wanted.segments == "timestamps":
        timestamp_rule(engine.processor)
        if engine.trained_on and not engine.trained_on.get("timestamps"):
            note(f"{wanted.model} was trained without timestamps, so its times may be wrong; see --segments pauses")


def settings_of(engine: Engine, wanted: Wanted) -> str:
    """A digest of all on which the texts depend, besides the recording: weights, language and options."""
    weights = xxh3_128()
    for part in engine.weights():
        weights.update(part)
    processor = engine.processor
    facts = {
        "reading": [READING, DECODER],
        "weights": weights.hexdigest(),
        "engine": engine.settings(),
        "window": processor.window.as_plain(),
        "longest_s": piece_limit_s(engine),
        "trained_on": dict(engine.trained_on or {}),
        "language": AUTO if wanted.language == AUTO else processor.language,
        "languages": list(engine.languages),
        "task": processor.task,
        "segments": choose_reading(engine).segments if wanted.segments == "auto" else wanted.segments,
        "auto": wanted.segments == "auto",
        "previous_text": wanted.previous_text,
        "pauses": wanted.pauses,
    }
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
