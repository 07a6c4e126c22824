"""Reads recordings of any number and length with one model: short ones together, long ones section by section."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from kikitori.audio.decoder_pool import Decoder
from kikitori.audio.decoder_process import MAX_STREAM_S
from kikitori.audio.formats import AudioError
from kikitori.audio.waveform import SAMPLE_RATE
from kikitori.inference.checks import SILENCE_PEAK
from kikitori.inference.generate import Engine
from kikitori.inference.reading import choose_reading
from kikitori.inference.segments import Piece
from kikitori.inference.transcribe import Segments, is_long, moved, read_by_pauses, transcribe_pieces
from kikitori.runtime.processes import return_free_memory
from kikitori.transcripts.formats import Transcript
from kikitori.transcripts.progress import Progress
from kikitori.transcripts.record import Read, Record
from kikitori.transcripts.sections import CUT_WITHIN_S, Section, sections_of
from kikitori.transcripts.sources import Source

# Seconds of a section, at most.
SECTION_S = 120
# Recordings are read together up to this many seconds and this many of them: a section of a long one, or many batches.
GROUP_S, GROUP = SECTION_S - CUT_WITHIN_S, 64


@dataclass(frozen=True)
class Options:
    """How recordings are read.

    segments, previous_text: see `transcribe_pieces`. detect_language: whether each has its own language. only_speech:
    silences everything else in (samples,) at 16 kHz. note: called once with how long recordings are read, if that is
    chosen here. batch_size: see `transcribe_pieces`.
    """

    segments: Segments = "auto"
    previous_text: bool = False
    detect_language: bool = False
    only_speech: Callable[[Tensor], Tensor] = lambda samples: samples
    note: Callable[[str], None] = lambda line: None
    batch_size: int = 4


@dataclass
class Recording:
    """A recording while it is read: what was read of it, or why it cannot be."""

    source: Source
    record: Record
    error: str = ""
    language: str | None = None
    language_probability: float | None = None
    segments: Segments = "auto"

    def transcript(self, engine: Engine) -> Transcript:
        """All that was read."""
        last = self.record.sections[-1]
        processor = engine.processor.of(last.language)
        seconds, pieces = round(last.end / SAMPLE_RATE, 2), self.record.pieces
        path = str(self.source.path)
        return Transcript(path, seconds, pieces, last.language, processor.text_language, last.language_probability)


def read_recordings(
    engine: Engine,
    sources: Iterable[Source],
    options: Options,
    record_of: Callable[[Source], Record] = lambda source: Record(),
    progress: Progress | None = None,
) -> Iterator[Recording]:
    """Yields each recording, in their order, once it is read or has failed.

    A recording is decoded in another process, in sections, of which only those that are read are in memory. record_of:
    what was read of a recording before, which is not read again.
    """
    progress = progress or Progress({})
    reader = _Reader(engine, options, progress)
    with closing(Decoder(MAX_STREAM_S)) as decoder:
        jobs = _jobs(decoder, sources, options, record_of, progress)
        for group in _grouped(jobs):
            reader.read([job for job in group if job.section])
            return_free_memory()
            for job in group:
                if job.section is None or job.section.is_last:
                    progress.closed()
                    yield job.recording


@dataclass
class _Job:
    """A section of a recording to read; None if nothing of it is left, or it has failed."""

    recording: Recording
    section: Section | None = None


def _jobs(
    decoder: Decoder,
    sources: Iterable[Source],
    options: Options,
    record_of: Callable[[Source], Record],
    progress: Progress,
) -> Iterator[_Job]:
    for source in sources:
        recording = Recording(source, record := record_of(source))
        last = record.sections[-1] if record.sections else None
        begin = last.end if last else 0
        progress.opened(source.path, begin / SAMPLE_RATE, begin / SAMPLE_RATE)
        if record.is_finished:
            yield _Job(recording)
            continue
        if last:
            recording.segments = "timestamps" if last.segments == "timestamps" else "pauses"
            if not (options.detect_language and last.language_probability is None):
                recording.language, recording.language_probability = last.language, last.language_probability
        try:
            with closing(decoder.stream(source.path)) as parts:
                for section in sections_of(parts, SECTION_S, begin, options.only_speech):
                    progress.opened(source.path, section.known_s)
                    begin = section.end
                    yield _Job(recording, section)
        except AudioError as error:
            progress.opened(source.path, begin / SAMPLE_RATE)
            recording.error = str(error.args[0])
            yield _Job(recording)


def _grouped(jobs: Iterable[_Job]) -> Iterator[list[_Job]]:
    group: list[_Job] = []
    for job in jobs:
        group.append(job)
        seconds = sum(len(other.section.samples) for other in group if other.section) / SAMPLE_RATE
        if seconds >= GROUP_S or len(group) >= GROUP:
            yield group
            group = []
    if group:
        yield group


@dataclass
class _Reader:
    engine: Engine
    options: Options
    progress: Progress
    has_noted: bool = False

    def read(self, jobs: Sequence[_Job]) -> None:
        """Reads sections, and adds them to the records of their recordings."""
        with self.engine.ready():
            if self.options.detect_language:
                self._detect([job for job in jobs if job.recording.language is None])
            for job in jobs:
                if job.recording.segments == "auto":
                    job.recording.segments = self._segments(job)
            by_pauses = iter(self._by_pauses([job for job in jobs if job.recording.segments == "pauses"]))
            for job in jobs:
                is_paused = job.recording.segments == "pauses"
                self._add(job, next(by_pauses) if is_paused else self._by_timestamps(job))

    def _by_pauses(self, jobs: Sequence[_Job]) -> list[list[Piece]]:
        sounds = [job.section.samples for job in jobs if job.section]
        languages = [job.recording.language for job in jobs]
        return read_by_pauses(self.engine, sounds, languages, self.options.batch_size, self.progress.advance)

    def _by_timestamps(self, job: _Job) -> list[Piece]:
        assert job.section
        options, advance = self.options, self.progress.advance
        language, samples = job.recording.language, job.section.samples
        return transcribe_pieces(
            self.engine, samples, options.batch_size, advance, "timestamps", options.previous_text, language
        )

    def _segments(self, job: _Job) -> Segments:
        section, wanted = job.section, self.options.segments
        assert section
        if wanted != "auto":
            return wanted
        if section.is_last and not section.start and not is_long(self.engine, section.samples):
            return "pauses"
        reading = choose_reading(self.engine)
        if not self.has_noted:
            self.options.note(
                f"recordings longer than the model's window are read by {reading.segments}: {reading.reason}"
            )
            self.has_noted = True
        return reading.segments

    def _detect(self, jobs: Sequence[_Job]) -> None:
        """Sets the language of recordings by their first seconds with sound."""
        heard = [(job.recording, sound) for job in jobs if job.section and len(sound := self._heard(job.section))]
        most = max(1, self.options.batch_size // 2)  # whole windows
        for i in range(0, len(heard), most):
            batch = heard[i : i + most]
            for (recording, _), row in zip(batch, self.engine.detect([sound for _, sound in batch]), strict=True):
                if recording.language is None:
                    recording.language, recording.language_probability = self._most_probable(row)

    def _heard(self, section: Section) -> Tensor:
        """The first window of a section that begins with a sound; empty if there is none."""
        loud = (section.samples.abs() > SILENCE_PEAK).nonzero()
        begin = int(loud[0]) if len(loud) else len(section.samples)
        return section.samples[begin : begin + round(self.engine.processor.window_s * SAMPLE_RATE)]

    def _most_probable(self, row: dict[str, float]) -> tuple[str, float]:
        """The most probable language and its probability: among those that the model was trained on, if several."""
        own = {code: row[code] for code in self.engine.languages if code in row} or row
        code = max(own, key=own.__getitem__)
        return code, own[code] / sum(own.values())

    def _add(self, job: _Job, pieces: Sequence[Piece]) -> None:
        recording, section = job.recording, job.section
        assert section
        at_s = section.start / SAMPLE_RATE
        moved_pieces = [moved(piece, at_s) for piece in pieces] if section.start else list(pieces)
        language = recording.language or self.engine.processor.language
        probability, segments = recording.language_probability, recording.segments
        recording.record.add(Read(section.end, section.is_last, language, probability, segments, moved_pieces))


def sizes_of(sources: Iterable[Source]) -> dict[Path, int]:
    """The bytes of each recording, for `Progress`; none of one that is gone."""
    return {source.path: source.path.stat().st_size if source.path.exists() else 0 for source in sources}
