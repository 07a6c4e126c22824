"""The page's server: its files, the models, the examples, recordings to read and rows to save."""

import asyncio
import io
import json
import shlex
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryFile

import numpy as np
import soundfile
from aiohttp import BodyPartReader, MultipartReader, StreamReader, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler
from numpy.typing import NDArray

from kikitori.audio.decoder_pool import Decoder
from kikitori.audio.decoder_process import MAX_BYTES
from kikitori.audio.waveform import SAMPLE_RATE, to_float, to_int16
from kikitori.demo.access import Access, add_headers
from kikitori.demo.examples import Example
from kikitori.demo.models import ShownModel
from kikitori.demo.reading import read
from kikitori.demo.saving import LIST, one_line_of, save_recording, text_fault
from kikitori.demo.turns import Check, Event, Turns, Work, describe, is_expected
from kikitori.inference.checks import is_silent
from kikitori.runtime.errors import one_line
from kikitori.runtime.paths import shown_path

TEMPLATES = Path(__file__).parent / "templates"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# Recordings that are sent or read at a time, and seconds in which nothing of one arrives until it is given up.
MAX_OPEN, IDLE_S = 16, 60.0
# Bytes of a recording to save, and of its text; seconds of the shortest, as data.min_duration_s.
MAX_SAVED_BYTES, MAX_TEXT_BYTES, SHORTEST_S = 2**26, 2**14, 0.3
# Bytes that are received at a time.
CHUNK = 2**16


class Refused(Exception):  # noqa: N818
    """A request is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Server:
    """The application. save: the folder of saved recordings. why: there are no examples, if there are none."""

    def __init__(
        self, models: Sequence[ShownModel], examples: Sequence[Example], why: str, save: Path, access: Access
    ) -> None:
        self.models, self.examples, self.why, self.save_folder = models, examples, why, save
        self.turns, self.open = Turns(), 0
        self.app = web.Application(middlewares=[answer_errors, access.middleware])
        self.app.on_response_prepare.append(add_headers)
        self.app.on_cleanup.append(self._close)
        for path in sorted(TEMPLATES.iterdir()):
            self.app.router.add_get("/" if path.name == "page.html" else f"/{path.name}", partial(_file, path))
        self.app.router.add_get("/api/state", self.state)
        self.app.router.add_get(r"/api/examples/{number:\d{1,3}}", self.example)
        self.app.router.add_post("/api/read", self.read)
        self.app.router.add_post("/api/save", self.save)

    async def _close(self, _: web.Application) -> None:
        await asyncio.to_thread(self.turns.close)

    @property
    def longest_s(self) -> float:
        """Seconds of the longest recording that all models can be trained on."""
        return min(model.whisper.processor.window_s for model in self.models)

    async def state(self, _: web.Request) -> web.Response:
        """What the page shows before anything is read."""
        path = shown_path(self.save_folder / LIST)
        tuned = self.models[-1]
        command = ["kikitori", "train", f"model.name={tuned.place}", "data=manifest", f"data.manifest={path}"]
        return web.json_response(
            {
                "models": [model.as_plain() for model in self.models],
                "examples": [example.as_plain() for example in self.examples],
                "why_no_examples": self.why,
                "list": path,
                "command": shlex.join([*command, "data.held_out=0.1"]),
                "max_bytes": MAX_BYTES,
                "longest_s": self.longest_s,
            }
        )

    async def example(self, request: web.Request) -> web.Response:
        """The audio of an example as a wav file."""
        file = io.BytesIO()
        soundfile.write(file, self._example(request.match_info["number"]).samples, SAMPLE_RATE, format="WAV")
        return web.Response(body=file.getvalue(), content_type="audio/wav")

    def _example(self, number: str) -> Example:
        if not number.isascii() or not number.isdecimal() or int(number) >= len(self.examples):
            raise Refused(404, "There is no such example.")
        return self.examples[int(number)]

    async def read(self, request: web.Request) -> web.StreamResponse:
        """Reads the recording in the body, or an example; answers with a line of JSON for each event."""
        whispers = [model.whisper for model in self.models]
        if "example" in request.query:
            example = self._example(request.query["example"])
            return await self._stream(request, partial(read, example.samples, whispers, example.reference))

        def work(check: Check) -> Generator[Event, None, None]:
            with decoded(path, check) as samples:
                yield from read(samples, whispers, None, check)

        async with self._received(request.content, request.content_length or 0, MAX_BYTES) as path:
            return await self._stream(request, work)

    async def _stream(self, request: web.Request, work: Work) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async with aclosing(self.turns.events(work)) as events:
            async for event in events:
                await response.write(json.dumps(event).encode() + b"\n")
        await response.write_eof()
        return response

    async def save(self, request: web.Request) -> web.Response:
        """Saves a recording with its text, two parts of a form, and answers with the number of rows."""
        if request.content_type != "multipart/form-data":
            raise Refused(415, "A recording is saved with a form of its text and audio.")
        with damaged_form():
            form = await request.multipart()
            text = one_line_of(await asyncio.wait_for(_text(form), IDLE_S))
        if fault := text_fault(text, self.models[-1].whisper.processor):
            raise Refused(422, fault)
        with damaged_form():
            recording = await asyncio.wait_for(form.next(), IDLE_S)
        if not isinstance(recording, BodyPartReader):
            raise Refused(400, "The form has no recording.")
        async with self._received(recording, request.content_length or 0, MAX_SAVED_BYTES) as path:
            rows = await asyncio.to_thread(self._save, path, text)
        return web.json_response({"rows": rows})

    def _save(self, path: Path, text: str) -> int:
        with decoded(path) as samples:
            seconds = len(samples) / SAMPLE_RATE
            if not SHORTEST_S <= seconds <= self.longest_s:
                raise Refused(
                    422, f"A clip to train on has {SHORTEST_S} to {self.longest_s:g} s, and this one {seconds:.2f} s."
                )
            if is_silent(to_float(samples)):
                raise Refused(422, "The recording is silent, so there is nothing to train on.")
            return save_recording(self.save_folder, samples, text)

    @asynccontextmanager
    async def _received(self, body: StreamReader | BodyPartReader, stated: int, most: int) -> AsyncIterator[Path]:
        """Receives a recording into a file, which is removed with the block. stated: bytes that the request has."""
        if self.open >= MAX_OPEN:
            raise Refused(503, f"{MAX_OPEN} recordings are being read already: try again in a minute.")
        if stated > most + MAX_TEXT_BYTES:
            raise Refused(413, f"The file has {stated / 2**30:.1f} GB, over {most / 2**30:g} GB: split it.")
        self.open += 1
        try:
            with NamedTemporaryFile(prefix="kikitori-") as file:
                while chunk := await asyncio.wait_for(_chunk(body), IDLE_S):
                    if file.tell() + len(chunk) > most:
                        raise Refused(413, f"The file has more than {most / 2**30:g} GB: split it.")
                    file.write(chunk)
                file.flush()
                yield Path(file.name)
        finally:
            self.open -= 1


@contextmanager
def decoded(path: Path, check: Check = lambda: None) -> Iterator[NDArray[np.int16]]:
    """Decodes a recording to (samples,) at 16 kHz, in a file, so that its length takes no memory.

    Each recording has a decoder process of its own, so none is left in the middle of somebody else's. Raises AudioError
    if the recording cannot be used.
    """
    with TemporaryFile() as file:
        with closing(Decoder()) as decoder:
            for part in decoder.stream(path):
                check()
                file.write(to_int16(part.samples).tobytes())
        file.flush()
        empty = np.empty(0, np.int16)
        yield np.memmap(file, np.int16, "r") if file.tell() else empty


@contextmanager
def damaged_form() -> Iterator[None]:
    """Refuses a form that cannot be read."""
    try:
        yield
    except ValueError as error:
        raise Refused(400, f"The form is damaged: {one_line(error)}.") from error


async def _chunk(body: StreamReader | BodyPartReader) -> bytes:
    if isinstance(body, StreamReader):
        return await body.readany()
    with damaged_form():
        return await body.read_chunk(CHUNK)


async def _text(form: MultipartReader) -> str:
    """The text in the first part of a form."""
    part = await form.next()
    if not isinstance(part, BodyPartReader) or part.name != "text":
        raise Refused(400, "The form has no text.")
    data = b""
    while chunk := await part.read_chunk(CHUNK):
        if len(data := data + chunk) > MAX_TEXT_BYTES:
            raise Refused(413, "The text is too long for one clip: save a shorter recording.")
    return data.decode(errors="replace")


async def _file(path: Path, _: web.Request) -> web.Response:
    return web.Response(text=path.read_text(encoding="utf-8"), content_type=TYPES[path.suffix])


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers errors with a sentence in JSON. Those of the HTTP protocol keep their status."""
    try:
        return await handler(request)
    except Refused as error:
        return web.json_response({"error": str(error)}, status=error.status)
    except TimeoutError:
        return web.json_response({"error": "The recording did not arrive: send it again."}, status=408)
    except web.HTTPException as error:
        return web.json_response({"error": f"{error.reason}."}, status=error.status)
    except (HttpProcessingError, web.RequestPayloadError) as error:
        return web.json_response({"error": f"The request is damaged: {one_line(error)}."}, status=400)
    except ConnectionError:  # the visitor has gone
        raise
    except Exception as error:
        return web.json_response({"error": describe(error)}, status=422 if is_expected(error) else 500)
